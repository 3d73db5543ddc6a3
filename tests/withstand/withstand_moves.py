"""A migration over data connections, whose destination is called by somebody else, too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import trio
from trio.testing import MockClock

from sterna.core.carry import Ticket
from sterna.core.events import Event, Outcome, Result, RoundStarted, SessionResumed
from sterna.errors import TransportError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.net.destination import Destination
from sterna.net.kept import Sessions
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.testing import run_workload
from sterna.wire import FrameReader, FrameReceived, unchecked
from sterna.wire import records as r

PARAMETERS = WorkloadParameters(seed=7, pages=64, hot_pages=16, block_pages=8)
OURS, THEIRS, OTHER = "host-s", "host-d", "host-x"
STREAMS = 2


class Move:
    """A migration over data connections, and somebody who calls its destination meanwhile.

    Args:
        options: changes of both endpoints' options.

    Attributes:
        answers: what the caller was told, on whatever connection.
        resumed: set when an end has the session again that was lost.
    """

    def __init__(self, **options: object) -> None:
        self.guest = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=1e6)
        self.room = SimulatedDestinationGuest(rate_bytes_s=1e6)
        self.sessions = Sessions()
        self.answers: list[tuple[int, r.Record]] = []
        self.begun = trio.Event()
        self.resumed = trio.Event()
        self.results: dict[str, Result] = {}
        self.transports: list[MemoryTransport] = []
        near, far = self.pair(OURS)
        usual = Options(clock=trio.current_time, grease=False, streams=STREAMS, on_event=self.on_event)
        self.options = replace(usual, **options)  # type: ignore[arg-type]
        self.source = Source(self.guest, near, options=self.options, reconnect=self.reconnect)
        self.destination = self.serve(far)

    def on_event(self, event: Event) -> None:
        if isinstance(event, RoundStarted):
            self.begun.set()
        if isinstance(event, SessionResumed):
            self.resumed.set()

    def pair(self, identity: str) -> tuple[MemoryTransport, MemoryTransport]:
        return memory_transport_pair(identities=(identity, THEIRS), rate_bytes_s=5e5)

    def serve(self, transport: MemoryTransport) -> Destination:
        return Destination(lambda _: self.room, transport, options=self.options, sessions=self.sessions)

    async def reconnect(self) -> MemoryTransport:
        near, far = self.pair(OURS)
        self.transports.append(far)
        self.nursery.start_soon(self.serve(far).run)
        return near

    async def call(self, data: bytes, identity: str = OURS, *, leave_open: bool = False) -> None:
        """Say this on a connection of one's own, and hear what comes of it."""
        near, far = self.pair(identity)
        self.nursery.start_soon(self.serve(far).run)
        await near.send([data])
        if leave_open:
            return
        heard, buffer = bytearray(), memoryview(bytearray(65536))
        with suppress(TransportError):
            while count := await near.receive_into(buffer):
                heard += buffer[:count]
        reader = FrameReader(stream=int.from_bytes(heard[20:22], "little"))
        reader.receive_data(bytes(heard))
        while (event := reader.next_event()) is not None:
            if isinstance(event, FrameReceived):
                self.answers.append((event.header.stream, event.record))
        near.abort()

    @property
    def ticket(self) -> Ticket:
        (kept,) = self.sessions._kept.values()
        return kept.ticket

    @property
    def good(self) -> r.Attach:
        """What the source would say next on its first data connection."""
        return r.Attach(self.ticket.session, self.ticket.welcome.token, 0, 1)

    async def run(self, attack: Callable[[Move], Awaitable[None]]) -> None:
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(run_workload, self.guest, 0.01)
            self.nursery.start_soon(run_workload, self.room, 0.01)
            async with trio.open_nursery() as both:
                both.start_soon(self._end, "source")
                both.start_soon(self._end, "destination")
                await self.begun.wait()
                await attack(self)
            await trio.sleep(0.05)
            self.nursery.cancel_scope.cancel()

    async def _end(self, side: str) -> None:
        self.results[side] = await getattr(self, side).run()

    def check(self) -> None:
        """The guest has moved, whole, in one go, and nothing is kept any more."""
        assert {result.outcome for result in self.results.values()} == {Outcome.COMPLETED}, self.results
        assert {(result.resumed, result.streams) for result in self.results.values()} == {(0, STREAMS)}
        assert (self.guest.running, self.room.running) == (False, True)
        assert self.room.workload.audit().errors == self.room.workload.errors == 0
        assert not self.sessions._kept


def moved(attack: Callable[[Move], Awaitable[None]], **options: object) -> Move:
    """What has become of a migration that was disturbed so."""
    moves: list[Move] = []

    async def main() -> None:
        moves.append(Move(**options))
        await moves[0].run(attack)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return moves[0]


def said(record: r.Record, stream: int = 1, before: bytes = b"") -> bytes:
    """A first frame, behind these."""
    frame = unchecked.frame(record.type, unchecked.body(record), stream=stream, sequence=len(before) // 32)
    return unchecked.preface() + before + frame
