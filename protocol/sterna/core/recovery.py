"""What is done about a session after which nobody can be sure who runs the guest, step by step.

A live session takes the straight way only. Whatever goes wrong behind the point at which HANDOVER may have
left ends in recovery, and so does every start of an endpoint that finds such a session in its records: there
is no second way that is taken only after a crash, and so none that is hardly ever tried.

`next_act` is a function of what is durable (the records) and of what can be asked anew (store, holder, peer).
Its caller carries the act out, looks again and asks again, until it is told `Settled`. It may die in between:
whoever comes next begins with the same records. So an act may be done twice, and each of them bears that: a
record that is there is there, a claim is repeated until the slot is named, a guest that runs already runs.

Nothing here decides who owns the guest; `sterna.core.verdict.judge` does. Here stands what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

from sterna.core.history import History
from sterna.core.records import (
    Claiming,
    Complete,
    Decided,
    HandBack,
    Record,
    RunnerRecord,
    SessionRecord,
    Side,
    Start,
)
from sterna.core.verdict import Facts, Judgement, Step, judge
from sterna.registry import Owner
from sterna.wire.records import NO_ID, Runner


class Image(Enum):
    """What this host's holder has of the session's image."""

    GONE = "nothing: the holder has ended, or has another image"
    ROOM = "room that was never completed"
    READY = "all of it, and it has never run here"
    STOPPED = "a guest that has run here and stands still"
    RUNS = "a guest that runs here"


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known beside the records.

    Attributes:
        facts: of store, mark and peer. `peer` is UNDECIDED if it was asked and could not or would not tell,
            SOURCE if it has handed the guest back.
        image: of the session, in this host's holder.
        image_id: what the holder calls it.
        epoch: under which the guest has run there last; 0 if it never has.
        complete: whether the peer has every page of the guest; None if it has not said.
        stale: pages of it were to follow the guest, and are at the source.
        mapped: the process that asks has the image's pages mapped, and sends them to who runs the guest.
    """

    facts: Facts
    image: Image = Image.GONE
    image_id: bytes = NO_ID
    epoch: int = 0
    complete: bool | None = None
    stale: bool = False
    mapped: bool = False


# ---- acts ----


@dataclass(frozen=True, slots=True)
class Note:
    """Make a record durable. A conflict is no failure: the records have changed, look again."""

    record: Record


@dataclass(frozen=True, slots=True)
class ClaimSlot:
    """Claim an epoch with a runner that is on record, until the slot is named [ONE-7]."""

    epoch: int
    runner: Runner


@dataclass(frozen=True, slots=True)
class ReadStore:
    """Have an answer from the store; there was none yet [ONE-31]."""


@dataclass(frozen=True, slots=True)
class AwaitClaim:
    """Wait until the slot is filled: only the destination may do that now, and it needs pages from here."""


@dataclass(frozen=True, slots=True)
class AskPeer:
    """Ask the destination who owns the guest [ONE-60].

    Attributes:
        session: in which it was sent there.
        later: let it start the guest before, which nobody else can: asked, it would give that up [ONE-44].
    """

    session: SessionRecord
    later: bool = False


@dataclass(frozen=True, slots=True)
class RunHere:
    """Run the guest in its holder: from where it was paused, or its first instruction here."""

    epoch: int
    runner: Runner


@dataclass(frozen=True, slots=True)
class RunOn:
    """Set the guest running again as before: it was never granted [CON-62]."""


@dataclass(frozen=True, slots=True)
class FreeRoom:
    """Free what is held of a guest that never ran here and never will [ONE-29]."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Nothing is left to do here, or nothing that can be done without somebody else.

    Attributes:
        judgement: who owns the guest, and why.
        lost: the owner's image is gone, or one from which pages are to follow: the guest is lost [ONE-34]
            [ONE-42].
    """

    judgement: Judgement
    lost: bool = field(default=False)


Act: TypeAlias = Note | ClaimSlot | ReadStore | AwaitClaim | AskPeer | RunHere | RunOn | FreeRoom | Settled


def open_session(history: History, mark: int = 0) -> SessionRecord | None:
    """The newest session in which the guest may have changed hands; None if there is none.

    Args:
        history: of the guest.
        mark: of its holder, 0 for none.
    """
    for session in reversed(list(history.each(SessionRecord))):
        if session.side is Side.DESTINATION:
            claims = history.claiming(session.epoch + 1)
            if any(each.session == session.session for each in claims):
                return session
        elif (
            history.granted(session.session) is not None
            or history.decision(session.session) is not None
            or mark == session.epoch + 1
        ):
            return session
    return None


