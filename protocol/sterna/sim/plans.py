"""What a machine's requests mean for a host of a world: one thing after the other, each of which can fail.

`plan` is asked again after each thing that was done, with its results, until it has the answer. It looks at
records and holders as they are at that moment, as an endpoint does that reads them back.
"""

from __future__ import annotations

import hmac
from collections.abc import Hashable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, TypeAlias

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
from sterna.core.records import Claiming, Decided, HandBack, SessionRecord, Side, Start
from sterna.core.recovery import before_verdict
from sterna.core.reopening import Opening
from sterna.core.verdict import Facts, Store, answer
from sterna.errors import RemoteProtocolError
from sterna.registry import ErrorCode
from sterna.sim.defects import Defect
from sterna.sim.holder import PAGES, Remains, Stage
from sterna.sim.hosts import Hold, Host, Op, Process, Reach, TakeLocks, Task, Write, peer_of
from sterna.sim.kept import Found, Fresh, Noted
from sterna.sim.machines import Trouble
from sterna.wire.records import Hello, Runner

if TYPE_CHECKING:
    from sterna.sim.world import World


@dataclass(frozen=True, slots=True)
class Answered:
    """Nothing is left to be done: the request is answered with this."""

    answer: Hashable = None


Plan: TypeAlias = Op | Answered | Trouble

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
            return _once(task, Reach("probe", epoch, runner))
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


def _each(task: Task, ops: list[Op]) -> Plan:
    """One after the other; the last one's result is the answer, and the first that fails is the end."""
    if task.results and isinstance(task.results[-1], Trouble):
        return task.results[-1]
    if len(task.results) < len(ops):
        return ops[len(task.results)]
    return Answered(task.results[-1])


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


def _admit(world: World, host: Host, process: Process, task: Task, hello: Hello) -> Plan:
    """Decide on a session. One at a time for a guest, and none that was handed over already [ONE-14]."""
    busy = any(each.kind != "destination" or each is not task for each in process.tasks)
    if busy or not world.locks(host, process) or host.history.claiming(hello.epoch + 1):
        return Trouble(ErrorCode.BUSY)
    if world.stores:
        if not task.results:
            return Reach("probe", hello.epoch, hello.runner)
        if isinstance(task.results[-1], Trouble):
            return task.results[-1]
    host.sessions += 1
    session = blake2b(f"{host.name}/session/{host.sessions}".encode(), digest_size=16).digest()
    task.image = session
    return Answered(Admission(session, blake2b(session).digest()[:32], spare_runner(host, session)))


def _readmit(world: World, host: Host, process: Process, task: Task, hello: Hello) -> Plan:
    """Take up a session that this process has kept; its older connection is closed first [RES-4]."""
    from sterna.sim.tasks import loses

    others = [each for each in process.tasks if each.image == hello.session and each is not task]
    kept = process.kept.get(hello.session)
    assert not isinstance(kept, Noted)
    try:
        for each in (kept, *[other.machine for other in others]):
            if each is not None and each.ticket is not None:
                each.ticket.check_hello(hello)
    except RemoteProtocolError as error:
        return Trouble(error.code)  # and nothing is touched: a later one may have overtaken it [RES-4]
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


def _turned_away(host: Host) -> Trouble:
    """Not now: the source is to come again when what is under way is done [RES-18]."""
    host.armed |= {"turned-away"}
    return Trouble(ErrorCode.BUSY)


def _reopen(world: World, host: Host, process: Process, task: Task, hello: Hello) -> Plan:
    """Take up a session of a process that is dead: its guest is to come, or lacks pages [RES-7] [RES-13]."""
    session, opening = host.history.session(hello.session), host.openings.get(hello.session)
    forgets = Defect.OPENING_FORGOTTEN in world.defects or not world.makers.keeps
    if session is None or opening is None or forgets:
        return Trouble(ErrorCode.BUSY)
    if not world.locks(host, process):
        return _turned_away(host)
    if not host.history.claiming(session.epoch + 1):
        return _begin_anew(world, task, hello, opening)
    if not isinstance(host.history.fate(session.epoch + 1), Start):
        return _verdict(world, host, process, task, hello)
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


def _begin_anew(world: World, task: Task, hello: Hello, opening: Opening) -> Plan:
    """Room for a guest of which nothing is left here, if the store lets it come still [RES-7] [RES-16]."""
    reserve = Hold("reserve", hello.session)
    probe = Reach("probe", hello.epoch, hello.runner)
    room = _each(task, [probe, reserve] if world.stores else [reserve])
    if isinstance(room, Trouble) and room.code is ErrorCode.NOT_READY:
        return Trouble(ErrorCode.BUSY)
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
    peer = peer_of(host)
    session = host.history.session(hello.session)
    facts = Facts(host.name, store=Store(answers=False) if world.stores else None)
    if session is None or session.side is not Side.DESTINATION:
        return Answered(answer(host.history, hello, peer, facts))
    if not hmac.compare_digest(session.token, hello.token):
        return Answered(answer(host.history, hello, peer, facts))
    if not world.stores:
        record = before_verdict(host.history, session, spare_runner(host, b"verdict"))
        return Answered(answer(host.history, hello, peer, facts)) if record is None else Write(record)
    found = next((each for each in task.results if isinstance(each, Store)), None)
    if found is None:
        return Reach("read", session.epoch + 1)
    return Answered(answer(host.history, hello, peer, replace(facts, store=found)))
