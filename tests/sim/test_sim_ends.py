"""The end of a session is taken up by recovery, with what the peer has said."""

from __future__ import annotations

import pytest
from sim_support import ALPHA, BETA, go, stands, world_of

from sterna.core.events import Outcome, Result
from sterna.core.tables import DestinationState, SourceState
from sterna.errors import GuestError, PeerAborted, PeerMisbehaved
from sterna.registry import ErrorCode, Owner
from sterna.sim.defects import Defect
from sterna.sim.ends import ended
from sterna.sim.holder import Stage
from sterna.sim.hosts import Task
from sterna.sim.judge import Violation
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.rest import End, check_rest
from sterna.sim.world import World
from sterna.wire.records import NO_RUNNER, Verdict

SESSION = b"s" * 16


def end(kind, result, *, store=True, line=1):
    world = world_of(store=store)
    here = world.hosts[ALPHA]
    task = Task(1, kind, image=b"i" * 16)
    task.line = line
    here.endpoint.tasks.append(task)
    goes_on = ended(world, here, here.endpoint, task, result)
    return world, here.endpoint, task, goes_on


def test_an_undecided_session_is_remembered():
    world, process, _, goes_on = end("source", Result(Outcome.UNDECIDED, session=SESSION))
    assert not goes_on
    assert (process.undecided, process.heard, process.tasks) == (SESSION, None, [])
    assert world.ends == [("source", "undecided")]
    _, process, _, _ = end("source", Result(Outcome.COMPLETED, session=SESSION))
    assert process.undecided == b""


def test_a_hand_back_is_heard():
    """[ONE-37]"""
    verdict = Verdict(Owner.SOURCE, 2, NO_RUNNER, handed_back=True)
    _, process, _, _ = end("source", Result(Outcome.UNDECIDED, session=SESSION, verdict=verdict))
    assert process.heard is Owner.SOURCE


def heard(verdict, **more):
    _, _, task, goes_on = end("recovery", Result(Outcome.ANSWERED, verdict=verdict), **more)
    assert goes_on
    return task.peer, task.complete, task.failed


def test_what_a_destination_has_said():
    """[ONE-50]"""
    assert heard(Verdict(Owner.SOURCE, 1, NO_RUNNER), store=False) == (Owner.SOURCE, False, False)
    assert heard(Verdict(Owner.SOURCE, 1, NO_RUNNER)) == (Owner.UNDECIDED, False, False)
    assert heard(Verdict(Owner.UNDECIDED, 1, NO_RUNNER)) == (Owner.UNDECIDED, None, False)
    assert heard(Verdict(Owner.SOURCE, 1, NO_RUNNER, handed_back=True)) == (Owner.SOURCE, False, False)
    complete = Verdict(Owner.DESTINATION, 2, NO_RUNNER, complete=True, digest=b"d" * 16)
    assert heard(complete) == (Owner.DESTINATION, True, False)
    assert heard(None) == (Owner.UNDECIDED, None, True)
    assert heard(None, line=0) == (Owner.UNDECIDED, None, False), "nobody was there"


@pytest.mark.parametrize("until", [SourceState.ACKING, SourceState.SEALED, SourceState.MOVED])
def test_a_session_is_kept_and_goes_on(until):
    """[RES-11] [RES-13] Wherever the guest runs meanwhile, it moves in the end."""
    world = World(RecallingMakers(Shape(resume=True)), store=True)
    world.begin(ALPHA)
    go(world, stands(source=until))
    world.take(("deadline", 1, ALPHA, 0))
    while world.hosts[ALPHA].endpoint.tasks:
        world.take(next(step for step in world.steps() if step[:2] == ("act", ALPHA)))
    endpoint = world.hosts[ALPHA].endpoint
    assert (b"" in endpoint.kept, endpoint.refused) == (True, None)
    go(world)
    assert check_rest(world) is End.RUNS
    assert world.hosts[ALPHA].holders[0].stage is Stage.FREED


@pytest.mark.parametrize("kind", ["source", "destination", "recovery"])
def test_nobody_breaks_a_rule(kind):
    """Bytes are not damaged on their way here, so nobody has to say that his peer has."""
    with pytest.raises(Violation, match=f"converges: the {kind} at alpha ends with memory_mismatch"):
        end(kind, Result(Outcome.ROLLED_BACK, ErrorCode.MEMORY_MISMATCH))
    end(kind, Result(Outcome.ROLLED_BACK, ErrorCode.RECORD_FAILED))


def test_a_resumption_that_the_host_refuses_is_no_end_of_a_session():
    """[RES-1] [RES-3] It is looked at where it is refused. What a machine finds counts."""
    code = ErrorCode.BAD_TOKEN
    end("destination", Result(Outcome.ROLLED_BACK, code, error=GuestError("by the host", code)))
    end("source", Result(Outcome.ROLLED_BACK, code, by_peer=True, error=PeerAborted(code)))
    with pytest.raises(Violation, match="converges: the destination at alpha ends with bad_token"):
        end("destination", Result(Outcome.ROLLED_BACK, code, error=PeerMisbehaved(code)))


@pytest.mark.parametrize(
    ("until", "left"), [(DestinationState.LOADED, False), (DestinationState.COMMITTING, True)]
)
def test_an_opening_is_forgotten_with_a_session_that_ends_before_handover(until, left):
    """[RES-3] Nobody begins it anew; behind HANDOVER whoever resumes it is told who owns the guest."""
    world = world_of(resume=True)
    world.begin(ALPHA)
    go(world, stands(destination=until))
    there = world.hosts[BETA]
    (task,) = there.endpoint.tasks
    ended(world, there, there.endpoint, task, Result(Outcome.ROLLED_BACK, ErrorCode.RECORD_FAILED))
    assert bool(there.openings) == left


def test_a_source_that_resumes_on_a_timeout():
    world = world_of(store=False, defects=frozenset({Defect.RESUMES_ON_TIMEOUT}))
    world.begin(ALPHA)
    go(world, stands(source=SourceState.HANDED_OVER))
    world.take(("deadline", 1, ALPHA, 0))
    assert world.running().host == "alpha"
