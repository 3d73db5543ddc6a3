"""A destination from HANDOVER on: what it does with its permission, and what becomes of the guest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_support import (
    EPOCH,
    HERE,
    IMAGE,
    PAGE,
    SECTION,
    SESSION,
    THERE,
    DestinationRig,
    FetchingRig,
    HandingBackRig,
    code_of,
    discarded,
)

from sterna.core import events as e
from sterna.core import records
from sterna.core.events import Outcome
from sterna.core.history import RecordConflict
from sterna.core.records import Claiming, Start
from sterna.core.tables import DestinationState as D
from sterna.errors import GuestError
from sterna.registry import ErrorCode, Limit, Phase, Style
from sterna.wire import records as r
from sterna.wire import unchecked

WRONG = b"\xee" * 16


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
def test_a_handover_of_another_epoch(epoch):
    """[HND-1] [ONE-24] It permits nothing: what was reserved is freed."""
    rig = DestinationRig().until(D.LOADED)
    rig.say(r.Handover(1, epoch))
    assert code_of(rig) is ErrorCode.BAD_EPOCH
    assert rig.heard[-1].phase == Phase.BLACKOUT
    discarded(rig, ErrorCode.BAD_EPOCH)


def test_the_order_of_committing():
    """[ONE-5] [ONE-25] [ONE-26] [ONE-28] [ONE-39] [CON-56] [CON-57] Each when what is before it is done.

    CLAIMING, the claim, the storage locks [SFX-8], START, the guest, RUNNING, the record COMPLETE, COMPLETE.
    [MEM-16] COMPLETE names the digest that SEAL had, made of this side's own entries.
    """
    rig = DestinationRig().until(D.LOADED)
    before = len(rig.asked)
    rig.say(r.Handover(1, EPOCH))
    said = []
    while rig.wishes:
        assert len(rig.wishes) == 1
        request = rig.take()
        said.append(rig.drain())
        rig.machine.complete(request, rig.answer(request), rig.now)
    claiming, claim, storage, start, run, complete = rig.asked[before:]
    assert claiming.record == Claiming(SESSION, EPOCH + 1, THERE, SESSION, rig.digest.value())
    assert (claim.epoch, claim.runner) == (EPOCH + 1, THERE)
    assert isinstance(storage, e.TakeStorage)
    assert start.record == Start(EPOCH + 1)
    assert (type(run), run.epoch, run.runner) == (e.RunGuest, EPOCH + 1, THERE)
    assert complete.record == records.Complete(SESSION, EPOCH + 1, rig.digest.value())
    assert said == [[], [], [], [], [], [r.Running(EPOCH + 1, THERE)]]
    assert rig.drain() == [r.Complete(EPOCH + 1, rig.digest.value())]


COMMITTING = [D.RECORDING, D.CLAIMING, D.COMMITTING, D.STARTING]


@pytest.mark.parametrize("state", COMMITTING, ids=lambda state: state.name)
@pytest.mark.parametrize("how", ["lost", "abort", "nonsense", "silence"])
def test_a_permission_stands(state, how):
    """[ONE-30] [CON-64] Whatever happens to the link or is said on it. [ONE-39] COMPLETE is on record."""
    rig = DestinationRig().until(state)
    match how:
        case "lost":
            rig.machine.connection_lost(None, rig.now)
        case "abort":
            rig.say(r.Abort(ErrorCode.CANCELLED, Phase.COMMIT))
        case "nonsense":
            rig.say_bytes(unchecked.frame(0x8999))
        case "silence":
            rig.pass_time(20.0)
    assert rig.machine.result is None
    while rig.wishes:
        request = rig.take()
        rig.machine.complete(request, rig.answer(request), rig.now)
    result = rig.machine.result
    assert (result.outcome, result.epoch) == (Outcome.MOVED, EPOCH + 1)
    assert result.code is not None
    run, complete = rig.asked[-2:]
    assert isinstance(run, e.RunGuest)
    assert isinstance(complete.record, records.Complete)
    assert not [each for each in rig.drain() if isinstance(each, r.Running)]


@pytest.mark.parametrize("state", [D.RECORDING, D.CLAIMING, D.STARTING], ids=lambda state: state.name)
@pytest.mark.parametrize("linked", [True, False])
def test_a_permission_that_cannot_be_used(state, linked):
    """[ONE-30] Records, store and holder say what follows: the guest is left as it is, and nobody runs it."""
    rig = DestinationRig().until(state)
    if not linked:
        rig.machine.connection_lost(None, rig.now)
    rig.break_(type(next(iter(rig.machine._requests))), GuestError("disk full", ErrorCode.RECORD_FAILED))
    result = rig.machine.result
    code = ErrorCode.RECORD_FAILED if linked else ErrorCode.CONNECTION_LOST  # the first reason is the reason
    assert (result.outcome, result.code) == (Outcome.UNDECIDED, code)
    assert result.epoch == EPOCH
    assert result.phase is Phase.COMMIT
    assert rig.wishes == []
    if linked:
        assert code_of(rig) is ErrorCode.RECORD_FAILED
        assert rig.heard[-1].phase == Phase.COMMIT


@pytest.mark.parametrize("linked", [True, False])
def test_a_claim_that_is_lost(linked):
    """[ONE-9] [ONE-29] Somebody else runs the guest: what is here of it is freed."""
    rig = DestinationRig().until(D.CLAIMING)
    if not linked:
        rig.machine.connection_lost(None, rig.now)
    rig.do(e.Claim, HERE)
    if linked:
        assert code_of(rig) is ErrorCode.STALE_EPOCH
        assert rig.heard[-1].phase == Phase.COMMIT
    assert rig.machine.state is D.DISCARDING
    discarded(rig, ErrorCode.STALE_EPOCH if linked else ErrorCode.CONNECTION_LOST)


def test_our_own_name_with_another_number_is_another_runner():
    """[ONE-9] [ONE-52] The slot must hold the runner that was made for this image."""
    rig = DestinationRig().until(D.CLAIMING)
    rig.do(e.Claim, replace(THERE, id=WRONG))
    discarded(rig, ErrorCode.STALE_EPOCH)


# ---- handing back ----


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("kind", [e.TakeStorage, e.Persist])
def test_what_cannot_be_run_is_handed_back(kind, linked):
    """[ONE-26] [ONE-27] [ONE-35] HANDBACK is durable before it is sent, and then everything is freed."""
    rig = DestinationRig().until(D.CLAIMING)
    rig.do(e.Claim, THERE)
    if kind is e.Persist:
        rig.do(e.TakeStorage)
        assert rig.machine._requests
    if not linked:
        rig.machine.connection_lost(None, rig.now)
    rig.break_(kind, GuestError("not to be had"))
    assert rig.machine.state is D.HANDING_BACK
    record = rig.take(e.Persist)
    assert record.record == records.HandBack(EPOCH + 1)
    assert rig.drain() == []
    rig.machine.complete(record, None, rig.now)
    assert rig.drain() == ([r.HandBack(EPOCH + 1, THERE)] if linked else [])  # [HND-2]
    discarded(rig, ErrorCode.GUEST_FAILED if linked else ErrorCode.CONNECTION_LOST)


def test_start_that_is_there_already():
    """[ONE-27] [ONE-28] An operator has decided, or what failed was durable: the guest is run."""
    rig = DestinationRig().until(D.COMMITTING)
    rig.break_(e.Persist, RecordConflict("decided", Start(EPOCH + 1, operator="mo")))
    run = rig.take(e.RunGuest)
    assert (run.epoch, run.runner) == (EPOCH + 1, THERE)
    rig.machine.complete(run, None, rig.now)
    assert rig.last() == r.Running(EPOCH + 1, THERE)


@pytest.mark.parametrize("state", [D.COMMITTING, D.HANDING_BACK], ids=lambda state: state.name)
def test_handback_that_is_there_already(state):
    """[ONE-27] [ONE-35] An operator has decided: it is sent, and the guest is not run."""
    rig = (DestinationRig if state is D.COMMITTING else HandingBackRig)().until(state)
    existing = records.HandBack(EPOCH + 1, operator="mo")
    while rig.machine.state is not D.DISCARDING:
        rig.break_(e.Persist, RecordConflict("decided", existing))
    assert rig.last() == r.HandBack(EPOCH + 1, THERE)
    rig.do(e.Discard)
    assert rig.machine.result.outcome is Outcome.ROLLED_BACK
    assert e.RunGuest not in [type(each) for each in rig.asked]


@pytest.mark.parametrize("error", [RecordConflict("decided", Start(EPOCH + 1)), GuestError("disk full")])
def test_handback_that_cannot_be_recorded(error):
    """[ONE-27] [ONE-35] START may be durable: nothing is sent, freed or run, and the records decide."""
    rig = HandingBackRig().until(D.HANDING_BACK)
    rig.break_(e.Persist, error)
    assert code_of(rig) is error.code
    assert rig.machine.result.outcome is Outcome.UNDECIDED
    assert rig.wishes == []
    assert not [each for each in rig.heard if isinstance(each, r.HandBack)]


# ---- after the guest runs ----


def test_complete_that_cannot_be_recorded():
    """[ONE-39] It is not sent: the source keeps its image, and the guest runs on here."""
    rig = DestinationRig().until(D.COMPLETING)
    rig.break_(e.Persist, GuestError("disk full", ErrorCode.RECORD_FAILED))
    assert code_of(rig) is ErrorCode.RECORD_FAILED
    assert rig.machine.result.outcome is Outcome.MOVED
    assert not [each for each in rig.heard if isinstance(each, r.Complete)]


def test_complete_is_recorded_though_nobody_listens():
    """[ONE-39] What was asked for when the session was lost is still to be carried out."""
    rig = DestinationRig().until(D.COMPLETING)
    rig.machine.connection_lost(None, rig.now)
    assert rig.machine.result.outcome is Outcome.MOVED
    rig.do(e.Persist)
    assert rig.drain() == []


@pytest.mark.parametrize("last", ["recorded", "failed"])
def test_release_is_recorded(last):
    """[CON-70] If it cannot be, the session is kept a while longer, and that is all."""
    rig = DestinationRig().until(D.RUNNING)
    rig.say(r.Release(EPOCH + 1))
    assert rig.machine.state is D.RELEASED
    request = rig.take(e.Persist)
    assert request.record == records.Released(SESSION)
    if last == "recorded":
        rig.machine.complete(request, None, rig.now)
    else:
        rig.machine.fail(request, GuestError("disk full"), rig.now)
    rig.say(r.Bye())
    assert rig.machine.result.outcome is Outcome.COMPLETED


# ---- pages that follow the guest ----


def test_running_comes_before_the_pages_and_complete_behind_them():
    """[CON-56] [CON-57] [PCY-12] [MEM-16]"""
    rig = FetchingRig().until(D.FETCHING)
    (claiming,) = [each.record for each in rig.asked if isinstance(getattr(each, "record", None), Claiming)]
    assert not claiming.digest  # nobody can tell yet what it will be
    assert isinstance(rig.heard[-1], r.Running)
    assert [event.pages for event in rig.events(e.PagesFollow)] == [2]
    rig.follow()
    assert rig.drain() == []
    rig.now += 1.5
    installed = rig.take(e.Installed)
    assert installed.pages == (r.PageRange(0, 1, 2),)
    assert bytes(rig.memory[0]) == IMAGE
    rig.machine.complete(installed, None, rig.now)
    assert rig.machine.state is D.COMPLETING
    (followed,) = rig.events(e.PagesFollowed)
    assert (followed.stats.pushed, followed.stats.seconds) == (2, 1.5)
    rig.do(e.Persist)
    assert rig.last() == r.Complete(EPOCH + 1, rig.digest.value())
    rig.release()
    rig.say(r.Bye())
    result = rig.machine.result
    assert (result.outcome, result.style) == (Outcome.COMPLETED, Style.BITMAP)
    assert result.digest == rig.digest.value()
    assert result.after == followed.stats


def test_what_the_guest_waits_for_is_asked_for():
    """[PCY-9] [CMP-3]"""
    rig = FetchingRig()
    assert not rig.machine.guest_waits
    rig.until(D.FETCHING)
    assert not rig.machine.guest_waits
    rig.machine.fault(0, 2, 1, rig.now)
    assert rig.last() == r.PageRequest(0, 1, 2, urgent=True)
    assert rig.machine.guest_waits
    rig.machine.fault(0, 1, 1, rig.now)
    rig.machine.fault(0, 0, 1, rig.now)  # it is there
    assert rig.drain() == []


def test_a_fault_before_running_is_asked_for_behind_it():
    """[CON-55] The guest may fault before its runner has said that it runs."""
    rig = FetchingRig()
    rig.machine.fault(0, 1, 1, rig.now)
    rig.until(D.STARTING)
    rig.machine.fault(0, 1, 1, rig.now)
    assert rig.drain() == []
    rig.do(e.RunGuest)
    assert [type(each) for each in rig.drain()] == [r.Running, r.PageRequest]


def test_a_fault_when_all_is_over_changes_nothing():
    rig = FetchingRig().until(D.FETCHING)
    rig.machine.connection_lost(None, rig.now)
    rig.machine.fault(0, 1, 1, rig.now)
    assert rig.machine.state is D.STRANDED


def test_a_source_that_has_lost_the_pages_says_so():
    """[ONE-42] Its ABORT is all that tells a guest that waits from one that waits for ever."""
    rig = FetchingRig().until(D.FETCHING)
    rig.say(r.Abort(ErrorCode.GUEST_LOST, Phase.AFTER))
    result = rig.machine.result
    assert (result.outcome, result.code) == (Outcome.STRANDED, ErrorCode.GUEST_LOST)


def test_no_more_requests_than_the_source_takes():
    """[PCY-11] [CMP-3]"""
    rig = FetchingRig()
    rig.say(rig.hello(limits={Limit.PAGE_REQUESTS: 0}))
    rig._done = 1
    rig.until(D.FETCHING)
    rig.machine.fault(0, 1, 1, rig.now)
    assert rig.drain() == []


def test_what_does_not_match_its_hash_is_asked_for_again():
    """[MEM-4] [MEM-5]"""
    rig = FetchingRig().until(D.FETCHING)
    rig.follow(damage=True)
    assert rig.last() == r.PageRequest(0, 1, 2, urgent=False)
    assert rig.wishes == []
    rig.follow()
    rig.do(e.Installed)
    assert rig.machine.state is D.COMPLETING


def test_damage_without_end_ends_the_session_and_not_the_guest():
    """[MEM-5] [CON-64]"""
    rig = FetchingRig().until(D.FETCHING)
    for _ in range(20):
        rig.follow(damage=True)
        if rig.machine.result is not None:
            break
    assert code_of(rig) is ErrorCode.PAGE_HASH
    assert rig.machine.result.outcome is Outcome.STRANDED


def test_the_first_arrival_wins_until_release():
    """[STR-11] [PCY-22] Before it is installed, before COMPLETE is recorded, and after it was sent."""
    rig = FetchingRig().until(D.FETCHING)
    rig.follow()
    rig.image[PAGE : 2 * PAGE] = b"\xee" * PAGE
    rig.follow()
    rig.do(e.Installed)
    assert rig.machine.state is D.COMPLETING
    rig.follow()
    rig.do(e.Persist)
    assert rig.machine.state is D.RUNNING
    rig.follow(damage=True)
    assert bytes(rig.memory[0]) == IMAGE
    assert rig.wishes == []
    assert rig.machine._follows.fetching.stats().repeated == 6
    rig.release()
    rig.follow()
    assert rig.machine.result.outcome is Outcome.COMPLETED  # RELEASE was enough [CON-70]


def test_a_part_of_the_pages_is_not_all():
    rig = FetchingRig()
    rig.image[PAGE : 3 * PAGE] = IMAGE[PAGE : 3 * PAGE]
    rig.until(D.BLACKOUT)
    rig.finish_round()
    rig.bitmap(pages=b"\x05")  # pages 0 and 2, two groups
    rig.digest.mark_stale(0, [0, 2], [1, 1])
    rig.state(SECTION)
    rig.say(rig.seal())
    rig.expect_and_load()
    rig.say(r.Handover(1, EPOCH))
    rig.do(e.Persist)
    rig.claim_won()
    rig.do(e.Persist)
    rig.do(e.RunGuest)
    rig.follow([2], [1])
    rig.do(e.Installed)
    assert rig.machine.state is D.FETCHING
    rig.follow([0], [1])
    rig.do(e.Installed)
    assert rig.machine.state is D.COMPLETING


@pytest.mark.parametrize(
    ("starts", "counts", "code"),
    [([1], [1], ErrorCode.BAD_VALUE), ([0], [4], ErrorCode.BAD_VALUE), ([2], [2], ErrorCode.BAD_VALUE)],
    ids=["part", "more", "across"],
)
def test_groups_that_are_not_whole(starts, counts, code):
    """[PCY-7]"""
    rig = FetchingRig().until(D.FETCHING)
    rig.follow(starts, counts)
    assert code_of(rig) is code
    assert rig.machine.result.outcome is Outcome.STRANDED


def test_pages_that_are_not_stale_are_dropped():
    """[PCY-15]"""
    rig = FetchingRig().until(D.FETCHING)
    rig.image[:PAGE] = b"\xee" * PAGE
    rig.follow([0], [1])
    assert bytes(rig.memory[0][:PAGE]) == IMAGE[:PAGE]
    assert rig.machine._follows.fetching.stats().outside == 1
    assert rig.machine.state is D.FETCHING


@pytest.mark.parametrize(
    ("attempt", "round_", "code"),
    [(1, 2, ErrorCode.BAD_ROUND), (1, 4, ErrorCode.BAD_ROUND), (2, 3, ErrorCode.BAD_ATTEMPT)],
)
def test_pages_of_another_round_or_attempt(attempt, round_, code):
    """[PCY-8] [CON-23]"""
    rig = FetchingRig().until(D.FETCHING)
    rig.attempt, rig.round = attempt, round_ - 1
    rig.follow()
    assert code_of(rig) is code


def test_pages_where_nothing_was_stale_are_unexpected():
    """[PCY-21]"""
    rig = FetchingRig().until(D.STANDBY)
    rig.whole_round()
    rig.switchover()
    rig.do(e.Persist)
    rig.do(e.Prepare)
    rig.begin()
    rig.finish_round()
    rig.state(SECTION)
    rig.say(rig.seal())
    assert rig.take(e.Expect).stale == {}  # takes back what was likely
    rig.machine.complete(rig.asked[-1], None, rig.now)
    rig.do(e.LoadState)
    rig.say(r.Handover(1, EPOCH))
    rig.do(e.Persist)
    rig.claim_won()
    rig.do(e.Persist)
    rig.do(e.RunGuest)
    assert rig.machine.state is D.COMPLETING
    rig.follow()
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME


def test_a_connection_lost_before_the_guest_runs_strands_it():
    """[ONE-30] [CON-64] The permission stands, and the pages are at the source."""
    rig = FetchingRig().until(D.STARTING)
    rig.machine.connection_lost(None, rig.now)
    rig.do(e.RunGuest)
    result = rig.machine.result
    assert (result.outcome, result.epoch, rig.machine.state) == (Outcome.STRANDED, EPOCH + 1, D.STRANDED)
    assert result.after.stale == 2


def test_pages_that_could_not_be_installed_strand_the_guest():
    rig = FetchingRig().until(D.FETCHING)
    rig.follow()
    rig.break_(e.Installed, GuestError("the holder is gone"))
    assert code_of(rig) is ErrorCode.GUEST_FAILED
    assert rig.machine.result.outcome is Outcome.STRANDED
