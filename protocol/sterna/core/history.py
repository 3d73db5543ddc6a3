"""A guest's history on one host: the records that there are, and which may follow them.

This is where "write-once" is kept. A record that contradicts one that is there is refused with that one, so
that of START and HANDBACK whichever is created first makes the other fail, whatever session and whatever
controller wants it [ONE-27]. A record that is there already is there: repeating it is no contradiction.

Pure: no files, no clock. `sterna.host.records_log` makes it durable, `sterna.core.verdict` draws conclusions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sterna.core.records import (
    NO_SESSION,
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
from sterna.errors import RecordError
from sterna.registry import Owner
from sterna.wire.records import Runner

T = TypeVar("T")


class RecordConflict(RecordError):  # noqa: N818 - it names what is wrong
    """A record that contradicts another one, or lacks the one that it rests on.

    Attributes:
        existing: the record that stands against it; None if one is lacking.
    """

    def __init__(self, detail: str, existing: Record | None = None) -> None:
        super().__init__(detail)
        self.existing = existing


@dataclass(frozen=True, slots=True)
class History:
    """The records of a guest, oldest first."""

    guest: bytes
    records: tuple[Record, ...] = ()

    def after(self, record: Record) -> History:
        """The history with this record, which may be there already.

        Raises:
            RecordConflict: it contradicts one that is there, or lacks one.
        """
        match record:
            case Granted():
                known = self.granted(record.session) == record
            case Voided():
                _source_of(self, record.session, record.epoch)
                known = self.granted(record.session) is None
            case _:
                known = record in self.records
        if known:
            return self
        _check(self, record)
        return History(self.guest, (*self.records, record))

    def each(self, kind: type[T]) -> Iterator[T]:
        """The records of one kind, oldest first."""
        return (record for record in self.records if isinstance(record, kind))

    def session(self, session: bytes) -> SessionRecord | None:
        """The session of this id."""
        return next((each for each in self.each(SessionRecord) if each.session == session), None)

    def granted(self, session: bytes) -> Granted | None:
        """The session's grant that is neither void nor decided."""
        return self._grants().get(session)

    def open_grant(self) -> Granted | None:
        """The grant of any session that is neither void nor decided; there is at most one [ONE-53].

        START of a higher epoch decides it, too: the guest was elsewhere, and has come back.
        """
        back = max((each.epoch for each in self.each(Start)), default=0)
        return next((each for each in self._grants().values() if each.epoch >= back), None)

    def _grants(self) -> dict[bytes, Granted]:
        grants: dict[bytes, Granted] = {}
        for record in self.records:
            match record:
                case Granted():
                    grants[record.session] = record
                case Voided() | Decided() | Resolved():
                    grants.pop(record.session, None)
                case _:
                    pass
        return grants

    def sent_on(self, epoch: int) -> bool:
        """Whether this host has granted, as a source, the guest that it had under this epoch.

        Such a guest lacks no page here: it would not have been offered.
        """
        sessions = [
            each for each in self.each(SessionRecord) if each.side is Side.SOURCE and each.epoch == epoch
        ]
        return any(self.granted(each.session) or self.decision(each.session) for each in sessions)

    def decision(self, session: bytes) -> Decided | Resolved | None:
        """How a source's session was decided."""
        found = (each for each in self.records if isinstance(each, Decided | Resolved))
        return next((each for each in found if each.session == session), None)

    def claiming(self, epoch: int) -> tuple[Claiming, ...]:
        """Claims of an epoch as a destination, by whatever session."""
        return tuple(each for each in self.each(Claiming) if each.epoch == epoch)

    def fate(self, epoch: int) -> Start | HandBack | None:
        """What was decided of an epoch that this host has claimed as a destination [ONE-27]."""
        found = (each for each in self.records if isinstance(each, Start | HandBack))
        return next((each for each in found if each.epoch == epoch), None)

    def complete(self, session: bytes) -> Complete | None:
        """The session's COMPLETE."""
        return next((each for each in self.each(Complete) if each.session == session), None)

    def owes_pages(self, session: bytes) -> bool:
        """Whether a source has granted a guest whose pages follow, and may have to send some yet [ONE-42]."""
        grants = [each.follows for each in self.each(Granted) if each.session == session]
        return grants[-1:] == [True] and not self.released(session)

    def released(self, session: bytes) -> bool:
        """Whether nobody will ask for the session any more, or for pages of it."""
        return any(each.session == session for each in self.each(Released))

    def runners(self, epoch: int, image: bytes | None = None) -> frozenset[Runner]:
        """This host's runners for an epoch, of one image or of all; what is in no record is not its own."""
        return frozenset(each.runner for each in self._made(epoch) if image in {None, each.image})

    def has_slot(self, epoch: int, runner: Runner) -> bool:
        """Whether this runner of this host was made to fill a slot in a lease store [ONE-55]."""
        stored = {each.session for each in self.each(SessionRecord) if each.store} | {NO_SESSION}
        return any(each.runner == runner and each.session in stored for each in self._made(epoch))

    def _made(self, epoch: int) -> Iterator[RunnerRecord | Claiming]:
        """Records of the runners that this host has made for an epoch."""
        found = (each for each in self.records if isinstance(each, RunnerRecord | Claiming))
        return (each for each in found if each.epoch == epoch)


