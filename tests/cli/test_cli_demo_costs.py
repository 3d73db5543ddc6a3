"""What endpoints and holders have spent since the migration began, and what of those that are gone."""

from __future__ import annotations

import pytest

from sterna.cli import demo_costs
from sterna.cli.demo_costs import Costs
from sterna.guest.holder_client import HolderStatus

PID = 20


class Kernel:
    """Counts what it was told."""

    def __init__(self) -> None:
        self.processes = {PID: 7.0}
        self.children = 0.5

    def process(self, pid: int) -> float:
        if pid not in self.processes:
            raise ProcessLookupError(pid)
        return self.processes[pid]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(demo_costs, "process_cpu_s", kernel.process)
    monkeypatch.setattr(demo_costs, "children_cpu_s", lambda _: kernel.children)
    return kernel


def costs() -> Costs:
    status = HolderStatus.__new__(HolderStatus)
    object.__setattr__(status, "guest", {"holder_cpu_s": 2.0})
    return Costs({"source": PID}, {"holder": status})


def test_what_came_before_is_no_part_of_it(kernel: Kernel) -> None:
    found = costs()
    assert found.seconds == {}
    kernel.processes[PID], kernel.children = 8.0, 0.75
    found.note_endpoint("source")
    found.note_holder("holder", {"holder_cpu_s": 2.5})
    assert found.seconds == {"source": 1.25, "holder": 0.5}


def test_of_those_that_are_gone_nothing_is_noted(kernel: Kernel) -> None:
    found = costs()
    del kernel.processes[PID]
    found.note_endpoint("source")
    found.note_holder("holder", {})
    assert found.seconds == {}
