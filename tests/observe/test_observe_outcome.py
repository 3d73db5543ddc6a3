"""How sessions end, and who may run the guest then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from observe_support import D, S, Tape, migration
from sterna.observe.follow import Follower
from sterna.observe.outcome import Ended, Outcome, Runs, code_name
from sterna.observe.recording import How, Side
from sterna.registry import ErrorCode, Mode, Owner, Phase
from sterna.registry import FrameType as F
from sterna.wire.records import Abort, HandBack, Record, Refuse, Running, Verdict

TAPE = migration()
ABORT = Abort(ErrorCode.CANCELLED, Phase.BLACKOUT)


def outcome(tape: Tape, side: Side = Side.BETWEEN, end: How | None = How.LOST) -> Outcome:
    follower = tape.follow(Follower(side=side), end=end)
    assert follower.fault is None
    return follower.outcome()


def test_a_session_that_ends_in_order() -> None:
    """[CON-70] With BYE of the source nothing that follows can change it."""
    for tape in (TAPE, TAPE.until(F.BYE, 1)):
        assert outcome(tape) == Outcome(
            Ended.COMPLETED,
            Runs.DESTINATION,
            None,
            None,
            "the session ended in order; the guest runs at the destination",
        )


@pytest.mark.parametrize(
    ("until", "side", "runs"),
    [
        (F.WELCOME, Side.BETWEEN, Runs.SOURCE),
        (F.SEAL, Side.BETWEEN, Runs.SOURCE),
        (F.LOADED, Side.BETWEEN, Runs.SOURCE),
        (F.HANDOVER, Side.BETWEEN, Runs.UNDECIDED),
        (F.HANDOVER, Side.DESTINATION, Runs.UNDECIDED),
        (F.HANDOVER, Side.SOURCE, Runs.SOURCE),
        (F.RUNNING, Side.SOURCE, Runs.UNDECIDED),
        (F.COMPLETE, Side.SOURCE, Runs.DESTINATION),
        (F.BYE, Side.DESTINATION, Runs.DESTINATION),
    ],
)
def test_a_cut(until: F, side: Side, runs: Runs) -> None:
    """[CON-62] [CON-63] [CON-64] [ONE-20] Where it was seen matters only where HANDOVER may be under way."""
    cut = outcome(TAPE.until(until), side)
    assert (cut.ended, cut.runs, cut.by, cut.code) == (Ended.CUT, runs, None, None)
    assert "lost (from the source), lost (from the destination)" in cut.text


def test_a_handover_of_which_a_part_left() -> None:
    """[ONE-20]"""
    tape = TAPE.until(F.HANDOVER)
    follower = tape.follow(Follower(side=Side.SOURCE), end=None)
    list(follower.feed(S, TAPE[TAPE.where(F.HANDOVER)].raw[:20]))
    follower.end(S, How.LOST)
    assert follower.outcome().runs is Runs.UNDECIDED
    assert "HANDOVER may have left" in follower.outcome().text


def test_a_recording_that_ends_first() -> None:
    assert outcome(TAPE.until(F.SEAL), end=None).runs is Runs.UNKNOWN
    assert outcome(TAPE.until(F.RUNNING), end=None).runs is Runs.UNDECIDED
    late = outcome(TAPE.until(F.RELEASE), end=None)
    assert (late.ended, late.runs) == (Ended.UNFINISHED, Runs.DESTINATION)
    assert "the recording ends before the session" in late.text
    assert "keeps its image" in late.text


def test_nothing() -> None:
    for tape in (Tape(), Tape(TAPE[:1])):
        assert outcome(tape) == Outcome(Ended.NOTHING, None, None, None, "no frame was seen")


@pytest.mark.parametrize(
    ("before", "by", "side", "runs"),
    [
        (F.ROUND, S, Side.BETWEEN, Runs.SOURCE),
        (F.ROUND, D, Side.BETWEEN, Runs.SOURCE),
        (F.HANDOVER, S, Side.BETWEEN, Runs.SOURCE),
        (F.HANDOVER, D, Side.DESTINATION, Runs.UNDECIDED),
        (F.HANDOVER, D, Side.SOURCE, Runs.SOURCE),
        (F.RUNNING, D, Side.BETWEEN, Runs.UNDECIDED),
        (F.COMPLETE, S, Side.BETWEEN, Runs.DESTINATION),
    ],
)
def test_an_abort(before: F, by, side: Side, runs: Runs) -> None:
    at = TAPE.where(before)
    ended = outcome(Tape(TAPE[:at]).inserted(at, by, ABORT), side)
    assert (ended.ended, ended.runs, ended.by, ended.code) == (Ended.ABORTED, runs, by, ErrorCode.CANCELLED)
    assert f"the {by.name.lower()} aborted with cancelled" in ended.text


def test_a_refusal() -> None:
    at = TAPE.where(F.ACCEPT)
    ended = outcome(Tape(TAPE[:at]).inserted(at, D, Refuse(ErrorCode.FULL)))
    assert (ended.ended, ended.runs, ended.by, ended.code) == (Ended.REFUSED, Runs.SOURCE, D, ErrorCode.FULL)


def test_codes_of_a_later_registry_are_numbers() -> None:
    """[ABT-3]"""
    assert code_name(ErrorCode.FULL) == "full"
    assert code_name(0x7777) == "code 0x7777"


# ---- what the destination says itself ----

HANDED = TAPE.until(F.RUNNING)
THERE = TAPE.record(F.RUNNING)


def hand_back(epoch: int) -> Tape:
    assert isinstance(THERE, Running)
    return HANDED.inserted(len(HANDED), D, HandBack(epoch, THERE.runner))


def test_a_hand_back() -> None:
    """[ONE-35] [ONE-37] [HND-2] It never ran there; of another epoch it says nothing."""
    assert isinstance(THERE, Running)
    ended = outcome(hand_back(THERE.epoch))
    assert (ended.ended, ended.runs, ended.by) == (Ended.HANDED_BACK, Runs.SOURCE, None)
    assert "it never ran there" in ended.text
    fault = hand_back(THERE.epoch + 1).follow().fault
    assert fault is not None
    assert (fault.clause, fault.code, fault.sender) == ("HND-2", ErrorCode.BAD_EPOCH, D)


def question(*answers: Record) -> Tape:
    """A HELLO of mode verdict and what comes of it."""
    hello = replace(TAPE.record(F.HELLO), mode=Mode.VERDICT, session=b"s" * 16, token=b"t" * 32)
    tape = TAPE.until(F.WELCOME)
    at = tape.where(F.HELLO)
    tape = Tape([*tape[:at], *tape[at + 1 :]]).inserted(at, S, hello)
    for answer in answers:
        tape = tape.inserted(len(tape), D, answer)
    return tape


@pytest.mark.parametrize("owner", Owner)
def test_a_question_and_its_answer(owner: Owner) -> None:
    """[ONE-15] [ONE-60]"""
    ended = outcome(question(Verdict(owner, 2)))
    assert (ended.ended, ended.runs) == (Ended.ANSWERED, Runs[owner.name])
    assert ended.text.startswith("the destination has said who owns the guest; ")


@pytest.mark.parametrize(("answers", "end"), [([], Ended.CUT), ([Refuse(ErrorCode.BUSY)], Ended.REFUSED)])
def test_a_question_without_an_answer(answers: list[Record], end: Ended) -> None:
    """Nothing was to be moved, so nothing is known."""
    ended = outcome(question(*answers))
    assert (ended.ended, ended.runs) == (end, Runs.UNKNOWN)
    assert "no answer was seen" in ended.text


def test_a_question_is_not_an_opening() -> None:
    """[CON-10]"""
    fault = question(TAPE.record(F.WELCOME)).follow().fault
    assert fault is not None
    assert (fault.clause, fault.sender) == ("CON-10", D)


def test_an_opening_that_comes_too_late() -> None:
    """[ONE-14] [CON-9] An old HELLO is answered with what became of the guest."""
    at = TAPE.where(F.WELCOME)
    ended = outcome(Tape(TAPE[:at]).inserted(at, D, Verdict(Owner.DESTINATION, 2)))
    assert (ended.ended, ended.runs) == (Ended.ANSWERED, Runs.DESTINATION)
