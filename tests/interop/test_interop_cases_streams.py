"""Scenarios with data connections: each has its fault on one of them, and Sterna's shim knows them all."""

from __future__ import annotations

import json

from sterna_interop.cases_streams import STREAMS
from sterna_interop.contract import Params, Role
from sterna_interop.faults import Clean
from sterna_interop.minimal.__main__ import supported as minimal_knows
from sterna_interop.shim import supported


def test_the_fault_is_on_one_connection_and_new_each_time() -> None:
    for scenario in STREAMS:
        faults = [scenario.fault_on(number, 1) for number in range(scenario.streams + 1)]
        assert isinstance(faults[0], Clean)
        assert sum(not isinstance(each, Clean) for each in faults) == (scenario.data_fault is not None)
        if scenario.data_fault is not None:
            number = scenario.data_fault[0]
            assert scenario.fault_on(number, 1) is not faults[number]


def test_who_does_not_offer_the_feature_says_so() -> None:
    for scenario in STREAMS:
        told = Params(
            case=scenario.id,
            role=Role.SOURCE,
            connect="",
            token=b"",
            guest=scenario.guest,
            streams=scenario.streams,
        )
        assert supported(told)
        assert not minimal_knows(json.loads(told.to_json()))
