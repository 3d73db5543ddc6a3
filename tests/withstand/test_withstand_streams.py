"""Data connections that nobody has asked for, shown to a destination that has a session with some.

Whoever can open a connection can say ATTACH. Tokens are guessed, replayed and shown by others, indexes and
generations made up, other frames said first, and connections left standing in the middle of a frame. What
must never come of it: a session that is disturbed, a connection of it that is closed, or pages of somebody
else in the guest's memory.

Published bugs of this class: none known.

[ATT-1] [ATT-2] [ATT-3] [STR-3] [STR-4] [STR-5] [HDR-5] [CON-65]
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from sterna.core import shares
from sterna.core.carry import Ticket
from sterna.core.events import Event, Outcome, Result, RoundStarted
from sterna.errors import TransportError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.net.destination import Destination
from sterna.net.kept import Sessions
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.registry import GREASE_FIRST, ErrorCode, FrameType
from sterna.testing import run_workload
from sterna.wire import FrameReader, FrameReceived, unchecked
from sterna.wire import records as r

PARAMETERS = WorkloadParameters(seed=7, pages=64, hot_pages=16, block_pages=8)
OURS, THEIRS, OTHER = "host-s", "host-d", "host-x"
STREAMS = 2


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "BLOCK_BYTES", 2 * 4096)


class Move:
    """A migration over data connections, and somebody who calls its destination meanwhile.

    Attributes:
        answers: what the caller was told, on whatever connection.
    """

    def __init__(self) -> None:
        self.guest = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=1e6)
        self.room = SimulatedDestinationGuest(rate_bytes_s=1e6)
        self.sessions = Sessions()
        self.answers: list[tuple[int, r.Record]] = []
        self.begun = trio.Event()
        self.results: dict[str, Result] = {}
        self.transports: list[MemoryTransport] = []
        near, far = self.pair(OURS)
        self.options = Options(clock=trio.current_time, grease=False, streams=STREAMS, on_event=self.on_event)
        self.source = Source(self.guest, near, options=self.options, reconnect=self.reconnect)
        self.destination = self.serve(far)

    def on_event(self, event: Event) -> None:
        if isinstance(event, RoundStarted):
            self.begun.set()

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


def moved(attack: Callable[[Move], Awaitable[None]]) -> Move:
    moves: list[Move] = []

    async def main() -> None:
        moves.append(Move())
        await moves[0].run(attack)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return moves[0]


def said(record: r.Record, stream: int = 1, before: bytes = b"") -> bytes:
    frame = unchecked.frame(record.type, unchecked.body(record), stream=stream, sequence=len(before) // 32)
    return unchecked.preface() + before + frame


Forge = Callable[[r.Attach], r.Attach]
FORGED: dict[str, tuple[Forge, int, str, ErrorCode]] = {
    "another token": (lambda good: replace(good, token=bytes(32)), 1, OURS, ErrorCode.BAD_TOKEN),
    "nearly the token": (
        lambda good: replace(good, token=good.token[:-1] + bytes([good.token[-1] ^ 1])),
        1,
        OURS,
        ErrorCode.BAD_TOKEN,
    ),
    "no such session": (lambda good: replace(good, session=b"x" * 16), 1, OURS, ErrorCode.BAD_TOKEN),
    "another peer": (lambda good: good, 1, OTHER, ErrorCode.BAD_TOKEN),
    "an old generation": (lambda good: replace(good, generation=0), 1, OURS, ErrorCode.BAD_TOKEN),
    "one too many": (lambda good: replace(good, index=STREAMS), STREAMS + 1, OURS, ErrorCode.BAD_VALUE),
    "far too many": (lambda good: replace(good, index=16), 1, OURS, ErrorCode.BAD_VALUE),
    "another stream": (lambda good: replace(good, index=1), 1, OURS, ErrorCode.BAD_HEADER),
    "in the middle of a round": (lambda good: good, 1, OURS, ErrorCode.UNEXPECTED_FRAME),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_attach(name: str) -> None:
    """[STR-4] [STR-5] [ATT-2] [ATT-3] Refused by ABORT on its own connection; the session does not notice."""
    forge, stream, identity, code = FORGED[name]

    async def attack(move: Move) -> None:
        await move.call(said(forge(move.good), stream), identity)

    move = moved(attack)
    ((number, answer),) = move.answers
    assert isinstance(answer, r.Abort)
    assert (number, answer.code) == (stream, code)
    move.check()


def test_a_thousand_forged_ones() -> None:
    """[STR-4] Each costs its caller a connection, and the session nothing."""

    async def attack(move: Move) -> None:
        for number in range(1000):
            forged = replace(move.good, token=number.to_bytes(32, "little"))
            await move.call(said(forged))
            if not move.sessions._kept:
                break

    move = moved(attack)
    assert {answer.code for _, answer in move.answers if isinstance(answer, r.Abort)} == {ErrorCode.BAD_TOKEN}
    move.check()


STRANGE = {
    "ATTACH as a control connection's": (said(r.Attach(bytes(16), bytes(32), 0, 0), 0), ErrorCode.BAD_HEADER),
    "PING as a data connection's": (said(r.Ping(1), 1), ErrorCode.BAD_HEADER),
    "skipped on another connection": (
        said(r.Attach(bytes(16), bytes(32), 0, 0), 1, unchecked.frame(GREASE_FIRST)),
        ErrorCode.BAD_HEADER,
    ),
    "skipped first": (
        said(r.Attach(bytes(16), bytes(32), 0, 0), 1, unchecked.frame(GREASE_FIRST, stream=1)),
        ErrorCode.BAD_TOKEN,
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_first_frames_of_no_connection(name: str) -> None:
    """[HDR-5] [ATT-1]"""
    data, code = STRANGE[name]

    async def attack(move: Move) -> None:
        await move.call(data)

    move = moved(attack)
    assert [answer.code for _, answer in move.answers if isinstance(answer, r.Abort)] == [code]
    move.check()


def test_callers_that_say_half_of_it_and_wait() -> None:
    """[CON-74] They hold what they are, a connection each, until the handshake's deadline."""

    async def attack(move: Move) -> None:
        whole = said(move.good)
        for cut in range(1, len(whole)):
            await move.call(whole[:cut], leave_open=True)

    moved(attack).check()


def test_frames_behind_a_forged_attach_reach_nobody() -> None:
    """[STR-4] Whatever is said in one breath with it."""

    async def attack(move: Move) -> None:
        forged = replace(move.good, token=bytes(32))
        pages = unchecked.frame(FrameType.PAGES, bytes(24), bytes(4096), stream=1, sequence=1)
        await move.call(said(forged) + pages * 50)

    move = moved(attack)
    assert {answer.code for _, answer in move.answers if isinstance(answer, r.Abort)} == {ErrorCode.BAD_TOKEN}
    move.check()
