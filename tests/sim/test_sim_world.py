"""A world: migrations with and without a store, and what becomes of them when processes die or freeze."""

from __future__ import annotations

import pytest
from sim_support import ALPHA, BETA, go, kinds, stands, world_of

from sterna.core.tables import DestinationState, SourceState
from sterna.registry import Owner
from sterna.sim.defects import Defect
from sterna.sim.holder import Stage
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.rest import End, check_rest
from sterna.sim.world import RESUMES_MAX, World


@pytest.mark.parametrize("store", [True, False])
def test_a_migration(store):
    world = world_of(store=store)
    world.begin(ALPHA)
    go(world)
    assert sorted(world.ends) == [("destination", "completed"), ("source", "completed")]
    running = world.running()
    assert (running.host, running.epoch) == ("beta", 2 if store else 1)
    assert kinds(world, BETA) == ["session", "claiming", "start", "complete", "released"]
    assert kinds(world, ALPHA)[-3:] == ["session", "granted", "decided"]
    assert check_rest(world) is End.RUNS
    assert (world.store is not None) is store


def test_there_and_back():
    world = world_of()
    world.begin(ALPHA)
    go(world)
    world.begin(BETA)
    go(world)
    assert (world.running().host, world.running().epoch) == ("alpha", 3)
    assert [runner.host for runner in world.store.slots] == ["alpha", "beta", "alpha"]


@pytest.mark.parametrize(("store", "epoch"), [(True, 2), (False, 2)])
def test_a_source_killed_behind_the_mark_gets_its_guest_back(store, epoch):
    world = world_of(store=store)
    world.begin(ALPHA)
    go(world, stands(source=SourceState.RECORDING))
    world.kill(ALPHA, world.hosts[ALPHA].endpoint.number)
    assert world.running() is None, "it is marked"
    go(world)
    assert (world.running().host, world.running().epoch) == ("alpha", epoch)
    assert world.hosts[ALPHA].settled.judgement.owner is Owner.SOURCE
    assert check_rest(world) is End.RUNS


def test_a_source_killed_before_the_mark_leaves_a_guest_that_runs_on():
    world = world_of()
    world.begin(ALPHA)
    go(world, stands(source=SourceState.SEALED))
    assert world.running() is None
    world.kill(ALPHA, world.hosts[ALPHA].endpoint.number)
    assert (world.running().host, world.running().epoch) == ("alpha", 1)
    go(world)
    assert check_rest(world) is End.RUNS


@pytest.mark.parametrize("store", [True, False])
def test_a_destination_killed_behind_start_runs_the_guest_later(store):
    world = world_of(store=store)
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.STARTING))
    world.kill(BETA, world.hosts[BETA].endpoint.number)
    go(world)
    assert world.running().host == "beta"


def test_a_claim_of_the_dead_lands_later():
    world = world_of()
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.CLAIMING))
    world.kill(BETA, world.hosts[BETA].endpoint.number)
    assert list(world.chances())[-1] == ("land", 0, 0, 0)
    world.take(("land", 0, 0, 0))
    assert world.store.slots[1].host == "beta"
    go(world)
    assert world.running().host == "beta"


def test_a_frozen_destination_is_given_up_and_wakes_to_a_closed_connection():
    world = world_of(store=False)
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.COMMITTING))
    frozen = world.hosts[BETA].endpoint.number
    world.take(("freeze", BETA, frozen, 0))
    assert ("expire", 1, ALPHA, 0) in list(world.chances())
    world.take(("expire", 1, ALPHA, 0))
    go(world, lambda world: not any(step[0] != "wake" and step[1] == ALPHA for step in world.steps()), 200)
    assert world.running() is None, "undecided: nobody answers"
    world.take(("wake", BETA, frozen, 0))
    go(world)
    assert check_rest(world) is End.RUNS


def test_only_one_question_waits_before_a_frozen_process():
    world = world_of(store=False)
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.RECORDING))
    world.take(("freeze", BETA, world.hosts[BETA].endpoint.number, 0))
    for _ in range(40):
        expired = [step for step in world.chances() if step[0] == "expire"]
        steps = [step for step in world.steps() if step[0] != "wake"]
        if not (expired or steps):
            break
        world.take((expired or steps)[0])
    assert len(world.lines) <= 2


def test_what_is_on_its_way_from_a_dead_process_may_be_lost():
    world = world_of(store=False)
    world.begin(ALPHA)
    go(world, stands(source=SourceState.HANDED_OVER))
    world.kill(ALPHA, world.hosts[ALPHA].endpoint.number)
    assert ("drop", 1, BETA, 0) in list(world.chances())
    world.take(("drop", 1, BETA, 0))
    go(world)
    assert kinds(world, BETA) == ["session", "claiming", "handback"]
    assert (world.running().host, world.running().epoch) == ("alpha", 2)


def test_worlds_are_copied_and_compared():
    first = World(RecallingMakers(Shape()), store=True)
    first.begin(ALPHA)
    second = first.copy()
    assert first.key() == second.key()
    step = second.steps()[0]
    second.take(step)
    assert first.key() != second.key()
    first.take(step)
    assert first.key() == second.key()
    go(first)
    assert second.running().host == "alpha"
    assert first.running().host == "beta"


