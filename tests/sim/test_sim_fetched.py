"""A fetched host is a host to whoever asks it, and fetches no more than is asked for."""

from __future__ import annotations

import pytest
from sim_support import ALPHA

from sterna.core.records import Claiming
from sterna.sim.explore import loaded
from sterna.sim.fetched import FetchedHost
from sterna.sim.hosts import Process, Reach, Task, Write
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.parts import (
    GLANCES,
    HISTORY,
    HOLDERS,
    KNOWS,
    OTHERS,
    REST,
    SHOWN,
    TASKS,
    TASKS_MAX,
    THERE,
    fields_of,
    glance_of,
)
from sterna.wire.records import NO_RUNNER

FIRST = 2


class Fetching:
    """A world's host, the parts that were fetched of it, and itself as it is fetched."""

    def __init__(self, host):
        self.whole, self.fetched = host, []
        self.parts = fields_of(host)
        self.host = FetchedHost(ALPHA, self.fetch, own=True)

    def fetch(self, place):
        self.fetched.append(place)
        if place >= GLANCES:
            return glance_of(self.parts[TASKS + place - GLANCES])[1]
        if place >= THERE:
            return self.parts[TASKS + place - THERE] is not None
        return self.parts[place]


@pytest.fixture
def whole():
    return loaded(RecallingMakers(Shape()), store=True).own(ALPHA)


@pytest.fixture
def fetching(whole):
    return Fetching(whole)


def beside(number):
    return Process(number, beside=True)


def test_it_is_the_host(whole, fetching):
    assert fetching.host.key(lambda rest: rest) == whole.key(lambda rest: rest)
    assert fetching.host.front() == whole.front()
    assert [each.key() for each in fetching.host.processes] == [each.key() for each in whole.processes]
    assert len(fetching.host.processes) == 1


def test_a_field_brings_its_part_once(fetching):
    host = fetching.host
    assert not host.has("history")
    assert host.history.records
    assert host.sent == fetching.whole.sent
    assert host.has("history")
    assert fetching.fetched == [HISTORY]
    assert dict(host.parts()) == {HISTORY: (host.history, host.sent, host.openings)}


def test_what_was_set_is_not_fetched_over(fetching):
    """Half of a part was set: the other half is fetched, and the part is told whole."""
    endpoint = fetching.host.endpoint
    endpoint.undecided = b"session"
    assert dict(fetching.host.parts())[KNOWS] == (None, b"session", None)
    endpoint.rest, endpoint.looked, endpoint.refused = None, True, None
    assert dict(fetching.host.parts())[REST] == (None, True, None)
    assert REST not in fetching.fetched


def test_a_copy_is_changed(whole, fetching):
    fetching.host.holders[0].mark = 9
    assert whole.holders[0].mark == 0
    assert dict(fetching.host.parts())[HOLDERS][0].mark == 9
    looked_at = FetchedHost(ALPHA, fetching.fetch, own=False)
    assert looked_at.holders is whole.holders


def test_tasks_one_by_one(fetching):
    process = fetching.host.endpoint
    assert process.next_number == 2
    assert TASKS not in fetching.fetched
    task = process.task(1)
    assert task is not None
    assert task is not fetching.whole.endpoint.task(1)
    assert task.key() == fetching.whole.endpoint.task(1).key()
    assert process.task(TASKS_MAX + 1) is None
    process.tasks.append(Task(2, "recovery"))
    assert [each.number for each in process.tasks] == [1, 2]
    process.tasks.remove(task)
    assert process.tasks
    assert fetching.host.endpoint.next_number == 3
    assert dict(fetching.host.parts())[TASKS] is None
    process.tasks.remove(process.task(2))
    assert not process.tasks
    with pytest.raises(OverflowError, match="fewer faults"):
        process.tasks.append(Task(TASKS_MAX + 1, "recovery"))


