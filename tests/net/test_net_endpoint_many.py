"""Many sessions at once into one destination process: fair, each with its limits.

What they share is that process, which takes in so many bytes a second; their links are faster. *Fair* is that
each of equal sessions gets between `LEAST` and `MOST` of their mean, over the whole and every part of it.
"""

from __future__ import annotations

import itertools
from typing import Final

import pytest
import trio
from many_support import FOREVER, Processor, Session, Turns, shares, start, until_came
from trio.testing import MockClock

from sterna.core.events import Outcome
from sterna.errors import GuestError
from sterna.guest.embedded import EmbeddedGuest
from sterna.net import memory
from sterna.net.pump import FLUSH_STALL_S
from sterna.net.rate import CREDIT_S, GRANT_S
from sterna.net.transport import CLOSE_DEADLINE_S
from sterna.registry import ErrorCode

pytestmark = pytest.mark.slow

LEAST, MOST = 0.8, 1.25
MIB: Final = 1 << 20
RATE_BYTES_S: Final = 2.0 * MIB  # of the destination's processor
PIECE_BYTES: Final = 8192  # what it takes in at once: a turn of 8 sessions takes some 30 ms
SIZE_BYTES: Final = 4 * MIB


@pytest.fixture
def virtual_time(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> MockClock:
    monkeypatch.setattr(memory, "PIECE_BYTES", PIECE_BYTES)
    return autojump_clock


def some(
    virtual_time: MockClock,
    count: int = 8,
    size_bytes: int = SIZE_BYTES,
    rate_bytes_s: float = RATE_BYTES_S,
    **first: object,
) -> list[Session]:
    """Sessions of equal size; `first`: what is different with the first one."""
    sessions = [Session(number, size_bytes, **({} if number else first)) for number in range(count)]  # type: ignore[arg-type]
    processor = Processor(virtual_time, rate_bytes_s)
    for session in sessions:
        processor.takes_in(session.far)
    return sessions


async def fair_parts(sessions: list[Session], most_bytes: int) -> None:
    """Look at what each gets in parts of a quarter of a guest, until one has got so much."""
    for part in itertools.count(1):
        since = [session.came_bytes for session in sessions]
        until = max(since) + SIZE_BYTES // 4
        if until > most_bytes:
            assert part > 2
            return
        await until_came(sessions, until)
        each = shares(sessions, since)
        assert min(each) >= LEAST, (part, each)
        assert max(each) <= MOST, (part, each)


@pytest.mark.parametrize("count", [8, 32])
async def test_equal_sessions_have_equal_shares(virtual_time: MockClock, count: int) -> None:
    """At any time, and they end at about the same one."""
    sessions = some(virtual_time, count)
    async with trio.open_nursery() as nursery:
        start(sessions, nursery)
        await fair_parts(sessions, SIZE_BYTES)
    assert all(session.moved for session in sessions)
    ends = [session.ended_s for session in sessions]
    assert max(ends) <= MOST * min(ends)
    assert max(ends) == pytest.approx(count * SIZE_BYTES / RATE_BYTES_S, rel=0.05)


async def test_one_with_a_cap_keeps_it_and_the_others_share_the_rest(virtual_time: MockClock) -> None:
    """It is neither above its cap within any second, nor starved below it."""
    rate = 4 * RATE_BYTES_S  # a turn of all takes no longer than a grant: the link in memory has one for each
    cap = rate / 32
    sessions = some(virtual_time, rate_bytes_s=rate, options={"bandwidth_bytes_s": cap})
    capped, *others = sessions
    seconds: list[int] = []

    async def watch() -> None:
        while not capped.results:
            seconds.append(capped.near.bytes_sent)
            await trio.sleep(1.0)

    async with trio.open_nursery() as nursery:
        start(sessions, nursery)
        nursery.start_soon(watch)
        await fair_parts(others, SIZE_BYTES)
        assert capped.came_bytes >= 0.9 * cap * trio.current_time()
    assert all(session.moved for session in sessions)
    late_s = len(sessions) * PIECE_BYTES / rate  # each look at the clock, by a turn of all
    for before, after in itertools.pairwise(seconds):
        assert after - before <= cap * (1.0 + CREDIT_S + GRANT_S + late_s)
    assert capped.near.bytes_sent <= cap * (capped.ended_s + CREDIT_S + GRANT_S)


@pytest.mark.parametrize(
    ("how", "code", "within_s"),
    [("gone", ErrorCode.PEER_SILENT, 5.0), ("deaf", ErrorCode.PEER_STALLED, 10.0)],
)
async def test_one_that_stands_still_has_nothing_of_the_others(
    virtual_time: MockClock, how: str, code: ErrorCode, within_s: float
) -> None:
    """[CON-75] [CON-77] Neither turns nor memory, and it ends by its own deadline."""
    link = {} if how == "gone" else {"capacity_bytes": 300}
    sessions = some(virtual_time, size_bytes=7 * MIB, options={"deadlines": FOREVER}, link=link)
    still, *others = sessions
    turns = Turns()
    async with trio.open_nursery() as nursery:
        start(sessions, nursery)
        await until_came([still], 16 * 1024)
        passed, passed_at = 0, trio.current_time()
        if how == "gone":
            still.near.vanish()
        else:
            still.near.stall()
        await trio.sleep(1.0)
        trio.lowlevel.add_instrument(turns)
        came, since = still.came_bytes, [session.came_bytes for session in others]
        most = 0
        while not still.results:
            most = max(most, still.held_bytes)
            if how == "deaf" and still.far.bytes_sent > passed:  # there is room on the way yet
                passed, passed_at = still.far.bytes_sent, trio.current_time()
            await trio.sleep(0.1)
        seconds = trio.current_time() - passed_at
        trio.lowlevel.remove_instrument(turns)
        assert all(not session.results for session in others)  # it was in the midst of them
        each = shares(others, since)
        assert LEAST <= min(each) <= max(each) <= MOST, each
        still.source.cancel()
    assert still.results["destination"].code is code
    # It looks twice, and says so to somebody who may be there again.
    assert within_s - 0.6 <= seconds <= within_s + 1.5 + FLUSH_STALL_S + CLOSE_DEADLINE_S
    if how == "gone":
        assert still.came_bytes == came
        assert turns.of[still.name] < 20 * seconds
    assert most <= 4096
    assert still.destination.guest is None
    assert all(session.moved for session in others)
    assert max(session.ended_s for session in others) <= MOST * min(session.ended_s for session in others)


class Unloadable(EmbeddedGuest):
    """Its state makes no sense to it, which it says in a way that nobody expects."""

    def load(self, state: bytes) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("how", ["cut", "refused", "bug"])
async def test_one_that_ends_in_an_error_is_the_only_one(virtual_time: MockClock, how: str) -> None:
    """And what it would have had is the others'."""
    sessions = some(virtual_time)
    failing, *others = sessions
    match how:
        case "cut":
            failing.near.cut_after(SIZE_BYTES // 2)
        case "refused":

            async def reserve(_: object) -> None:
                raise GuestError("no room", ErrorCode.REFUSED)

            failing.there.reserve = reserve  # type: ignore[method-assign]
        case "bug":
            failing.there = Unloadable(bytearray(SIZE_BYTES), guest_id=failing.there.description.id)
    async with trio.open_nursery() as nursery:
        start(sessions, nursery)
        await fair_parts(others, SIZE_BYTES)
    assert failing.results["source"].outcome is Outcome.ROLLED_BACK
    assert failing.results["destination"].outcome is Outcome.ROLLED_BACK
    assert all(session.moved for session in others)
    taken = sum(session.came_bytes for session in sessions)
    assert max(session.ended_s for session in others) == pytest.approx(taken / RATE_BYTES_S, rel=0.05)
