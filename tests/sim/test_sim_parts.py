"""A step reads some parts of a world, changes some of these, and is carried out once for the same ones."""

from __future__ import annotations

import pytest
from sim_support import ALPHA, BETA

from sterna.sim.explore import loaded
from sterna.sim.hosts import View
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.parts import Memory, PartedWorld, Parts, Table

HOST, PEER, PEER_FRONT, STORE, LINES, JUDGE = (1 << place for place in (0, 1, 3, 4, 5, 6))


@pytest.fixture
def world():
    return loaded(RecallingMakers(Shape()), store=True)


@pytest.fixture
def parts(world):
    return Parts(world)


def test_a_world_of_parts_is_that_world(world, parts):
    assert parts.whole(parts.first).key() == world.key()


def test_what_was_asked_for_was_read(parts):
    world = PartedWorld(parts, parts.at(parts.first))
    assert world.read == 0
    assert world.front(BETA).processes
    assert world.read == PEER_FRONT
    assert world.store.slots
    assert world.line(1) is not None
    assert world.judge.count
    assert world.read == PEER_FRONT | STORE | LINES | JUDGE
    assert world.own(ALPHA) is world.hosts[ALPHA] is not parts.hosts[ALPHA].parts[0]
    assert world.front(ALPHA).lock == world.hosts[ALPHA].lock
    assert world.read == HOST | PEER_FRONT | STORE | LINES | JUDGE
    with pytest.raises(AttributeError):
        _ = world.weather


def test_a_step_is_carried_out_once(world, parts):
    (step, *_) = world.steps()
    taken = []

    def action(world):
        taken.append(step)
        world.take(step)

    memory = Memory(action)
    at = parts.at(parts.first)
    after = parts.take(memory, parts.first, at)
    assert parts.take(memory, parts.first, at) == after != parts.first
    assert taken == [step]
    world.take(step)
    assert parts.whole(after).key() == world.key()


def test_another_world_with_the_same_of_what_was_read(parts):
    """A fault at one host and one at the other: in either order they come to the same."""
    kills = [Memory(lambda world, host=host: world.hosts[host] and freeze(world, host)) for host in (0, 1)]
    first, second = (parts.take(each, parts.first, parts.at(parts.first)) for each in kills)
    assert first != second
    ((read, _, known),) = kills[1].ways
    assert (read, len(known)) == (PEER, 1), "the source was not read"
    assert parts.take(kills[1], first, parts.at(first)) == parts.take(kills[0], second, parts.at(second))
    assert len(known) == 1


def freeze(world, host):
    world.take(("freeze", host, world.hosts[host].endpoint.number, 0))


def test_who_comes_after_the_dead_has_his_number(parts):
    world = parts.whole(parts.first)
    dead = world.hosts[ALPHA].endpoint.number
    assert world.hosts[ALPHA].holders[0].controller == dead
    world.kill(ALPHA, dead)
    assert world.line(1).ends[0][:2] == (ALPHA, -1)
    assert world.start_process(ALPHA).number == dead
    assert world.start_process(ALPHA, beside=True).number == dead + 2
    world.own(ALPHA).holders[0].granter = dead + 4
    assert world.start_process(ALPHA, beside=True).number == dead + 6
    world.kill(ALPHA, dead + 6)


def test_nobody_is_granter_when_he_is_dead(parts):
    world = parts.whole(parts.first)
    number = world.hosts[ALPHA].endpoint.number
    world.own(ALPHA).holders[0].granter = number
    world.kill(ALPHA, number)
    assert world.hosts[ALPHA].holders[0].granter == -1


def test_what_is_never_seen_again_is_forgotten(world, parts):
    """And what may be seen again is not."""
    host = world.own(ALPHA)
    seen = View(len(host.history.records), (), (1, True), world.front(BETA))
    for rest, kept in (
        (seen, True),
        (seen._replace(records=0), False),
        (seen._replace(slots=(3, True)), False),
    ):
        host.endpoint.rest = rest
        found = Parts(world)
        assert (found.whole(found.first).hosts[ALPHA].endpoint.rest is not None) is kept
    host.endpoint.rest = seen._replace(peer=seen.peer._replace(processes=((99, False),)))
    found = Parts(world)
    assert found.whole(found.first).hosts[ALPHA].endpoint.rest is None
    host.endpoint.rest = seen._replace(peer=None)
    found = Parts(world)
    assert found.whole(found.first).hosts[ALPHA].endpoint.rest is not None


def test_a_table_has_an_end():
    table = Table(1)
    assert [table.number("a", 1), table.number("b", 2), table.number("a", 3)] == [0, 1, 0]
    with pytest.raises(OverflowError, match="fewer faults"):
        table.number("c", 3)
