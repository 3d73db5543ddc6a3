"""What a session came to."""

from __future__ import annotations

from observe_support import D, S, migration
from sterna.observe import summary as module
from sterna.observe.summary import RoundSeen
from sterna.registry import FrameType as F


def test_rounds_and_counts() -> None:
    tape = migration(damage=[1])
    seen = tape.follow().summary
    first = seen.rounds[0]
    started, ended = (tape.where(frame) * 1_000_000 for frame in (F.ROUND, F.ROUND_END))
    assert first == RoundSeen(1, started, False, 64, 262144, 16, ended)
    assert seen.round_count == 5
    assert seen.pages == sum(each.pages for each in seen.rounds)
    assert seen.bulk_bytes == sum(each.bulk_bytes for each in seen.rounds)
    assert seen.rejected == 16
    assert seen.blackout_ns == (tape.where(F.RUNNING) - tape.where(F.READY)) * 1_000_000
    assert seen.guest == tape.record(F.GUEST)
    assert seen.hello == tape.record(F.HELLO)
    assert seen.welcome == tape.record(F.WELCOME)
    assert seen.first_ns == tape.where(F.HELLO) * 1_000_000
    assert seen.last_ns == (len(tape) - 1) * 1_000_000
    assert (seen.frames[S], seen.frames[D]) == (28, 12)


def test_rounds_without_end_are_counted(monkeypatch) -> None:
    """`bounded`: what is told one by one is bounded, whatever a recording holds."""
    monkeypatch.setattr(module, "ROUNDS_TOLD", 2)
    seen = migration().follow().summary
    assert ([each.number for each in seen.rounds], seen.round_count) == ([1, 2], 5)


def test_no_blackout_before_its_end() -> None:
    tape = migration()
    assert tape.until(F.READY).follow().summary.blackout_ns is None
    assert tape.until(F.RUNNING).follow().summary.blackout_ns is None


def test_frames_out_of_place_are_counted_too() -> None:
    """A session that is wrong has no rounds to count in, perhaps."""
    tape = migration().without(F.ROUND)
    assert tape.follow().summary.pages > 0
