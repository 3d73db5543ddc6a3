"""What all benchmarks share: taking turns, medians, and one shape for people and programs.

A figure of a machine means little by itself, and one of another minute as little: other work comes and goes,
clocks change. So every measure is taken several ways, Sterna's and a yardstick's at least, in turns within
one run, and what counts is the median of the ratios, turn by turn.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Final, TypeAlias

from cyclopts import Parameter
from cyclopts.validators import Number

from sterna.cli.output import Output
from sterna.cli.version import versions
from sterna.core.words import rate_text

RUNS_MAX: Final = 1000
Runs = Annotated[int, Parameter(validator=Number(gte=1, lte=RUNS_MAX))]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]

OURS: Final = "sterna"
BARE: Final = "bare"

# One turn: does the work, and returns what was measured, in the measure's unit.
Turn: TypeAlias = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Something that is done in several ways.

    Attributes:
        name: in JSON.
        text: for people.
        ways: by name, what a turn of each is; one is `OURS`.
        yardstick: what `BARE` does, for people.
        unit: ``s`` or ``bytes/s``.
        target: what the median is to be at most (``s``) or at least (``bytes/s``).
        detail: of interest to those who ask for everything.
    """

    name: str
    text: str
    ways: Mapping[str, Turn]
    yardstick: str
    unit: str = "s"
    target: float | None = None
    detail: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """A measure with what its turns gave, in their order."""

    measure: Measure
    values: Mapping[str, Sequence[float]]

    def median(self, way: str = OURS) -> float:
        """Of one way's turns."""
        return statistics.median(self.values[way])

    def ratios(self, way: str = BARE) -> list[float]:
        """Ours by another's, turn by turn."""
        return [a / b for a, b in zip(self.values[OURS], self.values[way], strict=True)]

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None if there is none."""
        target = self.measure.target
        if target is None:
            return None
        return self.median() <= target if self.measure.unit == "s" else self.median() >= target


def take(measures: Sequence[Measure], runs: int, say: Callable[[str], None]) -> list[Taken]:
    """Take all measures in turns; a first turn of each warms up and is not counted."""
    values = {each.name: {way: list[float]() for way in each.ways} for each in measures}
    for run in range(runs + 1):
        say("warming up" if run == 0 else f"run {run} of {runs}")
        for each in measures:
            for way, turn in each.ways.items():
                value = turn()
                if run:
                    values[each.name][way].append(value)
    return [Taken(each, values[each.name]) for each in measures]


@contextmanager
def progress(output: Output) -> Iterator[Callable[[str], None]]:
    """Where to say how far it is, for somebody who watches."""
    if not output.live:
        yield lambda _: None
        return
    from rich.live import Live

    # Without a thread that draws: it would be other work, and there are measures that fork.
    with Live("", console=output.console, auto_refresh=False, transient=True) as live:
        yield lambda text: live.update(text, refresh=True)


@dataclass(slots=True)
class CpuTime:
    """A turn that measures the CPU seconds of one call of `work` in this thread.

    Attributes:
        work: what is to be measured. It is called as often as it takes to fill `least_s`.
        least_s: time that is long beside what the clock cannot tell apart.
    """

    work: Callable[[], object]
    least_s: float = 0.01
    _calls: int = field(default=1, init=False)

    def __call__(self) -> float:
        """Seconds a call, on average."""
        while True:
            work = self.work
            begin = time.thread_time()
            for _ in range(self._calls):
                work()
            spent_s = time.thread_time() - begin
            if spent_s >= self.least_s:
                return spent_s / self._calls
            self._calls = max(2 * self._calls, int(self._calls * self.least_s / max(spent_s, 1e-9)) + 1)
            self._calls = min(self._calls, 1 << 24)


# ---- the outcome ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a benchmark has found.

    Attributes:
        bench: name of the benchmark.
        runs: turns that were counted.
        taken: the measures.
        skipped: by name of a measure, why it was not taken.
    """

    bench: str
    runs: int
    taken: Sequence[Taken]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def missed(self) -> list[str]:
        """Measures whose target was not reached."""
        return [each.measure.name for each in self.taken if each.met is False]

    def fields(self) -> dict[str, object]:
        """As a JSON object."""
        ratios: dict[str, dict[str, object]] = {}
        for each in self.taken:
            for way in each.values:
                if way != OURS:
                    pairs = each.ratios(way)
                    found = {"median": statistics.median(pairs), "pairs": pairs}
                    ratios.setdefault(f"vs_{way}", {})[each.measure.name] = found
        return {
            "bench": self.bench,
            "runs": self.runs,
            "machine": machine(),
            "measures": {each.measure.name: _fields(each) for each in self.taken},
            "ratios": ratios,
            "skipped": dict(self.skipped),
            "missed": self.missed,
        }

    def show(self, output: Output, *, everything: bool = True) -> None:
        """As a table for people, or as the command's JSON object."""
        shown = [each for each in self.taken if everything or not each.measure.detail]
        yardsticks = list(dict.fromkeys(each.measure.yardstick for each in shown))
        columns = ["measure", "median", "min to max", BARE, "ratio"]
        if any(each.measure.target is not None for each in shown):
            columns.append("target")
        rows = [_row(each, yardsticks.index(each.measure.yardstick) + 1) for each in shown]
        runs = f"{self.runs} run{'s' * (self.runs > 1)}"
        output.table(
            columns,
            [row[: len(columns)] for row in rows],
            title=f"{self.bench}, {runs}; "
            + ", ".join(f"{name} {value}" for name, value in machine().items()),
        )
        if not output.json:
            for number, text in enumerate(yardsticks, 1):
                output.say(f"  [{number}] {text}")
            for name, reason in self.skipped.items():
                output.say(f"  {name} was skipped: {reason}")
        output.result(self.fields())


def machine() -> dict[str, object]:
    """The conditions that matter and can be told."""
    return {
        **versions(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def _fields(taken: Taken) -> dict[str, object]:
    measure = taken.measure
    found: dict[str, object] = {
        way: {"median": taken.median(way), "min": min(values), "max": max(values)}
        for way, values in taken.values.items()
    }
    found |= {"unit": measure.unit, "text": measure.text, "yardstick": measure.yardstick}
    if measure.target is not None:
        found |= {"target": measure.target, "met": taken.met}
    return found


def _row(taken: Taken, yardstick: int) -> tuple[str, ...]:
    measure, ours = taken.measure, taken.values[OURS]

    def text(value: float) -> str:
        return _text(value, measure.unit)

    target = ""
    if measure.target is not None:
        target = f"{text(measure.target)}: {'met' if taken.met else 'missed'}"
    return (
        measure.text,
        text(taken.median()),
        f"{text(min(ours))} to {text(max(ours))}",
        f"{text(taken.median(BARE))} [{yardstick}]",
        f"{statistics.median(taken.ratios()):.3g}",
        target,
    )


def _text(value: float, unit: str) -> str:
    """Three digits, whatever the size."""
    if unit != "s":
        return rate_text(value)
    for scale, name in ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s")):
        if value < 999.5 * scale or name == "s":
            return f"{value / scale:.3g} {name}"
    raise AssertionError