def next_act(history: History, session: bytes, situation: Situation, spare: Runner) -> Act:
    """What is to be done next about a session.

    Args:
        history: the guest's records, all of them.
        session: as `open_session` finds it.
        situation: what else is known now.
        spare: a runner that nobody has used; it is for a `Note` and becomes this host's by that.
    """
    judgement = judge(history, session, situation.facts)
    found = history.session(session)
    if found is None:
        return Settled(judgement)
    if judgement.step is Step.WAIT_FOR_STORE:
        return ReadStore()
    if found.side is Side.SOURCE:
        return _of_source(history, found, judgement, situation, spare)
    return _of_destination(history, found, judgement, situation)


# ---- source ----


def _of_source(
    history: History, session: SessionRecord, judgement: Judgement, situation: Situation, spare: Runner
) -> Act:
    match judgement.step:
        case Step.ROLL_BACK:
            return RunOn() if situation.image is Image.STOPPED else _settled_at(judgement, situation)
        case Step.CLAIM_NEXT:
            return _claim(history, session, session.epoch + 1, situation, spare)
        case Step.CLAIM_AFTER:
            return _claim(history, session, session.epoch + 2, situation, spare)
        case Step.RUN:
            return _run_again(history, session, judgement, situation, spare)
        case Step.ASK if situation.facts.peer is None:
            return _ask_alone(history, session, situation)
        case Step.FREE:
            return _left(history, session, judgement, situation)
        case _:
            return Settled(judgement)


def _claim(history: History, session: SessionRecord, epoch: int, situation: Situation, spare: Runner) -> Act:
    """The recorded runner, or record one first [ONE-5]. For an image that is gone nobody claims."""
    if situation.image is Image.GONE:
        return _without_image(history, session, situation)
    made = _made(history, session, epoch, situation.image_id)
    if made is None:
        return Note(RunnerRecord(session.session, epoch, spare, situation.image_id))
    return ClaimSlot(epoch, made)


def _ask_alone(history: History, session: SessionRecord, situation: Situation) -> Act:
    """Without a store. The question makes the destination give up what it has not started [ONE-44].

    So it is not put for an image that is gone: the destination may have the only one, and run it yet. But
    if pages of that one were to follow, what has not been started there is lost in any case.
    """
    if situation.image is not Image.GONE or history.owes_pages(session.session):
        return AskPeer(session, later=situation.image is Image.GONE and situation.mapped)
    why = "the image here is gone, and to ask would make the destination give up its own"
    return Settled(Judgement(Owner.UNDECIDED, why, "ONE-44", Step.OPERATOR))


def _without_image(history: History, session: SessionRecord, situation: Situation) -> Act:
    """Nobody has claimed the guest, and it is not here any more: it may still be claimed there.

    It is lost only if the destination never runs it, or would wait there for pages that nobody has. Until
    that is known HANDOVER may have arrived there, and with it the right to run an image that is whole
    [ONE-30].
    """
    peer, epoch = situation.facts.peer, session.epoch + 1
    if peer is Owner.SOURCE or history.decision(session.session) is not None:
        why = "the destination never runs it, and the holder here has ended, and with it the image"
        return Settled(Judgement(Owner.SOURCE, why, "ONE-34", Step.OPERATOR, epoch - 1), lost=True)
    if history.owes_pages(session.session):
        if situation.mapped:
            return AwaitClaim()
        why = f"the image here is gone with pages that were to follow the guest, and slot {epoch} is empty"
        return Settled(Judgement(Owner.UNDECIDED, why, "ONE-42", Step.OPERATOR), lost=True)
    if peer is None:
        return AskPeer(session)
    why = f"the image here is gone, slot {epoch} is empty, and the destination may still fill it"
    return Settled(Judgement(Owner.UNDECIDED, why, "ONE-30", Step.OPERATOR))


def _run_again(
    history: History, session: SessionRecord, judgement: Judgement, situation: Situation, spare: Runner
) -> Act:
    epoch, store = judgement.epoch, situation.facts.store
    if situation.image is Image.RUNS or situation.epoch >= epoch:
        return Settled(judgement)
    if situation.image is Image.GONE:
        return Settled(judgement, lost=True)
    if store is not None:
        runner = store.next if epoch == session.epoch + 1 else store.after
    else:
        runner = _made(history, session, epoch, situation.image_id)
    if runner is None:
        return Note(RunnerRecord(session.session, epoch, spare, situation.image_id))
    if history.decision(session.session) is None:
        return Note(Decided(session.session, epoch, Owner.SOURCE))
    return RunHere(epoch, runner)


