"""Several sessions of a recording, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest

import pytest

from observe_support import D, S, Tape, Unit, migration
from sterna.observe.budget import Budget
from sterna.observe.outcome import Ended
from sterna.observe.recording import (
    DirectionEnded,
    How,
    Passed,
    RecordClock,
    RecordingClosed,
    RecordingError,
    RecordingItem,
    Side,
)
from sterna.observe.sessions import GaveUp, Happened, Over, Sessions, Step, Stopped
from sterna.registry import FrameType as F

TAPE = migration()
BAD = TAPE.changed(F.SEAL, digest=bytes(16))


def items(*tapes: Tape, end: bool = True) -> Iterator[RecordingItem]:
    """The sessions of some tapes, unit by unit in turn."""
    for at, row in enumerate(zip_longest(*tapes)):
        for number, unit in enumerate(row, 1):
            if unit is not None:
                yield Passed(number, unit.sender, at, unit.raw)
    for number in range(1, len(tapes) + 1 if end else 1):
        for sender in (S, D):
            yield DirectionEnded(number, sender, 999, How.PROPERLY)
    yield RecordingClosed(999)


def follow(source: Iterator[RecordingItem], **options: object) -> list[Step]:
    return list(Sessions(Side.BETWEEN, RecordClock.NONE, **options).follow(source))


def test_each_is_followed_on_its_own() -> None:
    steps = follow(items(TAPE, BAD, TAPE))
    overs = {step.connection: step.follower for step in steps if isinstance(step, Over)}
    assert list(overs) == [1, 2, 3]
    assert [each.fault is None for each in overs.values()] == [True, False, True]
    assert {each.outcome().ended for each in overs.values()} == {Ended.COMPLETED}
    happened = [step for step in steps if isinstance(step, Happened)]
    assert len(happened) == 3 * len(TAPE)
    assert [step.connection for step in happened if step.seen.fault] == [2]
    assert not any(isinstance(step, Stopped) for step in steps)  # it was told with the frame


def test_what_is_wrong_between_frames() -> None:
    broken = Tape([*TAPE.until(F.ROUND), Unit(S, bytes(40)), *TAPE[TAPE.where(F.ROUND) :]])
    steps = follow(items(broken))
    (stopped,) = [step for step in steps if isinstance(step, Stopped)]
    assert stopped.follower.fault is not None
    assert stopped.follower.fault.clause == "HDR-2"
    early = follow(items(Tape([Unit(S, b"HTT")])))
    assert [type(step) for step in early] == [Stopped, Over]


def test_a_recording_that_ends_before_its_connections() -> None:
    steps = follow(items(TAPE.until(F.SEAL), end=False))
    assert isinstance(steps[-1], Over)
    assert steps[-1].follower.outcome().ended is Ended.UNFINISHED


def test_a_damaged_recording() -> None:
    """[REC-11] What came before counts."""

    def damaged() -> Iterator[RecordingItem]:
        yield from items(TAPE.until(F.SEAL), end=False)
        raise RecordingError("damage", "REC-3", 7)

    sessions = Sessions(Side.SOURCE, RecordClock.NONE)
    steps = []
    with pytest.raises(RecordingError):
        steps.extend(sessions.follow(damaged()))
    (over,) = sessions.end()
    assert over.follower.fault is None


def test_a_recorder_that_gave_up() -> None:
    steps = follow(iter([RecordingClosed(0, gave_up=True, text="full")]))
    assert steps == [GaveUp("full")]


def test_memory_goes_back_when_a_session_is_over() -> None:
    """`bounded`: one after the other they fit, side by side they do not."""
    budget = Budget(69500)
    once = [item for item in items(TAPE) if not isinstance(item, RecordingClosed)]
    one_by_one = [*once, *(replace(item, connection=2) for item in once)]
    overs = [step.follower for step in follow(iter(one_by_one), budget=budget) if isinstance(step, Over)]
    assert [each.trouble for each in overs] == ["", ""]
    assert budget.left_bytes == budget.size_bytes
    both = [step.follower for step in follow(items(TAPE, TAPE), budget=budget) if isinstance(step, Over)]
    assert sum(bool(each.trouble) for each in both) == 1
    assert budget.left_bytes == budget.size_bytes
