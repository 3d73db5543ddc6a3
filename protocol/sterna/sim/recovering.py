"""Recovery in a world: `next_act` of the core, act by act, with what a host knows.

What there is to be seen is looked at anew before every act. What the peer has said and what the store has
named are kept for as long as one recovery goes on; the store is read again after every claim.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sterna.core.records import SessionRecord, Side
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
    next_act,
    open_session,
)
from sterna.core.verdict import Facts, Store
from sterna.registry import Owner
from sterna.sim.connecting import connect, says
from sterna.sim.defects import Defect
from sterna.sim.holder import Stage
from sterna.sim.holding import attach
from sterna.sim.hosts import Front, Hold, Host, Op, Process, Reach, Task, View, Write
from sterna.sim.kept import Kept, Left, Noted
from sterna.sim.machines import Ask, Trouble
from sterna.sim.plans import spare_runner
from sterna.wire.records import NO_RUNNER

if TYPE_CHECKING:
    from sterna.sim.world import World

_IMAGES = {
    Stage.ROOM: Image.ROOM,
    Stage.READY: Image.READY,
    Stage.RUNS: Image.RUNS,
    Stage.STOPPED: Image.STOPPED,
    Stage.FREED: Image.GONE,
    Stage.KILLED: Image.GONE,
}


@dataclass(frozen=True, slots=True)
class Question:
    """The peer is to be asked about a session."""

    session: SessionRecord


Next: TypeAlias = Op | Question | Settled


def open_session_of(host: Host, process: Process) -> SessionRecord | None:
    """The session to recover: one that ended undecided in this process, or one that is open.

    The former need not be open by records and mark: perhaps neither mark nor grant has come about.
    """
    mark = max((each.mark for each in host.holders if each.lives), default=0)
    return host.history.session(process.undecided) or open_session(host.history, mark)


def view_of(world: World, host: Host, session: SessionRecord) -> View:
    """What recovery of a session goes by: as long as this is the same, it would come to the same end."""
    if session.side is Side.SOURCE:
        return source_view(world, host)
    return _view(world, host, None)


def source_view(world: World, host: Host) -> View:
    """The same of any session at its source, and what a source goes by that was refused a resumption."""
    return _view(world, host, world.front(1 - host.place))


def _view(world: World, host: Host, peer: Front | None) -> View:
    holders = tuple([(each.stage.name, each.mark, each.epoch, each.controller) for each in host.holders])
    slots = None if world.store is None else (len(world.store.slots), world.store.answers)
    return View(len(host.history.records), holders, slots, peer)


def is_due(world: World, host: Host, process: Process) -> bool:
    """Whether there is a session to recover, and something new to be seen of it."""
    if any(task.kind != "destination" or task.image for task in process.tasks):
        return False  # a session or recovery is under way
    if not host.may_lock(process) and Defect.OLD_CONTROLLER not in world.defects:
        return False
    session = open_session_of(host, process)
    return session is not None and process.rest != view_of(world, host, session)


def begin(world: World, host: Host, process: Process) -> None:
    """Look at what there is, and go on from there."""
    session = open_session_of(host, process)
    assert session is not None
    world.locks(host, process)
    image = host.image_of(session.session)
    holder = host.holder(image)
    process.rest, process.looked = view_of(world, host, session), False
    if holder is not None and holder.lives and not attach(world, holder, process):
        return
    process.rest = view_of(world, host, session)
    if _takes_up_unasked(world, process, session):
        _serves_on(world, host, process, image, session)
        host.rests(process)
        return
    task = Task(process.next_number, "recovery", None, image)
    task.session, task.peer = session.session, process.heard
    process.tasks.append(task)
    go_on(world, host, process, task)


def go_on(world: World, host: Host, process: Process, task: Task) -> None:
    """The next act, unless the last one failed."""
    if task.stuck:
        _settles(world, host, process, task, None)
        return
    following = next_of(world, host, task)
    while isinstance(following, Question):
        session = following.session
        if connect(world, host, process, task):
            runners = sorted(host.history.runners(session.epoch), key=lambda each: each.id)
            task.machine = world.makers.asker(host.name, session.epoch, next(iter(runners), NO_RUNNER))
            task.machine = task.machine.told(Ask(session.session, session.token), world.now)
            says(world, process, task)
            return
        task.peer = Owner.UNDECIDED  # nobody is there; when somebody is, that is something new
        following = next_of(world, host, task)
    if isinstance(following, Settled):
        host.settled = following
        _settles(world, host, process, task, following)
    else:
        task.op = following


def others_kept(process: Process) -> Mapping[bytes, Kept | Left | Noted]:
    """What a process keeps of sessions, but for the one that it may take up as a source."""
    return {image: each for image, each in process.kept.items() if image}


def learns(task: Task, op: Op, answer: Hashable) -> None:
    """What came of an act. Where it failed, recovery ends, and begins again with a look at everything."""
    claimed = isinstance(op, Reach) and op.verb == "claim"
    if isinstance(answer, Store):
        task.store = answer
    elif claimed:
        task.store = Store(answers=False)  # it is read again
    failed = isinstance(answer, Trouble) and answer.existing is None
    task.stuck = failed or (claimed and answer is None)
    task.failed |= task.stuck and not isinstance(op, Hold)


def _settles(world: World, host: Host, process: Process, task: Task, settled: Settled | None) -> None:
    """Recovery has come to its end for now, None if it is stuck; it begins again when something is new."""
    session = host.history.session(task.session)
    assert session is not None
    process.looked = session.side is Side.SOURCE and process.rest == view_of(world, host, session)
    owner = Owner.UNDECIDED if settled is None else settled.judgement.owner
    if session.side is Side.SOURCE and owner is Owner.DESTINATION:
        _serves_on(world, host, process, task.image, session)
    elif session.side is Side.SOURCE and owner is Owner.SOURCE:
        process.kept, process.refused = others_kept(process), None
    if task.failed:
        process.rest = None
    elif owner is not Owner.UNDECIDED:
        process.undecided = b""
    process.tasks.remove(task)
    host.rests(process)


def _takes_up_unasked(world: World, process: Process, session: SessionRecord) -> bool:
    """Whether a source does so that has found a session, and not had it itself."""
    broken = Defect.TAKEN_UP_UNASKED in world.defects and world.makers.keeps
    return broken and session.side is Side.SOURCE and not process.undecided


def _serves_on(world: World, host: Host, process: Process, image: bytes, session: SessionRecord) -> None:
    """A source whose guest is the destination's takes the session up, whatever process had it [RES-19]."""
    if not world.makers.clocked and (b"" in process.kept or process.refused is not None):
        return  # it was to be taken up before, and either will be, or cannot be
    holder = host.holder(image)
    frozen = holder is not None and holder.stage is Stage.STOPPED and holder.mark
    if frozen and world.makers.keeps:
        assert holder is not None
        reuses = Defect.NUMBERS_REUSED in world.defects
        kept = world.makers.departed(holder, session.session, reuses=reuses)
        if kept is not None:
            process.kept = {**process.kept, b"": kept}


