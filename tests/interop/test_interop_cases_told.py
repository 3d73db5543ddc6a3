"""What both are told can be told, and the guests can be made; test_interop_cases_matrix.py has the ids."""

from __future__ import annotations

from itertools import pairwise

from sterna.limits import Limits
from sterna.memory.regions import RegionTable
from sterna_interop.cases_told import TOLD
from sterna_interop.contract import Params, Role
from sterna_interop.faults import Clean
from sterna_interop.shim import supported


def test_sternas_shim_knows_all_of_it() -> None:
    for scenario in TOLD:
        for role, limits in scenario.limits.items():
            assert Limits(**limits), (scenario.id, role)
        for role, order in scenario.orders.items():
            params = Params(
                case=scenario.id, role=role, connect="", token=b"", guest=scenario.guest, order=order
            )
            assert supported(params)
            assert Params.from_json(params.to_json()) == params


def test_the_guests_can_be_made() -> None:
    for scenario in TOLD:
        guest = scenario.guest
        assert RegionTable(guest.regions).size_bytes == sum(map(len, guest.image().values()))
        images = [guest.generations(entries) for entries in range(len(guest.writes) + 1)]
        assert all(before != after for before, after in pairwise(images))
        assert sum(section.size_bytes for section in guest.sections) <= guest.state_bytes


def test_nothing_happens_to_the_connection() -> None:
    assert all(isinstance(scenario.fault(1), Clean) for scenario in TOLD)
    assert {role for scenario in TOLD for role in scenario.orders} == set(Role)
