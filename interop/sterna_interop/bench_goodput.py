"""`sterna bench goodput`: how fast one stream moves memory, a whole migration beside a bare socket loop.

Plain TCP over loopback, sender and receiver in two processes. The bare loop is `sendall` and `recv_into` of
1 MiB pieces and checks nothing; Sterna's time is that of the whole session, from HELLO to BYE, with page
hashes and memory digest.
"""

from __future__ import annotations

import mmap
import socket
import time
from typing import Final

import trio

from sterna import Destination, EmbeddedGuest, Outcome, Source
from sterna.cli.output import Output
from sterna.cli.units import Json, Size
from sterna.errors import TransportError
from sterna.net.tcp import DEFAULT_OPTIONS, TcpTransport
from sterna.registry import ErrorCode
from sterna_interop.measuring import BARE, OURS, Measure, Report, Runs, progress, take
from sterna_interop.moving import Memories, Transfer, bare_receive, bare_send

SIZE_BYTES: Final = 1 << 30


def goodput(*, size: Size = SIZE_BYTES, runs: Runs = 5, json: Json = False) -> None:
    """How fast a migration moves memory over loopback, beside a bare socket loop.

    Args:
        size: memory that is moved in every turn, a multiple of 4KiB.
        runs: turns of each way; medians are shown.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    memories = Memories(size)
    ways = {OURS: Transfer(send, receive, memories), BARE: Transfer(bare_send, bare_receive, memories)}
    yardstick = "sendall and recv_into of 1 MiB, nothing checked"
    measures = [
        Measure(
            name="goodput",
            text="random memory, plain TCP, digest on",
            ways=ways,
            yardstick=yardstick,
            unit="bytes/s",
        ),
        Measure(
            name="cpu",
            text="CPU time for a GiB, both sides together",
            ways={name: lambda way=way: way.cpu_s for name, way in ways.items()},  # type: ignore[misc]
            yardstick=yardstick,
        ),
    ]
    with progress(output) as say:
        taken = take(measures, runs, say)
    Report(bench="goodput", runs=runs, taken=taken).show(output)


def send(sock: socket.socket, memory: mmap.mmap) -> float:
    """A migration away, from HELLO to BYE."""

    async def main() -> float:
        sock.setblocking(False)
        DEFAULT_OPTIONS.apply(sock)
        begin = time.perf_counter()
        with memoryview(memory) as view:
            result = await Source(EmbeddedGuest(view), TcpTransport(sock)).run()
        if result.outcome is not Outcome.COMPLETED:
            raise result.error or TransportError(ErrorCode.INTERNAL, result.outcome)
        return time.perf_counter() - begin

    return trio.run(main)


def receive(sock: socket.socket, memory: mmap.mmap) -> float:
    """The same, here."""

    async def main() -> float:
        sock.setblocking(False)
        DEFAULT_OPTIONS.apply(sock)
        guest = EmbeddedGuest(memoryview(memory))
        await Destination(lambda _: guest, TcpTransport(sock)).run()
        return 0.0

    return trio.run(main)
