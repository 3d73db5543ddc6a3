"""Each kind of fault can happen where it should, and does what it says."""

from __future__ import annotations

import pytest
from sim_support import ALPHA, BETA, go, kinds, stands, states, world_of

from sterna.core.tables import DestinationState, SourceState
from sterna.sim.explore import loaded
from sterna.sim.faults import Fault, possible
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.rest import End, check_rest


def at(*, store=True, **wanted):
    world = world_of(store=store)
    world.begin(ALPHA)
    go(world, stands(**wanted))
    return world


def inject(world, fault, choice=0):
    steps = possible(world, fault, ALPHA)
    assert steps, fault
    world.take(steps[choice])


@pytest.mark.parametrize("fault", [each for each in Fault if each is not Fault.STORE_OUT])
@pytest.mark.parametrize("anchor", [SourceState.RECORDING, SourceState.HANDED_OVER])
def test_whatever_goes_wrong_there_is_a_runner_or_a_word_for_it(fault, anchor):
    world = at(source=anchor)
    for step in possible(world, fault, ALPHA)[:1]:
        world.take(step)
    go(world)
    assert check_rest(world) in {End.RUNS, End.LOST}


def test_a_cut():
    world = at(source=SourceState.HANDED_OVER)
    inject(world, Fault.CUT)
    assert world.lines[0].broken
    assert possible(world, Fault.CUT, ALPHA) == []
    assert possible(world, Fault.DEADLINE, ALPHA) == []


def test_a_cut_between_two_groups():
    """[PCY-7] [RES-13] Of two that leave together one is installed, and the other is asked for afterwards."""
    world = loaded(RecallingMakers(Shape(False, resume=True, switchover="bitmap")), store=False)
    (room,) = world.hosts[BETA].holders
    go(world, lambda world: any(len(sent) > 1 for sent in world.lines[0].pipes[1]))
    assert room.missing == {0, 2, 3}
    inject(world, Fault.TORN)
    assert possible(world, Fault.TORN, ALPHA) == []
    go(world, lambda world: len(world.lines) > 0 and not world.lines[0].broken)
    assert room.missing == {2, 3}
    go(world)
    assert (world.resumed, room.missing, check_rest(world)) == (1, set(), End.RUNS)


def test_a_deadline_lets_arrive_what_was_sent():
    world = at(source=SourceState.HANDED_OVER)
    inject(world, Fault.DEADLINE)
    go(world)
    assert "claiming" in kinds(world, BETA)


def test_processes():
    world = at(source=SourceState.HANDED_OVER)
    inject(world, Fault.SOURCE_KILLED)
    assert world.hosts[ALPHA].endpoint is None
    assert possible(world, Fault.SOURCE_FROZEN, ALPHA) == []
    inject(world, Fault.DESTINATION_FROZEN)
    assert world.hosts[BETA].endpoint.frozen
    assert possible(world, Fault.FROZEN_KILLED, ALPHA) == []


def test_the_other_way_round_source_and_destination_are_others():
    world = at(source=SourceState.HANDED_OVER)
    (step,) = possible(world, Fault.SOURCE_KILLED, BETA)
    assert step[:2] == ("kill", BETA)


def test_records():
    world = at(source=SourceState.RECORDING)
    inject(world, Fault.RECORD_SLOW)
    assert states(world)["source"] is SourceState.RECORDING
    inject(world, Fault.RECORD_LIES)
    assert kinds(world, ALPHA)[-1] == "granted"
    assert states(world)["source"] is SourceState.VOIDING
    inject(world, Fault.RECORD_FAILS)
    assert kinds(world, ALPHA)[-1] == "granted"
    go(world)
    assert world.running().host == "alpha"
    assert world.running().epoch == 2, "claimed: the record says that it was granted"


def test_marks_locks_and_preparations():
    world = at(source=SourceState.GRANTING)
    inject(world, Fault.MARK_FAILS)
    go(world)
    assert (world.running().host, world.running().epoch) == ("alpha", 1)
    world = at(destination=DestinationState.COMMITTING)
    inject(world, Fault.LOCKS_REFUSED)
    go(world)
    assert (world.running().host, world.running().epoch) == ("alpha", 3)
    world = at(destination=DestinationState.COMMITTING)
    inject(world, Fault.DESTINATION_HOLDER_KILLED)
    go(world)
    assert world.running().host == "alpha", "who has no guest gets no locks for it"
    world = world_of()
    world.begin(ALPHA)
    go(world, lambda world: bool(possible(world, Fault.NOT_READY, ALPHA)))
    inject(world, Fault.NOT_READY)
    go(world)
    assert world.running().host == "beta", "at the second attempt"


def test_claims():
    world = at(destination=DestinationState.CLAIMING)
    inject(world, Fault.CLAIM_LATE)
    assert len(world.store.slots) == 1
    assert len(world.store.astray) == 1
    inject(world, Fault.REPLY_LOST)
    assert world.store.slots[1].host == "beta"
    assert states(world)["destination"] is DestinationState.CLAIMING, "and repeats it [ONE-7]"
    inject(world, Fault.CLAIM_DOUBLED)
    go(world)
    assert world.running().host == "beta"


def test_a_store_that_is_out():
    """[ONE-31]"""
    world = at(destination=DestinationState.CLAIMING)
    inject(world, Fault.STORE_OUT)
    assert possible(world, Fault.STORE_OUT, ALPHA) == []
    go(world)
    assert world.running() is None
    world.take(("store-back", 0, 0, 0))
    go(world)
    assert world.running().host == "beta"


def test_a_store_that_is_out_before_the_handover():
    """[ONE-16] [ONE-64] It is gone before anybody has asked, after both have, or when LOADED has come."""
    for source in (SourceState.ACKING, SourceState.FREEZING, SourceState.SEALED, SourceState.CONFIRMING):
        world = at(source=source)
        inject(world, Fault.STORE_OUT)
        go(world)
        assert (world.running().host, world.running().epoch) == ("alpha", 1), source
        assert not any(holder.mark for holder in world.hosts[ALPHA].holders)


def test_beside():
    """[ONE-60]"""
    world = at(store=False, destination=DestinationState.COMMITTING)
    assert possible(world, Fault.BESIDE, ALPHA) == [], "nobody is going to ask"
    inject(world, Fault.DEADLINE)
    inject(world, Fault.BESIDE)
    assert possible(world, Fault.BESIDE, ALPHA) == []
    go(world)
    assert check_rest(world) is End.RUNS


def test_every_kind_has_a_text():
    assert len({each.text for each in Fault}) == len(Fault)
