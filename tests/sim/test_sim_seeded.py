"""Seeds: the same is the same, nothing is violated in some hundred of them, and what is broken is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.sim import seeded
from sterna.sim.defects import Defect
from sterna.sim.faults import Fault
from sterna.sim.holder import Stage
from sterna.sim.judge import Violation
from sterna.sim.makers import Shape
from sterna.sim.seeded import (
    SEEDED,
    Failure,
    Mishap,
    Run,
    Script,
    Tally,
    minimised,
    play,
    run_seed,
    script_of,
)


def test_a_seed_is_always_the_same():
    for seed in range(5):
        assert script_of(seed) == script_of(seed)
        first, second = run_seed(seed), run_seed(seed)
        assert (first.steps, first.faults, first.completed) == (second.steps, second.faults, second.completed)
    assert script_of(1) != script_of(2)


def test_some_seeds():
    tally = Tally()
    for seed in range(40):
        tally.add(run_seed(seed))
    assert tally.failures == []
    assert tally.seeds == 40
    assert tally.completed > tally.rolled_back > 0
    assert tally.faults.total() > 40


@pytest.mark.slow
def test_hundreds_of_seeds():
    tally = Tally()
    for seed in range(1000, 1600):
        tally.add(run_seed(seed))
    assert tally.failures == []
    seldom = {kind.value: tally.faults[kind] for kind in SEEDED if tally.faults[kind] < 50 * 600 / 2000}
    assert seldom == {}, "each kind happens 50 times in 2,000 seeds, and here as often for as many"
    assert tally.lost > 0


def test_without_a_store_nothing_of_the_store_goes_wrong():
    for seed in range(200):
        script = script_of(seed)
        if not script.shape.store:
            faults = {each.fault for each in script.mishaps}
            assert not faults & {Fault.STORE_OUT, Fault.REPLY_LOST, Fault.CLAIM_LATE, Fault.CLAIM_DOUBLED}


def test_some_seeds_go_without_page_hashes():
    """[MEM-20] Nothing else of them changes, and nothing is violated."""
    scripts = [script for script in map(script_of, range(100)) if script.shape.unhashed]
    assert 10 < len(scripts) < 30
    tally, hashed = Tally(), Tally()
    for script in scripts:
        tally.add(play(script))
        hashed.add(play(replace(script, shape=replace(script.shape, unhashed=False))))
    assert tally.failures == []
    assert (tally.steps, tally.faults, tally.completed) == (hashed.steps, hashed.faults, hashed.completed)


def test_some_sources_open_another_session():
    """[ONE-13] An older one that goes on beside it is found, and nothing else of a script is another."""
    scripts = [script_of(seed) for seed in (4, 18)]
    for script in scripts:
        anew = script.mishaps[-1]
        assert anew.fault is Fault.OPENED_ANEW
        assert script.mishaps[0].leg == anew.leg
        assert play(script).failures == []
        (failure,) = play(script, frozenset({Defect.OLDER_GOES_ON})).failures
        assert "two sessions that bring the guest are open" in failure.error
    share = sum(Fault.OPENED_ANEW in {each.fault for each in script_of(seed).mishaps} for seed in range(200))
    assert 60 < share < 100


LOSS = Mishap(Fault.DEADLINE, 0, "S.HANDED_OVER", 0, 0, 1.0)
LATE = Mishap(Fault.RECORD_SLOW, 0, "S.ACKING", 0, 0, 0.01)
NEVER = Mishap(Fault.NOT_READY, 0, "D.COMPLETING", 0, 0, 0.01)
SCRIPT = Script(7, Shape(store=False), 1, (LATE, LOSS, NEVER))


def test_what_goes_wrong_is_what_the_script_says():
    tally = play(SCRIPT)
    assert tally.faults == {Fault.DEADLINE: 1, Fault.RECORD_SLOW: 1}
    assert "gives the connection up" in str(LOSS)
    assert "migration 1, 0 steps behind S.HANDED_OVER" in str(LOSS)


def test_a_link_that_is_lost_early_is_taken_up_again():
    cut = Mishap(Fault.CUT, 0, "S.ACKING", 0, 0, 1.0)
    tally = play(replace(SCRIPT, shape=Shape(store=False, resume=True), mishaps=(cut,)))
    assert (tally.resumed, tally.completed, tally.rolled_back, tally.failures) == (1, 1, 0, [])
    assert play(replace(SCRIPT, mishaps=(cut,))).resumed == 0


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])
def test_a_source_that_is_killed_while_pages_follow_serves_on(store, switchover):
    """[RES-19] [ONE-38] Nothing is missing in the end, and the image is free, if need be by a VERDICT."""
    served = 0
    for seed in range(12):
        kills = tuple(Mishap(Fault.SOURCE_KILLED, 0, "S.MOVED", behind, 0, 1.0) for behind in (0, seed % 6))
        shape = Shape(store=store, resume=True, switchover=switchover, max_rounds=1)
        run = Run(Script(seed, shape, 1, kills))
        run.play()
        running = run.world.running()
        assert running is not None
        assert (running.host, running.missing) == ("beta", frozenset())
        assert run.world.hosts[0].holders[0].stage is Stage.FREED
        served += run.world.resumed
    assert served > 0


def test_frozen_processes_wake_or_are_killed():
    for fault in (Fault.SOURCE_FROZEN, Fault.DESTINATION_FROZEN, Fault.FROZEN_KILLED):
        for seconds in (0.01, 100.0):
            mishap = Mishap(fault, 0, "S.HANDED_OVER", 0, 0, seconds)
            tally = play(replace(SCRIPT, mishaps=(mishap,)))
            assert (tally.failures, tally.faults[fault]) == ([], 1)


@pytest.mark.parametrize(
    ("defect", "store"),
    [
        (Defect.RESUMES_ON_TIMEOUT, False),
        (Defect.RUNS_BEFORE_CLAIM, True),
    ],
)
def test_what_is_broken_is_found_and_explained(defect, store):
    script, defects = replace(SCRIPT, shape=Shape(store=store)), frozenset({defect})
    found = play(script, defects)
    assert len(found.failures) == 1

    def fails(mishaps):
        return bool(play(replace(script, mishaps=tuple(mishaps)), defects).failures)

    few = minimised(script, fails)
    assert len(few) == 1
    if defect is Defect.RESUMES_ON_TIMEOUT:
        assert few == (LOSS,)


def nobody(_world):
    raise Violation("one-runner", "in other words", loss=True)


def test_a_world_without_rest_is_a_failure(monkeypatch):
    monkeypatch.setattr(seeded, "STEPS_MAX", 20)
    ((seed, error, loss),) = play(SCRIPT).failures
    assert (seed, loss) == (7, False)
    assert "no rest after 20 steps" in error


def test_a_failure_says_whether_it_is_a_loss(monkeypatch):
    """Whatever its words are."""
    monkeypatch.setattr(seeded, "check_rest", nobody)
    assert [each.loss for each in play(SCRIPT).failures] == [True]


def test_a_tally_is_a_sum():
    one, two = Tally(seeds=1, lost=1), Tally(seeds=2, resumed=3, failures=[Failure(1, "why", True)])
    one.add(two)
    assert (one.seeds, one.lost, one.resumed, len(one.failures)) == (3, 1, 3, 1)
