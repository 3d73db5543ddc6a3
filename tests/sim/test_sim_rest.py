"""In the end one runs, or it is coded why not."""

from __future__ import annotations

import pytest
from sim_support import ALPHA, BETA, go, world_of

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
    with pytest.raises(Violation, match="beta says that the guest is lost, and its image is there"):
        check_rest(world)
    world.take(("destroy", ALPHA, 0, 0))
    assert check_rest(world) is End.LOST


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
