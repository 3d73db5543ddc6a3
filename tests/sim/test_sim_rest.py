"""In the end one runs, or it is coded why not."""

from __future__ import annotations

import pytest
from sim_support import ALPHA, BETA, go, kinds, world_of

from sterna.core.recovery import Settled
from sterna.core.verdict import Judgement, Step
from sterna.registry import Owner
from sterna.sim.holder import Stage
from sterna.sim.judge import Violation
from sterna.sim.kept import Kept
from sterna.sim.rest import End, check_rest

LOST = Settled(Judgement(Owner.DESTINATION, "gone", "ONE-34", Step.OPERATOR), lost=True)


def test_it_runs():
    world = world_of()
    assert check_rest(world) is End.RUNS
    world.hosts[ALPHA].settled = LOST
    with pytest.raises(Violation, match="alpha says that the guest is lost, and it runs at alpha"):
        check_rest(world)


def test_nobody_runs_it():
    world = world_of()
    world.hosts[ALPHA].holders[0].stage = Stage.STOPPED
    with pytest.raises(Violation, match="nobody runs the guest"):
        check_rest(world)
    world.hosts[BETA].settled = LOST
    with pytest.raises(Violation, match="beta says that the guest is lost, and its image is there") as caught:
        check_rest(world)
    assert caught.value.loss
    world.take(("destroy", ALPHA, 0, 0))
    assert check_rest(world) is End.LOST


def test_a_guest_that_is_lost_is_said_to_be():
    """[ONE-34] [ONE-42] By somebody; one that was never handed over died with its holder, as ever."""
    world = world_of()
    world.take(("destroy", ALPHA, 0, 0))
    assert check_rest(world) is End.LOST
    world = world_of()
    world.begin(ALPHA)
    go(world, lambda world: bool(world.hosts[BETA].history.fate(2)))
    world.take(("destroy", BETA, 0, 0))
    with pytest.raises(Violation, match="the guest is lost, and nobody says so") as caught:
        check_rest(world)
    assert caught.value.loss
    go(world)
    assert world.hosts[BETA].settled.lost
    assert check_rest(world) is End.LOST


@pytest.mark.parametrize("store", [True, False])
def test_a_guest_waits_for_pages_that_went_with_their_image(store):
    """[ONE-42] With the source's endpoint, which has them mapped. The next one asks, and says it."""
    world = world_of(store=store, resume=True, switchover="post-copy", clocked=False)
    world.begin(ALPHA)
    go(world, lambda world: bool(getattr(world.running(), "missing", ())))
    world.take(("destroy", ALPHA, 0, 0))
    world.kill(ALPHA, world.hosts[ALPHA].endpoint.number)
    for line in world.lines:
        line.cut()  # nothing that it had sent arrives
    with pytest.raises(Violation, match="the guest is lost, and nobody says so"):
        check_rest(world)
    go(world)
    assert world.running().missing
    assert [host.settled.lost for host in world.hosts] == [True, False]
    assert check_rest(world) is End.LOST


def test_a_source_that_cannot_know_leaves_it_open():
    """[ONE-44] [ONE-42] Without a store it does not ask for an image that may be the only one."""
    world = world_of(store=False)
    world.begin(ALPHA)
    go(world, lambda world: "granted" in kinds(world, ALPHA))
    world.take(("destroy", ALPHA, 0, 0))
    world.kill(ALPHA, world.hosts[ALPHA].endpoint.number)
    for line in world.lines:
        line.cut()
    go(world)
    assert world.hosts[ALPHA].settled.judgement.owner is Owner.UNDECIDED
    assert check_rest(world) is End.UNDECIDED


def test_nobody_waits_for_pages_that_are_there():
    """[RES-13] [ONE-38] Where there is a clock, the source may have given up."""
    for clocked in (True, False):
        world = world_of(resume=True, switchover="post-copy", clocked=clocked)
        world.begin(ALPHA)
        go(world, lambda world: bool(getattr(world.running(), "missing", ())))
        world.makers.keeps = False
        assert check_rest(world) is End.RUNS, "its endpoint has not kept the session"
        world.makers.keeps = True
        if clocked:
            assert check_rest(world) is End.RUNS
        else:
            with pytest.raises(Violation, match="the guest waits at beta for pages that its source has"):
                check_rest(world)


def test_a_session_that_both_sides_keep_is_taken_up():
    """[RES-18] Where there is a clock, the source may have given up."""
    for clocked in (True, False):
        world = world_of(resume=True, clocked=clocked)
        world.hosts[ALPHA].endpoint.kept = {b"": Kept(None, bytearray())}
        assert check_rest(world) is End.RUNS, "one side alone"
        world.hosts[BETA].endpoint.kept = {b"s" * 16: Kept(None, bytearray())}
        if clocked:
            assert check_rest(world) is End.RUNS
        else:
            with pytest.raises(Violation, match="both sides keep a session, and nobody takes it up"):
                check_rest(world)


def test_a_later_controller_without_a_store_waits_to_be_asked():
    """[ONE-58] Of what was written as one a crash has left CLAIMING alone [ONE-62]."""
    world = world_of(store=False)
    world.begin(ALPHA)
    go(world, lambda world: bool(world.hosts[BETA].history.claiming(1)))
    world.take(("destroy", ALPHA, 0, 0))
    world.kill(BETA, world.hosts[BETA].endpoint.number)
    assert check_rest(world) is End.UNDECIDED
