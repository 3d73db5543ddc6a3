"""Both ways to number worlds find the same, and the way there again."""

from __future__ import annotations

import pytest

from sterna.sim.explore import loaded
from sterna.sim.faults import Fault
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.spaces import Parted, Plain

KINDS = (Fault.CUT, Fault.BESIDE, Fault.SOURCE_KILLED)


def world_of():
    return loaded(RecallingMakers(Shape()), store=True)


@pytest.mark.parametrize("kind", [Parted, Plain])
def test_steps_and_the_way_there(kind):
    space = kind(world_of(), KINDS)
    states = [space.first]
    for _ in range(5):
        states.append(next(iter(space.after(states[-1], last=False))))
    assert len(set(states)) == 6
    world = world_of()
    for step in space.path(states):
        world.take(step)
    other = world_of()
    for _ in range(5):
        other.take(other.steps()[0])
    assert world.key() == other.key()


def test_both_find_the_same_faults():
    parted, plain = (kind(world_of(), KINDS) for kind in (Parted, Plain))
    assert len(set(parted.faulty(parted.first))) == len(set(plain.faulty(plain.first))) == 2


def test_the_last_ones_are_forgotten():
    plain = Plain(world_of(), KINDS)
    assert list(plain.after(plain.first, last=True))
    with pytest.raises(KeyError):
        list(plain.faulty(plain.first))
