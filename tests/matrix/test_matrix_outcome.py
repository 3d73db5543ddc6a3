"""What was seen of a cell against what the table says, and the figures of a whole run."""

from __future__ import annotations

import pytest

from sterna.matrix.outcome import Done, Report, conclude, totals
from sterna.matrix.table import Cell, Survivor, load

CELLS = {cell.name: cell for cell in load().cells}
STAYS = CELLS["round/cut/stop_and_copy/no_store"]
WAITS = CELLS["marked/source_killed/stop_and_copy/no_store"]
DIES = CELLS["round/source_holder_killed/stop_and_copy/no_store"]
LOST = ("rolled_back", "connection_lost")
TOLD = {Survivor.SOURCE: LOST, Survivor.DESTINATION: LOST}


def report(
    cell: Cell,
    runs: str,
    *,
    told: dict | None = None,
    two: int = 0,
    lost: int = 0,
    meanwhile: str | None = None,
) -> Report:
    judged = {"runs": runs, "two_runners": ["fork"] * two, "lost_writes": ["page"] * lost}
    return conclude(cell, "real", Done(told=told or {}, judged=judged, meanwhile=meanwhile), 1.0)


def test_as_it_should_be() -> None:
    found = report(STAYS, "source", told=TOLD)
    assert found.passed
    assert found.told == {
        "source": "rolled_back (connection_lost)",
        "destination": "rolled_back (connection_lost)",
    }
    assert report(DIES, "nobody").passed


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (report(STAYS, "destination"), "destination runs the guest, not source"),
        (report(STAYS, "nobody"), "nobody runs the guest, not source"),
        (report(DIES, "source"), "source runs the guest, not nobody"),
        (report(STAYS, "source", meanwhile="nobody"), "nobody runs the guest before anything has come back"),
        (report(STAYS, "source", two=1), "two runners: fork"),
        (report(STAYS, "source", lost=1), "lost writes: page"),
        (
            report(STAYS, "source", told={Survivor.SOURCE: ("undecided", None)}),
            "the source was told undecided",
        ),
        (conclude(STAYS, "real", Done(failures=["it hangs"]), 1.0), "it hangs"),
    ],
)
def test_as_it_should_not_be(found: Report, why: str) -> None:
    assert found.failures == [why]
    assert not found.passed


def test_a_return_that_was_not_needed() -> None:
    assert report(STAYS, "source", meanwhile="source").passed
    for meanwhile, needless in (("source", True), ("nobody", False), (None, False)):
        found = report(WAITS, "source", meanwhile=meanwhile)
        assert (found.passed, found.needless) == (True, needless)
    assert not report(STAYS, "source", meanwhile="source").needless


def test_without_a_judgement_nobody_is_said_to_run() -> None:
    found = conclude(STAYS, "real", Done(failures=["it hangs"]), 1.0)
    assert found.runs == "unknown"
    assert not found.no_runner


def test_figures() -> None:
    reports = [
        report(STAYS, "source"),
        report(STAYS, "nobody"),
        report(STAYS, "source", two=2, lost=1),
        report(DIES, "nobody", lost=1),
        report(DIES, "source"),
        report(WAITS, "source", meanwhile="source"),
    ]
    assert totals(reports) == {
        "cells": 6,
        "passed": 2,
        "failed": 4,
        "two_runners": 1,
        "no_runner": 1,
        "lost_writes": 1,
        "guest_lost_expected": 1,
        "guest_lost_unexpected": 1,
        "returns_not_needed": 1,
    }
