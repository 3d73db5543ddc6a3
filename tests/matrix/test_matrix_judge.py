"""The judge of a cell: each fork is seen, each lost write, and a run without one is acquitted."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sterna.matrix import judge as module
from sterna.matrix.judge import judge

A, B = "host-a:00", "host-b:01"
MOVED = [(10, 1, A, "run"), (20, 1, A, "beat"), (25, 1, A, "pause"), (25, 1, A, "granted"), (30, 2, B, "run")]
AUDIT = {
    "pages_checked": 9,
    "errors": 0,
    "errors_while_running": 0,
    "writes": 60,
    "generations": 60,
    "registers_good": True,
}
RUNS = {"state": "running", "writes": [40, 50], "lines": 5, "audit": AUDIT}
STANDS = {"state": "granted", "writes": [0, 0], "lines": 0, "audit": None}


def lines(entries: list[tuple]) -> list[str]:
    return [json.dumps([*entry[:3], 0, entry[3]]) for entry in entries]


def test_a_guest_that_has_moved() -> None:
    found = judge(lines(MOVED), {"source": STANDS, "destination": RUNS})
    assert found == {"runs": "destination", "two_runners": [], "lost_writes": []}


def test_a_guest_that_has_stayed() -> None:
    entries = [*MOVED[:4], (25, 1, A, "revoked"), (31, 1, A, "resume")]
    assert judge(lines(entries), {"source": RUNS, "destination": None})["two_runners"] == []


def test_a_guest_that_was_handed_back() -> None:
    entries = [*MOVED[:4], (31, 3, A, "run")]
    assert judge(lines(entries), {"source": RUNS, "destination": None})["two_runners"] == []


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ([(40, 1, A, "beat")], "epoch 1 after 2"),
        ([(28, 3, A, "run")], "it comes after run at 30"),
        ([(40, 2, A, "run")], f"epoch 2 belongs to {B}, and to {A}"),
        ([(30, 2, B, "pause"), (40, 2, B, "beat")], "it goes on after pause without a word"),
        (
            [(30, 2, B, "granted"), (40, 2, B, "resume")],
            "which was over when the next one was granted",
        ),
        ([(30, 3, A, "pause")], f"by {A}, where {B} has stopped"),
    ],
)
def test_forks(more: list[tuple], why: str) -> None:
    found = judge(lines([*MOVED, *more]), {"source": STANDS, "destination": RUNS})
    assert any(why in each for each in found["two_runners"])


def test_both_run() -> None:
    found = judge(lines(MOVED), {"source": RUNS, "destination": RUNS})
    assert found["runs"] == "both"
    assert found["two_runners"] == ["the guest runs at both sides"]


@pytest.mark.parametrize("destination", [None, STANDS, {**RUNS, "writes": [50, 50]}, {"state": "running"}])
def test_nobody_runs(destination: dict | None) -> None:
    """That a holder says so is not enough: the guest has to have written."""
    assert judge(lines(MOVED), {"source": None, "destination": destination})["runs"] == "nobody"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"errors": 1}, "1 bad pages"),
        ({"errors_while_running": 2}, "2 met while running"),
        ({"registers_good": False}, "registers good: False"),
        ({"pages_checked": 0}, "no page was audited"),
        ({"generations": 59}, "its pages were written 59 times, and 60 are counted"),
        ({"generations": 61}, "its pages were written 61 times, and 60 are counted"),
        ({"writes": 29, "generations": 29}, "29 writes, where the journal knows of 30"),
    ],
)
def test_lost_writes(changed: dict, why: str) -> None:
    found = judge(lines(MOVED), {"destination": {**RUNS, "audit": {**AUDIT, **changed}}})
    assert len(found["lost_writes"]) == 1
    assert why in found["lost_writes"][0]


@pytest.mark.parametrize(("generations", "lost"), [(59, 1), (60, 0), (62, 0), (63, 1)])
def test_a_processor_may_have_a_write_under_way(generations: int, lost: int) -> None:
    seen = {**RUNS, "vcpus": 2, "audit": {**AUDIT, "generations": generations}}
    assert len(judge(lines(MOVED), {"destination": seen})["lost_writes"]) == lost


def test_what_was_written_after_the_audit_is_not_missing_in_it() -> None:
    entries = [*MOVED, (90, 2, B, "beat")]
    assert judge(lines(entries), {"destination": RUNS})["lost_writes"] == []


def test_without_evidence_nobody_is_acquitted() -> None:
    assert judge([], {"destination": RUNS})["lost_writes"]
    assert judge(["[1, 2"], {"destination": RUNS})["lost_writes"]
    assert judge(lines(MOVED), {"destination": {**RUNS, "audit": None}})["lost_writes"]


def test_a_line_that_was_not_written_whole_is_passed_over() -> None:
    entries = lines(MOVED)
    assert judge([*entries[:2], "[21, 1", *entries[2:]], {"destination": RUNS})["two_runners"] == []


def test_it_is_a_program_that_imports_nothing_of_sterna(tmp_path: Path) -> None:
    source = Path(module.__file__).read_text()
    names = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert names <= {"__future__", "json", "sys", "collections", "pathlib"}
    (tmp_path / "journal.ndjson").write_text("\n".join(lines(MOVED)))
    (tmp_path / "after.json").write_text(json.dumps({"source": None, "destination": RUNS}))
    command = [sys.executable, "-I", "-S", module.__file__, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    assert json.loads(said) == {"runs": "destination", "two_runners": [], "lost_writes": []}
    assert module.main([str(tmp_path)]) == 0
