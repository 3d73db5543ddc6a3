"""A source that opens another session gets one, and the older one ends before it [ONE-13]."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sim_support import ALPHA, BETA, go, kinds, parted, stands, states, world_of

from sterna.core.tables import DestinationState, SourceState
from sterna.errors import LocalProtocolError
from sterna.registry import ErrorCode
from sterna.sim.defects import Defect
from sterna.sim.faults import Fault, possible
from sterna.sim.holder import Stage
from sterna.sim.hosts import GiveWay, Task
from sterna.sim.judge import Violation
from sterna.sim.replacing import check_alone, give_way, have_ended, others
from sterna.sim.rest import End, check_rest

LOADED = {"source": SourceState.SEALED, "destination": DestinationState.LOADED}


def opened_anew(**more):
    """A world whose source has opened another session, while the destination has heard of no loss."""
    world = world_of(clocked=False, **more)
    world.begin(ALPHA)
    go(world, stands(**LOADED))
    world.take(("cut", 1, 0, 0))
    world.take(("lost", 1, 0, 0))
    go_deaf(world, lambda world: bool(possible(world, Fault.OPENED_ANEW, ALPHA)))
    (step,) = possible(world, Fault.OPENED_ANEW, ALPHA)
    world.take(step)
    return world


def go_deaf(world, until):
    """Take steps until something is so, but let the older session hear nothing of its loss."""
    while not until(world):
        world.take(next(step for step in world.steps() if step != ("lost", 1, 1, 0)))


def waits(world):
    """Whether the newer session waits for the older one."""
    endpoint = world.hosts[BETA].endpoint
    return any(isinstance(task.op, GiveWay) for task in endpoint.tasks)


@pytest.mark.parametrize("store", [True, False])
def test_the_newer_one_waits_until_the_older_one_has_ended(store):
    """[ONE-12] [ONE-13]"""
    world = opened_anew(store=store)
    go_deaf(world, waits)
    endpoint = world.hosts[BETA].endpoint
    older, newer = endpoint.tasks
    (room,) = world.hosts[BETA].holders
    assert newer.op.sessions == (older.image,)
    assert not have_ended(endpoint, newer.op)
    assert ("act", BETA, endpoint.number, newer.number) not in world.steps()
    assert room.lives
    go(world, lambda world: not waits(world))
    assert endpoint.tasks == [newer]
    assert room.stage is Stage.FREED
    go(world)
    assert world.running().host == "beta"
    assert ("destination", "rolled_back") in world.ends


def test_one_that_is_kept_is_freed():
    """[ONE-13] [RES-14] Its source was killed, and the one that is started anew knows nothing of it."""
    world = parted(LOADED, ("cut", 1, 0, 0))
    there = world.hosts[BETA]
    ((session, _),) = there.endpoint.kept.items()
    world.take(("kill", ALPHA, world.hosts[ALPHA].endpoint.number, 0))
    world.take(("restart", ALPHA, 0, 0))
    world.take(("open", ALPHA, 0, 0))
    go(world, waits)
    (task,) = there.endpoint.tasks
    assert task.op == GiveWay((session,))
    assert have_ended(there.endpoint, task.op)
    world.take(("act", BETA, there.endpoint.number, task.number))
    assert (there.endpoint.kept, there.openings, there.holders[0].stage) == ({}, {}, Stage.FREED)
    go(world)
    assert (world.running().host, check_rest(world)) == ("beta", End.RUNS)


@pytest.mark.parametrize("clocked", [True, False])
def test_one_that_is_freed_before_switchover_is_forgotten(clocked):
    """[ONE-56] [ONE-13] Nobody can have granted in it: as at a host, RELEASED is on record."""
    before = {"source": SourceState.PREPARING, "destination": DestinationState.STANDBY}
    world = parted(before, ("cut", 1, 0, 0), clocked=clocked)
    there = world.hosts[BETA]
    ((session, _),) = there.endpoint.kept.items()
    assert kinds(world, BETA) == ["session"]
    world.take(("kill", ALPHA, world.hosts[ALPHA].endpoint.number, 0))
    world.take(("restart", ALPHA, 0, 0))
    world.take(("open", ALPHA, 0, 0))
    go(world, waits)
    (task,) = there.endpoint.tasks
    world.take(("act", BETA, there.endpoint.number, task.number))
    assert (kinds(world, BETA), there.history.released(session)) == (["session", "released"], True)
    assert there.holders[0].stage is Stage.FREED
    go(world)
    assert (world.running().host, check_rest(world)) == ("beta", End.RUNS)


def test_who_does_not_give_way():
    """[ONE-12] One behind HANDOVER, or that has had its time to end; other sessions are not meant."""
    world = world_of(clocked=False, store=False)
    world.begin(ALPHA)
    go(world, stands(**LOADED))
    there = world.hosts[BETA]
    process, (task,) = there.endpoint, there.endpoint.tasks
    hello, newer = task.machine.ticket.hello, Task(9, "destination")
    ((session, facts),) = others(there, process, newer)
    assert (session, facts.is_committed) == (task.image, False)
    assert others(there, process, newer, task.image) == others(there, process, task) == []
    newer.results = (GiveWay((task.image,)),)
    with pytest.raises(LocalProtocolError, match="does not end") as caught:
        give_way(world, there, process, newer, hello)
    assert caught.value.code is ErrorCode.BUSY
    newer.results = ()
    go(world, stands(destination=DestinationState.STARTING))
    ((_, facts),) = others(there, process, newer)
    assert facts.is_committed
    with pytest.raises(LocalProtocolError, match="is sending this guest here"):
        give_way(world, there, process, newer, hello)
    assert give_way(world, there, process, newer, replace(hello, epoch=hello.epoch + 1)) is None
    assert states(world)["destination"] is DestinationState.STARTING, "it goes on"
    check_alone(there, process, newer, b"another")


def test_one_that_lacks_pages_does_not_give_way():
    """[CON-72] HANDOVER has come in it, whatever has become of its link."""
    moved = {"source": SourceState.MOVED, "destination": DestinationState.FETCHING}
    world = parted(moved, ("cut", 1, 0, 0), switchover="post-copy")
    there = world.hosts[BETA]
    ((_, facts),) = others(there, there.endpoint, Task(9, "destination"))
    assert facts.is_committed


def test_an_older_one_that_goes_on_is_found():
    """[ONE-13]"""
    world = opened_anew(defects=frozenset({Defect.OLDER_GOES_ON}))
    with pytest.raises(Violation, match="two sessions that bring the guest are open at beta"):
        go_deaf(world, waits)
