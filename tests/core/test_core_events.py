"""What a driver relies on in requests and results."""

from __future__ import annotations

import dataclasses
import typing

import pytest
from core_support import ADMISSION, HERE, REGION, SECTION, SESSION, TOKEN, VERDICT
from resume_support import FirstDestinationRig

from sterna.core import events as e
from sterna.core.tables import DestinationState
from sterna.errors import GuestError, LocalProtocolError
from sterna.memory.bitmap import PageBitmap
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.registry import ErrorCode, Phase
from sterna.wire.records import NO_ID

REQUESTS = typing.get_args(e.Request)


def test_requests_are_told_apart_by_identity():
    """Two equal ones, a CollectDirty after another, are answered one by one."""
    assert len(REQUESTS) == 26
    for kind in REQUESTS:
        parameters = kind.__dataclass_params__
        assert parameters.frozen
        assert not parameters.eq
    assert e.CollectDirty() != e.CollectDirty()


CARRY = FirstDestinationRig().until(DestinationState.STANDBY).lose()
GOOD = {
    e.CollectDirty: {0: PageBitmap(4)},
    e.SaveState: (SECTION,),
    e.Admit: ADMISSION,
    e.Reserve: RegionPages(RegionTable((REGION,)), {0: memoryview(bytearray(REGION.size_bytes))}),
    e.Claim: HERE,
    e.AnswerVerdict: VERDICT,
    e.Readmit: CARRY,
}
ALSO = {e.Admit: VERDICT, e.Readmit: VERDICT}  # [ONE-14] [RES-15]


@pytest.mark.parametrize("kind", REQUESTS)
def test_an_answer_is_what_the_request_asks_for(kind):
    request = object.__new__(kind)
    e.check_answer(request, GOOD.get(kind))
    for answer in (*GOOD.values(), None, GuestError("no")):
        fits = any(each is kind and answer is good for each, good in (*GOOD.items(), *ALSO.items()))
        if fits or (kind not in GOOD and not isinstance(answer, Exception)):
            e.check_answer(request, answer)
        else:
            with pytest.raises(LocalProtocolError, match=kind.__name__):
                e.check_answer(request, answer)


def test_events_are_values():
    for kind in typing.get_args(e.Event):
        assert kind.__dataclass_params__.frozen
    assert e.PhaseEntered(Phase.ROUNDS) == e.PhaseEntered(Phase.ROUNDS)


@pytest.mark.parametrize(
    "changes", [{"session": NO_ID}, {"session": SESSION[:-1]}, {"token": TOKEN + b"\0"}], ids=str
)
def test_an_admission_that_no_welcome_can_carry(changes):
    """[WEL-4]"""
    assert ADMISSION.is_sound
    assert not dataclasses.replace(ADMISSION, **changes).is_sound


def test_outcomes_read_as_words():
    assert e.Outcome.COMPLETED == "completed"
    assert {str(outcome) for outcome in e.Outcome} == {
        "completed", "moved", "stranded", "rolled_back", "undecided", "answered", "guest_failed", "suspended",
        "joined",
    }  # fmt: skip


def test_a_result_says_nothing_that_it_does_not_know():
    result = e.Result(e.Outcome.ROLLED_BACK, ErrorCode.CANCELLED)
    assert (result.blackout_s, result.digest, result.rounds, result.items) == (None, b"", (), ())
    assert (result.session, result.verdict) == (NO_ID, None)
    assert result.phase is Phase.ANY