def situation_of(world: World, host: Host, task: Task) -> Situation:
    """What recovery goes by, beside the records."""
    holder = host.holder(task.image)
    store = (task.store or Store(answers=False)) if world.stores else None
    mark = 0 if holder is None or not holder.lives else holder.mark
    facts = Facts(host.name, store, mark, task.peer)
    if holder is None:
        return Situation(facts, complete=task.complete)
    image, stale = _IMAGES[holder.stage], bool(holder.missing)
    return Situation(facts, image, holder.image, holder.epoch, task.complete, stale)


def next_of(world: World, host: Host, task: Task) -> Next:
    """What recovery does next, or that it has come to its end."""
    situation = situation_of(world, host, task)
    act = next_act(host.history, task.session, situation, spare_runner(host, task.session))
    session = host.history.session(task.session)
    assert session is not None
    match act:
        case Note(record):
            return Write(record)
        case ClaimSlot(epoch, runner):
            if Defect.ABSENT_IS_LOST in world.defects and session.side is Side.SOURCE:
                return Hold("run", task.image, epoch, runner)
            return Reach("claim", epoch, runner)
        case ReadStore() | AwaitClaim():
            return Reach("read", session.epoch + 1)
        case AskPeer(asked):
            return _freed_early(world, session, task, host) or Question(asked)
        case RunHere(epoch, runner):
            reused = Defect.EPOCH_REUSED in world.defects and epoch == session.epoch + 2
            return Hold("run", task.image, epoch - reused, runner)
        case RunOn():
            return Hold("resume", task.image)
        case FreeRoom():
            return Hold("discard", task.image)
        case Settled():
            return act


def _freed_early(world: World, session: SessionRecord, task: Task, host: Host) -> Op | None:
    """What a source does that frees its image as soon as its claim is lost."""
    holder = host.holder(task.image)
    broken = Defect.FREED_ON_LOST_CLAIM in world.defects and task.store is not None
    if broken and task.store is not None and task.store.next is not None and holder is not None:
        return Hold("release", task.image) if holder.lives and session.side is Side.SOURCE else None
    return None
