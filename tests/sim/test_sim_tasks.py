"""Between asking, taking effect and hearing of it lies time, and a process may freeze or die in it."""

from __future__ import annotations

from sim_support import ALPHA, BETA, go, kinds, stands, states, world_of

from sterna.core.tables import DestinationState, SourceState
from sterna.core.verdict import Slot, Store
from sterna.registry import ErrorCode
from sterna.sim.hosts import Reach, Task, Write
from sterna.sim.machines import Trouble
from sterna.sim.tasks import act, effect


def at(**wanted):
    world = world_of()
    world.begin(ALPHA)
    go(world, stands(**wanted))
    return world


def test_a_record_is_durable_and_the_machine_hears_of_it():
    world = at(source=SourceState.RECORDING)
    process = world.hosts[ALPHA].endpoint
    (task,) = process.tasks
    assert isinstance(task.op, Write)
    act(world, world.hosts[ALPHA], process, task)
    assert kinds(world, ALPHA)[-1] == "granted"
    assert states(world)["source"] is SourceState.HANDED_OVER
    assert task.op is None


def test_a_frozen_process_hears_of_it_later():
    world = at(source=SourceState.RECORDING)
    process = world.hosts[ALPHA].endpoint
    (task,) = process.tasks
    process.frozen = True
    world.take(("act", ALPHA, process.number, task.number))
    assert kinds(world, ALPHA)[-1] == "granted"
    assert states(world)["source"] is SourceState.RECORDING
    assert ("reply", ALPHA, process.number, task.number) not in world.steps()
    process.frozen = False
    world.take(("reply", ALPHA, process.number, task.number))
    assert states(world)["source"] is SourceState.HANDED_OVER


def test_a_record_that_is_contradicted_is_told_with_what_stands_against_it():
    world = at(destination=DestinationState.COMMITTING)
    host = world.hosts[BETA]
    task = Task(9, "destination")
    claiming = next(each for each in host.history.records if each.kind == "claiming")
    task.op = Write(claiming.__class__(claiming.session, 2, claiming.runner, b"x" * 16))
    found = effect(world, host, host.endpoint, task)
    assert found == Trouble(ErrorCode.RECORD_FAILED, claiming)


def test_what_the_store_answers():
    world = at(destination=DestinationState.CLAIMING)
    host, task = world.hosts[BETA], Task(9, "recovery")
    first = world.store.slots[0]

    def reach(verb, epoch, runner=first):
        task.op = Reach(verb, epoch, runner)
        return effect(world, host, host.endpoint, task)

    assert reach("newest", 0) == Slot(1, first)
    assert reach("read", 2) == Store()
    assert reach("claim", 1, task.op.runner) == first
    go(world, stands(destination=DestinationState.COMMITTING))
    assert reach("newest", 0).runner.host == "beta"
    assert reach("read", 2).next.host == "beta"
    world.store.answers = False
    assert reach("read", 2) == reach("newest", 0) == Trouble(ErrorCode.UNDECIDED)


def test_what_is_left_to_be_noted_is_noted_before_a_session_ends():
    """RELEASE and BYE come together."""
    world = at(destination=DestinationState.RUNNING)
    go(world)
    assert kinds(world, BETA)[-1] == "released"
