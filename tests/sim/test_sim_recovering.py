"""Recovery in a world: act by act, looking anew before each."""

from __future__ import annotations

from sim_support import ALPHA, BETA, go, stands, world_of

from sterna.core.records import Granted, RunnerRecord
from sterna.core.recovery import Image, Settled
from sterna.core.tables import DestinationState, SourceState
from sterna.core.verdict import Judgement, Step, Store
from sterna.registry import ErrorCode, Owner
from sterna.sim.defects import Defect
from sterna.sim.holder import Stage
from sterna.sim.hosts import Hold, Reach, Task, Write
from sterna.sim.machines import Trouble
from sterna.sim.recovering import Question, go_on, learns, next_of, situation_of


def recovering(world, host):
    """The task with which recovery of the newest session would begin."""
    here = world.hosts[host]
    session = next(each for each in here.history.records if each.kind == "session")
    task = Task(1, "recovery", image=here.image_of(session.session))
    task.session = session.session
    return here, task


def granted(*, store=True, defects=frozenset()):
    world = world_of(store=store, defects=defects)
    world.begin(ALPHA)
    go(world, stands(source=SourceState.HANDED_OVER))
    assert any(isinstance(each, Granted) for each in world.hosts[ALPHA].history.records)
    return world


def test_a_source_with_a_store_reads_it_notes_a_runner_and_claims():
    """[ONE-5] [ONE-21]"""
    world = granted()
    here, task = recovering(world, ALPHA)
    assert next_of(world, here, task) == Reach("read", 2)
    task.store = world.store.facts(2)
    noted = next_of(world, here, task)
    assert isinstance(noted.record, RunnerRecord)
    here.history = here.history.after(noted.record)
    assert next_of(world, here, task) == Reach("claim", 2, noted.record.runner)


def test_a_source_without_one_asks_and_goes_by_the_answer():
    """[ONE-43] [ONE-48]"""
    world = granted(store=False)
    here, task = recovering(world, ALPHA)
    assert isinstance(next_of(world, here, task), Question)
    task.peer = Owner.UNDECIDED
    assert isinstance(next_of(world, here, task), Settled)
    task.peer = Owner.SOURCE
    while isinstance(found := next_of(world, here, task), Write):
        here.history = here.history.after(found.record)
    assert (found.verb, found.epoch) == ("run", 2)


def test_what_there_is_to_be_seen():
    world = granted()
    here, task = recovering(world, ALPHA)
    found = situation_of(world, here, task)
    assert (found.image, found.facts.mark, found.facts.store) == (Image.STOPPED, 2, Store(answers=False))
    world.take(("destroy", ALPHA, 0, 0))
    assert situation_of(world, here, task).image is Image.GONE
    task.image = b"x" * 16
    assert situation_of(world, here, task).image is Image.GONE


def test_a_destination_runs_what_it_has_started_and_frees_what_it_has_not():
    world = world_of(store=False)
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.STARTING))
    here, task = recovering(world, BETA)
    found = next_of(world, here, task)
    assert (found.verb, found.epoch) == ("run", 1)
    here.holders[0].stage = Stage.RUNS
    complete = next_of(world, here, task)
    assert isinstance(complete, Write)
    here.history = here.history.after(complete.record)
    assert isinstance(next_of(world, here, task), Settled)


def test_a_room_that_was_handed_back_is_freed():
    world = granted(store=False)
    world.kill(ALPHA, world.hosts[ALPHA].endpoint.number)
    world.take(("drop", 1, BETA, 0))
    go(world)
    here, _ = recovering(world, BETA)
    assert [each.stage for each in here.holders] == [Stage.FREED]


def test_defects_of_a_source():
    world = granted(defects=frozenset({Defect.ABSENT_IS_LOST, Defect.FREED_ON_LOST_CLAIM}))
    here, task = recovering(world, ALPHA)
    task.store = world.store.facts(2)
    while isinstance(found := next_of(world, here, task), Write):
        here.history = here.history.after(found.record)
    assert (found.verb, found.epoch) == ("run", 2), "it has read that the slot is empty"
    go(world, stands(destination=DestinationState.COMMITTING))
    task.store = world.store.facts(2)
    assert next_of(world, here, task) == Hold("release", task.image)


def test_a_failed_act_says_nothing_of_who_owns_the_guest():
    """What an earlier recovery has found does not count."""
    world = granted()
    here, task = recovering(world, ALPHA)
    process = here.endpoint
    process.tasks = [task]
    process.undecided = task.session
    here.settled = Settled(Judgement(Owner.SOURCE, "long ago", "ONE-30", Step.RUN))
    learns(task, Hold("run", task.image), Trouble(ErrorCode.GUEST_FAILED))
    go_on(world, here, process, task)
    assert (process.tasks, process.undecided) == ([], task.session)
