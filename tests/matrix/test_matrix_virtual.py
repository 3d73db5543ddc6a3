"""All cells of the matrix in virtual time, as `sterna matrix --virtual` carries them out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.core.tables import DestinationState, SourceState, State
from sterna.matrix import virtual
from sterna.matrix.table import Cell, Recovery, Step, Survivor, load
from sterna.matrix.virtual import run_cell
from sterna.registry import Style
from sterna.sim.defects import Defect
from sterna.sim.faults import inject
from sterna.sim.holder import Holder
from sterna.sim.makers import LiveMakers, Makers
from sterna.sim.world import World

CELLS = load().cells
BY_NAME = {cell.name: cell for cell in CELLS}


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(dict.fromkeys(cell.fault.name for cell in CELLS)))
def test_what_must_come_of_a_fault_does(fault: str) -> None:
    """[ONE-19] [ONE-21] [ONE-22] [ONE-30] [ONE-33] [ONE-44] [ONE-58] [CON-62] [CON-63] [CON-64]"""
    reports = [run_cell(cell, seed=1) for cell in CELLS if cell.fault.name == fault]
    assert len(reports) >= 45
    assert {report.cell.style for report in reports} == set(Style)
    assert [(report.cell.name, report.failures) for report in reports if not report.passed] == []


@pytest.mark.parametrize("store", ["store", "no_store"])
def test_a_source_that_is_started_again_serves_on(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    """[RES-19] [ONE-38] And where it does not, the cell fails."""
    cell = BY_NAME[f"running/source_killed/bitmap/{store}"]
    assert all(run_cell(cell, seed).passed for seed in range(4))
    monkeypatch.setattr(LiveMakers, "departed", lambda *_, **__: None)
    failed = [report for seed in range(4) if not (report := run_cell(cell, seed)).passed]
    assert "served its pages to the end" in str([report.failures for report in failed])


def test_pages_follow_in_cells_of_other_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    """[PCY-5] [PCY-12]"""
    installed = []
    real = Holder.install

    def install(self: Holder, page: int, memory: bytes) -> bool:
        installed.append(page)
        return real(self, page, memory)

    monkeypatch.setattr(Holder, "install", install)
    cell = BY_NAME["fetching/source_record/post_copy/no_store"]
    assert run_cell(cell, 1).passed
    assert installed == [0, 1, 2, 3]
    assert run_cell(BY_NAME["complete/cut/bitmap/store"], 1).passed
    assert len(installed) > 4
    assert run_cell(BY_NAME["complete/cut/stop_and_copy/store"], 1).passed
    assert len(installed) <= 8


def test_a_run_follows_from_its_seed() -> None:
    cell = BY_NAME["permitted/cut/stop_and_copy/store"]
    runs = [replace(run_cell(cell, seed), seconds=0.0) for seed in range(8)]
    again = [replace(run_cell(cell, seed), seconds=0.0) for seed in range(8)]
    assert runs == again
    assert {report.runs for report in runs} == {"source", "destination"}
    assert all(report.passed for report in runs)


def wrong(cell: Cell, **changes: object) -> Cell:
    return replace(cell, expected=replace(cell.expected, **changes))  # type: ignore[arg-type]


def test_a_table_that_is_wrong_is_told() -> None:
    cell = BY_NAME["running/cut/stop_and_copy/no_store"]
    (failure,) = run_cell(wrong(cell, runs=frozenset({Survivor.SOURCE})), 1).failures
    assert failure == "destination runs the guest, not source"
    (failure,) = run_cell(
        wrong(cell, source=BY_NAME["round/cut/stop_and_copy/no_store"].expected.source), 1
    ).failures
    assert failure == "the source was told undecided (connection_lost)"


def test_who_runs_the_guest_before_anything_comes_back() -> None:
    """Where the table has it come about by itself, and it takes a return, that is told."""
    cell = BY_NAME["started/destination_frozen/stop_and_copy/store"]
    report = run_cell(cell, 1)
    assert (report.passed, report.meanwhile, report.runs) == (True, "nobody", "destination")
    (failure,) = run_cell(wrong(cell, recovery=Recovery.ITSELF), 1).failures
    assert failure == "nobody runs the guest before anything has come back"
    cell = BY_NAME["running/source_killed/post_copy/store"]
    assert run_cell(cell, 1).meanwhile == "nobody"  # its pages are at the source
    assert run_cell(BY_NAME["running/source_killed/stop_and_copy/store"], 1).meanwhile == "destination"


@pytest.mark.parametrize("store", ["store", "no_store"])
@pytest.mark.parametrize(
    ("step", "there"), [("hello", DestinationState.IDLE), ("admitted", DestinationState.WELCOMED)]
)
def test_a_source_that_has_not_heard_welcome(
    monkeypatch: pytest.MonkeyPatch, step: str, there: DestinationState, store: str
) -> None:
    """At both steps it waits for that when the fault happens; if none does, it gets it afterwards."""
    states: list[State] = []

    def look(world: World, _: object) -> None:
        machines = [task.machine for host in world.hosts for each in host.processes for task in each.tasks]
        states.extend(machine.state for machine in machines if machine is not None)

    monkeypatch.setattr(virtual, "inject", look)
    cell = BY_NAME[f"{step}/cut/stop_and_copy/{store}"]
    report = run_cell(cell, 1)
    assert states == [SourceState.GREETING, there]
    assert report.told == {"source": "completed", "destination": "completed"}


@pytest.mark.parametrize("store", ["store", "no_store"])
def test_what_is_on_record_when_the_guest_is_handed_back(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    """[ONE-62] Without a store CLAIMING comes with what rests on it."""
    found: list[set[str]] = []

    def look(world: World, step: tuple[str, int, int, int]) -> None:
        if step[0] == "destroy":
            found.append({record.kind for host in world.hosts for record in host.history.records})
        inject(world, step)

    monkeypatch.setattr(virtual, "inject", look)
    for step in ("refused", "handed_back", "returned", "reclaimed"):
        report = run_cell(BY_NAME[f"{step}/destination_holder_killed/bitmap/{store}"], 1)
        assert report.runs == report.meanwhile == "source"
        assert report.told["destination"] == "rolled_back (guest_failed)"
    assert ["claiming" in kinds for kinds in found] == [store == "store", True, True, True]
    assert ["handback" in kinds for kinds in found] == [False, True, True, True]
    assert ["decided" in kinds for kinds in found] == [False, False, False, True]


def test_a_step_that_is_none() -> None:
    cell = BY_NAME["round/cut/stop_and_copy/no_store"]
    nowhere = Step("nowhere", "before Nothing", Survivor.SOURCE, "")
    report = run_cell(replace(cell, step=nowhere), 1)
    assert "it does not come to before Nothing" in report.failures[0]


@pytest.mark.parametrize(
    ("defect", "name"),
    [
        (Defect.RUNS_BEFORE_CLAIM, "prepare/destination_record/stop_and_copy/no_store"),
        (Defect.RESUMES_ON_TIMEOUT, "running/cut/stop_and_copy/no_store"),
        (Defect.EPOCH_REUSED, "paused/source_record/stop_and_copy/no_store"),
        (Defect.START_NOT_WRITTEN, "running/destination_killed/stop_and_copy/no_store"),
        (Defect.ABSENT_IS_LOST, "paused/source_record/stop_and_copy/store"),
        (Defect.PAGES_FREED, "fetching/destination_record/post_copy/store"),
        (Defect.INSTALLED_TWICE, "complete/cut/bitmap/no_store"),
    ],
)
def test_endpoints_that_do_wrong_are_found(
    monkeypatch: pytest.MonkeyPatch, defect: Defect, name: str
) -> None:
    cell = BY_NAME[name]
    assert run_cell(cell, 1).passed

    def broken(makers: Makers, *, store: bool) -> World:
        return World(makers, store=store, defects=frozenset({defect}))

    monkeypatch.setattr(virtual, "World", broken)
    report = run_cell(cell, 1)
    assert not report.passed
    assert report.two_runners or report.lost_writes or report.runs == "nobody"