def essence(history: History) -> History:
    """The history without what nobody will ask for: what a log that has become long begins anew with.

    Kept are all records of sessions that are not closed, and those of the newest epoch from which something
    has come: they say by what right the guest runs here, or that it does not. The newest session counts as
    open.
    """
    sessions = list(history.each(SessionRecord))
    newest = max((each.epoch for each in sessions), default=0)
    claimed = {each.session for each in history.each(Claiming)}
    kept = {
        each.session
        for place, each in enumerate(sessions)
        if not _replaced(history, each, sessions[place + 1 :], claimed)
        and (each.epoch >= newest or not _closed(history, each, newest))
    }
    kept |= {each.session for each in sessions[-1:]}
    epochs = {each.epoch + 1 for each in sessions if each.session in kept}
    kept |= {each.session for each in history.each(Claiming) if each.epoch in epochs or each.epoch >= newest}
    kept |= {each.session for each in history.each(RunnerRecord) if each.epoch >= newest}  # claimed back
    records = (each for each in history.records if _matters(each, kept, newest, epochs))
    return History(history.guest, tuple(records))


def _closed(history: History, session: SessionRecord, newest: int) -> bool:
    """Whether nobody will ask for a session that is not the newest.

    A destination's is closed by RELEASED, or when the guest was seen with a higher epoch than n + 1 [ONE-56].
    A source's is closed by its decision, and without a grant by the session that came after it.
    """
    if session.side is Side.DESTINATION:
        return history.released(session.session) or newest > session.epoch + 1
    return history.decision(session.session) is not None or history.granted(session.session) is None


def _replaced(
    history: History, session: SessionRecord, later: Sequence[SessionRecord], claimed: Collection[bytes]
) -> bool:
    """Whether nothing came of a session before the same two hosts began another one [ONE-13].

    Its source has given it up, or may not have opened another one [ONE-53]: it asks for this one no more.
    """
    if session.side is Side.SOURCE:
        idle = history.granted(session.session) is None and history.decision(session.session) is None
    else:
        idle = session.session not in claimed
    return idle and any((each.side, each.peer) == (session.side, session.peer) for each in later)


def _matters(record: Record, kept: set[bytes], newest: int, epochs: set[int]) -> bool:
    match record:
        case Start() | HandBack():
            return record.epoch >= newest or record.epoch in epochs
        case RunnerRecord() if record.session == NO_SESSION:
            return record.epoch >= newest
        case _:
            return record.session in kept


def _check(history: History, record: Record) -> None:
    match record:
        case SessionRecord():
            _check_session(history, record)
        case RunnerRecord() | Claiming():
            _check_runner(history, record)
        case Granted():
            _check_grant(history, record)
        case Voided():
            pass  # checked by `after`, for the grant may not be there at all
        case Decided() | Resolved():
            _check_decision(history, record)
        case Start() | HandBack():
            _check_fate(history, record)
        case Complete():
            _check_complete(history, record)
        case _:  # RELEASED, the only other one
            if history.session(record.session) is None:
                raise RecordConflict("RELEASED of a session that is in no record")


def _check_session(history: History, record: SessionRecord) -> None:
    if record.session == NO_SESSION:
        raise RecordConflict("a session of zeros")
    existing = history.session(record.session)
    if existing is not None:
        raise RecordConflict("there is another session of this id", existing)
    if record.side is Side.SOURCE and (grant := history.open_grant()) is not None:
        text = f"session {grant.session.hex()} has granted epoch {grant.epoch} and is not decided"
        raise RecordConflict(f"{text}: resume it or ask about it first [ONE-53]", grant)
    if record.side is Side.SOURCE:
        _check_not_gone(history, record)