def _left(history: History, session: SessionRecord, judgement: Judgement, situation: Situation) -> Act:
    """The guest is the destination's, as far as can be seen from here.

    With a store that is what the slot says, and the destination may hand the guest back all the same: it is
    asked, and until it says that it has everything, nothing final is noted.
    """
    decision = history.decision(session.session)
    if decision is None and (situation.facts.store is None or situation.complete):
        return Note(Decided(session.session, session.epoch + 1, Owner.DESTINATION))
    owes = owes_pages(history, session, situation)
    # Asked about what an operator has resolved, it would give up what it has not started [ONE-44].
    asks = decision is None or (owes and isinstance(decision, Decided))
    if asks and situation.facts.peer is None:
        return AskPeer(session)
    if not owes:
        return Settled(judgement)
    why = f"{judgement.why}; pages were to follow the guest from an image that is gone"
    if situation.complete is None:
        why = f"{why}, and nobody has said whether they are all there"
        return Settled(replace(judgement, why=why, clause="ONE-42", step=Step.ASK))
    why = f"{why}, and by the destination's records they are not all there"
    return Settled(replace(judgement, why=why, clause="ONE-42", step=Step.NONE), lost=True)


def owes_pages(history: History, session: SessionRecord, situation: Situation) -> bool:
    """Whether a source's guest may wait for pages that only its image had, which is gone [ONE-42]."""
    is_gone = situation.image is Image.GONE and not situation.complete
    return is_gone and history.owes_pages(session.session)


def _made(history: History, session: SessionRecord, epoch: int, image: bytes) -> Runner | None:
    """The runner that is on record for this claim, None if there is none."""
    made = (each for each in history.each(RunnerRecord) if each.session == session.session)
    return next((each.runner for each in made if (each.epoch, each.image) == (epoch, image)), None)


# ---- destination ----


def _of_destination(
    history: History, session: SessionRecord, judgement: Judgement, situation: Situation
) -> Act:
    epoch = session.epoch + 1
    match judgement.step:
        case Step.RUN:
            return _run_first(history, session, judgement, situation)
        case Step.START:
            # Of a guest whose pages are elsewhere nobody knows whether they will ever come; there it has all.
            whole = situation.image is Image.READY and not situation.stale
            return Note(Start(epoch) if whole else HandBack(epoch))
        case Step.REPEAT_CLAIM:
            return ClaimSlot(epoch, _claiming(history, session).runner)
        case Step.HAND_BACK if situation.facts.store is not None:
            return Note(HandBack(epoch))
        case Step.HAND_BACK if history.claiming(epoch):
            return Settled(
                judgement
            )  # whoever asks makes it be handed back; the image is kept for an operator
        case Step.OPERATOR:
            return Settled(judgement)  # what is to be decided is not thrown away before
        case _:
            if situation.image in {Image.ROOM, Image.READY}:
                return FreeRoom()
            return Settled(judgement)


def _run_first(history: History, session: SessionRecord, judgement: Judgement, situation: Situation) -> Act:
    """START is there: the guest is run if it has not been [ONE-33], and if it can be [ONE-34].

    If it came whole, its source waits for COMPLETE with the image, and may not have been told [ONE-39].
    """
    epoch, claim = session.epoch + 1, _claiming(history, session)
    if situation.image in {Image.RUNS, Image.STOPPED}:
        own = claim.session == session.session
        if own and claim.digest and history.complete(session.session) is None:
            return Note(Complete(session.session, epoch, claim.digest))
        return Settled(judgement)
    if situation.image is not Image.READY:
        return Settled(judgement, lost=True)
    store = situation.facts.store
    runner = None if store is None else store.next
    return RunHere(epoch, runner or claim.runner)


def _claiming(history: History, session: SessionRecord) -> Claiming:
    """The session's own claim, or that of another session for the same epoch."""
    claims = history.claiming(session.epoch + 1)
    return next((each for each in claims if each.session == session.session), claims[-1])


# ---- both ----


def _settled_at(judgement: Judgement, situation: Situation) -> Settled:
    return Settled(judgement, lost=situation.image is Image.GONE)


# ---- before a VERDICT ----


def before_verdict(history: History, session: SessionRecord, spare: Runner) -> Record | None:
    """The record that must be there before VERDICT{source} may be said without a store [ONE-44].

    Args:
        history: of the guest.
        session: of a destination, without a store.
        spare: a runner that nobody has used.

    Returns:
        None when the answer can be given: START or HANDBACK is recorded.
    """
    epoch = session.epoch + 1
    if history.fate(epoch) is not None:
        return None
    if not history.claiming(epoch):
        return Claiming(session.session, epoch, spare, session.session)
    return HandBack(epoch)
