"""Holders of a world have one controller, and their guests are watched."""

from __future__ import annotations

import pytest
from sim_support import ALPHA, BETA, go, stands, world_of

from sterna.core.image_notes import ImageNotes
from sterna.core.tables import DestinationState
from sterna.registry import ErrorCode
from sterna.sim.defects import Defect
from sterna.sim.holder import Collected, Stage, memory_of
from sterna.sim.holding import attach, controller_gone, destroy, hold
from sterna.sim.hosts import Hold, Process, Task
from sterna.sim.judge import Violation
from sterna.sim.machines import Trouble
from sterna.sim.world import FIRST_IMAGE

NO = Trouble(ErrorCode.GUEST_FAILED)


def do(world, verb, process=None, host=ALPHA, image=FIRST_IMAGE, **more):
    here = world.hosts[host]
    return hold(world, here, process or here.endpoint, Task(1, "source"), Hold(verb, image, **more))


def test_one_controller_at_a_time():
    world = world_of()
    assert do(world, "pause") is None
    assert do(world, "resume", Process(8)) == NO
    (holder,) = world.hosts[ALPHA].holders
    assert holder.stage is Stage.STOPPED
    controller_gone(world, world.hosts[ALPHA], world.hosts[ALPHA].endpoint.number)
    assert holder.stage is Stage.RUNS, "a paused guest without a mark runs on [ONE-22]"
    assert do(world, "pause", Process(8)) is None
    broken = world_of(defects=frozenset({Defect.OLD_CONTROLLER}))
    do(broken, "pause")
    assert attach(broken, broken.hosts[ALPHA].holders[0], Process(8))


def test_a_marked_guest_waits():
    """[ONE-22]"""
    world = world_of()
    do(world, "pause")
    assert do(world, "mark", epoch=2) is None
    controller_gone(world, world.hosts[ALPHA], world.hosts[ALPHA].endpoint.number)
    assert world.running() is None
    assert do(world, "resume") == NO
    assert do(world, "unmark", Process(8)) == NO


def test_room_for_notes_is_the_holders_before_anybody_asks_for_notes():
    """SEAL writes there, whether the guest is told or not, and the next process reads it."""
    world = world_of(resume=True, switchover="bitmap")
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.READY))
    (holder,) = world.hosts[BETA].holders
    assert holder.notes
    assert not ImageNotes.lie_in(memoryview(holder.notes))


def test_what_is_not_there_does_nothing():
    world = world_of()
    assert do(world, "pause", image=b"x" * 16) == NO
    (holder,) = world.hosts[ALPHA].holders
    holder.memory = b"m"
    destroy(world, holder)
    assert (holder.stage, holder.memory) == (Stage.KILLED, b"")
    assert do(world, "pause") == NO
    assert world.judge.killed


def test_collecting_and_saving():
    world = world_of()
    (holder,) = world.hosts[ALPHA].holders
    assert do(world, "track") is None
    world.judge.executes(holder)
    assert do(world, "collect") == Collected((holder.count % 4,), holder.count)
    assert do(world, "save") == holder.count
    assert do(world, "prepare") is None


def test_the_judge_watches():
    world = world_of()
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.LOADED))
    room = world.hosts[BETA].holders[0]
    with pytest.raises(Violation, match="slot 2 is not beta's"):
        do(world, "run", host=BETA, image=room.image, epoch=2)
    room.free()
    with pytest.raises(Violation, match="the guest is freed"):
        do(world, "discard")


def test_room_is_made_anew_in_the_place_of_a_dead_process_s():
    """[RES-7]"""
    world = world_of(resume=True)
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.LOADED))
    there = world.hosts[BETA]
    (old,) = there.holders
    assert do(world, "reserve", host=BETA, image=old.image) == NO, "somebody has it"
    world.kill(BETA, there.endpoint.number)
    world.start_process(BETA)
    opening = there.openings[old.image]
    assert do(world, "reserve", host=BETA, image=old.image) is None
    (new,) = there.holders
    assert (old.stage, new.stage, new.image) == (Stage.FREED, Stage.ROOM, old.image)
    assert there.openings[old.image] is opening


def following(**more):
    """A world in which the guest runs at the destination, and all of its pages are missing."""
    world = world_of(switchover="post-copy", **more)
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.FETCHING))
    return world, world.hosts[BETA].holders[0]


def test_a_guest_waits_for_pages_that_are_missing():
    """[PCY-5] [PCY-12]"""
    world, room = following()
    assert room.missing == {0, 1, 2, 3}
    assert (room.stage, room.count, room.waits_for) == (Stage.RUNS, room.paused_at, (room.count + 1) % 4)
    steps = go(world)
    assert "fault" in {step[0] for step in steps}
    assert (room.missing, room.waits_for) == (frozenset(), None)
    world.judge.executes(room)
    assert world.hosts[ALPHA].holders[0].stage is Stage.FREED


def test_a_page_comes_once_and_as_it_was():
    _, room = following()
    right = memory_of(room.paused_at)
    assert not room.install(0, b"\x01" * len(right))
    assert room.install(1, right)
    assert not room.install(1, right)
    world, _ = following(defects=frozenset({Defect.INSTALLED_TWICE}))
    with pytest.raises(Violation, match="page 0 at beta came wrong, or a second time"):
        go(world)


def test_an_image_is_not_freed_while_pages_of_it_are_missing():
    """[ONE-38]"""
    world, _ = following()
    with pytest.raises(Violation, match="pages are freed at alpha"):
        do(world, "release")
    broken = world_of(switchover="post-copy", defects=frozenset({Defect.PAGES_FREED}))
    broken.begin(ALPHA)
    with pytest.raises(Violation, match="pages are freed at alpha"):
        go(broken)
