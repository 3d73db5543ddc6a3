"""Cells with real processes: one of each kind of end. `sterna matrix --full` carries out the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sterna.matrix.outcome import Report
from sterna.matrix.real import can_show, make_hosts, run_cell
from sterna.matrix.table import load

pytestmark = pytest.mark.slow

CELLS = {cell.name: cell for cell in load().cells}


async def carry_out(name: str, directory: Path, guest: str = "process", *, streams: int = 0) -> Report:
    cell = CELLS[name]
    assert can_show(cell)
    hosts, place = directory / "hosts", directory / "cell"
    make_hosts(hosts)
    place.mkdir()
    report = await run_cell(cell, place, hosts, guest, streams=streams)
    assert report.failures == []
    return report


async def test_a_guest_that_its_holder_sets_running_again(directory: Path) -> None:
    report = await carry_out("loaded/source_killed/stop_and_copy/no_store", directory)
    assert report.runs == report.meanwhile == "source"
    assert "source" not in report.told
    assert report.told["destination"].startswith("rolled_back")


async def test_a_guest_that_dies_with_its_holder(directory: Path) -> None:
    report = await carry_out("saved/source_holder_killed/stop_and_copy/no_store", directory)
    assert report.runs == "nobody"
    assert report.lost
    assert not report.no_runner


@pytest.mark.needs("kvm", "minor_faults")
async def test_a_virtual_machine_that_its_holder_sets_running_again(directory: Path) -> None:
    report = await carry_out("loaded/source_killed/post_copy/no_store", directory, "kvm")
    assert report.runs == "source"


@pytest.mark.needs("minor_faults")
async def test_a_destination_that_is_killed_while_pages_follow_the_guest(directory: Path) -> None:
    """[RES-13] [PCY-16] [STR-15] The next one goes on with the guest, and the source serves it to the end."""
    report = await carry_out("fetching/destination_killed/bitmap/no_store", directory, streams=2)
    assert report.runs == "destination"
    assert report.told == {"source": "completed"}


async def test_an_endpoint_that_stands_still(directory: Path) -> None:
    report = await carry_out("paused/source_frozen/stop_and_copy/no_store", directory)
    assert report.runs == "source"


async def test_a_source_that_comes_back_to_a_grant_without_record(directory: Path) -> None:
    """[ONE-19] It asks, the destination hands back what never ran there, and the guest runs at the source."""
    report = await carry_out("marked/source_killed/stop_and_copy/no_store", directory)
    assert (report.meanwhile, report.runs) == ("nobody", "source")


async def test_a_claim_that_meets_a_filled_slot(directory: Path) -> None:
    """[ONE-21] [ONE-29]"""
    report = await carry_out("claiming/destination_killed/stop_and_copy/store", directory)
    assert report.runs == "source"
    assert report.told == {"source": "undecided (not_closed)"}


async def test_a_destination_that_comes_back_behind_start(directory: Path) -> None:
    """[ONE-33]"""
    report = await carry_out("started/destination_killed/stop_and_copy/no_store", directory)
    assert report.runs == "destination"


async def test_records_that_cannot_be_written_for_a_while(directory: Path) -> None:
    """[ONE-25]"""
    report = await carry_out("permitted/destination_record/stop_and_copy/no_store", directory)
    assert report.runs == "source"


async def test_a_guest_that_is_handed_back(directory: Path) -> None:
    """[ONE-26] [ONE-35] [ONE-37] The source has lost the connection before it could hear of it."""
    report = await carry_out("handed_back/cut/stop_and_copy/store", directory)
    assert report.runs == report.meanwhile == "source"
    assert report.told["destination"] == "rolled_back (guest_failed)"


async def test_a_source_that_dies_when_it_is_about_to_run_again(directory: Path) -> None:
    """[ONE-37] Its records say all that the next one has to know."""
    report = await carry_out("reclaimed/source_killed/stop_and_copy/no_store", directory)
    assert (report.meanwhile, report.runs) == ("nobody", "source")


@pytest.mark.needs("userfaultfd")
async def test_a_guest_whose_pages_follow_it_from_a_dead_holder(directory: Path) -> None:
    """The source's endpoint has them mapped, and needs the holder for nothing else."""
    report = await carry_out("fetching/source_holder_killed/post_copy/no_store", directory)
    assert report.runs == "destination"


def test_what_only_virtual_time_can_show() -> None:
    assert all(can_show(cell) for cell in CELLS.values())
    for step, fits in (("saved", False), ("loaded", True)):
        assert can_show(CELLS[f"{step}/destination_record/stop_and_copy/store"], "kvm") == fits


async def test_a_table_that_is_wrong_is_told(directory: Path) -> None:
    """The cell is carried out against what the table says of another one."""
    wrong = CELLS["describe/source_frozen/stop_and_copy/no_store"].expected
    cell = replace(CELLS["describe/cut/stop_and_copy/no_store"], expected=wrong)
    hosts, place = directory / "hosts", directory / "cell"
    make_hosts(hosts)
    place.mkdir()
    report = await run_cell(cell, place, hosts)
    told = {
        f"the destination was told rolled_back ({code})"
        for code in ("connection_lost", "not_closed", "truncated")
    }
    assert len(report.failures) == 1
    assert set(report.failures) <= told
