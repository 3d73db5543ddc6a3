"""Both ways to number worlds find the same, and the way there again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sterna.sim.explore import loaded
from sterna.sim.faults import Fault
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.spaces import Parted, Plain

KINDS = (Fault.CUT, Fault.BESIDE, Fault.SOURCE_KILLED)


def world_of():
    return loaded(RecallingMakers(Shape()), store=True)


def array(*states):
    return np.array(states, np.uint64)


@pytest.mark.parametrize("kind", [Parted, Plain])
def test_steps_and_the_way_there(kind):
    space = kind(world_of(), KINDS)
    states = [space.first]
    for _ in range(5):
        states.append(int(space.after(array(states[-1]), last=False)[0]))
    assert len(set(states)) == 6
    world = world_of()
    for before, state in pairwise(states):
        found, step = space.way(array(*states), state, faulty=False)
        assert found == before
        world.take(step)
    other = world_of()
    for _ in range(5):
        other.take(other.steps()[0])
    assert world.key() == other.key()


@pytest.mark.parametrize("kind", [Parted, Plain])
def test_the_way_to_a_fault(kind):
    space = kind(world_of(), KINDS)
    (one, *_) = space.faulty(array(space.first)).tolist()
    assert space.way(array(space.first), one, faulty=True) == (space.first, ("cut", 1, 0, 0))
    assert space.way(array(space.first), one + 1, faulty=True) is None


def test_both_find_the_same_faults():
    parted, plain = (kind(world_of(), KINDS) for kind in (Parted, Plain))
    first = [each.faulty(array(each.first)).tolist() for each in (parted, plain)]
    assert len(set(first[0])) == len(set(first[1])) == 2
    assert parted.steps == plain.steps == 2


def test_many_at_once_are_each_of_them():
    """What comes of many worlds is what comes of each, however they stand together."""
    one, all_ = Parted(world_of(), KINDS), Parted(world_of(), KINDS)
    single, together = {one.first}, {all_.first}
    for _ in range(4):
        single = {
            after
            for state in single
            for found in (one.after(array(state), last=False), one.faulty(array(state)))
            for after in found.tolist()
        }
        there = array(*sorted(together))
        together = {*all_.after(there, last=False).tolist(), *all_.faulty(there).tolist()}
        assert len(single) == len(together)
    assert (one.steps, one.ends) == (all_.steps, all_.ends)
    assert len(single) > 20


def test_the_last_ones_are_forgotten():
    plain = Plain(world_of(), KINDS)
    assert plain.after(array(plain.first), last=True).size
    with pytest.raises(KeyError):
        plain.faulty(array(plain.first))
