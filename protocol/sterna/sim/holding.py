"""What holders do for their controllers, and by themselves, under the eyes of the judge."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from sterna.core.events import Expect, Installed
from sterna.registry import ErrorCode
from sterna.sim.defects import Defect
from sterna.sim.holder import REGION, Holder, HolderError, Stage, count_in, pages_in
from sterna.sim.hosts import NAMES, Hold, Host, Process, Task
from sterna.sim.judge import Violation
from sterna.sim.machines import Trouble
from sterna.sim.replacing import check_alone

if TYPE_CHECKING:
    from sterna.sim.world import World


def hold(world: World, host: Host, process: Process, task: Task, op: Hold) -> Hashable:
    """Have a holder do something; its answer, or why not.

    Raises:
        Violation: it has done what must never be done.
    """
    holder = host.holder(op.image)
    if op.verb == "reserve":
        check_alone(host, process, task, op.image)
        if holder is not None and holder.controller:
            return Trouble(ErrorCode.GUEST_FAILED)
        if holder is not None:  # of a process that is dead: what is in it is of no use any more [RES-7]
            world.judge.frees(holder, world.holders_with(holder))
            holder.free()
            host.holders.remove(holder)
        holder = Holder(host.name, op.image)
        host.holders.append(holder)
        if task.machine is not None and task.machine.opening is not None:
            host.openings = {op.image: task.machine.opening}  # in the place of the last one
    if holder is None or not holder.lives or not attach(world, holder, process):
        return Trouble(ErrorCode.GUEST_FAILED)
    try:
        return _do(world, process, task, holder, op)
    except HolderError:
        return Trouble(ErrorCode.GUEST_FAILED)


def attach(world: World, holder: Holder, process: Process) -> bool:
    """Become the controller. There is one at a time, until its process is dead."""
    if holder.controller not in {0, process.number} and Defect.OLD_CONTROLLER not in world.defects:
        return False
    holder.controller = process.number
    return True


def _do(world: World, process: Process, task: Task, holder: Holder, op: Hold) -> Hashable:
    match op.verb:
        case "track":
            holder.collected = holder.count
        case "collect":
            return holder.collect()
        case "save":
            return holder.count
        case "pause":
            if holder.stage is Stage.RUNS:
                holder.stage = Stage.STOPPED
        case "take-over":  # whoever waits tells it anew [HOL-41]
            holder.faulted = -1
            return holder.remains()
        case "notes":
            return True  # there is room for them
        case "mark":
            holder.set_mark(op.epoch, process.number)
        case "unmark":
            holder.take_mark_off(process.number)
        case "resume":
            holder.may_resume()
            _runs(world, holder)
        case "load":
            load(task, holder)
        case "expect":
            expect(task, holder)
        case "install":
            install(task, holder)
        case "run":
            holder.may_run(op.epoch)
            holder.epoch, holder.runner, holder.mark, holder.granter = op.epoch, op.runner, 0, 0
            _runs(world, holder)
        case "discard" | "release":
            world.judge.frees(holder, world.holders_with(holder))
            holder.free()
        case _:
            pass  # reserve and prepare: it is there
    return None


def load(task: Task, holder: Holder) -> None:
    """Take the guest's state, beside the memory that a machine has filled."""
    assert task.machine is not None
    request = task.machine.asked[0]
    sections = getattr(request, "sections", ())
    holder.load(count_in(sections), task.machine.room)


def expect(task: Task, holder: Holder) -> None:
    """Hold the guest's accesses to what is stale."""
    assert task.machine is not None
    request = task.machine.asked[0]
    assert isinstance(request, Expect)
    holder.missing = pages_in(request.stale.get(REGION.id))


def keep(world: World, host: Host, task: Task) -> None:
    """What a machine has noted, and written to memory, lies there for the next one [HOL-41] [HOL-45]."""
    holder = host.holder(task.image) if world.makers.keeps else None
    if holder is not None and holder.lives and task.machine is not None:
        holder.notes, holder.memory = task.machine.notes, task.machine.room


def install(task: Task, holder: Holder) -> None:
    """Pages are there; the guest may go on.

    Raises:
        Violation: they are not those of the pause, or were there already and the guest may have written them.
    """
    assert task.machine is not None
    request = task.machine.asked[0]
    assert isinstance(request, Installed)
    for pages in request.pages:
        for page in range(pages.first, pages.first + pages.count):
            if not holder.install(page, task.machine.room):
                raise Violation("same-memory", f"page {page} at {holder.host} came wrong, or a second time")


def _runs(world: World, holder: Holder) -> None:
    """The guest runs from here on; one instruction is executed at once, unless its page is missing."""
    if holder.stage is Stage.RUNS:
        return
    holder.stage = Stage.RUNS
    elsewhere = world.guests(1 - NAMES.index(holder.host))
    world.judge.starts(holder, world.holders_with(holder), world.store, elsewhere.claimed)
    if holder.waits_for is None:
        world.judge.executes(holder)


def controller_gone(world: World, host: Host, process: int) -> None:
    """The process is dead: a paused guest without a mark runs on [ONE-22].

    Raises:
        Violation: it must not.
    """
    for holder in host.holders:
        if holder.controller == process:
            holder.controller = 0
            if holder.stage is Stage.STOPPED and not holder.mark:
                _runs(world, holder)


def destroy(world: World, holder: Holder) -> None:
    """A holder is killed, and all that it has is gone."""
    world.judge.kills(holder)
    holder.free(Stage.KILLED)
    holder.controller = 0
