"""Who may run a guest, as far as this host can tell: from its records, the mark, the store, and the peer.

Pure: what was found is handed in, and a judgement comes out, with the clause that it rests on and the step
that would bring things forward. Nothing here decides by what is absent, but for the one absence that chapter
11 allows: CLAIMING there and START not there [ONE-32], in records that are all there [ONE-57].

What a judgement says stays true until this host makes another record: the answers it was made from are final
(slots, START, HANDBACK, decisions), or the guest is paused meanwhile (the mark).
"""

from __future__ import annotations

import hmac
import itertools
from dataclasses import dataclass
from enum import Enum

from sterna.core.history import History
from sterna.core.records import HandBack, RunnerRecord, SessionRecord, Side, Start
from sterna.registry import Owner
from sterna.wire.records import Hello, Runner, Verdict


class Step(Enum):
    """What brings things forward, in words for the operator."""

    NONE = "nothing is to be done"
    RUN = "run the guest here"
    ROLL_BACK = "the guest runs on here"
    START = "note START, then run the guest here"
    HAND_BACK = "note HANDBACK, and tell the source"
    CLAIM_NEXT = "claim the next epoch with a recorded runner, then look again"
    CLAIM_AFTER = "claim the epoch behind the one that was handed back, then look again"
    REPEAT_CLAIM = "repeat the recorded claim, then look again"
    WAIT_FOR_STORE = "ask the lease store again"
    ASK = "ask the destination"
    OPERATOR = "somebody has to make certain that the other side cannot run it, and say so"
    FREE = "the guest lives elsewhere: free what is held of it when its pages are not needed any more"


@dataclass(frozen=True, slots=True)
class Slot:
    """A filled slot of a guest's chain."""

    epoch: int
    runner: Runner


