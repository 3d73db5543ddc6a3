"""The table of scenarios is in order; the scenarios themselves are run by tests of session.py."""

from __future__ import annotations

import re

from sterna_interop.cases_matrix import SCENARIOS
from sterna_interop.contract import Outcome
from sterna_interop.matrix import Transport
from sterna_interop.resources import clauses


def test_ids_are_unique_and_of_their_form() -> None:
    ids = [scenario.id for scenario in SCENARIOS]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"matrix-\d{3}", each) for each in ids)


def test_every_clause_exists() -> None:
    unknown = {clause for scenario in SCENARIOS for clause in scenario.clauses} - clauses().keys()
    assert not unknown


def test_no_scenario_may_end_with_two_runners_or_none() -> None:
    for scenario in SCENARIOS:
        for source, destination in scenario.ends:
            runs = [source is Outcome.ROLLED_BACK, destination in {Outcome.COMPLETED, Outcome.MOVED}]
            assert sum(runs) <= 1, scenario.id
            assert any(runs) or Outcome.UNDECIDED in {source, destination}, scenario.id


def test_both_transports_are_covered() -> None:
    for transport in Transport:
        assert sum(transport in scenario.transports for scenario in SCENARIOS) >= 10


def test_every_fault_can_be_made() -> None:
    for scenario in SCENARIOS:
        assert scenario.fault(1) is not None
        assert scenario.fault(1) is not scenario.fault(1), f"{scenario.id}: a fault has a state of its own"
