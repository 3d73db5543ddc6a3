"""Sessions that are taken up again: by whom they are not meant for, and with lists that are not true.

A lost session is a room full of a guest's memory that waits for somebody who shows a token. So tokens are
guessed, replayed and shown by others, generations repeated and openings imitated, while the session has a
connection and while it has none; and a source that comes back is told of rounds that it never began, of pages
that do not exist, and more of them than were announced. What must never come of it: a session that ends or
stalls because somebody else asked for it, a connection that is closed for a resumption that is refused, a
page that counts as held although it is not, or a guest that stands still.

Published bugs of this class: CVE-2016-6302 (OpenSSL did not look at how long a session ticket was before it
checked it).

[RES-1] [RES-2] [RES-3] [RES-4] [RES-5] [RES-6] [BMP-7] [BMP-8] [CON-62]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
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
from sterna.registry import BitmapEncoding, ErrorCode, FrameType
from sterna.testing import run_workload
from sterna.wire import FrameReader, FrameReceived, unchecked
from sterna.wire import records as r

PARAMETERS = WorkloadParameters(seed=7, pages=64, hot_pages=16, block_pages=8)
CUT = 100_000
OURS, THEIRS, OTHER = "host-s", "host-d", "host-x"
SECONDS = 4


class Move:
    """A migration whose link is cut once, and somebody who uses the occasion.

    Attributes:
        attacked: an attack has been answered.
        answers: what the attacker was told, the last thing of each connection.
    """

    def __init__(self, answer: Callable[[Ticket], list[r.Record]] | None = None) -> None:
        """`answer`: what the source is told when it comes back, instead of the truth."""
        self.guest = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=1e6)
        self.room = SimulatedDestinationGuest(rate_bytes_s=1e6)
        self.sessions = Sessions()
        self.answers: list[r.Record] = []
        self.lost, self.attacked = trio.Event(), trio.Event()
        self.begun, self.back = trio.Event(), trio.Event()
        self._answer = answer
        self._first: Ticket | None = None
        self.results: dict[str, Result] = {}
        near, far = self.pair(OURS)
        near.cut_after(CUT)
        self.options = Options(
            clock=trio.current_time, grease=False, resume_s=SECONDS, on_event=self.on_event
        )
        self.source = Source(self.guest, near, options=self.options, reconnect=self.reconnect)
        self.destination = self.serve(far)

    def on_event(self, event: Event) -> None:
        if isinstance(event, RoundStarted):
            self.begun.set()
        elif isinstance(event, SessionResumed):
            self.back.set()

    def pair(self, identity: str | None) -> tuple[MemoryTransport, MemoryTransport]:
        return memory_transport_pair(identities=(identity, THEIRS), rate_bytes_s=5e5)  # type: ignore[arg-type]

    def serve(self, transport: MemoryTransport) -> Destination:
        return Destination(lambda _: self.room, transport, options=self.options, sessions=self.sessions)

    async def reconnect(self) -> MemoryTransport:
        self.lost.set()
        await self.attacked.wait()
        near, far = self.pair(OURS)
        if self._answer is None:
            self.nursery.start_soon(self.serve(far).run)
        else:
            self.nursery.start_soon(self._lie, far)
        return near

    async def _lie(self, far: MemoryTransport) -> None:
        self._first = self._first or self.ticket
        said = unchecked.preface()
        for number, record in enumerate(self._answer(self._first)):  # type: ignore[misc]
            said += unchecked.frame(record.type, unchecked.body(record), b"", sequence=number)
        await far.send([said])
        buffer = memoryview(bytearray(65536))
        try:
            while await far.receive_into(buffer):
                pass
        except TransportError:
            pass
        far.abort()

    async def ask(self, hello: r.Hello, identity: str | None = OURS) -> None:
        """Say this HELLO on a connection of its own, and hear the answer."""
        near, far = self.pair(identity)
        self.nursery.start_soon(self.serve(far).run)
        frame = unchecked.frame(hello.type, unchecked.body(hello), b"", sequence=0)
        await near.send([unchecked.preface() + frame])
        reader, buffer = FrameReader(), memoryview(bytearray(65536))
        while count := await near.receive_into(buffer):
            reader.receive_data(bytes(buffer[:count]))
            while (event := reader.next_event()) is not None:
                if isinstance(event, FrameReceived):
                    self.answers.append(event.record)
        near.abort()

    @property
    def ticket(self) -> Ticket:
        (kept,) = self.sessions._kept.values()
        return kept.ticket

    async def run(self, attack: Callable[[Move], object]) -> None:
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(run_workload, self.guest, 0.01)
            self.nursery.start_soon(run_workload, self.room, 0.01)
            async with trio.open_nursery() as both:
                both.start_soon(self._end, "source")
                both.start_soon(self._end, "destination")
                await attack(self)  # type: ignore[misc]
            await trio.sleep(0.05)
            self.nursery.cancel_scope.cancel()

    async def _end(self, side: str) -> None:
        self.results[side] = await getattr(self, side).run()

    def check(self, outcome: Outcome) -> None:
        """Both have ended, the guest is in one place and whole, and nothing is kept any more."""
        assert {result.outcome for result in self.results.values()} == {outcome}, self.results
        moved = outcome is Outcome.COMPLETED
        assert (self.guest.running, self.room.running) == (not moved, moved)
        alive = self.room if moved else self.guest
        assert alive.workload.audit().errors == alive.workload.errors == 0
        assert not self.sessions._kept


def moved(attack: Callable[[Move], object], answer: Callable[[Ticket], list[r.Record]] | None = None) -> Move:
    moves: list[Move] = []

    async def main() -> None:
        moves.append(Move(answer))
        await moves[0].run(attack)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return moves[0]


FORGED = {
    "another token": (lambda good: replace(good, token=bytes(32)), OURS, ErrorCode.BAD_TOKEN),
    "nearly the token": (
        lambda good: replace(good, token=good.token[:-1] + bytes([good.token[-1] ^ 1])),
        OURS,
        ErrorCode.BAD_TOKEN,
    ),
    "no such session": (lambda good: replace(good, session=b"x" * 16), OURS, ErrorCode.BAD_TOKEN),
    "another peer": (lambda good: good, OTHER, ErrorCode.BAD_TOKEN),
    "an old generation": (lambda good: replace(good, generation=0), OURS, ErrorCode.BAD_TOKEN),
    "another guest": (lambda good: replace(good, guest=b"g" * 16), OURS, ErrorCode.NOT_SELECTED),
    "another epoch": (lambda good: replace(good, epoch=good.epoch + 1), OURS, ErrorCode.NOT_SELECTED),
    "fewer features": (lambda good: replace(good, features=good.features[1:]), OURS, ErrorCode.NOT_SELECTED),
    "other limits": (lambda good: replace(good, limits={1: 70000}), OURS, ErrorCode.LIMIT_MISMATCH),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_resumption_of_a_lost_session(name: str) -> None:
    """[RES-1] [RES-2] [RES-3] [RES-4] Refused in one word; who has the right one still gets it."""
    forge, identity, code = FORGED[name]

    async def attack(move: Move) -> None:
        await move.lost.wait()
        await move.ask(forge(move.ticket.next_hello()), identity)
        move.attacked.set()

    move = moved(attack)
    (answer,) = move.answers
    assert isinstance(answer, r.Refuse)
    assert answer.code == code
    move.check(Outcome.COMPLETED)
    assert move.results["source"].resumed == 1


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_resumption_of_a_session_that_has_a_connection(name: str) -> None:
    """[RES-4] The connection is not closed for it: the link is lost once, by the cut."""
    forge, identity, code = FORGED[name]

    async def attack(move: Move) -> None:
        move.attacked.set()
        await move.begun.wait()
        await trio.sleep(0.01)
        await move.ask(forge(move.ticket.next_hello()), identity)

    move = moved(attack)
    assert [answer.code for answer in move.answers if isinstance(answer, r.Refuse)] == [code]
    move.check(Outcome.COMPLETED)
    assert move.results["source"].resumed == 1


def test_a_generation_that_is_replayed() -> None:
    """[RES-1] What was overheard of the last resumption opens nothing."""

    async def attack(move: Move) -> None:
        await move.lost.wait()
        overheard = move.ticket.next_hello()
        move.attacked.set()
        await move.back.wait()
        await move.ask(overheard)

    move = moved(attack)
    assert [answer.code for answer in move.answers if isinstance(answer, r.Refuse)] == [ErrorCode.BAD_TOKEN]
    move.check(Outcome.COMPLETED)


def held(round_: int, first: int, bits: int = 8, region: int = 0, *, rejected: bool = False) -> r.Held:
    data = b"\1" + bytes((bits + 7) // 8 - 1)
    return r.Held(round_, region, rejected, first, bits, BitmapEncoding.PLAIN, data)


def lie(*frames: r.Held, **changes: object) -> Callable[[Ticket], list[r.Record]]:
    """WELCOME and these frames, but for the changes."""

    def answer(ticket: Ticket) -> list[r.Record]:
        welcome = ticket.next_welcome(ticket.next_hello(), 0, len(frames))
        return [replace(welcome, **changes), *frames]

    return answer


LIES = {
    "a round that was never begun": (lie(complete_round=77), ErrorCode.BAD_ROUND),
    "pages of such a round": (lie(held(77, 0)), ErrorCode.COUNT_MISMATCH),
    "rejected in no round": (lie(held(0, 0, rejected=True)), ErrorCode.COUNT_MISMATCH),
    "pages outside": (lie(held(1, 60)), ErrorCode.OUTSIDE_REGION),
    "pages of no region": (lie(held(1, 0, region=9)), ErrorCode.OUTSIDE_REGION),
    "out of order": (lie(held(1, 8), held(1, 0)), ErrorCode.OVERLAPPING_RUNS),
    "twice": (lie(held(1, 0), held(1, 0)), ErrorCode.OVERLAPPING_RUNS),
    "more than announced": (lie(held(1, 0), held(1, 8), held_frames=1), ErrorCode.UNEXPECTED_FRAME),
    "another session": (lie(session=b"x" * 16), ErrorCode.BAD_VALUE),
    "another generation": (lie(generation=9), ErrorCode.BAD_VALUE),
    "other features": (lie(features=()), ErrorCode.NOT_SELECTED),
    "other limits": (lie(limits={1: 70000}), ErrorCode.LIMIT_MISMATCH),
    "fewer than announced": (lie(held_frames=1 << 31), None),
}


@pytest.mark.parametrize("name", LIES)
def test_a_destination_that_does_not_tell_the_truth(name: str) -> None:
    """[RES-5] [RES-6] [BMP-7] [BMP-8] One code, and the guest has been running all the time."""
    answer, code = LIES[name]

    async def attack(move: Move) -> None:
        await move.lost.wait()
        move.attacked.set()

    move = moved(attack, answer)
    move.check(Outcome.ROLLED_BACK)
    if code is not None:
        assert move.results["source"].code == code
    assert FrameType.HANDOVER not in {answer.type for answer in move.answers}


def test_a_list_that_says_too_much_gets_nobody_a_guest() -> None:
    """[CON-62] Pages that count as held and are not: nothing is granted to who cannot show their digest."""

    def everything(ticket: Ticket) -> list[r.Record]:
        return lie(r.Held(1, 0, False, 0, 64, BitmapEncoding.PLAIN, b"\xff" * 8))(ticket)

    async def attack(move: Move) -> None:
        await move.lost.wait()
        move.attacked.set()

    move = moved(attack, everything)
    move.check(Outcome.ROLLED_BACK)
    assert move.guest.granted_epoch is None
