"""Which cells a run has: what was selected, for which implementations."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from sterna_interop import vectors
from sterna_interop.case import Case
from sterna_interop.cases import CASES
from sterna_interop.cases_matrix import SCENARIOS
from sterna_interop.contract import Role
from sterna_interop.endpoints import PROBE, PROBE_TITLE, endpoint_cell
from sterna_interop.implementations import Implementation
from sterna_interop.matrix import Scenario
from sterna_interop.pairs import matrix_cell
from sterna_interop.report import CaseInfo
from sterna_interop.results import CaseResult, Kind
from sterna_interop.runner import Cell, Settings

CODEC_TITLE: Final = "a codec shim says what it is, and skips an operation that nobody knows"


def chosen(id_: str, only: Sequence[str]) -> bool:
    """Whether a case is one of those that were asked for; all are if nothing was."""
    return not only or any(fnmatch.fnmatchcase(id_, glob) for glob in only)


def catalogue(only: Sequence[str] = ()) -> list[CaseInfo]:
    """What the kit has, in the order in which it is run."""
    probe = CaseInfo(PROBE, Kind.ENDPOINT, PROBE_TITLE, (), "MUST", "interop", "source")
    codec = CaseInfo(vectors.PROBE, Kind.VECTOR, CODEC_TITLE, (), "MUST", "interop")
    every = [
        *(probe, *map(_endpoint_info, CASES), *map(_matrix_info, SCENARIOS)),
        *(codec, *map(_vector_info, vectors.load())),
    ]
    return [info for info in every if chosen(info.id, only)]


def _vector_info(vector: vectors.Vector) -> CaseInfo:
    clause = vector.test.get("clause")
    claimed = (str(clause),) if clause else ()
    return CaseInfo(vector.id, Kind.VECTOR, str(vector.test["comment"]), claimed, "MUST", "interop")


def _endpoint_info(case: Case) -> CaseInfo:
    return CaseInfo(
        case.id, Kind.ENDPOINT, case.title, case.clauses, case.level, case.severity, case.role.value
    )


def _matrix_info(scenario: Scenario) -> CaseInfo:
    return CaseInfo(scenario.id, Kind.MATRIX, scenario.title, scenario.clauses, "MUST", scenario.severity)


def cells(
    settings: Settings,
    given: Sequence[Implementation],
    partners: Sequence[Implementation],
    only: Sequence[str] = (),
) -> list[Cell]:
    """Everything that is to be run, the probes aside.

    Args:
        settings: of the run.
        given: what the run is about.
        partners: further implementations for the matrix; cells without one of `given` are left out.
        only: globs over ids.
    """
    endpoint = [
        endpoint_cell(settings, case, one)
        for one in given
        for case in CASES
        if case.role in one.roles and chosen(case.id, only)
    ]
    matrix = [
        matrix_cell(settings, scenario, transport, source, destination)
        for scenario in SCENARIOS
        if chosen(scenario.id, only)
        for transport in scenario.transports
        for source, destination in _pairs(given, partners)
    ]
    return [*endpoint, *matrix]


def _pairs(
    given: Sequence[Implementation], partners: Sequence[Implementation]
) -> Iterable[tuple[Implementation, Implementation]]:
    every = [*given, *partners]
    for source in every:
        for destination in every:
            if source not in given and destination not in given:
                continue
            if Role.SOURCE in source.roles and Role.DESTINATION in destination.roles:
                yield source, destination


def skipped(cell: Cell, reason: str) -> Cell:
    """A cell that is not tried."""
    result = replace(cell.blank, detail=reason)

    async def run() -> CaseResult:
        return result

    return Cell(cell.blank, run)
