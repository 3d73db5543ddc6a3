"""What processes of a world do: drive a machine, carry out what it asks for, hear what came of it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from sterna.core.history import RecordConflict
from sterna.core.records import Released, SessionRecord, Side
from sterna.registry import ErrorCode
from sterna.sim import recovering
from sterna.sim.connecting import hangs_up, says
from sterna.sim.ends import ended, forget_opening
from sterna.sim.holding import hold, keep
from sterna.sim.hosts import GiveWay, Hold, Host, Process, Reach, TakeLocks, Task, Write, write
from sterna.sim.kept import Noted
from sterna.sim.machines import Cancel, Done, Failed, Input, Lost, Trouble
from sterna.sim.plans import Answered, plan

if TYPE_CHECKING:
    from sterna.sim.world import World


def tell(world: World, host: Host, process: Process, task: Task, what: Input) -> None:
    """A machine is told something; what it says is sent, and what it asks for is begun."""
    assert task.machine is not None
    noted, room = task.machine.notes, task.machine.room
    task.machine = task.machine.told(what, world.now)
    if task.machine.notes is not noted or task.machine.room is not room:
        keep(world, host, task)
    says(world, process, task)
    go_on(world, host, process, task)


def go_on(world: World, host: Host, process: Process, task: Task) -> None:
    """Whatever a task can do now."""
    machine = task.machine
    if machine is None:
        recovering.go_on(world, host, process, task)
    elif machine.asked and task.op is None:
        doing = plan(world, host, process, task, machine.asked[0])
        if isinstance(doing, (Answered, Trouble)):
            task.results = ()
            what = Done(doing.answer) if isinstance(doing, Answered) else Failed(doing)
            tell(world, host, process, task, what)
        else:
            task.op = doing
            if isinstance(doing, GiveWay):
                older_ones = [each for each in process.tasks if each.image in doing.sessions]
                for older in older_ones:
                    assert older.kind == "destination"
                    tell(world, host, process, older, Cancel())
    elif machine.result is not None and not machine.asked:
        hangs_up(world, process, task)
        if ended(world, host, process, task, machine.result):
            go_on(world, host, process, task)
        else:
            host.rests(process)


def loses(world: World, host: Host, process: Process, task: Task) -> None:
    """A process closes a connection of its own accord."""
    hangs_up(world, process, task)
    tell(world, host, process, task, Lost())


def act(world: World, host: Host, process: Process, task: Task) -> None:
    """What is under way takes effect, and the process hears of it if it is not frozen."""
    task.answer = effect(world, host, process, task)
    lands(world, host, process, task)


def lands(world: World, host: Host, process: Process, task: Task) -> None:
    """What is under way has its answer; the process hears of it, or will when it wakes."""
    task.landed = True
    if not process.frozen:
        reply(world, host, process, task)


def effect(world: World, host: Host, process: Process, task: Task) -> Hashable:
    """Let what a task has under way take effect; the answer.

    Raises:
        Violation: it must not have happened.
    """
    match task.op:
        case Write(record):
            try:
                write(host, process, record)
            except RecordConflict as conflict:
                return Trouble(ErrorCode.RECORD_FAILED, conflict.existing)
            if isinstance(record, SessionRecord) and record.side is Side.SOURCE:
                host.sent = (*host.sent, (record.session, task.image))
            return None
        case Hold():
            return hold(world, host, process, task, task.op)
        case Reach():
            return _reach(world, task.op)
        case TakeLocks():
            holder = host.holder(task.image)
            return None if holder is not None and holder.lives else Trouble(ErrorCode.GUEST_FAILED)
        case GiveWay():
            return _replaced(world, host, process, task, task.op)
        case None:
            return None


def _replaced(world: World, host: Host, process: Process, task: Task, op: GiveWay) -> GiveWay:
    """Free what no connection has any more of sessions that have given way [RES-14]."""
    freed = {session: process.kept[session] for session in op.sessions if session in process.kept}
    process.kept = {name: each for name, each in process.kept.items() if name not in freed}
    for session, kept in freed.items():
        assert not isinstance(kept, Noted)
        if kept.is_forgettable:
            write(host, process, Released(session))
        hold(world, host, process, task, Hold("discard", session))
        forget_opening(host, session)
    return op


def _reach(world: World, op: Reach) -> Hashable:
    store = world.store
    assert store is not None
    if op.verb == "claim":
        return store.claim(op.epoch, op.runner)
    if not store.answers:
        return Trouble(ErrorCode.UNDECIDED)
    return store.facts(op.epoch) if op.verb == "read" else store.newest()


def reply(world: World, host: Host, process: Process, task: Task) -> None:
    """A task hears what came of what it had under way."""
    op, answer = task.op, task.answer
    assert op is not None
    task.op, task.answer, task.landed = None, None, False
    if task.machine is None:
        recovering.learns(task, op, answer)
        recovering.go_on(world, host, process, task)
        return
    task.results = (*task.results, answer)
    go_on(world, host, process, task)
