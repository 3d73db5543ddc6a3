"""The command around the cells: what it says, and what it returns. The cells are tested in tests/matrix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sterna.cli.exits import Exit
from sterna.cli.main import main
from sterna.matrix import run
from sterna.matrix.outcome import Done, Report, conclude
from sterna.matrix.run import SAMPLE, Job, Way


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Cells are not carried out: what the table allows runs afterwards, and where it paused, nothing."""
    jobs: list[Job] = []

    async def carry_out(
        chosen: list[Job],
        directory: Path,
        on_report: Callable[[Report], None],
        *,
        at_once: int,
        seed: int,
        keep: Path | None,
        guest: str,
        streams: int,
    ) -> None:
        assert directory.name
        assert streams in {0, 2}
        assert guest in {"process", "kvm"}
        assert (at_once >= 1, seed >= 0, keep) == (True, True, None)
        jobs.extend(chosen)
        for job in chosen:
            allowed = min(job.cell.expected.runs).value
            runs = "nobody" if allowed == "lost" or job.cell.step.name == "paused" else allowed
            judged = {"runs": runs, "two_runners": [], "lost_writes": []}
            on_report(conclude(job.cell, job.way.value, Done(judged=judged), 0.5))

    monkeypatch.setattr(run, "carry_out", carry_out)
    return jobs


def test_a_run_in_which_all_is_as_it_should_be(
    carried: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["matrix", "--json", "--only", "round/*/stop_and_copy/*"]) == Exit.OK
    said = json.loads(capsys.readouterr().out)
    assert said["cells"] == said["passed"] == len(carried)
    assert said["failed"] == said["two_runners"] == said["no_runner"] == said["lost_writes"] == 0
    assert said["guest_lost_expected"] > said["guest_lost_unexpected"] == 0
    assert (said["schema"], said["failures"]) == (1, [])


def test_a_return_that_was_not_needed_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def carry_out(
        chosen: list[Job], _: Path, on_report: Callable[[Report], None], **__: object
    ) -> None:
        for job in chosen:
            done = Done(judged={"runs": "source"}, meanwhile="source")
            on_report(conclude(job.cell, job.way.value, done, 0.5))

    monkeypatch.setattr(run, "carry_out", carry_out)
    name = "marked/destination_killed/stop_and_copy/no_store"
    assert main(["matrix", "--virtual", "--only", name]) == Exit.OK
    said = capsys.readouterr()
    assert "before what the table waits for had come back" in said.err + said.out
    assert f"virtual {name}" in said.err + said.out


def test_a_failure_prints_the_command_that_repeats_it(
    carried: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "paused/cut/stop_and_copy/no_store"
    assert main(["matrix", "--json", "--virtual", "--seed", "5", "--only", name]) == Exit.FAILED
    said = json.loads(capsys.readouterr().out)
    assert (said["failed"], said["no_runner"], said["guest_lost_unexpected"]) == (1, 1, 1)
    (failure,) = said["failures"]
    assert failure["again"] == f"sterna matrix --virtual --seed 5 --only {name}"
    assert failure["failures"] == ["nobody runs the guest, not source"]
    assert (failure["cell"], failure["runs"], failure["way"]) == (name, "nobody", "virtual")


def test_a_failure_with_another_guest_is_repeated_with_it(
    carried: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "paused/cut/stop_and_copy/no_store"
    other = ("--guest", "kvm", "--streams", "2")
    assert main(["matrix", "--json", "--seed", "5", *other, "--only", name]) == Exit.FAILED
    found = {failure["way"]: failure["again"] for failure in json.loads(capsys.readouterr().out)["failures"]}
    assert found == {
        "virtual": f"sterna matrix --virtual --seed 5 --only {name}",
        "real": f"sterna matrix --real --guest kvm --streams 2 --seed 5 --only {name}",
    }


def test_what_people_see(carried: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["matrix", "--real", "--seed", "7", "--only", "*/cut/stop_and_copy/no_store", "--jobs", "1"])
        == Exit.FAILED
    )
    said = capsys.readouterr()
    assert said.out == ""
    assert "1/24 real hello/cut/stop_and_copy/no_store: source, 0.5 s" in said.err
    assert "real paused/cut/stop_and_copy/no_store: FAILED" in said.err
    (row,) = (line.split() for line in said.err.splitlines() if line.startswith("  cut "))
    assert row == ["cut", "24", "23", *row[3:]]
    assert "cells 24, passed 23, failed 1" in said.err
    assert "again: sterna matrix --real --seed 7 --only paused/cut/stop_and_copy/no_store" in said.err


def test_a_sample_has_a_seed_which_is_told(carried: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    main(["matrix", "--json", "--real"])
    seed = json.loads(capsys.readouterr().out)["seed"]
    first = [job.cell.name for job in carried]
    carried.clear()
    main(["matrix", "--json", "--real", "--seed", str(seed)])
    assert len(first) == SAMPLE
    assert [job.cell.name for job in carried] == first


def test_both_ways(carried: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    main(["matrix", "--json"])
    ways = [job.way for job in carried]
    assert ways.count(Way.REAL) == SAMPLE
    assert ways.count(Way.VIRTUAL) >= 100
    assert ways == sorted(ways, reverse=True)
    assert json.loads(capsys.readouterr().out)["cells"] == len(ways)


@pytest.mark.parametrize("wrong", [["--only", "nothing"], ["--jobs", "0"], ["--seed", "-1"]])
def test_wrong_arguments(carried: list[Job], wrong: list[str]) -> None:
    assert main(["matrix", *wrong]) == Exit.USAGE
    assert carried == []
