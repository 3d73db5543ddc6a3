"""Connections of a world: who is reached, what arrives, and what an end notices of the other one's."""

from __future__ import annotations

from sim_support import ALPHA, BETA, world_of

from sterna.sim.connecting import connect, end_of, forget, hangs_up, hears
from sterna.sim.hosts import Task
from sterna.sim.machines import Data, Lost


def calling(world):
    here = world.hosts[ALPHA]
    process = here.endpoint
    task = Task(process.next_number, "recovery")
    process.tasks.append(task)
    return here, process, task, connect(world, here, process, task)


def test_the_endpoint_is_reached():
    world = world_of()
    _, process, task, reached = calling(world)
    assert reached
    (line,) = world.lines
    assert end_of(world, process, task) == (line, 0)
    answering = world.hosts[BETA].endpoint.tasks[0]
    assert end_of(world, world.hosts[BETA].endpoint, answering) == (line, 1)
    line.push(1, (b"hel", b"lo"))
    assert hears(world, "deliver", line, 1, answering) == Data(b"hello")
    hangs_up(world, process, task)
    assert hears(world, "closed", line, 1, answering) == Lost(closed=True)
    assert world.lines == []
    assert end_of(world, process, task) == (None, 0)


def test_nobody_is_there():
    world = world_of()
    world.kill(BETA, world.hosts[BETA].endpoint.number)
    *_, reached = calling(world)
    assert not reached
    assert world.lines == []


def test_one_that_stands_beside_is_reached_once():
    world = world_of()
    world.hosts[BETA].armed = frozenset({"beside"})
    assert calling(world)[-1]
    assert [process.beside for process in world.hosts[BETA].processes] == [False, True]
    assert calling(world)[-1]
    assert len(world.hosts[BETA].processes) == 2
    assert [line.number for line in world.lines] == [1, 2]


def test_before_a_frozen_one_a_single_question_waits():
    world = world_of()
    world.hosts[BETA].endpoint.frozen = True
    _, process, task, reached = calling(world)
    assert reached
    hangs_up(world, process, task)
    assert not calling(world)[-1]


def test_a_dead_end_is_no_proper_end():
    world = world_of()
    _, _, task, _ = calling(world)
    (line,) = world.lines
    line.leaves(1, crashed=True)
    assert hears(world, "closed", line, 0, task) == Lost(closed=False)
    forget(world, line)
    assert world.lines == []


def test_an_old_connection_is_not_one_that_has_its_number_now():
    world = world_of()
    _, process, task, _ = calling(world)
    world.lines = []
    world.hosts[ALPHA].endpoint.tasks = []
    other = Task(7, "recovery")
    assert connect(world, world.hosts[ALPHA], process, other)
    assert other.line == task.line
    assert end_of(world, process, task) == (None, 0)
    hangs_up(world, process, task)
    assert world.lines[0].gone == [False, False]
