"""What became of a cell, held against what the table says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sterna.matrix.table import Cell, Recovery, Survivor

NOBODY: Final = "nobody"
_SIDES: Final = (Survivor.SOURCE, Survivor.DESTINATION)


@dataclass(slots=True)
class Done:
    """What was seen of a cell while it was carried out.

    Attributes:
        told: how the session ended at each side: outcome and code.
        judged: `runs`, `two_runners` and `lost_writes`, as judge.py has them; None if it was not asked.
        meanwhile: who ran the guest, with all of its pages, before anything that had failed came back; None
            if nobody looked.
        failures: what went wrong with carrying it out.
    """

    told: dict[Survivor, tuple[str, str | None]] = field(default_factory=dict)
    judged: Mapping[str, object] | None = None
    meanwhile: str | None = None
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """A cell that has been carried out.

    Attributes:
        way: real or virtual.
        runs: who runs the guest: source, destination, both or nobody; unknown if nobody could tell.
        meanwhile: who ran it before anything that had failed came back.
        failures: everything that is not as it should be, in words; none: the cell has passed.
    """

    cell: Cell
    way: str
    seconds: float
    runs: str
    told: Mapping[str, str]
    two_runners: Sequence[str]
    lost_writes: Sequence[str]
    failures: Sequence[str]
    meanwhile: str | None = None

    @property
    def passed(self) -> bool:
        """Whether all is as the table says."""
        return not self.failures

    @property
    def names_survivor(self) -> bool:
        """Whether somebody has to run the guest."""
        return Survivor.LOST not in self.cell.expected.runs

    @property
    def no_runner(self) -> bool:
        """Nobody runs the guest although somebody has to."""
        return self.names_survivor and self.runs == NOBODY

    @property
    def lost(self) -> bool:
        """Nobody runs the guest."""
        return self.runs == NOBODY

    @property
    def needless(self) -> bool:
        """The table has somebody come back, and it came about without him: where a race decides, it may."""
        waited = self.cell.expected.recovery is Recovery.RETURN
        return waited and self.meanwhile is not None and self.meanwhile != NOBODY


def conclude(cell: Cell, way: str, done: Done, seconds: float) -> Report:
    """Hold what was seen against the table."""
    failures = list(done.failures)
    judged = done.judged or {}
    runs = str(judged.get("runs", "unknown"))
    two, lost = (_texts(judged.get(name)) for name in ("two_runners", "lost_writes"))
    failures += [f"two runners: {each}" for each in two]
    failures += [f"lost writes: {each}" for each in lost]
    if done.judged is not None and runs not in _allowed(cell):
        failures.append(f"{runs} runs the guest, not {' or '.join(sorted(_allowed(cell)))}")
    alone = cell.expected.recovery is Recovery.ITSELF
    if alone and done.meanwhile not in {None, runs, *_allowed(cell)}:
        failures.append(f"{done.meanwhile} runs the guest before anything has come back")
    for side in _SIDES:
        if side in done.told and not cell.accepts(side, *done.told[side]):
            failures.append(f"the {side} was told {_words(done.told[side])}")
    told = {side.value: _words(said) for side, said in done.told.items()}
    return Report(cell, way, seconds, runs, told, two, lost, failures, done.meanwhile)


def _allowed(cell: Cell) -> set[str]:
    return {NOBODY if one is Survivor.LOST else one.value for one in cell.expected.runs}


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def _words(said: tuple[str, str | None]) -> str:
    outcome, code = said
    return outcome if code is None else f"{outcome} ({code})"


def totals(reports: Sequence[Report]) -> dict[str, int]:
    """The figures of `sterna matrix --json`."""
    return {
        "cells": len(reports),
        "passed": sum(each.passed for each in reports),
        "failed": sum(not each.passed for each in reports),
        "two_runners": sum(bool(each.two_runners) for each in reports),
        "no_runner": sum(each.no_runner for each in reports),
        "lost_writes": sum(each.names_survivor and bool(each.lost_writes) for each in reports),
        "guest_lost_expected": sum(each.lost and not each.names_survivor for each in reports),
        "guest_lost_unexpected": sum(each.no_runner for each in reports),
        "returns_not_needed": sum(each.needless for each in reports),
    }