def _check_not_gone(history: History, record: SessionRecord) -> None:
    """A guest that has left can be sent again only when it has come back, under a later epoch."""
    ends = (each for each in history.records if isinstance(each, Decided | Resolved))
    gone = {each.session: each for each in ends if each.owner is Owner.DESTINATION}
    for each in history.each(SessionRecord):
        if each.session in gone and record.epoch <= each.epoch:
            text = f"the guest has left under epoch {each.epoch}, and a new session shows {record.epoch}"
            raise RecordConflict(f"{text} [ONE-53]", gone[each.session])


def _check_runner(history: History, record: RunnerRecord | Claiming) -> None:
    first = isinstance(record, RunnerRecord) and record.session == NO_SESSION
    side = Side.DESTINATION if isinstance(record, Claiming) else Side.SOURCE
    if first:
        if record.epoch != 1:
            raise RecordConflict(f"a first host claims epoch 1, not {record.epoch} [ONE-10]")
    elif side is Side.SOURCE:
        session = _of(history, record.session, side)
        if record.epoch not in {session.epoch + 1, session.epoch + 2}:
            raise RecordConflict(f"epoch {record.epoch} is none that a source claims [ONE-10]", session)
    else:
        _of(history, record.session, side, record.epoch)
        fate = history.fate(record.epoch)
        if fate is not None:
            raise RecordConflict(f"epoch {record.epoch} is decided here: {fate.kind}", fate)
    for other in (each for each in history.records if isinstance(each, RunnerRecord | Claiming)):
        if other.runner == record.runner:
            raise RecordConflict("a runner is made for one claim [ONE-4]", other)
        if (other.epoch, other.image, other.session) == (record.epoch, record.image, record.session):
            raise RecordConflict("there is a runner for this claim already; repeat that one [ONE-7]", other)


def _check_grant(history: History, record: Granted) -> None:
    _source_of(history, record.session, record.epoch)
    decision = history.decision(record.session)
    if decision is not None:
        raise RecordConflict(f"the session is decided: {decision.owner.name.lower()}", decision)
    grant = history.open_grant()
    if grant is not None and grant != record:
        raise RecordConflict("another session's grant is not decided [ONE-53]", grant)


def _check_decision(history: History, record: Decided | Resolved) -> None:
    _of(history, record.session, Side.SOURCE)
    decision = history.decision(record.session)
    again = isinstance(decision, Decided) and isinstance(record, Decided)
    if decision is not None and (again or decision.owner is not record.owner):
        raise RecordConflict(f"the session is decided: {decision.owner.name.lower()}", decision)
    if record.owner is Owner.UNDECIDED:
        raise RecordConflict("a decision for nobody")


def _check_fate(history: History, record: Start | HandBack) -> None:
    fate = history.fate(record.epoch)
    if fate is not None:
        raise RecordConflict(f"epoch {record.epoch} is decided here: {fate.kind} [ONE-27]", fate)
    if not history.claiming(record.epoch):
        raise RecordConflict(f"{record.kind} of epoch {record.epoch} without a claim of it [ONE-25]")


def _check_complete(history: History, record: Complete) -> None:
    _of(history, record.session, Side.DESTINATION, record.epoch)
    other = history.complete(record.session)
    if other is not None:
        raise RecordConflict("the session is complete with another digest", other)
    if not isinstance(history.fate(record.epoch), Start):
        raise RecordConflict("COMPLETE of a guest that was not started", history.fate(record.epoch))


def _source_of(history: History, session: bytes, epoch: int) -> SessionRecord:
    return _of(history, session, Side.SOURCE, epoch)


def _of(history: History, session: bytes, side: Side, epoch: int | None = None) -> SessionRecord:
    """The session on this side, whose n + 1 this is."""
    found = history.session(session)
    if found is None:
        raise RecordConflict(f"session {session.hex()} is in no record")
    if found.side is not side:
        raise RecordConflict(f"this host is the {found.side.value} of session {session.hex()}", found)
    if epoch not in {None, found.epoch + 1}:
        raise RecordConflict(f"the session is about epoch {found.epoch + 1}, not {epoch}", found)
    return found
