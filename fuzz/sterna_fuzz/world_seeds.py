"""Seeds of the world by the thousand: shared out to processes, summed up, and failures explained."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from sterna.core.words import count_text
from sterna.sim.defects import Defect
from sterna.sim.seeded import Mishap, Tally, minimised, play, run_seed, script_of

PROGRESS_S: Final = 5.0
PORTION: Final = 25  # seeds that a process does before it reports
EXPLAINED: Final = 5  # failing seeds that are looked into; each takes dozens of runs


@dataclass(frozen=True, slots=True)
class Explained:
    """A seed that fails.

    Attributes:
        error: what is wrong.
        mishaps: as few of what goes wrong in it as still make it fail.
    """

    seed: int
    error: str
    mishaps: tuple[Mishap, ...]


@dataclass(slots=True)
class Findings:
    """What came of all seeds."""

    tally: Tally = field(default_factory=Tally)
    explained: list[Explained] = field(default_factory=list)
    seconds: float = 0.0


def run_seeds(
    first: int, count: int, jobs: int, say: Callable[[str], None], defects: frozenset[Defect] = frozenset()
) -> Findings:
    """Play the seeds from `first` on.

    Args:
        first: the first one.
        count: how many.
        jobs: processes.
        say: is told every few seconds how far it is.
        defects: what endpoints do wrong, for who wants to see it found.
    """
    found, started = Findings(), time.monotonic()
    said = started
    portions = [range(at, min(at + PORTION, first + count)) for at in range(first, first + count, PORTION)]
    for tally in _played(portions, jobs, defects):
        found.tally.add(tally)
        now = time.monotonic()
        if now - said >= PROGRESS_S:
            said = now
            say(f"  {count_text(found.tally.seeds, 'seed')} in {now - started:.0f} s")
    found.tally.failures.sort()
    found.explained = [explain(each.seed, defects) for each in found.tally.failures[:EXPLAINED]]
    found.seconds = time.monotonic() - started
    return found


def _played(portions: Sequence[range], jobs: int, defects: frozenset[Defect]) -> Iterator[Tally]:
    work = partial(portion, defects=defects)
    if jobs == 1 or len(portions) == 1:
        yield from map(work, portions)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, portions)


def portion(seeds: range, defects: frozenset[Defect]) -> Tally:
    """Play some seeds."""
    tally = Tally()
    for seed in seeds:
        tally.add(run_seed(seed, defects))
    return tally


def explain(seed: int, defects: frozenset[Defect] = frozenset()) -> Explained:
    """What little makes a failing seed fail."""
    script = script_of(seed)

    def fails(mishaps: Sequence[Mishap]) -> bool:
        return bool(play(replace(script, mishaps=tuple(mishaps)), defects).failures)

    fewest = () if fails(()) else minimised(script, fails)
    (failure, *_) = play(replace(script, mishaps=fewest), defects).failures
    return Explained(seed, failure.error, fewest)