def test_who_looks_at_tasks_sees_what_is_under_way(whole):
    """And fetches all of one only when it is asked for more; of what is under way, which one is not seen."""
    whole.endpoint.tasks[0].op = Write(Claiming(bytes(16), 7, NO_RUNNER, b"i" * 16))
    whole.endpoint.tasks.append(Task(2, "recovery"))
    whole.endpoint.tasks[1].op = Reach("claim", 7)
    fetching = Fetching(whole)
    looked_at = FetchedHost(ALPHA, fetching.fetch, own=False).endpoint
    one, other = looked_at.tasks
    assert (one.kind, one.number, one.landed, one.claims) == ("source", 1, False, False)
    assert isinstance(one.op, Write)
    assert one.op != whole.endpoint.tasks[0].op
    assert (other.kind, other.op, other.claims) == ("recovery", Reach("claim", 0), True)
    assert not {TASKS, TASKS + 1} & set(fetching.fetched)
    assert one.machine is whole.endpoint.tasks[0].machine
    assert TASKS in fetching.fetched


def test_claims_are_found_among_tasks(whole):
    whole.endpoint.tasks.append(Task(2, "recovery"))
    whole.endpoint.tasks[1].op = Reach("claim", 7)
    fetching = Fetching(whole)
    endpoint = fetching.host.endpoint
    assert endpoint.claims() == whole.endpoint.claims() == [Reach("claim", 7)]
    assert TASKS not in fetching.fetched
    endpoint.task(2).landed = True
    assert endpoint.claims() == [], "what has changed is seen"


def test_numbers_close_up(whole, fetching):
    """Of the first process' tasks, and of those of others."""
    other = beside(FIRST + 2)
    other.tasks = [Task(2, "destination"), Task(4, "destination")]
    whole.processes.append(other)
    fetching = Fetching(whole)
    endpoint, renamed = fetching.host.endpoint, []

    def rename(*told):
        *who, task, number = told
        renamed.append((*who, task.number, number))
        task.number = number

    endpoint.tasks.append(Task(2, "recovery"))
    endpoint.tasks.append(Task(3, "recovery"))
    fetching.host.close_up(rename)
    assert renamed == []
    endpoint.tasks.remove(endpoint.task(1))
    fetching.host.close_up_others(rename)
    assert renamed == [], "nobody has had to do with them"
    assert fetching.host.process(FIRST + 2).tasks
    fetching.host.close_up_others(rename)
    assert renamed == [(ALPHA, 4, 2, 1), (ALPHA, 4, 4, 2)]
    renamed.clear()
    fetching.host.close_up(rename)
    assert renamed == [(ALPHA, FIRST, 2, 1), (ALPHA, FIRST, 3, 2)]
    assert [each.number for each in endpoint.tasks] == [1, 2]
    assert endpoint.next_number == 3
    assert dict(fetching.host.parts())[TASKS + 2] is None


def test_who_is_before_a_gap_is_not_asked(whole):
    whole.endpoint.tasks.append(Task(2, "recovery"))
    fetching = Fetching(whole)
    tasks = fetching.host.endpoint.tasks
    tasks.remove(fetching.host.endpoint.task(2))
    fetching.host.close_up(lambda *_: pytest.fail("nobody has another number"))
    assert TASKS not in fetching.fetched


def test_the_first_process_goes_and_another_comes(fetching):
    host = fetching.host
    host.processes.remove(host.endpoint)
    assert host.endpoint is None
    gone = dict(host.parts())
    assert {gone[place] for place in (SHOWN, KNOWS, REST, TASKS, TASKS + TASKS_MAX - 1)} == {None}
    host.processes.insert(0, beside(FIRST))
    assert dict(host.parts())[SHOWN] == (True, False)
    assert host.process(FIRST).beside
    assert host.endpoint is None


def test_all_others_are_one_part(whole):
    whole.processes = [Process(FIRST + 2), beside(FIRST)]
    fetching = Fetching(whole)
    host = fetching.host
    assert host.endpoint.number == FIRST + 2
    assert host.process(FIRST).beside
    assert host.process(FIRST + 2) is host.endpoint
    assert host.process(FIRST + 4) is None
    assert [each.number for each in host.processes] == [FIRST + 2, FIRST], "the endpoint comes first"
    host.processes.insert(1, beside(FIRST + 4))
    host.processes.remove(host.endpoint)
    assert [each.number for each in dict(host.parts())[OTHERS]] == [FIRST + 4]
    assert [each.number for each in whole.processes] == [FIRST + 2, FIRST]
