"""A world that is fetched part by part notes what was read, and says what has changed."""

from __future__ import annotations

import pytest
from sim_support import ALPHA, BETA

from sterna.sim.explore import loaded
from sterna.sim.hosts import NEVER, Line, Task, View
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.parted import PartedWorld
from sterna.sim.parts import (
    CLAIMED,
    GUESTS,
    HISTORY,
    HOLDERS,
    JUDGE,
    KEPT,
    LINES,
    LINES_MAX,
    LOCK,
    OTHERS,
    READS,
    RECORDS,
    SHOWN,
    STORE,
    Parts,
)


@pytest.fixture
def world():
    return loaded(RecallingMakers(Shape()), store=True)


@pytest.fixture
def parts(world):
    return Parts(world)


@pytest.fixture
def parted(parts):
    return PartedWorld(parts, parts.first)


def bit(thing, place):
    return 1 << READS * thing + place


def test_what_was_asked_for_was_read(parted):
    assert parted.read == 0
    assert parted.frozen(BETA, parted.hosts[BETA].endpoint.number) is False
    read = bit(BETA, SHOWN)
    assert parted.read == read
    assert parted.store.slots
    assert parted.line(1) is not None
    assert parted.line(LINES_MAX + 1) is None
    assert parted.judge.count
    read |= bit(STORE, 0) | bit(LINES, 0) | bit(JUDGE, 0)
    assert parted.read == read
    assert parted.own(ALPHA) is parted.hosts[ALPHA]
    assert parted.front(ALPHA).lock == parted.hosts[ALPHA].lock
    front = (LOCK, SHOWN, RECORDS, OTHERS, KEPT)
    assert parted.read == read | sum(bit(ALPHA, each) for each in front)
    assert parted.frozen(BETA, 77) is None
    with pytest.raises(AttributeError):
        _ = parted.weather
    assert len(list(parted.hosts)) == len(parted.hosts) == 2


def test_what_changes_is_told_and_nothing_else(parts, parted):
    assert parted.own(ALPHA).holders
    assert parted.line(1) is not None
    assert parted.changes() == (0, 0, 0, 0, 0), "it was looked at"
    parted.own(ALPHA).holders[0].mark = 9
    parted.line(1).broken = True
    host, *others, lines, _, _ = parted.changes()
    assert (host > 0, others, lines > 0) == (True, [0], True)
    assert parts.kinds[ALPHA].tables[HOLDERS].parts[0][0].mark == 0, "a copy was changed"


def test_what_was_set_unread_is_a_change_wherever_it_is_done(parts, parted):
    """Though it is what it was here."""
    parted.own(BETA).lock = parts.kinds[BETA].tables[LOCK].parts[0]
    assert not parted.read
    assert parted.changes()[BETA] > 0


def test_guests_are_seen_from_outside(world, parted):
    found = parted.guests(BETA)
    assert found.claimed == world.guests(BETA).claimed
    assert parted.read == bit(BETA, GUESTS) | bit(BETA, CLAIMED)
    assert parted.own(BETA).history
    parted.own(BETA).holders[0].mark = 9
    assert parted.guests(BETA).holders[0].mark == 9
    assert parted.read & bit(BETA, HISTORY)


def test_connections_come_and_go(parted):
    assert parted.line_numbers() == {1}
    assert not parted.read & bit(LINES, 0)
    parted.add_line(Line(2, ((ALPHA, 2, 1), (BETA, 3, 1))))
    parted.forget_line(parted.line(1))
    assert parted.line_numbers() == {2}
    assert [line.number for line in parted.lines] == [2]
    with pytest.raises(OverflowError, match="fewer faults"):
        parted.add_line(Line(LINES_MAX + 1, ((ALPHA, 2, 1), (BETA, 3, 1))))


def test_who_is_called_otherwise_is_so_at_his_connection(parted):
    """The first of two tasks is done, and the second one has its number from then on."""
    endpoint = parted.own(BETA).endpoint
    first = endpoint.task(1)
    second = Task(2, "destination")
    endpoint.tasks.append(second)
    second.line = 2
    parted.add_line(Line(2, ((ALPHA, 2, 5), (BETA, endpoint.number, 2))))
    endpoint.tasks.remove(first)
    assert parted.changes()[BETA] > 0
    assert parted.line(2).ends == ((ALPHA, 2, 5), (BETA, endpoint.number, 2)), "not yet"
    parted.close_up(BETA)
    assert parted.line(2).ends == ((ALPHA, 2, 5), (BETA, endpoint.number, 1))
    parted.line(2).ends = parted.line(2).ends[::-1]
    endpoint.tasks.append(Task(2, "recovery"))
    endpoint.tasks.remove(second)
    endpoint.task(2).line = 2
    parted.line(2).ends = ((BETA, endpoint.number, 2), (ALPHA, 2, 5))
    parted.close_up(BETA)
    assert parted.line(2).ends == ((BETA, endpoint.number, 1), (ALPHA, 2, 5))


def test_who_comes_after_the_dead_has_his_number(parted):
    dead = parted.own(ALPHA).endpoint.number
    assert parted.hosts[ALPHA].holders[0].controller == dead
    parted.kill(ALPHA, dead)
    assert parted.line(1).ends[0][:2] == (ALPHA, -1)
    assert parted.start_process(ALPHA).number == dead
    assert parted.start_process(ALPHA, beside=True).number == dead + 2
    parted.own(ALPHA).holders[0].granter = dead + 4
    assert parted.start_process(ALPHA, beside=True).number == dead + 6
    parted.kill(ALPHA, dead + 6)
    assert [each.number for each in parted.hosts[ALPHA].processes] == [dead, dead + 2]


def test_an_endpoint_has_the_lowest_number_whoever_came_first(parted):
    dead = parted.own(BETA).endpoint.number
    parted.kill(BETA, dead)
    assert parted.start_process(BETA, beside=True).number == dead + 2
    assert parted.start_process(BETA).number == dead
    assert parted.hosts[BETA].endpoint.number == dead


def test_nobody_is_granter_when_he_is_dead(parted):
    number = parted.own(ALPHA).endpoint.number
    parted.own(ALPHA).holders[0].granter = number
    parted.kill(ALPHA, number)
    assert parted.hosts[ALPHA].holders[0].granter == -1


def test_what_is_never_seen_again_is_forgotten(world):
    """And what may be seen again is not."""
    host = world.own(ALPHA)
    seen = View(len(host.history.records), (), (1, True), world.front(BETA))
    gone = seen._replace(peer=seen.peer._replace(processes=((99, False),)))
    for rest, kept in (
        (seen, True),
        (seen._replace(records=0), False),
        (seen._replace(slots=(3, True)), False),
        (gone, False),
        (seen._replace(peer=None), True),
    ):
        host.endpoint.rest = rest
        parts = Parts(world)
        found = PartedWorld(parts, parts.first)
        found.forget(ALPHA)
        assert (found.hosts[ALPHA].endpoint.rest is not None) is kept
        assert (found.changes()[ALPHA] == 0) is kept
        host.endpoint.rest, host.endpoint.refused = None, rest
        parts = Parts(world)
        found = PartedWorld(parts, parts.first)
        found.forget(ALPHA)
        assert (found.hosts[ALPHA].endpoint.refused is not NEVER) is kept
        host.endpoint.refused = None
