"""What follows from a judgement: every act, what it rests on, and that doing them all comes to an end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from records_support import CLAIM, DIGEST, IMAGE, ONE, OTHERS, OURS, RECEIVING, SENDING, TWO
from sterna.core import recovery
from sterna.core.history import History
from sterna.core.records import (
    Claiming,
    Complete,
    Decided,
    Granted,
    HandBack,
    Record,
    Released,
    Resolved,
    RunnerRecord,
    SessionRecord,
    Side,
    Start,
    Voided,
)
from sterna.core.recovery import (
    AskPeer,
    AwaitClaim,
    ClaimSlot,
    FreeRoom,
    Image,
    Note,
    ReadStore,
    RunHere,
    RunOn,
    Settled,
    Situation,
    before_verdict,
    next_act,
    open_session,
)
from sterna.core.verdict import Facts, Step, Store
from sterna.registry import Owner
from sterna.wire.records import Runner

GUEST = bytes(range(16))
SPARE = Runner("here", b"s" * 16)
THEIRS = Runner("there", b"t" * 16)
GRANT, MADE = Granted(ONE, 2), RunnerRecord(ONE, 2, OURS, IMAGE)
S, D, U = Owner.SOURCE, Owner.DESTINATION, Owner.UNDECIDED


def history(*records: Record) -> History:
    found = History(GUEST)
    for record in records:
        found = found.after(record)
    return found


def situation(image=Image.STOPPED, *, store=None, peer=None, mark=2, epoch=1, complete=None) -> Situation:
    return Situation(Facts("here", store, mark, peer), image, IMAGE, epoch, complete)


def act(situation, *records):
    return next_act(history(*records), ONE, situation, SPARE)


# ---- which session ----


@pytest.mark.parametrize(
    ("records", "mark", "found"),
    [
        ((), 0, None),
        ((SENDING,), 0, None),
        ((SENDING,), 2, SENDING),
        ((SENDING,), 3, None),
        ((SENDING, GRANT), 0, SENDING),
        ((SENDING, GRANT, Voided(ONE, 2)), 0, None),
        ((SENDING, GRANT, Decided(ONE, 2, D)), 0, SENDING),
        ((RECEIVING,), 0, None),
        ((RECEIVING, CLAIM), 0, RECEIVING),
        ((RECEIVING, CLAIM, replace(RECEIVING, session=TWO)), 0, RECEIVING),
        ((RECEIVING, CLAIM, Start(2), SessionRecord(TWO, 2, Side.SOURCE, bytes(32), "b")), 0, RECEIVING),
        (
            (RECEIVING, CLAIM, Start(2), SessionRecord(TWO, 2, Side.SOURCE, bytes(32), "b"), Granted(TWO, 3)),
            0,
            SessionRecord(TWO, 2, Side.SOURCE, bytes(32), "b"),
        ),
    ],
)
def test_the_session_in_which_the_guest_may_have_gone(records, mark, found):
    assert open_session(history(*records), mark) == found


def test_a_session_that_is_in_no_record():
    found = next_act(history(SENDING), TWO, situation(), SPARE)
    assert isinstance(found, Settled)
    assert found.judgement.owner is U


# ---- a source ----


def test_a_guest_that_was_never_granted_runs_on():
    """[ONE-22]"""
    assert act(situation(mark=0), SENDING) == RunOn()
    for image, lost in ((Image.RUNS, False), (Image.GONE, True)):
        found = act(situation(image, mark=0), SENDING)
        assert isinstance(found, Settled)
        assert (found.judgement.owner, found.lost) == (S, lost)


def test_a_source_with_a_store_claims_the_next_epoch():
    """[ONE-5, ONE-21] With a runner that is on record, and for an image that it has."""
    empty = situation(store=Store())
    assert act(empty, SENDING, GRANT) == Note(RunnerRecord(ONE, 2, SPARE, IMAGE))
    assert act(empty, SENDING, GRANT, MADE) == ClaimSlot(2, OURS)


@pytest.mark.parametrize(
    ("peer", "records", "lost"),
    [(U, (), False), (S, (), True), (None, (Resolved(ONE, 2, S, "there"),), True)],
)
def test_a_guest_whose_image_is_gone_is_lost_only_if_it_never_runs_there(peer, records, lost):
    """[ONE-30, ONE-34] Who called it lost, and restored a backup, would fork a guest that runs."""
    gone = situation(Image.GONE, store=Store())
    assert act(gone, SENDING, GRANT) == AskPeer(SENDING)
    found = act(replace(gone, facts=replace(gone.facts, peer=peer)), SENDING, GRANT, *records)
    assert isinstance(found, Settled)
    assert (found.judgement.owner, found.lost) == (S if lost else U, lost)


def test_a_source_that_won_notes_that_and_runs():
    """[ONE-21, ONE-53]"""
    won = situation(store=Store(next=OURS))
    decided = Decided(ONE, 2, S)
    assert act(won, SENDING, GRANT, MADE) == Note(decided)
    assert act(won, SENDING, GRANT, MADE, decided) == RunHere(2, OURS)
    runs = replace(won, image=Image.RUNS, epoch=2)
    found = act(runs, SENDING, GRANT, MADE, decided)
    assert isinstance(found, Settled)
    assert (found.judgement.owner, found.lost) == (S, False)
    found = act(replace(won, image=Image.GONE), SENDING, GRANT, MADE)
    assert isinstance(found, Settled)
    assert found.lost


def test_a_source_that_lost_asks_whether_it_was_handed_back():
    """[ONE-37] What the slot says is not the last word: nothing final is noted before the peer has all."""
    lost = situation(store=Store(next=THEIRS))
    assert act(lost, SENDING, GRANT, MADE) == AskPeer(SENDING)
    for peer in (U, D):
        found = act(replace(lost, facts=replace(lost.facts, peer=peer)), SENDING, GRANT, MADE)
        assert isinstance(found, Settled)
        assert found.judgement.owner is D
    complete = replace(lost, complete=True)
    assert act(complete, SENDING, GRANT, MADE) == Note(Decided(ONE, 2, D))
    found = act(lost, SENDING, GRANT, MADE, Decided(ONE, 2, D))
    assert isinstance(found, Settled)
    assert found.judgement.owner is D


def test_a_source_to_which_it_was_handed_back_claims_the_epoch_behind():
    """[ONE-37]"""
    back = situation(store=Store(next=THEIRS), peer=S)
    later = RunnerRecord(ONE, 3, SPARE, IMAGE)
    assert act(back, SENDING, GRANT) == Note(later)
    assert act(back, SENDING, GRANT, later) == ClaimSlot(3, SPARE)
    won = situation(store=Store(next=THEIRS, after=SPARE), peer=S)
    assert act(won, SENDING, GRANT, later) == Note(Decided(ONE, 3, S))
    assert act(won, SENDING, GRANT, later, Decided(ONE, 3, S)) == RunHere(3, SPARE)


def test_a_store_that_does_not_answer():
    """[ONE-31]"""
    silent = situation(store=Store(answers=False))
    assert act(silent, SENDING, GRANT) == ReadStore()
    assert act(silent, RECEIVING, CLAIM) == ReadStore()


def test_a_slot_that_nobody_can_explain():
    """[ONE-52]"""
    found = act(situation(store=Store(next=Runner("here", b"?" * 16))), SENDING, GRANT)
    assert isinstance(found, Settled)
    assert found.judgement.step is Step.OPERATOR


def test_a_source_without_a_store_asks():
    """[ONE-43, ONE-47, ONE-48]"""
    assert act(situation(), SENDING, GRANT) == AskPeer(SENDING)
    found = act(situation(Image.GONE), SENDING, GRANT)  # asked, it would free the only image [ONE-44]
    assert isinstance(found, Settled)
    assert (found.judgement.owner, found.lost) == (U, False)
    found = act(situation(peer=U), SENDING, GRANT)
    assert isinstance(found, Settled)
    assert found.judgement.owner is U
    assert act(situation(peer=D), SENDING, GRANT) == Note(Decided(ONE, 2, D))
    later = RunnerRecord(ONE, 3, SPARE, IMAGE)
    back = situation(peer=S)
    assert act(back, SENDING, GRANT) == Note(later)
    assert act(back, SENDING, GRANT, later) == Note(Decided(ONE, 3, S))
    assert act(back, SENDING, GRANT, later, Decided(ONE, 3, S)) == RunHere(3, SPARE)


def test_an_operator_has_resolved_it():
    """[ONE-59]"""
    resolved = Resolved(ONE, 2, S, "there")
    later = RunnerRecord(ONE, 3, SPARE, IMAGE)
    assert act(situation(), SENDING, GRANT, resolved) == Note(later)
    assert act(situation(), SENDING, GRANT, resolved, later) == RunHere(3, SPARE)


# ---- pages that were to follow, from an image that is gone ----

FOLLOWS = Granted(ONE, 2, follows=True)
GONE_WITH_PAGES = [
    ("by slot", Store(next=THEIRS), (FOLLOWS,)),
    ("by slot, and decided", Store(next=THEIRS), (FOLLOWS, Decided(ONE, 2, D))),
    ("decided", None, (FOLLOWS, Decided(ONE, 2, D))),
    ("by what it has said", None, (FOLLOWS,)),
    ("of two grants the second", None, (GRANT, Voided(ONE, 2), FOLLOWS)),
]


@pytest.mark.parametrize(
    ("store", "records"), [each[1:] for each in GONE_WITH_PAGES], ids=[each[0] for each in GONE_WITH_PAGES]
)
@pytest.mark.parametrize("complete", [True, False, None])
def test_a_guest_that_waits_for_pages_that_nobody_has_is_lost(store, records, complete):
    """[ONE-42] The destination says whether it has them; without an answer nobody can know."""
    gone = situation(Image.GONE, store=store)
    assert act(gone, SENDING, *records) == AskPeer(SENDING)
    peer = D if store is None and complete is not None else U
    answered = replace(gone, facts=replace(gone.facts, peer=peer), complete=complete)
    found = act(answered, SENDING, *records)
    if isinstance(found, Note):
        assert found == Note(Decided(ONE, 2, D))
        found = act(answered, SENDING, *records, found.record)
    assert isinstance(found, Settled)
    assert found.lost is (complete is False)
    if complete is None:
        assert (found.judgement.step, found.judgement.clause in {"ONE-42", "ONE-43"}) == (Step.ASK, True)
    else:
        assert found.judgement.owner is D


def test_without_a_store_the_destination_is_asked_where_no_image_is_whole():
    """[ONE-42] [ONE-44] What it has not started lacks pages for ever, so that there is nothing to give up."""
    gone = situation(Image.GONE)
    assert act(gone, SENDING, FOLLOWS) == AskPeer(SENDING)
    back = act(situation(Image.GONE, peer=S), SENDING, FOLLOWS)
    assert isinstance(back, Settled)
    assert (back.judgement.owner, back.lost) == (S, True)


def test_where_nobody_has_claimed_it_pages_that_are_gone_are_needed_whoever_does():
    """[ONE-42]"""
    found = act(situation(Image.GONE, store=Store()), SENDING, FOLLOWS)
    assert isinstance(found, Settled)
    assert (found.judgement.clause, found.lost) == ("ONE-42", True)


def test_pages_that_an_endpoint_has_mapped_are_waited_for_by_it():
    """[ONE-42] [ONE-44] The destination may yet claim and start what nobody else can run."""
    gone = replace(situation(Image.GONE, store=Store()), mapped=True)
    assert act(gone, SENDING, FOLLOWS) == AwaitClaim()
    assert act(gone, SENDING, GRANT) == AskPeer(SENDING)  # of an image that is whole nothing is needed
    alone = replace(situation(Image.GONE), mapped=True)
    assert act(alone, SENDING, FOLLOWS) == AskPeer(SENDING, later=True)
    assert act(replace(alone, image=Image.STOPPED), SENDING, FOLLOWS) == AskPeer(SENDING)
    for facts in Facts("here", Store(), 2, S), Facts("here", None, 2, S):
        back = act(replace(gone, facts=facts), SENDING, FOLLOWS)
        assert isinstance(back, Settled)
        assert (back.judgement.owner, back.lost) == (S, True)


@pytest.mark.parametrize("image", [Image.GONE, Image.STOPPED])
def test_pages_that_are_there_or_needed_no_more_are_missed_by_nobody(image):
    """[ONE-42] RELEASED is recorded before they are freed, and an operator may have dropped them."""
    over = () if image is Image.STOPPED else (Released(ONE),)
    found = act(situation(image), SENDING, FOLLOWS, Decided(ONE, 2, D), *over)
    assert isinstance(found, Settled)
    assert (found.judgement.owner, found.judgement.step, found.lost) == (D, Step.FREE, False)


@pytest.mark.parametrize(("complete", "lost"), [(None, False), (False, True)])
def test_what_an_operator_has_resolved_is_asked_about_by_nobody(complete, lost):
    """[ONE-44] [ONE-42] Asked, a destination without a store gives up what it has not started."""
    gone = situation(Image.GONE, complete=complete)
    found = act(gone, SENDING, FOLLOWS, Resolved(ONE, 2, D))
    assert isinstance(found, Settled)
    assert (found.judgement.owner, found.lost) == (D, lost)


# ---- a destination ----


def test_a_claim_is_repeated():
    """[ONE-7]"""
    assert act(situation(Image.READY, store=Store()), RECEIVING, CLAIM) == ClaimSlot(2, CLAIM.runner)


def test_a_claim_that_was_won_starts_or_hands_back():
    """[ONE-58] Whether the image is there to be run decides."""
    won = situation(Image.READY, store=Store(next=OURS))
    assert act(won, RECEIVING, CLAIM) == Note(Start(2))
    assert act(replace(won, image=Image.GONE), RECEIVING, CLAIM) == Note(HandBack(2))
    assert act(replace(won, stale=True), RECEIVING, CLAIM) == Note(HandBack(2))
    late = situation(Image.READY, store=Store(next=OURS, after=THEIRS))
    assert act(late, RECEIVING, CLAIM) == Note(HandBack(2))


def test_an_operators_start_waits_for_its_slot():
    """[ONE-7, ONE-59] It may be recorded before the claim was answered, and keeps the image till then."""
    waits = situation(Image.READY, store=Store())
    assert act(waits, RECEIVING, CLAIM, Start(2, "operator")) == ClaimSlot(2, OURS)
    assert act(waits, RECEIVING, CLAIM, HandBack(2, "operator")) == FreeRoom()


@pytest.mark.parametrize(
    ("store", "records"),
    [(Store(next=OURS, after=THEIRS), (Start(2),)), (Store(next=Runner("here", b"?" * 16)), ())],
)
def test_what_an_operator_has_to_decide_is_kept(store, records):
    """[ONE-33, ONE-52]"""
    found = act(situation(Image.READY, store=store), RECEIVING, CLAIM, *records)
    assert isinstance(found, Settled)
    assert found.judgement.step is Step.OPERATOR


def test_a_claim_that_was_lost_frees():
    """[ONE-29]"""
    lost = situation(Image.READY, store=Store(next=THEIRS))
    assert act(lost, RECEIVING, CLAIM) == FreeRoom()
    assert isinstance(act(replace(lost, image=Image.GONE), RECEIVING, CLAIM), Settled)


@pytest.mark.parametrize("store", [None, Store(next=OURS)])
def test_a_guest_that_was_started_is_run_if_it_can_be(store):
    """[ONE-33, ONE-34]"""
    ready = situation(Image.READY, store=store)
    assert act(ready, RECEIVING, CLAIM, Start(2)) == RunHere(2, OURS)
    for image, lost in ((Image.RUNS, False), (Image.STOPPED, False), (Image.GONE, True), (Image.ROOM, True)):
        found = act(replace(ready, image=image), RECEIVING, CLAIM, Start(2))
        assert isinstance(found, Settled)
        assert (found.judgement.owner, found.lost) == (D, lost)


@pytest.mark.parametrize("image", [Image.RUNS, Image.STOPPED])
def test_a_guest_that_came_whole_is_complete_as_soon_as_it_has_run(image):
    """[ONE-39] The process that ran it has died before it could say so, and the source keeps the image."""
    whole = replace(CLAIM, digest=DIGEST)
    assert act(situation(image), RECEIVING, whole, Start(2)) == Note(Complete(ONE, 2, DIGEST))
    assert act(situation(Image.READY), RECEIVING, whole, Start(2)) == RunHere(2, OURS)
    assert isinstance(act(situation(image), RECEIVING, whole, Start(2), Complete(ONE, 2, DIGEST)), Settled)
    # That of another session for the same epoch is of another image.
    second = replace(RECEIVING, session=TWO)
    found = next_act(history(RECEIVING, second, whole, Start(2)), TWO, situation(image), SPARE)
    assert isinstance(found, Settled)


def test_another_sessions_claim_says_with_which_runner_it_runs():
    """START is of the guest, whatever session it is [ONE-27]."""
    second = replace(RECEIVING, session=TWO)
    found = next_act(history(RECEIVING, second, CLAIM, Start(2)), TWO, situation(Image.READY), SPARE)
    assert found == RunHere(2, OURS)


def test_without_a_store_a_destination_waits_until_it_is_asked():
    """[ONE-58]"""
    found = act(situation(Image.READY), RECEIVING, CLAIM)
    assert isinstance(found, Settled)
    assert (found.judgement.owner, found.judgement.step) == (U, Step.HAND_BACK)


def test_what_was_handed_back_or_never_permitted_is_freed():
    assert act(situation(Image.READY), RECEIVING, CLAIM, HandBack(2)) == FreeRoom()
    assert act(situation(Image.ROOM), RECEIVING) == FreeRoom()
    assert isinstance(act(situation(Image.GONE), RECEIVING, CLAIM, HandBack(2)), Settled)


# ---- before a VERDICT ----


def test_what_must_be_on_record_before_the_source_may_be_told():
    """[ONE-44]"""
    claim = Claiming(ONE, 2, SPARE, ONE)
    assert before_verdict(history(RECEIVING), RECEIVING, SPARE) == claim
    assert before_verdict(history(RECEIVING, claim), RECEIVING, SPARE) == HandBack(2)
    assert before_verdict(history(RECEIVING, claim, HandBack(2)), RECEIVING, SPARE) is None
    complete = Complete(ONE, 2, DIGEST)
    assert before_verdict(history(RECEIVING, CLAIM, Start(2), complete), RECEIVING, SPARE) is None


# ---- it comes to an end ----


@dataclass
class Host:
    """One host by itself and what acts do to it; the peer answers what it was told to."""

    history: History
    situation: Situation
    slots: dict[int, Runner]
    peer: Owner
    done: list[object] = field(default_factory=list)

    def look(self) -> Situation:
        if self.situation.facts.store is None:
            return self.situation
        store = Store(next=self.slots.get(2), after=self.slots.get(3))
        return replace(self.situation, facts=replace(self.situation.facts, store=store))

    def carry_out(self, act: object) -> None:
        now = self.situation
        match act:
            case Note(record):
                self.history = self.history.after(record)
            case ClaimSlot(epoch, runner):
                assert epoch == 2 or 2 in self.slots, "a claim that the store would refuse [ONE-2]"
                self.slots.setdefault(epoch, runner)
            case AskPeer():
                self.situation = replace(now, facts=replace(now.facts, peer=self.peer))
            case RunHere(epoch, _):
                assert now.image is not Image.RUNS
                self.situation = replace(now, image=Image.RUNS, epoch=epoch)
            case RunOn():
                self.situation = replace(now, image=Image.RUNS)
            case FreeRoom():
                self.situation = replace(now, image=Image.GONE)
            case _:
                raise AssertionError(act)


PREFIXES = [
    (SENDING,), (SENDING, GRANT), (SENDING, GRANT, MADE), (SENDING, GRANT, Resolved(ONE, 2, S, "there")),
    (SENDING, FOLLOWS), (SENDING, FOLLOWS, Decided(ONE, 2, D)), (SENDING, GRANT, Decided(ONE, 2, D)),
    (SENDING, GRANT, Voided(ONE, 2)),
    (RECEIVING,), (RECEIVING, CLAIM), (RECEIVING, CLAIM, Start(2)), (RECEIVING, CLAIM, HandBack(2)),
]  # fmt: skip


@given(
    records=st.sampled_from(PREFIXES),
    image=st.sampled_from(list(Image)),
    slots=st.sampled_from([None, {}, {2: OURS}, {2: THEIRS}, {2: THEIRS, 3: OTHERS}, {2: OURS, 3: THEIRS}]),
    peer=st.sampled_from(list(Owner)),
    mark=st.sampled_from([0, 2]),
)
def test_acts_come_to_an_end_and_nothing_runs_without_its_right(records, image, slots, peer, mark):
    """[ONE-9, ONE-32] Whatever was found: a few acts settle it, and who runs has slot, START or permission.

    No slots stand for no store.
    """
    has_store = slots is not None
    facts = Facts("here", Store() if has_store else None, mark)
    host = Host(history(*records), Situation(facts, image, IMAGE, 1), dict(slots or {}), peer)
    for _ in range(12):
        act = next_act(host.history, ONE, host.look(), SPARE)
        if isinstance(act, Settled):
            break
        host.carry_out(act)
        host.done.append(act)
    else:
        raise AssertionError(f"no end: {host.done}")
    for run in (each for each in host.done if isinstance(each, RunHere)):
        if has_store:
            assert host.slots[run.epoch] == run.runner
        elif host.history.session(ONE) == RECEIVING:
            assert isinstance(host.history.fate(2), Start)
        else:
            assert peer is S or isinstance(host.history.decision(ONE), Resolved)
        assert run.runner in host.history.runners(run.epoch)


def test_every_act_is_spoken_of():
    """What `next_act` can answer is what its callers match."""
    assert {each.__name__ for each in recovery.Act.__args__} == {
        "Note", "ClaimSlot", "ReadStore", "AwaitClaim", "AskPeer", "RunHere", "RunOn", "FreeRoom", "Settled",
    }  # fmt: skip
