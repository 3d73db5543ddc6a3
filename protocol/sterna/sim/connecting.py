"""Connections of a world: who is reached, and what is heard on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sterna.sim.hosts import GONE, Host, Line, Process, Task
from sterna.sim.machines import Data, Input, Lost

if TYPE_CHECKING:
    from sterna.sim.world import World


def connect(world: World, host: Host, process: Process, task: Task) -> bool:
    """Reach the other host, if anybody listens there: its endpoint, or one that stands beside it."""
    here = host.place
    other = world.own(1 - here)
    listener = other.endpoint
    if "beside" in other.armed:
        other.armed -= {"beside"}
        listener = world.start_process(1 - here, beside=True)
    if listener is None or _keeps_waiting(world, here, listener):
        return False
    answering = Task(listener.next_number, "destination", world.makers.destination(other.name))
    listener.tasks.append(answering)
    taken = world.line_numbers()
    number = next(each for each in range(1, len(taken) + 2) if each not in taken)
    ends = (here, process.number, task.number), (1 - here, listener.number, answering.number)
    world.add_line(Line(number, ends))
    task.line = answering.line = number
    return True


def _keeps_waiting(world: World, host: int, listener: Process) -> bool:
    """Whether a question that was given up waits before a frozen process: one more changes nothing."""
    if not listener.frozen:
        return False
    ends = [each.ends for each in world.lines if each.gone[0]]
    return any(here[0] == host and there[1] == listener.number for here, there in ends)


def end_of(world: World, process: Process, task: Task) -> tuple[Line | None, int]:
    """A task's connection, if it has one still, and which end of it is the task's."""
    line = world.line(task.line)
    if line is not None:
        for end in (0, 1):
            if line.ends[end][1:] == (process.number, task.number):
                return line, end
    return None, 0  # it is no more; perhaps another connection has its number


def says(world: World, process: Process, task: Task) -> None:
    """Send what the task's machine has said."""
    assert task.machine is not None
    line, end = end_of(world, process, task) if task.machine.said else (None, 0)
    if line is not None:
        line.push(1 - end, task.machine.said)


def hangs_up(world: World, process: Process, task: Task) -> None:
    """A task is done with its connection."""
    line, end = end_of(world, process, task)
    if line is not None:
        _leaves(world, line, end, task)


def hears(world: World, word: str, line: Line, end: int, task: Task) -> Input:
    """What the task at an end of a connection hears next."""
    if word == "deliver":
        data, *rest = line.pipes[end]
        line.pipes[end] = tuple(rest)
        return Data(b"".join(data))
    closed = word == "closed" and not line.crashed[1 - end]
    _leaves(world, line, end, task)
    return Lost(closed)


def _leaves(world: World, line: Line, end: int, task: Task) -> None:
    line.leaves(end)
    task.line = GONE
    forget(world, line)


def forget(world: World, line: Line) -> None:
    """A connection with nobody at either end is no more."""
    if all(line.gone):
        world.forget_line(line)
