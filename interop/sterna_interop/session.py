"""One run from beginning to end: the probes, then everything else, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import trio

from sterna.cli.output import Output
from sterna_interop import plan
from sterna_interop.credentials import Credentials
from sterna_interop.endpoints import probe_cell
from sterna_interop.implementations import BUILT_IN, Implementation, judge_expectation
from sterna_interop.report import Run
from sterna_interop.resources import claimed_by_vectors, clauses, musts, spec_version
from sterna_interop.results import KIT, CaseResult, Kind, Verdict
from sterna_interop.runner import Cell, Settings, run_cells
from sterna_interop.start import Zygote

CASES: Final = "cases"
PKI: Final = "pki"
EVERY: Final = 20  # results between two lines of progress where nobody watches a display


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What was asked for on the command line.

    Attributes:
        directory: of the report, and of what the cases leave.
        only: globs over ids; all if empty.
        keep: keep what every case left.
    """

    directory: Path
    only: tuple[str, ...] = ()
    jobs: int = 2
    seed: int = 1
    keep: bool = False


def play(given: Sequence[Implementation], options: RunOptions, output: Output) -> Run:
    """Run everything that was asked for.

    Args:
        given: the implementations that the run is about; if there are none, those that the kit has.
        options: see there.
        output: where progress goes.
    """
    given = given or BUILT_IN
    partners = [one for one in BUILT_IN if one.name not in {each.name for each in given}]
    started = _now()
    credentials = Credentials.make(options.directory / PKI)
    settings = Settings(options.directory / CASES, credentials, options.seed)
    results = trio.run(_warm, settings, given, partners, options, output)
    used = {result.case for result in results}
    cases = [info for info in plan.catalogue() if info.id in used]
    claimed = {clause for info in cases for clause in info.clauses}
    if any(result.kind is Kind.VECTOR for result in results):
        claimed |= claimed_by_vectors()
    return Run(
        kit_version=version("sterna"),
        spec_version=spec_version(),
        seed=options.seed,
        started=started,
        ended=_now(),
        peers=[*given, *partners],
        cases=cases,
        clauses=clauses(),
        results=results,
        musts=musts(claimed),
    )


async def _warm(
    settings: Settings,
    given: Sequence[Implementation],
    partners: Sequence[Implementation],
    options: RunOptions,
    output: Output,
) -> list[CaseResult]:
    """Run with zygotes for those shims that are the kit's own."""
    zygotes = {one.module: Zygote(one.module) for one in (*given, *partners) if one.module}
    try:
        async with trio.open_nursery() as nursery:
            for zygote in zygotes.values():
                nursery.start_soon(zygote.run)
            results = await _run(replace(settings, zygotes=zygotes), given, partners, options, output)
            nursery.cancel_scope.cancel()
    finally:
        for zygote in zygotes.values():
            zygote.close()
    return results


async def _run(
    settings: Settings,
    given: Sequence[Implementation],
    partners: Sequence[Implementation],
    options: RunOptions,
    output: Output,
) -> list[CaseResult]:
    peers = {one.name: one for one in (*given, *partners)}
    cells = plan.cells(settings, given, partners, options.only)
    if not cells:
        return []
    progress = _Progress(len(cells) + len(peers), output)

    async def run(some: Sequence[Cell]) -> list[CaseResult]:
        return await run_cells(
            [_expecting(cell, peers) for cell in some], jobs=options.jobs, on_result=progress.on_result
        )

    probes = await run([probe_cell(settings, one) for one in peers.values()])
    dubious = {
        name
        for result in probes
        if result.verdict is not Verdict.PASS
        for name in (result.source, result.destination)
        if name != KIT
    }
    reason = "its shim does not answer an unknown order with exit code 89, so no answer of it can be believed"
    checked = [
        plan.skipped(cell, f"{min(names)}: {reason}")
        if (names := dubious & {cell.blank.source, cell.blank.destination})
        else cell
        for cell in cells
    ]
    return [*probes, *await run(checked)]


def _expecting(cell: Cell, peers: dict[str, Implementation]) -> Cell:
    """The same cell, whose result knows what was announced."""

    async def run() -> CaseResult:
        return judge_expectation(await cell.run(), peers)

    return Cell(cell.blank, run)


class _Progress:
    """Tells of what is unexpected at once, and of the rest how much of it is done."""

    def __init__(self, total: int, output: Output) -> None:
        self._total = total
        self._done = 0
        self._output = output

    def on_result(self, result: CaseResult) -> None:
        self._done += 1
        if result.verdict.is_unexpected or result.verdict is Verdict.KIT_ERROR:
            self._output.say(line_of(result), style="red")
        elif self._done % EVERY == 0 or self._done == self._total:
            self._output.say(f"{self._done} of {self._total} done")


def line_of(result: CaseResult) -> str:
    """A result in one line for people."""
    where = f" {result.transport}" if result.transport else ""
    what = (
        f"expected {result.expected}, got {result.actual}"
        if result.expected
        else result.detail.strip().splitlines()[-1]
        if result.detail.strip()
        else result.code
    )
    return f"{result.verdict} {result.case}{where} {result.source} to {result.destination}: {what}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
