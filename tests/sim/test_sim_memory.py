"""A step is carried out once for all worlds with the same of what it has read."""

from __future__ import annotations

import numpy as np
import pytest
from sim_support import ALPHA, BETA

from sterna.sim.explore import loaded
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.memory import Memory
from sterna.sim.parts import Parts
from sterna.sim.spaces import Changes


@pytest.fixture
def parts():
    return Parts(loaded(RecallingMakers(Shape()), store=True))


def array(*states):
    return np.array(states, np.uint64)


class Freezes:
    """An action, and how often it was carried out."""

    def __init__(self, parts, changes, host):
        self.count, self.host, self.changes = 0, host, changes
        self.memory = Memory(parts, self.take)

    def take(self, world):
        self.count += 1
        process = world.own(self.host).endpoint
        process.frozen = not process.frozen
        return self.changes.number(world.changes())

    def after(self, *states):
        return self.changes.done(array(*states), self.memory.look(array(*states))).tolist()


def test_in_either_order_they_come_to_the_same(parts):
    """One at one host and one at the other; neither has read what the other one changes."""
    changes = Changes(parts)
    here, there = (Freezes(parts, changes, host) for host in (ALPHA, BETA))
    (first,), (second,) = here.after(parts.first), there.after(parts.first)
    assert len({parts.first, first, second}) == 3
    assert there.after(first, parts.first) == [*here.after(second), second]
    assert here.after(first) == [parts.first]
    assert (here.count, there.count) == (2, 1)


def test_among_many_only_those_that_differ_are_looked_at(parts):
    changes = Changes(parts)
    here, there = (Freezes(parts, changes, host) for host in (ALPHA, BETA))
    states = [parts.first, *here.after(parts.first), *there.after(parts.first)]
    looks = []

    def look(world):
        looks.append(world.state)
        if world.host(ALPHA).endpoint.frozen:
            return 2 + world.host(BETA).endpoint.frozen
        return 1

    memory = Memory(parts, look)
    both = there.after(states[1])
    assert memory.look(array(*states, *both, *states)).tolist() == [1, 2, 1, 3, 1, 2, 1]
    assert len(looks) == 3, "what is at beta matters only if alpha is frozen"
    assert memory.look(array(*states)).tolist() == [1, 2, 1]
    assert len(looks) == 3
