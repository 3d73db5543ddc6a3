"""A source whose guest runs elsewhere: what it was told, notes and frees; or that it was not told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_support import EPOCH, SESSION, THERE, VERDICT, ServingRig, SourceRig, code_of
from resume_support import FirstServingRig, FirstSourceRig, SecondServingRig
from test_core_serving_again import pages_of

from sterna.core import events as e
from sterna.core.events import Outcome
from sterna.core.records import Decided
from sterna.core.source import SourceMachine
from sterna.core.tables import SourceState as S
from sterna.errors import GuestError, TransportError
from sterna.registry import ErrorCode, Owner, Phase
from sterna.wire import records as r

# ---- RUNNING, and the record of it ----


@pytest.mark.parametrize("epoch", [EPOCH, EPOCH + 2, 0])
def test_running_under_another_epoch(epoch):
    """[RUN-1] It is not believed: who runs the guest is not known."""
    rig = SourceRig().until(S.HANDED_OVER)
    rig.say(r.Running(epoch, THERE))
    assert code_of(rig) is ErrorCode.BAD_EPOCH
    assert rig.heard[-1].phase == Phase.COMMIT
    result = rig.machine.result
    assert (result.outcome, result.code) == (Outcome.UNDECIDED, ErrorCode.BAD_EPOCH)


def decided_rig(*, failing: bool) -> SourceRig:
    rig = SourceRig().until(S.HANDED_OVER)
    rig.say(r.Running(EPOCH + 1, THERE))
    note_owner(rig, failing=failing)
    assert (rig.machine.state, rig.machine.result) == (S.MOVED, None)
    return rig


def note_owner(rig: SourceRig, *, failing: bool) -> None:
    assert rig.take(e.Persist).record == Decided(SESSION, EPOCH + 1, Owner.DESTINATION)
    if failing:
        rig.machine.fail(rig.asked[-1], GuestError("disk full"), rig.now)
    else:
        rig.machine.complete(rig.asked[-1], None, rig.now)


@pytest.mark.parametrize("tries", [0, 1, 2])
def test_the_decision_is_recorded_before_the_session_is_forgotten(tries):
    """[ONE-38] [ONE-63] One that cannot be is tried once more, and then told; the session goes on."""
    rig = decided_rig(failing=tries > 0)
    rig.say(r.Complete(EPOCH + 1, rig.machine.digest))
    if tries:
        note_owner(rig, failing=tries > 1)
    rig.do(e.ReleaseImage)
    rig.drain()
    rig.say(r.Bye())
    result = rig.machine.result
    assert (result.outcome, result.code) == (Outcome.COMPLETED, None)
    assert str(result.unrecorded) == ("guest_failed: disk full" if tries > 1 else "None")


def test_a_decision_that_fails_behind_the_end_is_told_as_well():
    """[ONE-63]"""
    rig = SourceRig().until(S.HANDED_OVER)
    rig.say(r.Running(EPOCH + 1, THERE))
    request = rig.take(e.Persist)
    rig.machine.connection_lost(None, rig.now)
    assert rig.machine.result.unrecorded is None
    rig.machine.fail(request, GuestError("disk full"), rig.now)
    assert str(rig.machine.result.unrecorded) == "guest_failed: disk full"


# ---- COMPLETE, and the word that it was said ----


@pytest.mark.parametrize(
    ("epoch", "digest", "code"),
    [(EPOCH + 1, bytes(16), ErrorCode.MEMORY_MISMATCH), (EPOCH, None, ErrorCode.BAD_EPOCH)],
    ids=["digest", "epoch"],
)
def test_complete_with_another_digest_or_epoch(epoch, digest, code):
    """[CMP-1] [CMP-2] [CMP-4] [ONE-40] The image is kept, the peer told, and the session over."""
    rig = SourceRig().until(S.MOVED)
    rig.say(r.Complete(epoch, digest or rig.machine.digest))
    assert code_of(rig) is code
    result = rig.machine.result
    assert (result.outcome, result.code) == (Outcome.MOVED, code)
    assert result.epoch == EPOCH + 1
    assert rig.wishes == []
    assert e.ReleaseImage not in [type(each) for each in rig.asked]


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
    rig.do(e.Persist)
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
    carry = first.machine.moved()
    assert carry.moved
    assert carry.serving.pages_owed == 2
    rig = FirstServingRig()
    rig.machine = SourceMachine.resumed(rig.machine._job, carry.memory._pages, carry, rig.now)
    rig.machine.give_up(TransportError(ErrorCode.PEER_SILENT, "nobody"), rig.now)
    assert (rig.machine.result.outcome, rig.machine.result.has_run) == (Outcome.MOVED, False)
    rig.machine = SourceMachine.resumed(rig.machine._job, carry.memory._pages, carry, rig.now)
    rig.machine.start(rig.now)
    generation = rig.machine._ticket.generation
    rig.say(rig.welcome(generation=generation, complete_round=2))
    rig.do(e.Persist)
    rig.drain()
    assert pages_of(rig) == [(1, 2, 3)]
    assert rig.machine._account.close(Outcome.MOVED, rig.now, epoch=2, digest=b"", bytes_sent=0).has_run
    rig.say(r.Complete(EPOCH + 1, rig.machine._memory.complete()))
    rig.do(e.Persist)
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
