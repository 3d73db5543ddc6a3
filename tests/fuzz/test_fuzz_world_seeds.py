"""Seeds of the world are shared out, summed up and explained."""

from __future__ import annotations

import pytest

from sterna.sim.defects import Defect
from sterna_fuzz import world_seeds
from sterna_fuzz.world_seeds import explain, portion, run_seeds

BROKEN = frozenset({Defect.RUNS_BEFORE_CLAIM})


def test_seeds_are_what_they_are_however_they_are_shared_out(monkeypatch):
    monkeypatch.setattr(world_seeds, "PORTION", 4)
    monkeypatch.setattr(world_seeds, "PROGRESS_S", 0.0)
    said = []
    found = run_seeds(3, 10, 1, said.append)
    assert found.tally.seeds == 10
    assert len(said) == 3
    whole = portion(range(3, 13), frozenset())
    assert (found.tally.steps, found.tally.faults) == (whole.steps, whole.faults)
    assert (found.tally.failures, found.explained) == ([], [])


@pytest.mark.slow
def test_in_several_processes():
    several, one = run_seeds(0, 60, 2, lambda _: None), run_seeds(0, 60, 1, lambda _: None)
    assert several.tally == one.tally


def test_failures_are_explained_but_not_all_of_them(monkeypatch):
    monkeypatch.setattr(world_seeds, "EXPLAINED", 1)
    found = run_seeds(0, 6, 1, lambda _: None, BROKEN)
    assert len(found.tally.failures) > 1
    (first,) = found.explained
    assert first.seed == found.tally.failures[0][0]
    assert len(first.mishaps) <= 1


def test_what_fails_by_itself_needs_nothing_to_go_wrong():
    seed = run_seeds(0, 6, 1, lambda _: None, BROKEN).tally.failures[0][0]
    assert explain(seed, BROKEN).mishaps == ()
