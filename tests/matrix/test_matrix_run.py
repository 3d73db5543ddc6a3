"""Which cells are carried out, and that each of them is, once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import trio

from sterna.errors import ConfigError
from sterna.matrix import real
from sterna.matrix.outcome import Done, Report, conclude
from sterna.matrix.run import EACH, SAMPLE, Way, carry_out, choose
from sterna.matrix.table import Cell, load

MATRIX = load()


def test_a_sample_follows_from_its_seed() -> None:
    first = choose(MATRIX, [Way.REAL], full=False, seed=1)
    assert len(first) == SAMPLE
    assert len({job.cell.name for job in first}) == SAMPLE
    assert choose(MATRIX, [Way.REAL], full=False, seed=1) == first
    assert choose(MATRIX, [Way.REAL], full=False, seed=2) != first


@pytest.mark.parametrize("seed", range(4))
def test_a_sample_has_each_fault(seed: int) -> None:
    times = Counter(job.cell.fault.name for job in choose(MATRIX, [Way.REAL], full=False, seed=seed))
    assert set(times) == {fault.name for fault in MATRIX.faults}
    assert min(times.values()) >= EACH
    assert times.total() == SAMPLE


def test_all_of_it() -> None:
    jobs = choose(MATRIX, [Way.REAL], full=True, seed=1)
    assert [job.cell for job in jobs] == [cell for cell in MATRIX.cells if real.can_show(cell)]
    jobs = choose(MATRIX, [Way.REAL], full=True, seed=1, guest="kvm")
    assert [job.cell for job in jobs] == [cell for cell in MATRIX.cells if real.can_show(cell, "kvm")]


def test_cells_by_name() -> None:
    only = ("round/cut/stop_and_copy/no_store", "loaded/*_killed/stop*/no_store")
    jobs = choose(MATRIX, [Way.REAL], full=False, seed=1, only=only)
    assert jobs[0].cell.name == only[0]
    assert {job.cell.step.name for job in jobs[1:]} == {"loaded"}


@pytest.mark.parametrize("name", ["nothing", "round/cut/stop_and_copy", "", "../*"])
def test_names_of_no_cell(name: str) -> None:
    with pytest.raises(ConfigError, match="no cell is called"):
        choose(MATRIX, [Way.REAL], full=False, seed=1, only=(name,))


def test_nothing_that_can_be_shown() -> None:
    with pytest.raises(ConfigError, match="nothing can show"):
        choose(MATRIX, [], full=False, seed=1, only=("round/cut/*",))


async def test_each_is_carried_out_once_in_its_own_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places: dict[str, Path] = {}

    async def run_cell(cell: Cell, place: Path, hosts: Path, guest: str, *, streams: int) -> Report:
        assert await trio.Path(place).is_dir()
        assert hosts == tmp_path / "hosts"
        assert streams == 2
        assert cell.name not in places
        places[cell.name] = place
        return conclude(cell, "real", Done(), 0.0)

    made: list[Path] = []
    monkeypatch.setattr(real, "run_cell", run_cell)
    monkeypatch.setattr(real, "make_hosts", made.append)
    jobs = choose(MATRIX, [Way.REAL], full=False, seed=1)
    reports: list[Report] = []
    await carry_out(jobs, tmp_path, reports.append, at_once=3, seed=1, streams=2)
    assert made == [tmp_path / "hosts"]
    assert sorted(report.cell.name for report in reports) == sorted(job.cell.name for job in jobs)
    assert len(set(places.values())) == len(jobs)


async def test_what_has_failed_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def run_cell(cell: Cell, place: Path, hosts: Path, guest: str, *, streams: int) -> Report:
        (place / "source.log").write_text("it hangs")
        (place / "s.sock").touch()
        failures = ["it hangs"] if cell.store else []
        return conclude(cell, "real", Done(failures=failures), 0.0)

    monkeypatch.setattr(real, "run_cell", run_cell)
    monkeypatch.setattr(real, "make_hosts", lambda _: None)
    directory, keep = tmp_path / "d", tmp_path / "kept"
    directory.mkdir()
    jobs = choose(MATRIX, [Way.REAL], full=False, seed=1, only=("round/cut/stop_and_copy/*",))
    for _ in range(2):  # the second time it is there already
        await carry_out(jobs, directory, lambda _: None, at_once=1, seed=1, keep=keep)
    assert [path.name for path in keep.iterdir()] == ["round.cut.stop_and_copy.store"]
    assert [path.name for path in (keep / "round.cut.stop_and_copy.store").iterdir()] == ["source.log"]
    assert list(directory.iterdir()) == []


async def test_in_virtual_time_nothing_is_started(tmp_path: Path) -> None:
    jobs = choose(MATRIX, [Way.VIRTUAL], full=False, seed=1, only=("round/cut/stop_and_copy/*",))
    reports: list[Report] = []
    await carry_out(jobs, tmp_path, reports.append, at_once=1, seed=1)
    assert [(report.way, report.passed) for report in reports] == [("virtual", True)] * 2
    assert not await trio.Path(tmp_path / "hosts").exists()
