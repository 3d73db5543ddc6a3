"""The judge by itself: what crosses, what is bounded. Each clause is shown in test_observe_follow."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from observe_support import D, S, migration
from sterna.errors import RemoteProtocolError
from sterna.observe import judge as module
from sterna.observe.budget import Budget, TooMuchError
from sterna.observe.direction import Frame
from sterna.observe.judge import BreachError, Judge
from sterna.registry import FRAMES, Feature, FrameType, Mode, Phase, Sender, Style
from sterna.wire import Header
from sterna.wire.records import (
    Abort,
    NotReady,
    Ping,
    Pong,
    Progress,
    Ready,
    Record,
    Round,
    RoundAck,
    RoundEnd,
    Switchover,
)

F = FrameType
TAPE = migration()


def frame(record: Record) -> Frame:
    return Frame(0, Header(int(record.type), 0, 0, 0, 0, 0), record)


def judge(until: FrameType) -> Judge:
    """A judge who has seen a migration up to the first frame of this type."""
    made = Judge(Budget().share())
    for seen in TAPE.until(until).seen():
        if isinstance(seen.what, Frame):
            made.check(seen.sender, seen.what, 0.0)
    return made


def test_pings_of_both_sides_are_told_apart() -> None:
    """[PNG-1] [PNG-2]"""
    made = judge(F.SWITCHOVER)
    for sender, record in [
        (S, Ping(7)),
        (S, Ping(7)),
        (D, Ping(7)),
        (D, Pong(7)),
        (D, Pong(7)),
        (S, Pong(7)),
    ]:
        made.check(sender, frame(record), 0.0)
    with pytest.raises(RemoteProtocolError, match="PNG-2"):
        made.check(D, frame(Pong(7)), 0.0)


def test_pings_that_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bounded`: of a side that pings without end, no answer is called wrong any more."""
    monkeypatch.setattr(module, "PINGS_MAX", 3)
    made = judge(F.SWITCHOVER)
    for number in range(10, 20):
        made.check(S, frame(Ping(number)), 0.0)
    made.check(D, frame(Pong(10)), 0.0)
    with pytest.raises(RemoteProtocolError, match="PNG-2"):
        made.check(S, frame(Pong(10)), 0.0)


@pytest.mark.parametrize("worse", [{"round": 1}, {"bulk_bytes": 8}])
def test_progress_only_rises(worse: dict[str, int]) -> None:
    """[CON-80] Each side has its own."""
    made = judge(F.SWITCHOVER)
    told = Progress(Phase.ROUNDS, 2, 64, 3, 9, 0, 0, 0)
    for sender in (S, D):
        made.check(sender, frame(told), 0.0)
        made.check(sender, frame(replace(told, pages_remaining=64)), 0.0)
    with pytest.raises(BreachError, match="CON-80") as caught:
        made.check(S, frame(replace(told, **worse)), 0.0)
    assert caught.value.frame is F.PROGRESS


def test_progress_of_a_session_without_it() -> None:
    """[PRG-1]"""
    made = Judge(Budget().share())
    welcome = TAPE.record(F.WELCOME)
    bare = replace(welcome, features=tuple(each for each in welcome.features if each.id != Feature.PROGRESS))
    made.check(S, frame(TAPE.record(F.HELLO)), math.inf)
    made.check(D, frame(bare), math.inf)
    with pytest.raises(RemoteProtocolError, match="PRG-1"):
        made.check(S, frame(Progress(Phase.DESCRIBE, 0, 0, 0, 0, 0, 0, 0)), math.inf)


def test_attempts_rise_with_not_ready() -> None:
    """[CON-22] [CON-23] [CON-25] [SWI-3]"""
    made = judge(F.READY)
    made.check(D, frame(NotReady(1, 0x0501)), 0.0)
    with pytest.raises(RemoteProtocolError, match="CON-23"):
        made.check(S, frame(Switchover(1, Style.STOP_AND_COPY)), 0.0)
    made = judge(F.READY)
    made.check(D, frame(NotReady(1, 0x0501)), 0.0)
    made.check(S, frame(Switchover(2, Style.STOP_AND_COPY)), 0.0)
    with pytest.raises(RemoteProtocolError, match="CON-25"):
        made.check(D, frame(RoundAck(1, 4, 1, 0)), 0.0)


@pytest.mark.parametrize("until", [F.SWITCHOVER, F.READY, F.STATE, F.SEAL, F.LOADED])
def test_an_attempt_may_be_taken_back(until: FrameType) -> None:
    """[CON-58] [CON-59] Until HANDOVER, from wherever both stand; then all goes on in the next one."""
    made = judge(until)
    image = made.image
    assert image is not None
    number = image.round.number + 1
    made.check(S, frame(Round(2, number, 0)), 0.0)
    made.check(S, frame(RoundEnd(2, number, 0, 0)), 0.0)
    made.check(D, frame(RoundAck(2, number, 0, 0)), 0.0)
    made.check(S, frame(Switchover(2, Style.STOP_AND_COPY)), 0.0)
    assert image.state_bytes == 0
    with pytest.raises(RemoteProtocolError, match="CON-25"):
        made.check(D, frame(Ready(1)), 0.0)


def test_an_attempt_may_not_be_taken_back_after_handover() -> None:
    """[CON-23] [CON-55]"""
    made = judge(F.RUNNING)
    assert made.image is not None
    with pytest.raises(RemoteProtocolError, match="CON-23"):
        made.check(S, frame(Round(2, made.image.round.number + 1, 0)), 0.0)


def test_a_session_that_began_elsewhere_is_not_judged() -> None:
    """What was held and sent before is in another connection."""
    made = Judge(Budget().share())
    hello, welcome = TAPE.record(F.HELLO), TAPE.record(F.WELCOME)
    back = replace(hello, mode=Mode.RESUME, session=welcome.session, token=welcome.token, generation=1)
    made.check(S, frame(back), 0.0)
    with pytest.raises(TooMuchError, match="began on another connection"):
        made.check(D, frame(replace(welcome, generation=1)), 0.0)


def test_whoever_ended_the_session_is_silent_and_the_other_is_not_judged() -> None:
    """[ABT-1] [CON-68]"""
    made = judge(F.SWITCHOVER)
    made.check(D, frame(Abort(1, 1)), 0.0)
    assert made.over
    made.check(S, frame(TAPE.record(F.HANDOVER)), 0.0)
    with pytest.raises(RemoteProtocolError, match="ABT-1"):
        made.check(D, frame(Ping(1)), 0.0)


@pytest.mark.parametrize("kind", [each for each in F if FRAMES[each].sender is not Sender.BOTH])
def test_directions(kind: FrameType) -> None:
    """[CON-4]"""

    class Named:
        type = kind

    wrong = D if FRAMES[kind].sender is S else S
    with pytest.raises(RemoteProtocolError, match="CON-4"):
        Judge(Budget().share()).check(wrong, frame(Named()), 0.0)  # type: ignore[arg-type]
