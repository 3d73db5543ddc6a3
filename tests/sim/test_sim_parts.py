"""A world is the numbers of its parts, and a change of it is other ones."""

from __future__ import annotations

import numpy as np
import pytest
from sim_support import ALPHA

from sterna.sim.explore import loaded
from sterna.sim.hosts import Process, Task
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.parted import PartedWorld
from sterna.sim.parts import LINES, LOCK, READS, SHOWN, STORE, TASKS, TASKS_MAX, Parts, fields_of, parts_of


@pytest.fixture
def world():
    return loaded(RecallingMakers(Shape()), store=True)


@pytest.fixture
def parts(world):
    return Parts(world)


def test_a_world_of_parts_is_that_world(world, parts):
    assert PartedWorld(parts, parts.first).key() == world.key()


def test_parts_of_the_first_process_stand_by_themselves(world):
    host = world.hosts[ALPHA]
    fields = fields_of(host)
    assert fields[SHOWN] == (False, False)
    assert [task and task.number for task in fields[TASKS:]] == [1] + [None] * (TASKS_MAX - 1)
    assert {part for _, part in parts_of(None)} == {None}
    process = Process(2)
    process.tasks.append(Task(3, "recovery"))
    assert dict(parts_of(process))[TASKS + 2] is process.tasks[0]


def test_keys_are_the_same_where_the_same_is_read(parts):
    """Another lock is another world to whoever has looked at the lock, and to nobody else."""
    kind, patch = parts.kinds[0], None
    thing = parts.first & int(kind.mask)
    patch = parts.patch(0, ((LOCK, kind.part(LOCK, 99)),))
    other = parts.first - thing + parts.patched(0, thing, patch)
    states = np.array([parts.first, other], np.uint64)
    for read, same in ((1 << LOCK, False), (1 << SHOWN, True), (1 << READS * STORE, True), (0, True)):
        one, two = parts.keys(states, read).tolist()
        assert (one == two) is same
    assert parts.things(other)[0][LOCK] != parts.things(parts.first)[0][LOCK]
    assert parts.things(other)[1:] == parts.things(parts.first)[1:]


def test_what_follows_is_not_read_twice(parts):
    line = 1 << READS * LINES
    there = line << parts.kinds[LINES].sizes
    assert parts.least(line | there | 1) == line | 1
    assert parts.least(there) == there
