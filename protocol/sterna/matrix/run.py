"""Which cells are carried out, and carrying them out, some at a time."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeAlias

import trio

from sterna.errors import ConfigError
from sterna.matrix import real, virtual
from sterna.matrix.outcome import Report
from sterna.matrix.table import Cell, Matrix

# Real cells of a run that is not full: enough for each fault, and over in three minutes on two processors.
SAMPLE: Final = 40
EACH: Final = 3  # of each fault at least

OnReport: TypeAlias = Callable[[Report], None]


class Way(StrEnum):
    """How a cell is carried out."""

    VIRTUAL = "virtual"
    REAL = "real"


@dataclass(frozen=True, slots=True)
class Job:
    """One cell, one way."""

    cell: Cell
    way: Way


def choose(
    matrix: Matrix,
    ways: Collection[Way],
    *,
    full: bool,
    seed: int,
    only: Sequence[str] = (),
    guest: str = "process",
) -> list[Job]:
    """The cells to carry out.

    Args:
        matrix: all of them.
        ways: how.
        full: all that real processes can show, not a sample; in virtual time it is all in any case.
        seed: of the sample.
        only: names of cells, or globs; these are all carried out, whatever the sample would be.
        guest: what kind of guest moves in real ones.

    Raises:
        ConfigError: there is none.
    """
    cells = [each for each in matrix.cells if not only or any(fnmatchcase(each.name, name) for name in only)]
    if not cells:
        raise ConfigError(
            f"no cell is called {', '.join(only)}: names are STEP/FAULT/STYLE/STORE, * stands for any"
        )
    jobs: list[Job] = []
    if Way.VIRTUAL in ways:
        jobs += [Job(each, Way.VIRTUAL) for each in cells]
    if Way.REAL in ways:
        able = [each for each in cells if real.can_show(each, guest)]
        if not full and not only:
            able = _sample(able, seed)
        jobs += [Job(each, Way.REAL) for each in able]
    if not jobs:
        raise ConfigError(f"nothing can show {', '.join(only)}")
    return jobs


def _sample(cells: list[Cell], seed: int) -> list[Cell]:
    """Some of each fault, and others as they come."""
    mixed = random.Random(seed).sample(cells, len(cells))
    times: Counter[str] = Counter()
    first: list[Cell] = []
    rest: list[Cell] = []
    for cell in mixed:
        times[cell.fault.name] += 1
        (first if times[cell.fault.name] <= EACH else rest).append(cell)
    return [*first, *rest][:SAMPLE]


async def carry_out(
    jobs: Sequence[Job],
    directory: Path,
    on_report: OnReport,
    *,
    at_once: int,
    seed: int,
    keep: Path | None = None,
    guest: str = "process",
    streams: int = 0,
) -> None:
    """Carry cells out, those in virtual time first; each is told of when it is over.

    Args:
        jobs: which.
        directory: empty, with a short path: sockets are made in it.
        on_report: must not block.
        at_once: so many real ones at the same time.
        seed: of what happens first in virtual time where two things could.
        keep: directory for what real cells leave behind that have failed.
        guest: what kind of guest moves in real ones, as `sterna holder --guest` has it.
        streams: data connections of real ones.
    """
    for job in jobs:
        if job.way is Way.VIRTUAL:
            on_report(virtual.run_cell(job.cell, seed))
            await trio.lowlevel.checkpoint()
    hosts = directory / "hosts"
    if any(job.way is Way.REAL for job in jobs):
        await trio.to_thread.run_sync(real.make_hosts, hosts)
    waiting = iter(enumerate(job for job in jobs if job.way is Way.REAL))

    async def work() -> None:
        for number, job in waiting:
            place = directory / str(number)
            place.mkdir()
            report = await real.run_cell(job.cell, place, hosts, guest, streams=streams)
            if keep is not None and not report.passed:
                _keep(place, keep / job.cell.name.replace("/", "."))
            shutil.rmtree(place)
            on_report(report)

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(work)


def _keep(place: Path, kept: Path) -> None:
    """Logs, journal, records, and what was seen; not the sockets."""
    shutil.copytree(place, kept, ignore=shutil.ignore_patterns("*.sock"), dirs_exist_ok=True)
