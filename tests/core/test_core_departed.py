"""A source whose guest runs elsewhere, and that was not told so, or not that everything is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_support import EPOCH, VERDICT, ServingRig
from resume_support import FirstServingRig, FirstSourceRig, SecondServingRig
from test_core_serving_again import pages_of

from sterna.core import events as e
from sterna.core.events import Outcome
from sterna.core.source import SourceMachine
from sterna.core.tables import SourceState as S
from sterna.registry import ErrorCode
from sterna.wire import records as r


def without_pages() -> FirstSourceRig:
    """The machine of a source that has lost its link before COMPLETE, and is to hear a VERDICT."""
    first = FirstSourceRig().until(S.MOVED)
    first.machine.connection_lost(None, first.now)
    assert (first.machine.state, first.machine.result.outcome) == (S.PARTED, Outcome.SUSPENDED)
    rig = FirstSourceRig()
    carry = first.machine.carry
    rig.machine = SourceMachine.resumed(rig.machine._job, carry.memory._pages, carry, rig.now)
    rig.machine.start(rig.now)
    rig.drain()
    assert rig.machine.state is S.RETURNING
    return rig


def test_without_pages_that_follow_it_comes_back_to_hear_that_they_are_there():
    """[RES-17] [ONE-38] [ONE-39] VERDICT repeats COMPLETE, and behind it nothing is said."""
    rig = without_pages()
    digest = rig.machine.digest
    rig.say(replace(VERDICT, complete=True, digest=digest))
    assert rig.machine.state is S.RELEASING
    rig.do(e.ReleaseImage)
    result = rig.machine.result
    assert (rig.machine.state, result.outcome, result.digest) == (S.CLOSED, Outcome.COMPLETED, digest)
    assert not rig.drain()


@pytest.mark.parametrize("what", ["another digest", "not complete", "a WELCOME"])
def test_what_is_no_complete_frees_nothing(what):
    """[ONE-38] [ONE-40] [PCY-21]"""
    rig = without_pages()
    match what:
        case "another digest":
            rig.say(replace(VERDICT, complete=True, digest=bytes(16)))
            code = ErrorCode.MEMORY_MISMATCH
        case "not complete":
            rig.say(VERDICT)
            code = ErrorCode.CONNECTION_LOST
        case _:
            rig.say(rig.welcome(generation=1))
            code = ErrorCode.UNEXPECTED_FRAME
    result = rig.machine.result
    assert (rig.machine.state, result.outcome, result.code) == (S.DEPARTED, Outcome.MOVED, code)
    assert rig.wishes == []


def test_a_verdict_that_repeats_complete_where_pages_followed():
    """[ONE-39] [MEM-16] [CMP-1] Only if every page was sent."""
    rig = SecondServingRig().until(S.RETURNING)
    digest = rig.machine._memory.complete()
    rig.say(replace(VERDICT, complete=True, digest=digest))
    rig.do(e.ReleaseImage)
    result = rig.machine.result
    assert (result.outcome, result.digest, result.after.pushed) == (Outcome.COMPLETED, digest, 2)
    rig = SecondServingRig(sent=False).until(S.RETURNING)
    rig.say(replace(VERDICT, complete=True, digest=digest))
    assert (rig.machine.result.outcome, rig.machine.result.code) == (
        Outcome.MOVED,
        ErrorCode.MEMORY_MISMATCH,
    )


def test_a_source_that_learns_where_the_guest_runs_serves_on():
    """[RES-13] [RES-12] RUNNING was lost: what was declared stale follows all the same."""
    first = FirstServingRig().until(S.HANDED_OVER)
    assert not first.machine.may_serve
    first.machine.connection_lost(None, first.now)
    assert first.machine.result.outcome is Outcome.UNDECIDED
    assert first.machine.may_serve
    carry = first.machine.moved(first.now)
    assert carry.moved
    assert carry.serving.pages_owed == 2
    rig = FirstServingRig()
    rig.machine = SourceMachine.resumed(rig.machine._job, carry.memory._pages, carry, rig.now)
    rig.machine.start(rig.now)
    generation = rig.machine._ticket.generation
    rig.say(rig.welcome(generation=generation, complete_round=2))
    rig.do(e.Persist)
    rig.drain()
    assert pages_of(rig) == [(1, 2, 3)]
    rig.say(r.Complete(EPOCH + 1, rig.machine._memory.complete()))
    rig.do(e.ReleaseImage)
    rig.drain()
    rig.say(r.Bye())
    assert (rig.machine.result.outcome, rig.machine.result.resumed) == (Outcome.COMPLETED, 1)


def test_without_resume_nobody_serves_on():
    """[RES-12]"""
    rig = ServingRig().until(S.HANDED_OVER)
    rig.machine.connection_lost(None, rig.now)
    assert (rig.machine.state, rig.machine.may_serve) == (S.UNDECIDED, False)
    assert not FirstSourceRig().machine.may_serve
