"""How fast one stream moves memory: a whole Sterna migration beside a bare socket loop, in one run.

``python -m sterna_interop.bench_goodput`` sends the same memory both ways in alternation, plain TCP over
loopback, sender and receiver in two processes, memory of both sides touched beforehand. The bare loop is
`sendall` and `recv_into` of 1 MiB pieces and checks nothing; Sterna's time is that of the whole session,
from HELLO to BYE, with page hashes and memory digest. What counts is the median of the ratios, pair by pair.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable

import trio

from sterna import Destination, EmbeddedGuest, Outcome, Source
from sterna.net.tcp import TcpTransport

PIECE_BYTES = 1024 * 1024


def _touched(size: int, fill: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, size)
    for offset in range(0, size, len(fill)):
        memory[offset : offset + len(fill)] = fill[: size - offset]
    return memory


def _bare_send(sock: socket.socket, memory: mmap.mmap) -> None:
    view = memoryview(memory)
    for offset in range(0, len(view), PIECE_BYTES):
        sock.sendall(view[offset : offset + PIECE_BYTES])
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)


def _bare_receive(sock: socket.socket, memory: mmap.mmap) -> None:
    view, offset = memoryview(memory), 0
    while offset < len(view):
        count = sock.recv_into(view[offset : offset + PIECE_BYTES])
        if not count:
            raise ConnectionError("the sender ended early")
        offset += count
    sock.sendall(b"\0")


def _sterna_send(sock: socket.socket, memory: mmap.mmap) -> None:
    async def main() -> None:
        sock.setblocking(False)
        result = await Source(EmbeddedGuest(memoryview(memory)), TcpTransport(sock)).run()
        if result.outcome is not Outcome.COMPLETED:
            raise ConnectionError(f"{result}")

    trio.run(main)


def _sterna_receive(sock: socket.socket, memory: mmap.mmap) -> None:
    async def main() -> None:
        sock.setblocking(False)
        guest = EmbeddedGuest(memoryview(memory))
        await Destination(lambda _: guest, TcpTransport(sock)).run()

    trio.run(main)


def _run(
    send: Callable[[socket.socket, mmap.mmap], None],
    receive: Callable[[socket.socket, mmap.mmap], None],
    source: mmap.mmap,
    destination: mmap.mmap,
) -> float:
    """Seconds from the first byte to the end of the sender's part; the receiver is a child process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if not child:
            code = 1
            try:
                with server.accept()[0] as sock:
                    receive(sock, destination)
                code = 0
            finally:
                os._exit(code)
        with socket.create_connection(server.getsockname()) as sock:
            begin = time.perf_counter()
            send(sock, source)
            seconds = time.perf_counter() - begin
    _, status = os.waitpid(child, 0)
    if status:
        raise ChildProcessError(f"the receiver failed: status {status}")
    return seconds


def main() -> int:
    """Measure, check that the bytes are equal, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    source = _touched(arguments.bytes, os.urandom(16 * PIECE_BYTES))
    destination = _touched(arguments.bytes, b"\1" * PIECE_BYTES)
    bare, ours = [], []
    for run in range(arguments.runs + 1):
        pair = (
            _run(_bare_send, _bare_receive, source, destination),
            _run(_sterna_send, _sterna_receive, source, destination),
        )
        if run:  # the first pair warms up
            bare.append(pair[0])
            ours.append(pair[1])
            print(f"run {run}: bare {pair[0]:.3f} s, sterna {pair[1]:.3f} s", file=sys.stderr)
    if memoryview(source) != memoryview(destination):
        raise SystemExit("the memories differ")
    ratios = [b / s for b, s in zip(bare, ours, strict=True)]
    median = statistics.median(ratios)
    runs = {"bare": bare, "sterna": ours}
    rate = {name: arguments.bytes / statistics.median(each) for name, each in runs.items()}
    if arguments.json:
        print(json.dumps({"schema": 1, "bytes_s": rate, "ratios": ratios, "median": median}))
    else:
        print(f"bare {rate['bare'] / 1e9:.2f} GB/s, sterna {rate['sterna'] / 1e9:.2f} GB/s (medians)")
        print(f"sterna / bare: {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