@dataclass(frozen=True, slots=True)
class Store:
    """What a lease store says. A slot's None means that it is empty.

    Attributes:
        answers: whether it does.
        next: the runner in slot n + 1.
        after: the runner in slot n + 2.
    """

    answers: bool = True
    next: Runner | None = None
    after: Runner | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What else is known.

    Attributes:
        host: this host's name, as its runners have it.
        store: None where `lease_store` was not selected.
        mark: the epoch that the holder is marked with at a source, 0 for none.
        peer: the owner in the destination's VERDICT; HANDBACK counts as SOURCE. None if it has not answered.
    """

    host: str
    store: Store | None = None
    mark: int = 0
    peer: Owner | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """Who may run the guest.

    Attributes:
        owner: the side, of the session in question.
        why: in words.
        clause: what that rests on.
        step: what is to be done next.
        epoch: under which the owner runs it; 0 where that is not known.
    """

    owner: Owner
    why: str
    clause: str
    step: Step
    epoch: int = 0


def _undecided(why: str, clause: str, step: Step) -> Judgement:
    return Judgement(Owner.UNDECIDED, why, clause, step)


def judge(history: History | None, session: bytes, facts: Facts) -> Judgement:
    """Who may run the guest, by one session's records.

    A session of a source that was never granted says nothing of the guest once a later one was: that one is
    judged then.

    Args:
        history: None if records were lost [ONE-57].
        session: of which.
        facts: whatever else is known.
    """
    if history is None:
        return _undecided(
            "records of this guest were lost here, so none of them counts", "ONE-57", Step.OPERATOR
        )
    found = history.session(session)
    if found is None:
        return _undecided("no record here knows this session", "ONE-46", Step.OPERATOR)
    if found.side is Side.SOURCE:
        return _source(history, found, facts)
    return _destination(history, found, facts)


# ---- destination ----


def _destination(history: History, session: SessionRecord, facts: Facts) -> Judgement:
    if facts.store is not None:
        return _destination_with_store(history, session, facts, facts.store)
    epoch = session.epoch + 1
    match history.fate(epoch):
        case Start():
            return Judgement(Owner.DESTINATION, "START is recorded here", "ONE-45", Step.RUN, epoch)
        case HandBack():
            return Judgement(Owner.SOURCE, "it was handed back", "ONE-44", Step.NONE, epoch + 1)
        case _:
            pass
    why = "CLAIMING is recorded here, START is not" if history.claiming(epoch) else "nothing was claimed here"
    clause = "ONE-58" if history.claiming(epoch) else "ONE-44"
    return _undecided(f"{why}: who asks for it makes it be handed back", clause, Step.HAND_BACK)


def _destination_with_store(
    history: History, session: SessionRecord, facts: Facts, store: Store
) -> Judgement:
    epoch = session.epoch + 1
    fate = history.fate(epoch)
    if not store.answers:
        return _undecided("the store does not answer", "ONE-31", Step.WAIT_FOR_STORE)
    if store.next is None:
        # An operator's START may be there before the claim was answered: it runs when the slot says so.
        claimed = bool(history.claiming(epoch)) and not isinstance(fate, HandBack)
        step = Step.REPEAT_CLAIM if claimed else Step.NONE
        return _undecided(f"slot {epoch} is empty", "ONE-50", step)
    if store.next not in _claimed(history, session):  # whatever this host was called then
        if store.next.host != facts.host:
            return Judgement(Owner.SOURCE, f"slot {epoch} is {store.next.host}'s", "ONE-50", Step.FREE, epoch)
        return _undecided(
            f"slot {epoch} names this host, in no record of the session", "ONE-52", Step.OPERATOR
        )
    match fate:
        case Start():
            return _started(history, epoch, store)
        case HandBack():
            return Judgement(
                Owner.SOURCE, "the claim was won and handed back", "ONE-37", Step.NONE, epoch + 1
            )
        case _:
            pass
    if store.after is None:
        why = f"the claim is won, START is not recorded, and slot {epoch + 1} is empty"
        return Judgement(Owner.DESTINATION, why, "ONE-58", Step.START, epoch)
    return _undecided(f"the claim is won, but slot {epoch + 1} is filled", "ONE-58", Step.HAND_BACK)


def _started(history: History, epoch: int, store: Store) -> Judgement:
    """START is there, and the slot is ours; what the next slot holds is looked at before it is run."""
    why, step = "the claim is won and START recorded", Step.RUN
    if store.after is not None:
        sessions = history.each(SessionRecord)
        sent_on = any(each.side is Side.SOURCE and each.epoch == epoch for each in sessions)
        why, step = f"{why}; slot {epoch + 1} is filled", Step.NONE if sent_on else Step.OPERATOR
    return Judgement(Owner.DESTINATION, why, "ONE-33", step, epoch)


def _claimed(history: History, session: SessionRecord) -> frozenset[Runner]:
    """Runners of any session that were made for an image of this session [ONE-52]."""
    epoch = session.epoch + 1
    images = {each.image for each in history.claiming(epoch) if each.session == session.session}
    return frozenset(each.runner for each in history.claiming(epoch) if each.image in images)


# ---- source ----


def _source(history: History, session: SessionRecord, facts: Facts) -> Judgement:
    epoch = session.epoch + 1
    decision = history.decision(session.session)
    if decision is not None and decision.owner is Owner.DESTINATION:
        why = f"{decision.kind} for the destination"
        return Judgement(Owner.DESTINATION, why, "ONE-53", Step.FREE, epoch)
    ungranted = decision is None and history.granted(session.session) is None
    if ungranted and (heir := _granted_since(history, session)) is not None:
        return _source(history, heir, facts)  # the guest went, or may have gone, in that one
    if ungranted and facts.mark < epoch:
        why = "no grant is in force, by mark or record: HANDOVER has not left"
        return Judgement(Owner.SOURCE, why, "ONE-22", Step.ROLL_BACK, session.epoch)
    if facts.store is not None:
        return _source_with_store(history, session, facts, facts.store)
    if decision is not None:
        clause = "ONE-59" if decision.kind == "resolved" else "ONE-43"
        return Judgement(Owner.SOURCE, f"{decision.kind} for the source", clause, Step.RUN, epoch + 1)
    if facts.peer is Owner.SOURCE:
        return Judgement(Owner.SOURCE, "the destination never runs it", "ONE-43", Step.RUN, epoch + 1)
    if facts.peer is Owner.DESTINATION:
        return Judgement(Owner.DESTINATION, "the destination has started it", "ONE-45", Step.FREE, epoch)
    return _undecided("it was granted, and the destination has not said what it did", "ONE-43", Step.ASK)


def _granted_since(history: History, session: SessionRecord) -> SessionRecord | None:
    """The last session behind this one in which the guest was granted, unless that grant is void."""
    sessions = list(history.each(SessionRecord))
    behind = (each for each in reversed(sessions) if each.side is Side.SOURCE)
    for each in itertools.takewhile(lambda other: other != session, behind):
        if history.granted(each.session) or history.decision(each.session):
            return each
    return None


def _source_with_store(history: History, session: SessionRecord, facts: Facts, store: Store) -> Judgement:
    epoch = session.epoch + 1
    decision = history.decision(session.session)
    if not store.answers:
        return _undecided("the store does not answer", "ONE-31", Step.WAIT_FOR_STORE)
    if store.next is None:
        return _undecided(f"slot {epoch} is empty", "ONE-21", Step.CLAIM_NEXT)
    ours = _made(history, session, epoch)
    if store.next in ours:
        return Judgement(Owner.SOURCE, f"slot {epoch} is this host's own", "ONE-21", Step.RUN, epoch)
    if store.next.host == facts.host and decision is None:  # else who has decided that has made certain
        return _undecided(f"slot {epoch} names this host, in no record", "ONE-52", Step.OPERATOR)
    if decision is None and facts.peer is not Owner.SOURCE:
        why = f"slot {epoch} is {store.next.host}'s"
        return Judgement(Owner.DESTINATION, why, "ONE-21", Step.FREE, epoch)
    # It was handed back, or an operator has said so: the next slot decides [ONE-37].
    if store.after is None:
        return _undecided("it was handed back, and nobody has claimed it since", "ONE-37", Step.CLAIM_AFTER)
    if store.after in _made(history, session, epoch + 1):
        why = f"it was handed back, and slot {epoch + 1} is this host's own"
        return Judgement(Owner.SOURCE, why, "ONE-37", Step.RUN, epoch + 1)
    return _undecided(f"slot {epoch + 1} is {store.after.host}'s", "ONE-52", Step.OPERATOR)


def _made(history: History, session: SessionRecord, epoch: int) -> frozenset[Runner]:
    """Runners that this host has made for the image that it had in this session [ONE-52]."""
    made = tuple(history.each(RunnerRecord))
    images = {each.image for each in made if each.session == session.session}
    return frozenset(each.runner for each in made if each.epoch == epoch and each.image in images)


# ---- what a peer has said ----


def has_all_pages(verdict: Verdict) -> bool | None:
    """Whether a destination that has answered so has every page; None if it does not know the session."""
    if verdict.complete:
        return True
    return None if verdict.owner is Owner.UNDECIDED else False


# ---- what is said to a peer ----


def answer(history: History | None, hello: Hello, peer: str, facts: Facts) -> Verdict:
    """The VERDICT for a HELLO that asks about a session of which this host is, or was, the destination.

    Who shows another token than the session's, or another identity, learns nothing [ONE-46]. This only reads:
    without a store, HANDBACK is to be recorded before, where `judge` says so [ONE-44].

    Args:
        history: None if records were lost.
        hello: of mode `verdict`.
        peer: the identity of who asks.
        facts: whatever else is known.
    """
    session = asked_for(history, hello, peer)
    if history is None or session is None:
        return Verdict(Owner.UNDECIDED, hello.epoch, hello.runner)
    epoch = session.epoch + 1
    owner, newest, runner = judge(history, session.session, facts).owner, hello.epoch, hello.runner
    if facts.store is not None:
        if facts.store.next is not None and facts.store.next in _claimed(history, session):
            owner = Owner.DESTINATION  # even if it was handed back: it says whose the slot is [ONE-50]
        slot = _newest_slot(facts.store, epoch) or Slot(newest, runner)
        newest, runner = slot.epoch, slot.runner
    elif owner is Owner.DESTINATION:
        newest, runner = epoch, history.claiming(epoch)[-1].runner
    handed_back, complete = isinstance(history.fate(epoch), HandBack), history.complete(session.session)
    if complete is None:
        return Verdict(owner, newest, runner, handed_back)
    return Verdict(owner, newest, runner, handed_back, complete=True, digest=complete.digest)


def asked_for(history: History | None, hello: Hello, peer: str) -> SessionRecord | None:
    """The session that a HELLO asks for, if it may."""
    found = None if history is None else history.session(hello.session)
    if found is None or found.side is not Side.DESTINATION or found.peer != peer:
        return None
    return found if hmac.compare_digest(found.token, hello.token) else None


def _newest_slot(store: Store, epoch: int) -> Slot | None:
    """The newest slot that the store has told of, if it has told of any [ONE-51]."""
    if store.after is not None:
        return Slot(epoch + 1, store.after)
    return None if store.next is None else Slot(epoch, store.next)
