"""`sterna bench faults`: how long a guest waits for a page that is still at the source.

A guest of the process kind is moved with no round at all, over mutual TLS on loopback, while it writes: every
page that it touches first is asked for, beside the push of all others. The time is the guest's own, from its
access to its going on. Beside that stands the least that such an exchange can cost here: 4 KiB there and
4 KiB back over a TLS connection, between two processes that move the same number of bytes over another one,
while a guest of the same kind writes at the same rate. And beside both what a page can cost at least that
comes with all of its group: a request there and 64 KiB back.
"""

from __future__ import annotations

import json as json_module
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sterna.cli.output import Output
from sterna.cli.units import Json, Rate, Size
from sterna.core.words import rate_text, size_text
from sterna.errors import GuestError
from sterna.host import pki
from sterna.limits import CHUNK_BYTES
from sterna.net.tcp import do_not_pace_locally
from sterna.net.tls import TlsConfig
from sterna_interop.measured import Report
from sterna_interop.measuring import BARE, OURS, Measure, Runs, at_most, progress, take
from sterna_interop.memories import Memories
from sterna_interop.moving_bare import bare_receive, bare_send
from sterna_interop.transfers import Write, write_to

MEMORY_BYTES: Final = 256 << 20
RATE_BYTES_S: Final = 50 << 20
PAGE_BYTES: Final = 4096
REQUEST_BYTES: Final = 56  # a frame
GROUP: Final = "group"
TIMES: Final = 5.0  # the least exchange: what a guest should wait at most


