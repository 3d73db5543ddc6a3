"""`sterna verdict`: who owns a guest, as far as this host can tell, and what is to be done next."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from sterna.cli.endpoint import PathOption, Security, deadlines
from sterna.cli.events import Fields, holder_fields
from sterna.cli.exits import Exit
from sterna.cli.lease import guest_id
from sterna.cli.output import Output
from sterna.cli.ownership import Ownership, TextOption
from sterna.cli.taking_up import asker
from sterna.cli.units import Duration, Json
from sterna.core.history import History
from sterna.core.records import Decided, HandBack, Resolved, SessionRecord, Side, Start
from sterna.core.recovery import Image, Note, Settled, Situation, next_act, open_session, owes_pages
from sterna.core.verdict import Facts, Judgement, Slot, Step, Store, has_all_pages, judge
from sterna.core.words import count_text
from sterna.errors import GuestError, SternaError, StoreError
from sterna.guest.holder_client import HolderSilent, connect_holder
from sterna.host.lease import LeaseStore
from sterna.host.records_keeper import is_kept, peek
from sterna.host.records_log import RecordsMissing
from sterna.host.recovery import Seen, arriving, guest_in, owner_said, situation
from sterna.host.slots_behind import slots_behind
from sterna.net.connect import parse_address
from sterna.net.options import Options
from sterna.registry import Owner
from sterna.wire.records import NO_RUNNER, Verdict

RECORDED: Final = "recorded"


async def verdict(
    guest: str,
    /,
    *,
    holder: PathOption = None,
    peer: TextOption = "",
    ownership: Ownership = Ownership(),  # noqa: B008 - frozen
    security: Security = Security(),  # noqa: B008 - frozen
    patience: Annotated[Duration | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> int:
    """Tell who owns a guest: from this host's records, its lease store, its holder, and the destination.

    Nothing is changed here. But a destination that is asked, where there is no store, hands a guest back that
    it has not started: that is the answer then, and it is final.

    The exit code is 0 if the owner is known, 8 if nobody can know yet, 9 if the guest is lost. Lost is also
    one that runs elsewhere and lacks pages that only an image here had: name the --holder of that.

    Args:
        guest: its id, 32 hexadecimal digits.
        holder: socket of the holder in which the guest is, or was.
        peer: ask the destination at this host:port, or, with the word recorded, where it was last.
        ownership: where records and store are.
        security: who this host is; to ask the destination, --pki or --insecure as for `sterna migrate`.
        patience: wait no longer than this for the destination; by default 5s to 60s, by the phase.
        json: one JSON object on stdout.
    """
    looked = Looked(guest_id(guest), security.own_name)
    await looked.read(ownership.directory(looked.host))
    if holder is not None:
        await looked.look(holder)
    async with ownership.opened_store() as store:
        await looked.ask_store(store)
    if peer:
        await looked.ask_peer(peer, security, Options(deadlines=deadlines(patience)))
    found = looked.judged()
    output = Output(json=json)
    tell(looked, found, output)
    return found.exit_code


@dataclass(frozen=True, slots=True)
class Found:
    """Who owns the guest.

    Attributes:
        here: whether it is this host; None if nobody can know.
        host: the owner's name, as far as it is known.
    """

    judgement: Judgement
    here: bool | None
    host: str = ""
    lost: bool = False

    @property
    def exit_code(self) -> Exit:
        """0 if the owner is known and has its guest."""
        if self.lost:
            return Exit.LOST
        return Exit.UNDECIDED if self.here is None or self.is_in_doubt else Exit.OK

    @property
    def is_in_doubt(self) -> bool:
        """Whether the other side owns it, and nobody has said yet whether it has every page [ONE-42]."""
        return self.here is False and self.judgement.step is Step.ASK


@dataclass
class Looked:
    """All that is known of a guest at one moment.

    Attributes:
        guest: its id.
        host: this host's name.
        history: None if records were lost.
        session: in which the guest has changed hands last, or may have.
        seen: in the holder; None if no holder was named.
        store: what it says of the session; None if there is none, or the guest has no slot in it.
        newest: its newest slot.
        answer: of the destination.
        troubles: what could not be had, in words.
        busy: whether a process of this host has the records: a session of the guest may be under way.
    """

    guest: bytes
    host: str
    history: History | None = None
    session: SessionRecord | None = None
    directory: Path = Path()
    seen: Seen | None = None
    store: Store | None = None
    newest: Slot | None = None
    answer: Verdict | None = None
    troubles: list[str] = field(default_factory=list)
    busy: bool = False

    async def read(self, directory: Path) -> None:
        """The records, without keeping anybody from writing them."""
        self.directory = directory
        try:
            self.history = await peek(directory, self.guest)
        except RecordsMissing as error:
            self.troubles.append(f"records: {error}")
        else:
            self.session = open_session(self.history)
            self.busy = is_kept(directory, self.guest)

    async def look(self, holder: Path) -> None:
        """What the holder has."""
        try:
            async with await connect_holder(holder, role="observer") as connection:
                self.seen = Seen(await guest_in(connection), await connection.status())
        except HolderSilent as error:  # nobody knows what it has
            self.troubles.append(f"holder: {error}")
            return
        except GuestError as error:
            self.seen = Seen(None, None)
            self.troubles.append(f"holder: {error}")
        status = self.seen.status
        if status is not None and self.seen.guest == self.guest and self.history is not None:
            self.session = open_session(self.history, status.granted_epoch) or arriving(self.history, status)

    async def ask_store(self, store: LeaseStore | None) -> None:
        """What the store says of the session."""
        try:
            if self.session is not None and self.history is not None:
                self.store = await slots_behind(store, self.history, self.session)
            if store is not None:
                self.newest = await store.newest(self.guest)
        except StoreError as error:
            self.troubles.append(f"store: {error}")
            if self.session is None or self.session.store:
                self.store = Store(answers=False)

    async def ask_peer(self, place: str, security: Security, options: Options) -> None:
        """What the destination says."""
        session = self.session
        if session is None or session.side is not Side.SOURCE:
            self.troubles.append("peer: this host is the source of no session that could be asked for")
            return
        places = [] if place == RECORDED else [parse_address(place)]
        peers = security.peer_list()
        tls = security.tls((lambda _identity, _fingerprint: None) if peers is None else peers.check_peer)
        status = None if self.seen is None else self.seen.status
        try:
            ask = asker(self.guest, tls, options, places)
            self.answer = await ask(session, NO_RUNNER if status is None else status.runner)
        except SternaError as error:
            self.troubles.append(f"peer: {error}")

    def judged(self) -> Found:
        """Who owns the guest, by all of that."""
        if self.history is None:
            why = "records of this guest were lost here, so none of them counts"
            return Found(Judgement(Owner.UNDECIDED, why, "ONE-57", Step.OPERATOR), None)
        session = self.session
        if session is None:
            return self._without_session()
        peer = None if self.answer is None else owner_said(self.answer, self.store)
        complete = None if self.answer is None else has_all_pages(self.answer)
        facts = Facts(self.host, self.store, peer=peer)
        now = situation(self.history, session, self.seen or Seen(None, None), facts, complete=complete)
        judgement = judge(self.history, session.session, now.facts)
        settled = self._settled(session, now) if self.seen is not None else None
        lost = settled is not None and settled.lost
        if settled is not None and owes_pages(self.history, session, now):
            judgement = settled.judgement
            if lost and self.busy:  # it has mapped what the holder had
                why = f"{judgement.why}; but a process here has the guest's records, and may have its pages"
                lost, judgement = False, replace(judgement, why=why, step=Step.ASK)
        if lost and judgement.step is Step.RUN:
            judgement = replace(judgement, step=Step.NONE)  # there is nothing that could be run
        if judgement.owner is Owner.UNDECIDED:
            return Found(judgement, None, lost=lost)
        here = judgement.owner.name.lower() == session.side.value
        if judgement.step is Step.FREE and self.seen is not None and now.image is Image.GONE:
            judgement = replace(judgement, step=Step.NONE)  # nothing is held of it any more
        if judgement.step is Step.RUN and (now.image is Image.RUNS or self.history.complete(session.session)):
            judgement = replace(judgement, step=Step.NONE)  # it has been
        return Found(judgement, here, self.host if here else session.peer, lost)

    def resolved(self) -> Resolved | Start | HandBack | None:
        """What an operator has decided of the session [ONE-59], None if none has."""
        if self.history is None or self.session is None:
            return None
        if self.session.side is Side.SOURCE:
            decision = self.history.decision(self.session.session)
            return decision if isinstance(decision, Resolved) else None
        fate = self.history.fate(self.session.epoch + 1)
        return fate if fate is not None and fate.operator else None

    def _settled(self, session: SessionRecord, now: Situation) -> Settled | None:
        """What recovery would come to if nobody answered more than is known."""
        history = self.history
        assert history is not None
        if now.facts.peer is None:
            now = replace(now, facts=replace(now.facts, peer=Owner.UNDECIDED))
        act = next_act(history, session.session, now, NO_RUNNER)
        if isinstance(act, Note) and isinstance(act.record, Decided):
            act = next_act(history.after(act.record), session.session, now, NO_RUNNER)
        return act if isinstance(act, Settled) else None

    def _without_session(self) -> Found:
        """No session is on record in which it could have changed hands."""
        status = None if self.seen is None or self.seen.guest != self.guest else self.seen.status
        held = status is not None and status.state in {"running", "paused"}
        if self.store is not None and not self.store.answers:
            why = "the store does not answer"
            return Found(Judgement(Owner.UNDECIDED, why, "ONE-31", Step.WAIT_FOR_STORE), None)
        if self.newest is not None:
            own = held and status is not None and status.runner == self.newest.runner
            return self._by_slot(self.newest, own)
        if held and status is not None:
            why = "it runs in the holder, and no session is on record in which it could have left"
            return Found(Judgement(Owner.SOURCE, why, "ONE-22", Step.NONE, status.epoch), True, self.host)
        if status is not None and status.state == "granted":
            why = (
                f"it is marked for epoch {status.granted_epoch}, and no record says to whom it may have left"
            )
            return Found(Judgement(Owner.UNDECIDED, why, "ONE-61", Step.OPERATOR), None)
        why = f"no record in {self.directory}, no slot and no holder says who owns it"
        if self.seen is None:
            why += "; say --name or --records, --store and --holder as its endpoints do"
        return Found(Judgement(Owner.UNDECIDED, why, "ONE-46", Step.OPERATOR), None)

    def _by_slot(self, newest: Slot, held: bool) -> Found:
        runner = newest.runner
        why = f"slot {newest.epoch}, the newest, is {runner.host}'s"
        assert self.history is not None
        if held or runner in self.history.runners(newest.epoch):  # whatever this host was called then
            return Found(Judgement(Owner.SOURCE, why, "ONE-9", Step.NONE, newest.epoch), True, self.host)
        if runner.host != self.host:
            return Found(Judgement(Owner.SOURCE, why, "ONE-9", Step.NONE, newest.epoch), False, runner.host)
        why = f"slot {newest.epoch} names this host, in no record"
        return Found(Judgement(Owner.UNDECIDED, why, "ONE-52", Step.OPERATOR), None)


# ---- telling ----

_AGAIN: Final = (
    "sterna migrate at the source, or sterna serve at the destination, does that when it is started again "
    "with the options that it had"
)
_HOW: Final = {
    **dict.fromkeys(
        (Step.RUN, Step.ROLL_BACK, Step.START, Step.CLAIM_NEXT, Step.CLAIM_AFTER, Step.REPEAT_CLAIM), _AGAIN
    ),
    Step.HAND_BACK: "sterna serve, started again with the options that it had, does that when it is asked",
    Step.ASK: "sterna verdict --peer recorded asks, and so does sterna migrate when it is started again",
    Step.OPERATOR: "sterna resolve --help tells how",
}


def tell(looked: Looked, found: Found, output: Output) -> None:
    """For people a table, and then the sentence that counts; for programs one object."""
    judgement = found.judgement
    rows = [(name, text) for name, text in _rows(looked) if text]
    output.table(("seen in", "what it says"), rows, title=f"Guest {looked.guest.hex()}")
    for trouble in looked.troubles:
        output.say(trouble, style="yellow")
    output.say(_sentence(found))
    output.say(f"because {judgement.why} [{judgement.clause}]")
    output.say(f"next: {judgement.step.value}")
    if how := _how(looked, found):
        output.say(f"  {how}")
    output.result(_fields(looked, found))


def _how(looked: Looked, found: Found) -> str:
    step = found.judgement.step
    if found.is_in_doubt:
        return "sterna verdict --peer recorded asks"
    if step is Step.FREE and looked.session is not None and looked.session.side is Side.SOURCE:
        return (
            "sterna migrate, started again, sends the guest there what it lacks, and frees the image, if the "
            "session was not agreed without --resume"
        )
    return _HOW.get(step, "")


def _sentence(found: Found) -> str:
    if found.lost and found.judgement.clause == "ONE-42":
        return "guest_lost: pages that it needs are gone with the only image that had them"
    if found.lost:
        return "guest_lost: the image of its owner is gone with its holder"
    if found.here is None:
        known = found.judgement.clause != "ONE-46"  # else it may run anywhere
        return f"undecided: nobody here can know yet who owns it{', and it stays paused' if known else ''}"
    place = "this host" if found.here else "another host"
    named = f" ({found.host})" if found.host else ""
    owned = f"owned by {place}{named}, under epoch {found.judgement.epoch}"
    return f"{owned}, and perhaps lost: nobody here can know yet" if found.is_in_doubt else owned


def _rows(looked: Looked) -> list[tuple[str, str]]:
    session, history = looked.session, looked.history
    records = "lost" if history is None else ", ".join(each.kind for each in history.records[-8:]) or "none"
    about = ""
    if session is not None:
        side = f"{session.side.value} of epoch {session.epoch}, with {_peer(session)}"
        about = f"{session.session.hex()}: {side}"
    held = ""
    if looked.seen is not None:
        status = looked.seen.status
        held = "gone" if status is None else f"{status.state}, epoch {status.epoch}"
        if status is not None and status.missing:
            held += f", {count_text(status.missing, 'page')} missing: "
            held += "the source's image has what is missing, if it is still there"
        if status is not None and status.granted_epoch:
            held += f", marked for {status.granted_epoch}"
    slot = ""
    if looked.newest is not None:
        slot = f"slot {looked.newest.epoch}: {looked.newest.runner.host}"
    said = ""
    if looked.answer is not None:
        said = f"{looked.answer.owner.name.lower()}, epoch {looked.answer.epoch}"
        said += ", handed back" if looked.answer.handed_back else ""
        said += ", has every page" if looked.answer.complete else ""
    names = "records", "session", "operator", "holder", "store", "destination"
    return list(zip(names, (records, about, _decided_by(looked), held, slot, said), strict=True))


def _decided_by(looked: Looked) -> str:
    resolved = looked.resolved()
    if resolved is None:
        return ""
    fenced = f", who says that {resolved.fenced} is fenced" if resolved.fenced else ""
    return f"{_resolved_owner(resolved)}, decided by {resolved.operator or 'an operator'}{fenced}"


def _resolved_owner(resolved: Resolved | Start | HandBack) -> str:
    if isinstance(resolved, Resolved):
        return resolved.owner.name.lower()
    return "destination" if isinstance(resolved, Start) else "source"


def _peer(session: SessionRecord) -> str:
    return " at ".join(each for each in (session.peer or "an unnamed peer", session.address) if each)


def _fields(looked: Looked, found: Found) -> Fields:
    session, answer, seen = looked.session, looked.answer, looked.seen
    judgement, resolved = found.judgement, looked.resolved()
    return {
        "guest": looked.guest.hex(),
        "here": found.here,
        "host": found.host or None,
        "epoch": judgement.epoch or None,
        "lost": found.lost,
        "why": judgement.why,
        "clause": judgement.clause,
        "next": judgement.step.value,
        "session": None
        if session is None
        else {
            "id": session.session.hex(),
            "side": session.side.value,
            "epoch": session.epoch,
            "peer": session.peer,
            "address": session.address,
            "owner": judgement.owner.name.lower(),
        },
        "records": None if looked.history is None else [each.kind for each in looked.history.records],
        "resolved": None
        if resolved is None
        else {
            "owner": _resolved_owner(resolved),
            "operator": resolved.operator or None,
            "fenced": resolved.fenced or None,
        },
        "holder": None
        if seen is None or seen.status is None
        else {**holder_fields(seen.status), "granted_epoch": seen.status.granted_epoch},
        "store": None
        if looked.newest is None
        else {"epoch": looked.newest.epoch, "host": looked.newest.runner.host},
        "destination": None
        if answer is None
        else {
            "owner": answer.owner.name.lower(),
            "epoch": answer.epoch,
            "handed_back": answer.handed_back,
            "complete": answer.complete,
        },
        "troubles": looked.troubles,
    }
