"""One run from beginning to end: the probes, then everything else, and what came out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import trio

from sterna.cli.output import Output
from sterna_interop import plan, vectors
from sterna_interop.credentials import Credentials
from sterna_interop.endpoints import PROBE, probe_cell
from sterna_interop.implementations import BUILT_IN, Implementation, judge_expectation
from sterna_interop.report import Run
from sterna_interop.resources import clauses, musts, spec_version
from sterna_interop.results import KIT, CaseResult, Verdict
from sterna_interop.runner import Cell, Settings, run_cells
from sterna_interop.start import Zygote

CASES: Final = "cases"
PKI: Final = "pki"
LINES: Final = 20  # of progress, at most
WORDS: Final = 200  # characters of a line of a shim
_ERROR: Final = re.compile(r"\S*(Error|Exception|panic)")


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
    for name in (CASES, PKI):  # of an earlier run
        shutil.rmtree(options.directory / name, ignore_errors=True)
    credentials = Credentials.make(options.directory / PKI)
    settings = Settings(options.directory / CASES, credentials, options.seed)
    try:
        results = trio.run(_warm, settings, given, partners, options, output)
    finally:
        shutil.rmtree(options.directory / PKI, ignore_errors=True)
        with suppress(OSError):
            (options.directory / CASES).rmdir()  # if nothing was worth keeping
    used = {result.case for result in results}
    cases = [info for info in plan.catalogue() if info.id in used]
    untried = {Verdict.SKIP, Verdict.UNSUPPORTED, Verdict.KIT_ERROR}
    tried = {result.case for result in results if result.verdict not in untried}
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
        musts=musts(clause for info in cases if info.id in tried for clause in info.clauses),
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
        return await _run(replace(settings, zygotes=zygotes), given, partners, options, output)
    finally:
        for zygote in zygotes.values():
            zygote.close()


async def _run(
    settings: Settings,
    given: Sequence[Implementation],
    partners: Sequence[Implementation],
    options: RunOptions,
    output: Output,
) -> list[CaseResult]:
    peers = {one.name: one for one in (*given, *partners)}
    cells = plan.cells(settings, given, partners, options.only)
    asked = [vector for vector in vectors.load() if plan.chosen(vector.id, options.only)]
    codecs = [one for one in given if one.codec] if asked else []
    wanted = bool(cells) or (any(one.command for one in given) and plan.chosen(PROBE, options.only))
    probed = [one for one in peers.values() if one.command] if wanted else []
    progress = _Progress(len(cells) + len(probed) + len(codecs) * (len(asked) + 1), output)

    async def run(some: Sequence[Cell]) -> list[CaseResult]:
        prepared = [_prepared(cell, peers, keep=options.keep) for cell in some]
        return await run_cells(prepared, jobs=options.jobs, on_result=progress.on_result)

    results: list[CaseResult] = []
    if wanted:
        probes = await run([probe_cell(settings, one) for one in probed])
        results += [*probes, *await run(_checked(cells, probes))]

    def on_answer(result: CaseResult) -> None:
        results.append(judge_expectation(result, peers))
        progress.on_result(results[-1])

    for one in codecs:
        await vectors.run_vectors(one.name, one.codec, on_answer, vectors=asked)
    return results


def _checked(cells: Sequence[Cell], probes: Sequence[CaseResult]) -> list[Cell]:
    """The cells, skipped where an implementation has failed the probe."""
    failed = [result for result in probes if result.verdict is not Verdict.PASS]
    dubious = {name for result in failed for name in (result.source, result.destination)} - {KIT}
    reason = "its shim does not answer an unknown order with exit code 89, so no answer of it can be believed"
    return [
        plan.skipped(cell, f"{min(names)}: {reason}")
        if (names := dubious & {cell.blank.source, cell.blank.destination})
        else cell
        for cell in cells
    ]


def _prepared(cell: Cell, peers: dict[str, Implementation], *, keep: bool) -> Cell:
    """The same cell, whose result knows what was announced, and which leaves only what is worth a look."""

    async def run() -> CaseResult:
        result = judge_expectation(await cell.run(), peers)
        if keep or result.verdict not in {Verdict.PASS, Verdict.UNSUPPORTED, Verdict.SKIP}:
            return result
        if cell.directory is not None:
            shutil.rmtree(cell.directory, ignore_errors=True)
        return replace(result, artifacts={})

    return Cell(cell.blank, run)


class _Progress:
    """Tells of what is unexpected at once, and of the rest how much of it is done."""

    def __init__(self, total: int, output: Output) -> None:
        self._total = total
        self._step = max(10, -(-total // LINES))
        self._done = 0
        self._output = output

    def on_result(self, result: CaseResult) -> None:
        self._done += 1
        if result.verdict.is_unexpected or result.verdict is Verdict.KIT_ERROR:
            self._output.say(line_of(result), style="red")
            for line in last_words(result):
                self._output.say(line)
        elif self._done % self._step == 0 or self._done == self._total:
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


def last_words(result: CaseResult) -> Iterator[str]:
    """Of what the shims wrote to stderr the newest line that begins with an error's name, or the last."""
    for name, text in result.artifacts.items():
        if name.endswith("stderr") and (lines := text.strip().splitlines()):
            errors = [line for line in lines if _ERROR.match(line)]
            yield f"  {name}: {(errors or lines)[-1][:WORDS]}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