def test_nobody_takes_over_from_a_frozen_process_but_by_a_defect():
    for defects in (frozenset(), frozenset({Defect.OLD_CONTROLLER})):
        world = world_of(defects=defects)
        world.begin(ALPHA)
        frozen = world.hosts[ALPHA].endpoint
        world.take(("freeze", ALPHA, frozen.number, 0))
        assert (("takeover", ALPHA, 0, 0) in list(world.chances())) is bool(defects)
    world.take(("takeover", ALPHA, 0, 0))
    assert world.hosts[ALPHA].endpoint is not frozen


def test_a_step_that_there_is_not():
    with pytest.raises(ValueError, match="nonsense"):
        world_of().take(("nonsense", 0, 0, 0))


def test_the_guest_of_a_killed_holder_is_lost():
    world = world_of()
    world.begin(ALPHA)
    go(world, stands(source=SourceState.ACKING))
    world.take(("destroy", ALPHA, 0, 0))
    go(world)
    assert world.hosts[ALPHA].holders[0].stage is Stage.KILLED
    assert check_rest(world) is End.LOST


@pytest.mark.parametrize("store", [True, False])
def test_a_lost_link_is_taken_up_again(store):
    """[RES-1] [RES-4]"""
    world = world_of(store=store, resume=True)
    world.begin(ALPHA)
    go(world, stands(source=SourceState.SEALED))
    world.take(("cut", 1, 0, 0))
    go(world)
    assert world.resumed == 1
    assert world.running().host == "beta"
    assert len(world.hosts[BETA].holders) == 1, "the same room"


def test_an_older_connection_that_is_still_there_is_closed():
    """[RES-4]"""
    world = world_of(resume=True)
    world.begin(ALPHA)
    go(world, stands(source=SourceState.ACKING, destination=DestinationState.STANDBY))
    world.take(("deadline", 1, ALPHA, 0))
    go(world, lambda world: world.resumed == 1)
    go(world)
    assert world.running().host == "beta"


def test_a_destination_that_holds_nothing_any_more_begins_anew():
    """[RES-7] [RES-16] Its opening is noted, though nothing of the session is on record yet."""
    world = world_of(resume=True)
    world.begin(ALPHA)
    go(world, stands(source=SourceState.ACKING))
    world.kill(BETA, world.hosts[BETA].endpoint.number)
    assert not world.hosts[BETA].history.records
    go(world)
    assert world.resumed == 1
    assert (world.running().host, world.running().epoch) == ("beta", 2)
    assert not world.hosts[ALPHA].endpoint.kept


def test_a_source_gives_up_in_the_end():
    world = world_of(resume=True)
    world.begin(ALPHA)
    for number in range(RESUMES_MAX):
        go(world, stands(source=SourceState.ACKING))
        world.take(("cut", world.lines[0].number, 0, 0))
        go(world, lambda world, number=number: world.resumed > number)
    go(world, stands(source=SourceState.ACKING))
    world.take(("cut", world.lines[0].number, 0, 0))
    go(world)
    assert world.resumed == RESUMES_MAX
    assert (world.running().host, world.running().epoch) == ("alpha", 1)


@pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])
def test_a_link_that_is_lost_while_pages_follow_is_taken_up_again(switchover):
    """[RES-13]"""
    world = world_of(resume=True, switchover=switchover, max_rounds=1)
    world.begin(ALPHA)
    while not stands(source=SourceState.MOVED, destination=DestinationState.FETCHING)(world):
        world.take(world.steps()[0])
        running = world.running()
        if running is not None and running.host == "alpha":
            world.judge.executes(running)
    (line,) = world.lines
    world.take(("cut", line.number, 0, 0))
    go(world)
    running = world.running()
    assert running is not None
    assert (running.host, running.missing, world.resumed) == ("beta", frozenset(), 1)
    assert check_rest(world) is End.RUNS


def runs_there(world):
    running = world.running()
    return running is not None and running.host == "beta"


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_a_destination_that_is_started_again_takes_over_what_it_finds(store, installed):
    """[RES-13] [RES-16] [PCY-16] [HOL-41]"""
    world = world_of(store=store, resume=True, switchover="post-copy", clocked=False)
    world.begin(ALPHA)
    go(world, lambda world: runs_there(world) and bool(world.running().missing) is not installed)
    world.take(("kill", BETA, world.hosts[BETA].endpoint.number, 0))
    go(world)
    running = world.running()
    assert (running.host, running.missing, world.resumed) == ("beta", frozenset(), 1)
    assert world.hosts[ALPHA].holders[0].stage is Stage.FREED
    assert check_rest(world) is End.RUNS


def test_of_a_guest_that_came_whole_a_later_process_tells_who_has_it():
    """[RES-15]"""
    world = world_of(store=False, resume=True, clocked=False)
    world.begin(ALPHA)
    go(world, runs_there)
    world.take(("kill", BETA, world.hosts[BETA].endpoint.number, 0))
    go(world)
    assert (world.running().host, world.resumed) == ("beta", 0)
    assert check_rest(world) is End.RUNS


def test_who_gives_up_leaves_the_guest_where_it_runs():
    world = world_of(resume=True, switchover="post-copy")
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.FETCHING))
    endpoint = world.hosts[ALPHA].endpoint
    endpoint.tries = RESUMES_MAX
    (line,) = world.lines
    world.take(("cut", line.number, 0, 0))
    go(world)
    running = world.running()
    assert (running.host, len(running.missing), world.resumed) == ("beta", 4, 0)
