"""What stands in the way of a session: what is on record here of its guest, and the guest's newest slot.

A source opens with the epoch under which it runs the guest, and as which runner. It is out of date if the
guest is known here to be later, or has gone on in the lease store. It is busy if another peer may still come
and ask what has become of the guest under this epoch, for START is of a guest and an epoch: it would tell the
one that the guest runs here which the other has sent. And once HANDOVER has come under this epoch its source
is told who owns the guest, instead of sending it again [ONE-11] [ONE-12] [ONE-14].

A session of the guest that is open here gives way to one that its own peer opens later, unless HANDOVER has
come in it: whoever has the sessions ends those that `gives_way` names, waits, and asks all of this again
[ONE-13].

One that resumes a session whose process is dead here is told that, too, unless the guest runs here and may
lack pages, or HANDOVER has not come in it, and it begins anew [RES-7] [RES-13] [RES-15].

All of it is decided from what was read before: nothing here waits, or changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sterna.core.history import History
from sterna.core.records import Decided, SessionRecord, Side, Start
from sterna.core.verdict import Slot
from sterna.errors import LocalProtocolError
from sterna.registry import ErrorCode, Feature
from sterna.wire.records import FeatureChoice, FeatureOffer, Hello


class Resumption(Enum):
    """What is to be done for who resumes a session that no endpoint of this process has."""

    UNKNOWN = "it is not known here, or not to who asks"
    ANEW = "HANDOVER has not come: there is nothing but room, once the store lets the guest come still"
    SERVED = "the guest runs here, and may lack pages: what is missing is sent"
    TOLD = "who owns the guest is told"


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session of a guest that is open at its destination.

    Attributes:
        epoch: that its opening has shown.
        identity: of the peer that has opened it; None or empty on a plain connection.
        peer: the same one, for messages.
        is_committed: HANDOVER may have come, so that it cannot be ended any more.
    """

    epoch: int
    identity: str | None
    peer: str
    is_committed: bool


def gives_way(
    hello: Hello, identity: str | None, others: Sequence[OpenSession], *, waited: bool
) -> tuple[int, ...]:
    """Which of a guest's open sessions are ended before another opening is let in [ONE-12] [ONE-13].

    A source has decided those of earlier epochs, and shows what that has left [ONE-53].

    Args:
        hello: of the opening.
        identity: of the peer that opens it.
        others: the guest's sessions that are open here.
        waited: those that this has named before were ended, and had their time to end.

    Returns:
        Their places in `others`.

    Raises:
        LocalProtocolError: BUSY, one cannot be ended, is another peer's, or does not end.
    """
    named = []
    for place, each in enumerate(others):
        if each.identity == identity and not each.is_committed and each.epoch <= hello.epoch:
            if waited:
                detail = "an earlier session of this guest does not end"
                raise LocalProtocolError(ErrorCode.BUSY, detail, clause="ONE-12")
            named.append(place)
        elif each.epoch == hello.epoch:
            detail = f"{each.peer} is sending this guest here"
            raise LocalProtocolError(ErrorCode.BUSY, detail, clause="ONE-12")
    return tuple(named)


def resumption(history: History, session: SessionRecord | None, *, noted: bool) -> Resumption:
    """What a resumption leads to, by the records [RES-7] [RES-13] [RES-15].

    Args:
        history: of the guest.
        session: that is asked for, as `asked_for` has found it.
        noted: whether the opening is there that the next process needs [RES-16].
    """
    if session is None or not is_handed_over(history, session):
        return Resumption.ANEW if noted else Resumption.UNKNOWN
    epoch = session.epoch + 1
    whole = history.complete(session.session) is not None or history.sent_on(epoch)
    may_lack = noted and not whole and isinstance(history.fate(epoch), Start)
    return Resumption.SERVED if may_lack else Resumption.TOLD


def is_handed_over(history: History, session: SessionRecord) -> bool:
    """Whether HANDOVER has come in this session: the guest was claimed in it."""
    return any(each.session == session.session for each in history.claiming(session.epoch + 1))


def names_store(features: Sequence[FeatureOffer] | Sequence[FeatureChoice]) -> bool:
    """Whether a lease store is offered, or chosen."""
    return any(each.id == Feature.LEASE_STORE for each in features)


def check_records(history: History, hello: Hello, identity: str) -> SessionRecord | None:
    """What this host has noted of the guest lets a session be opened.

    Args:
        history: of the guest.
        hello: of the opening.
        identity: of the peer, empty on a plain connection.

    Returns:
        The peer's session in which the guest was handed over under this epoch: it is not opened again, and
        the peer is told what has become of it [ONE-14]. None if there is nothing in the way.

    Raises:
        LocalProtocolError: BUSY, STALE_EPOCH.
    """
    if claims := history.claiming(hello.epoch + 1):
        claimed = {each.session for each in claims}
        for each in history.each(SessionRecord):
            if each.session in claimed and each.peer == identity:
                return each
        detail = f"the guest was handed over to this host at epoch {hello.epoch}"
        raise LocalProtocolError(ErrorCode.BUSY, detail, clause="ONE-12")
    for each in history.each(SessionRecord):
        if _is_anothers(each, hello, identity) and not history.released(each.session):
            detail = f"{each.peer} has begun to send this guest here at epoch {each.epoch}"
            raise LocalProtocolError(ErrorCode.BUSY, detail, clause="ONE-12")
    newest = _newest_epoch(history)
    if hello.epoch < newest:
        detail = f"epoch {hello.epoch}, and {newest} is known here"
        raise LocalProtocolError(ErrorCode.STALE_EPOCH, detail, clause="ONE-11")
    return None


def check_slot(newest: Slot | None, hello: Hello, *, has_store: bool) -> None:
    """The guest's newest slot is the one that the opening shows, of the same store [ONE-11] [ONE-55].

    Args:
        newest: in this host's store; None if the guest has none there.
        hello: of the opening.
        has_store: the session has one.

    Raises:
        LocalProtocolError: MISSING_FEATURE, the guest has slots, and the source no store; STALE_EPOCH.
    """
    if newest is not None and not has_store:
        detail = f"the guest has slot {newest.epoch} in a lease store, and the source has no store"
        raise LocalProtocolError(ErrorCode.MISSING_FEATURE, detail, clause="ONE-55")
    if has_store:
        check_newest(newest, Slot(hello.epoch, hello.runner), "ONE-11")


def check_newest(newest: Slot | None, shown: Slot, clause: str) -> None:
    """A slot that somebody goes by is the guest's newest one still [ONE-11] [ONE-16] [ONE-64].

    Raises:
        LocalProtocolError: STALE_EPOCH, by this clause.
    """
    if newest != shown:
        found = "there is none" if newest is None else f"it is {newest.runner.host!r} in slot {newest.epoch}"
        detail = f"{shown.runner.host!r} in slot {shown.epoch} is not the guest's newest runner: {found}"
        raise LocalProtocolError(ErrorCode.STALE_EPOCH, detail, clause=clause)


def _is_anothers(session: SessionRecord, hello: Hello, identity: str) -> bool:
    """Whether a peer that may still ask for its session has opened this epoch, and not this one [ONE-12]."""
    same = session.side is Side.DESTINATION and session.epoch == hello.epoch
    return same and session.peer not in {"", identity}


def _newest_epoch(history: History) -> int:
    """The least that an opening may show. A guest that was started here can only be elsewhere later."""
    newest = 0
    for record in history.records:
        match record:
            case Start():
                newest = max(newest, record.epoch + 1)
            case SessionRecord() | Decided():
                newest = max(newest, record.epoch)
            case _:
                pass
    return newest
