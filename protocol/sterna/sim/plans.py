"""What a machine's requests mean for a host of a world: one thing after the other, each of which can fail.

`plan` is asked again after each thing that was done, with its results, until it has the answer. It looks at
records and holders as they are at that moment, as an endpoint does that reads them back.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, TypeAlias

from sterna.core.admitting import (
    Resumption,
    check_newest,
    check_records,
    check_slot,
    names_store,
    resumption,
)
from sterna.core.carry import Ticket
from sterna.core.events import (
    Admission,
    Admit,
    AnswerVerdict,
    Claim,
    CollectDirty,
    Discard,
    Expect,
    Installed,
    KeepNotes,
    LoadState,
    MarkGranted,
    Pause,
    Persist,
    Prepare,
    ProbeStore,
    Readmit,
    ReleaseImage,
    Request,
    Reserve,
    RollBack,
    RunGuest,
    RunOn,
    SaveState,
    StartTracking,
    TakeStorage,
)
from sterna.core.records import Claiming, Decided, HandBack, SessionRecord, Start
from sterna.core.recovery import before_verdict
from sterna.core.reopening import Opening
from sterna.core.verdict import Facts, Slot, Store, answer, asked_for
from sterna.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from sterna.registry import ErrorCode
from sterna.sim.connecting import end_of
from sterna.sim.defects import Defect
from sterna.sim.holder import PAGES, Remains, Stage
from sterna.sim.hosts import Hold, Host, Op, Process, Reach, TakeLocks, Task, Write, peer_of
from sterna.sim.judge import Violation
from sterna.sim.kept import Found, Fresh, Noted
from sterna.sim.machines import Trouble
from sterna.sim.replacing import give_way, has_waited
from sterna.wire.records import FeatureChoice, FeatureOffer, Hello, Runner

if TYPE_CHECKING:
    from sterna.sim.world import World


@dataclass(frozen=True, slots=True)
class Answered:
    """Nothing is left to be done: the request is answered with this."""

    answer: Hashable = None


Plan: TypeAlias = Op | Answered | Trouble
Offered: TypeAlias = Sequence[FeatureOffer] | Sequence[FeatureChoice]

# Requests that are one word to the holder.
_VERBS: Final[dict[type, str]] = {
    StartTracking: "track", CollectDirty: "collect", Pause: "pause", SaveState: "save",
    ReleaseImage: "release", Reserve: "reserve", Prepare: "prepare", LoadState: "load", Discard: "discard",
    Expect: "expect", Installed: "install",
}  # fmt: skip


def spare_runner(host: Host, what: bytes = b"") -> Runner:
    """A runner that nobody has used: the next one is another as soon as this one is on record [ONE-4]."""
    text = f"{host.name}/{len(host.history.records)}/".encode() + what
    return Runner(host.name, blake2b(text, digest_size=16).digest())


def plan(world: World, host: Host, process: Process, task: Task, request: Request) -> Plan:
    """What is to be done next for a request, or its answer."""
    try:
        return _plan(world, host, process, task, request)
    except ProtocolError as error:  # by a rule of the core
        return Trouble(error.code)


def _plan(world: World, host: Host, process: Process, task: Task, request: Request) -> Plan:
    verb = _VERBS.get(type(request))
    if verb == "install" and Defect.INSTALLED_TWICE in world.defects:
        return _each(task, [Hold(verb, task.image)] * 2)
    if verb is not None:
        return _once(task, Hold(verb, task.image))
    match request:
        case KeepNotes() if world.makers.keeps:
            return _once(task, Hold("notes", task.image))
        case MarkGranted(epoch=epoch):
            return _once(task, Hold("mark", task.image, epoch))
        case RollBack(voided=voided):
            words = ["resume"] if voided is None else ["unmark", "resume"]
            return _each(task, [Hold(each, task.image) for each in words])
        case Persist(record=record):
            return _persist(world, host, task, record)
        case ProbeStore(epoch=epoch, runner=runner):
            return _probe(task, Slot(epoch, runner))
        case RunOn():
            return _once(task, Hold("resume", task.image))
        case Readmit(hello=hello):
            return _readmit(world, host, process, task, hello)
        case Admit(hello=hello):
            return _admit(world, host, process, task, hello)
        case Claim(epoch=epoch, runner=runner):
            return _once(task, Reach("claim", epoch, runner)) if world.stores else Answered(runner)
        case TakeStorage():
            return _once(task, TakeLocks())
        case RunGuest(epoch=epoch, runner=runner):
            return _once(task, Hold("run", task.image, epoch, runner))
        case AnswerVerdict(hello=hello):
            return _verdict(world, host, process, task, hello)
        case _:
            return Answered()  # Throttle, and notes that nobody keeps


def _once(task: Task, op: Op) -> Plan:
    return _each(task, [op])


def _each(task: Task, ops: list[Op], *, behind: int = 0) -> Plan:
    """One after the other; the last one's result is the answer, and the first that fails is the end.

    `behind`: so many other things were done before.
    """
    results = task.results[behind:]
    if results and isinstance(results[-1], Trouble):
        return results[-1]
    return ops[len(results)] if len(results) < len(ops) else Answered(results[-1])


def _persist(world: World, host: Host, task: Task, record: object) -> Plan:
    match record:
        case SessionRecord():
            return _once(task, Write(replace(record, peer=peer_of(host), address="there")))
        case Start() if Defect.START_NOT_WRITTEN in world.defects:
            return Answered()
        case Decided() if Defect.PAGES_FREED in world.defects and task.kind == "source":
            return _each(task, [Write(record), Hold("release", task.image)])
        case Claiming(epoch=epoch, runner=runner) if Defect.RUNS_BEFORE_CLAIM in world.defects:
            return _each(task, [Hold("run", task.image, epoch, runner), Write(record)])
        case Claiming() if world.store is None:
            task.held = record  # until there is what rests on it [ONE-62]; nobody else in the process knows
            return Answered()
        case Start() | HandBack() if task.held is not None:
            return _each(task, [Write(task.held), Write(record)])
        case _:
            return _once(task, Write(record))  # type: ignore[arg-type]


def _probe(task: Task, slot: Slot) -> Plan:
    """Whether a slot is the newest still, before a handover and before the mark [ONE-16] [ONE-64]."""
    if not task.results:
        return Reach("newest", 0)
    check_newest(_newest(task, ErrorCode.NOT_READY), slot, "ONE-16")
    return Answered()


def _newest(task: Task, silent: ErrorCode) -> Slot | None:
    """The guest's newest slot, which the store was asked for first.

    Raises:
        LocalProtocolError: of this code, if it has not answered.
    """
    found = task.results[0]
    if isinstance(found, Trouble):
        raise LocalProtocolError(silent)
    assert found is None or isinstance(found, Slot)
    return found


def _hinders(
    world: World,
    host: Host,
    process: Process,
    task: Task,
    hello: Hello,
    *,
    offered: Offered,
    silent: ErrorCode,
) -> Plan | None:
    """What is to be done before a guest may come, or answered; None if nothing is in the way.

    Records are looked at again when older sessions have ended, which may have noted something.

    Raises:
        LocalProtocolError: store or records are, or a session that does not give way.
    """
    if world.stores and not task.results:
        return Reach("newest", 0)
    if world.stores:
        check_slot(_newest(task, silent), hello, has_store=names_store(offered))
    over = check_records(host.history, hello, peer_of(host))
    if over is None:
        return give_way(world, host, process, task, hello)
    return _told(world, host, task, replace(hello, session=over.session, token=over.token), over.epoch)


def _admit(world: World, host: Host, process: Process, task: Task, hello: Hello) -> Plan:
    """Decide on a session. One at a time for a guest: a newer one takes the place of others [ONE-13]."""
    busy = any(each.kind != "destination" for each in process.tasks)
    if busy or not world.locks(host, process):
        return Trouble(ErrorCode.BUSY)
    hinders = _hinders(world, host, process, task, hello, offered=hello.features, silent=ErrorCode.REFUSED)
    if hinders is not None:
        return hinders
    host.sessions += 1
    session = blake2b(f"{host.name}/session/{host.sessions}".encode(), digest_size=16).digest()
    task.image = session
    return Answered(Admission(session, blake2b(session).digest()[:32], spare_runner(host, session)))


def _readmit(world: World, host: Host, process: Process, task: Task, hello: Hello) -> Plan:
    """Take up a session that this process has kept; its older connection is closed first [RES-4].

    Raises:
        RemoteProtocolError: it may not be taken up, and nothing is touched.
    """
    from sterna.sim.tasks import loses

    others = [each for each in process.tasks if each.image == hello.session and each is not task]
    kept = process.kept.get(hello.session)
    assert not isinstance(kept, Noted)
    for each in (kept, *[other.machine for other in others]):
        if each is not None and each.ticket is not None:
            _check(world, process, task, each.ticket, hello)
    if any(each.kind == "recovery" for each in others):
        return _turned_away(host)  # it has the records, and is done with them in a moment
    for other in others:
        loses(world, host, process, other)
    kept = process.kept.get(hello.session)
    if kept is None and host.history.complete(hello.session) is not None:
        return _verdict(world, host, process, task, hello)  # it lacks no page any more [RES-15]
    if kept is None and any(each in process.tasks for each in others):
        return _turned_away(host)  # what it has begun is to be done first
    if kept is None:
        return _reopen(world, host, process, task, hello)
    if not world.locks(host, process):
        return Trouble(ErrorCode.BUSY)
    process.kept = {name: each for name, each in process.kept.items() if each is not kept}
    task.image = hello.session
    world.resumed += 1
    return Answered(kept)


def _check(world: World, process: Process, task: Task, ticket: Ticket, hello: Hello) -> None:
    """Whether a session may be taken up: no source of ours breaks a rule, but a later one may have come.

    Raises:
        RemoteProtocolError: it may not.
        Violation: nor is it that its source has dialled anew, and this one was overtaken [RES-1].
    """
    try:
        ticket.check_hello(hello)
    except RemoteProtocolError as error:
        if not _is_overtaken(world, process, task):
            raise Violation("converges", f"whoever resumes is refused: {error}") from error
        raise


def _is_overtaken(world: World, process: Process, task: Task) -> bool:
    """Whether nobody is there any more who has sent what came by this connection."""
    line, end = end_of(world, process, task)
    return line is None or line.broken or line.gone[1 - end]


def _turned_away(host: Host) -> Trouble:
    """Not now: the source is to come again when what is under way is done [RES-18]."""
    host.armed |= {"turned-away"}
    return Trouble(ErrorCode.BUSY)


def _reopen(world: World, host: Host, process: Process, task: Task, hello: Hello) -> Plan:
    """Take up a session that this process has not: its guest is to come, or lacks pages [RES-7] [RES-13]."""
    forgets = Defect.OPENING_FORGOTTEN in world.defects or not world.makers.keeps
    opening = None if forgets else host.openings.get(hello.session)
    if not world.locks(host, process):
        return _turned_away(host)
    session = asked_for(host.history, hello, peer_of(host))
    leads_to = resumption(host.history, session, noted=opening is not None)
    if leads_to is Resumption.TOLD:
        return _verdict(world, host, process, task, hello)
    if opening is None:
        return Trouble(ErrorCode.BAD_TOKEN)
    _check(world, process, task, opening.ticket, hello)
    if leads_to is Resumption.ANEW:
        return _begin_anew(world, host, process, task, hello, opening=opening)
    holder = host.holder(hello.session)
    if holder is None or not holder.lives:
        return Trouble(ErrorCode.GUEST_LOST)
    if holder.stage is not Stage.RUNS:
        return _turned_away(host)  # recovery comes first, and either runs it or knows better
    if not task.results or isinstance(task.results[0], Trouble):
        return _once(task, Hold("take-over", hello.session))
    found = task.results[0]
    if not isinstance(found, Remains) or found.notes is None:  # it has come with all of its pages [RES-15]
        return _verdict(world, host, process, task, hello)
    missing = found.missing
    if Defect.BITS_IGNORED in world.defects:
        missing = frozenset(range(PAGES))
    if Defect.ALL_TAKEN_AS_INSTALLED in world.defects:
        missing = frozenset()
    task.image = hello.session
    world.resumed += 1
    fresh = Defect.TAKEN_FOR_NEW in world.defects
    return Answered(Found(hello.session, missing, found.notes, found.memory, opening, fresh))


def _begin_anew(
    world: World, host: Host, process: Process, task: Task, hello: Hello, *, opening: Opening
) -> Plan:
    """Room for a guest of which nothing is left here, if it may still come [RES-7] [RES-16]."""
    features = opening.welcome.features
    hinders = _hinders(world, host, process, task, hello, offered=features, silent=ErrorCode.BUSY)
    if hinders is not None:
        return hinders
    room = _each(task, [Hold("reserve", hello.session)], behind=world.stores + has_waited(task))
    if not isinstance(room, Answered):
        return room
    task.image = hello.session
    world.resumed += 1
    return Answered(Fresh(hello.session, opening, Defect.FORGOTTEN_AS_HELD in world.defects))


def _verdict(world: World, host: Host, process: Process, task: Task, hello: Hello) -> Plan:
    """Say who owns the guest, after what has to be on record before [ONE-44]."""
    if not world.locks(host, process):
        return Trouble(ErrorCode.BUSY)
    if task.results and isinstance(failure := task.results[-1], Trouble) and failure.existing is None:
        return failure
    session = asked_for(host.history, hello, peer_of(host))
    if session is None:
        return Answered(answer(host.history, hello, peer_of(host), Facts(host.name)))
    if not world.stores:
        record = before_verdict(host.history, session, spare_runner(host, b"verdict"))
        if record is not None:
            return Write(record)
    return _told(world, host, task, hello, session.epoch)


def _told(world: World, host: Host, task: Task, hello: Hello, epoch: int) -> Plan:
    """Who owns the guest, by records, and by the slots behind this epoch if there is a store."""
    facts = Facts(host.name)
    if world.stores:
        found = next((each for each in task.results if isinstance(each, Store)), None)
        if found is None:
            return Reach("read", epoch + 1)
        facts = Facts(host.name, found)
    return Answered(answer(host.history, hello, peer_of(host), facts))
