"""Scenarios of early pages: each has its faults where they belong, and who does without says so."""

from __future__ import annotations

import json

from sterna_interop.cases_following import FOLLOWING
from sterna_interop.contract import Params, Role
from sterna_interop.faults import Clean, Delay, OfIndex
from sterna_interop.matrix import Transport
from sterna_interop.minimal.__main__ import supported as minimal_knows
from sterna_interop.shim import supported


def test_only_the_demand_connection_has_a_fault_that_is_no_delay() -> None:
    for scenario in FOLLOWING:
        assert isinstance(scenario.fault_on(1, 1), OfIndex)
        assert scenario.data_fault is not None
        assert isinstance(scenario.data_fault[1](1), Clean | Delay)
        hidden = Transport.TLS in scenario.transports
        assert not hidden or isinstance(scenario.demand_fault(1), Clean), scenario.id


def test_who_does_not_know_what_follows_says_so() -> None:
    for scenario in FOLLOWING:
        for role in Role:
            told = Params(
                case=scenario.id,
                role=role,
                connect="",
                token=b"",
                guest=scenario.guest,
                streams=scenario.streams,
                follows=scenario.follows,
            )
            assert supported(told)
            assert not minimal_knows(json.loads(told.to_json()))