def faults(
    *,
    memory: Size = MEMORY_BYTES,
    dirty_rate: Rate = RATE_BYTES_S,
    runs: Runs = 5,
    write: Write = None,
    json: Json = False,
) -> None:
    """How long a guest waits for its missing pages, beside a TLS ping-pong of 4 KiB under the same load.

    Args:
        memory: of the guest; all of it is missing when it begins to run.
        dirty_rate: what the guest writes a second.
        runs: turns of each way; medians are shown.
        write: file for the table, interop/BENCHMARKS.md; the benchmark's last one there is replaced.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    with tempfile.TemporaryDirectory(prefix="sterna-faults-") as directory, progress(output) as say:
        moved = Moved(memory, dirty_rate)
        pair = Pair(Path(directory), memory, dirty_rate)
        bare = PingPong(pair, PAGE_BYTES, PAGE_BYTES)
        group = PingPong(pair, REQUEST_BYTES, CHUNK_BYTES)
        yardstick = "4 KiB and back over TLS, beside the same bytes on another connection"
        measures = [
            Measure(
                name="p50",
                text="a page that is waited for, median",
                ways={OURS: moved, BARE: bare, GROUP: group},
                bounds={BARE: at_most(TIMES, TIMES)},
                yardstick=yardstick,
            ),
            Measure(
                name="p99",
                text="the same, of a hundred the slowest",
                ways={OURS: lambda: moved.p99_s, BARE: lambda: bare.p99_s, GROUP: lambda: group.p99_s},
                yardstick=yardstick,
            ),
            Measure(
                name="first_p50",
                text="the first page of a chunk, median",
                ways={OURS: lambda: moved.first_p50_s, BARE: lambda: bare.p50_s, GROUP: lambda: group.p50_s},
                bounds={BARE: at_most(TIMES, TIMES)},
                yardstick=yardstick,
            ),
            Measure(
                name="first_p99",
                text="the same, of a hundred the slowest",
                ways={OURS: lambda: moved.first_p99_s, BARE: lambda: bare.p99_s, GROUP: lambda: group.p99_s},
                yardstick=yardstick,
            ),
        ]
        taken = take(measures, runs, say)
    conditions = {
        "guest": f"{size_text(memory)}, by post-copy over mutual TLS; it writes {rate_text(dirty_rate)}",
        "a page that is waited for": "all waits, most of them for what was asked for behind another page",
        "the first page of a chunk": f"{moved.shares_text()} of all; the first wait in its 64 KiB",
        BARE: yardstick,
        GROUP: f"{REQUEST_BYTES} bytes there and 64 KiB back, likewise",
    }
    write_to(Report(bench="faults", runs=runs, taken=taken, conditions=conditions), write, output)


class Moved:
    """A turn: a whole migration of real processes; the median of what the guest has waited.

    Attributes:
        p99_s: of the last turn.
        first_p50_s: of its waits that were the first in their chunk.
        first_p99_s: likewise.
    """

    def __init__(self, memory: int, dirty_rate: float) -> None:
        self.p99_s = self.first_p50_s = self.first_p99_s = 0.0
        self._firsts, self._all = 0.0, 0.0
        self._command = (
            *(sys.executable, "-P", "-m", "sterna", "demo", "--guest", "process", "--json"),
            *("--switchover", "post-copy", "--memory", f"{memory}B", "--dirty-rate", f"{int(dirty_rate)}B/s"),
        )

    def __call__(self) -> float:
        """Seconds, the median of one migration."""
        done = subprocess.run(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        found = json_module.loads(done.stdout or b"{}")
        if done.returncode or not found.get("demand_faults"):
            raise GuestError(f"the demo has ended with exit code {done.returncode}: {found.get('failures')}")
        waits: dict[str, float] = found["demand_faults"]
        self.p99_s, self.first_p50_s, self.first_p99_s = (
            waits[name] for name in ("p99_s", "first_p50_s", "first_p99_s")
        )
        self._firsts += waits["first_count"]
        self._all += waits["count"]
        return waits["p50_s"]

    def shares_text(self) -> str:
        """How many of all waits, in all turns, were the first in their chunk."""
        return f"{self._firsts / self._all:.0%}"


class Pair:
    """Two hosts, by their TLS contexts; what is moved between them; and a guest that writes beside.

    Attributes:
        contexts: by whether it is the server's.
        memories: there and here.
    """

    def __init__(self, directory: Path, memory: int, dirty_rate: float) -> None:
        pki.init_ca(directory)
        self.contexts = {server: self._context(directory, server=server) for server in (True, False)}
        self.memories = Memories(memory)
        self._holder = directory / "holder"
        self._guest = ("--memory", str(memory), "--rate", str(int(dirty_rate)))

    @staticmethod
    def _context(directory: Path, *, server: bool) -> ssl.SSLContext:
        issued = pki.issue(directory, "there" if server else "here")
        config = TlsConfig(issued.certificate, issued.key, issued.authority, lambda *_: None)
        return config.context(server=server)

    @contextmanager
    def writing_guest(self) -> Iterator[None]:
        """It runs as long as this is entered."""
        command = (
            *(sys.executable, "-P", "-m", "sterna.guest.process", "--socket", str(self._holder)),
            *("--role", "source", "--die-with-parent", *self._guest),
        )
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()  # it says when it runs
                yield
            finally:
                process.kill()
        self._holder.unlink(missing_ok=True)


class PingPong:
    """A turn: a yardstick; the median of all round trips while the bytes were under way.

    Attributes:
        p50_s: of the last turn.
        p99_s: likewise.
    """

    def __init__(self, pair: Pair, asked_bytes: int, answered_bytes: int) -> None:
        """So many bytes go there and back."""
        self.p50_s = self.p99_s = 0.0
        self._pair = pair
        self._asked_bytes = asked_bytes
        self._answered_bytes = answered_bytes

    def __call__(self) -> float:
        """Seconds, the median of one transfer."""
        with self._pair.writing_guest(), socket.create_server(("127.0.0.1", 0)) as server:
            child = os.fork()
            if not child:
                self._source(server)
            try:
                trips = self._destination(server.getsockname())
            finally:
                status = os.waitpid(child, 0)[1]
        if status:
            raise ChildProcessError(f"the sender failed: status {status}")
        self._pair.memories.check()
        self.p99_s = statistics.quantiles(trips, n=100)[98]
        self.p50_s = statistics.median(trips)
        return self.p50_s

    def _source(self, server: socket.socket) -> None:
        """What the child does: bytes on the first connection, echoes on the second; it never returns."""
        code = 1
        try:
            bulk, pings = (
                self._pair.contexts[True].wrap_socket(_unpaced(server.accept()[0]), server_side=True)
                for _ in range(2)
            )
            echo = threading.Thread(target=self._answer, args=(pings,))
            echo.start()
            bare_send(bulk, self._pair.memories.sent)
            echo.join()  # until the other side has enough
            code = 0
        finally:
            os._exit(code)

    def _destination(self, address: tuple[str, int]) -> list[float]:
        self._pair.memories.clear()
        context = self._pair.contexts[False]
        with (
            context.wrap_socket(_unpaced(socket.create_connection(address)), server_hostname="there") as bulk,
            context.wrap_socket(
                _unpaced(socket.create_connection(address)), server_hostname="there"
            ) as pings,
        ):
            pings.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            receiver = threading.Thread(target=bare_receive, args=(bulk, self._pair.memories.arrived))
            receiver.start()
            trips = []
            while receiver.is_alive():
                begin = time.perf_counter()
                pings.sendall(bytes(self._asked_bytes))
                _receive(pings, self._answered_bytes)
                trips.append(time.perf_counter() - begin)
            receiver.join()
        return trips

    def _answer(self, sock: ssl.SSLSocket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = bytes(self._answered_bytes)
        try:
            while True:
                _receive(sock, self._asked_bytes)
                sock.sendall(answer)
        except OSError:
            return  # the other side has enough


def _unpaced(sock: socket.socket) -> socket.socket:
    """As Sterna's connections on one machine are."""
    do_not_pace_locally(sock)
    return sock


def _receive(sock: ssl.SSLSocket, count: int) -> None:
    view = memoryview(bytearray(count))
    while view.nbytes:
        came = sock.recv_into(view)
        if not came:
            raise ConnectionError("the other side has ended")
        view = view[came:]
