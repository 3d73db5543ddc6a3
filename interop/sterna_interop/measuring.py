"""What all benchmarks share: taking turns, medians and ratios.

A figure of a machine means little by itself, and one of another minute as little: other work comes and goes,
clocks change. So every measure is taken several ways, Sterna's and a yardstick's at least, in turns within
one run, and what counts is the median of the ratios, turn by turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Final, Generic, Protocol, TypeAlias, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number

from sterna.cli.output import Output

RUNS_MAX: Final = 1000
Runs = Annotated[int, Parameter(validator=Number(gte=1, lte=RUNS_MAX))]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]

# Names of ways, as JSON has them.
OURS: Final = "sterna"
BARE: Final = "bare"
BARE_HASH: Final = "bare_hash"
# With the batches that Sterna has where it has no larger ones: these loops are faster with them.
BARE_USUAL: Final = "bare_usual"
BARE_HASH_USUAL: Final = "bare_hash_usual"
QEMU: Final = "qemu"
COPY: Final = "memcpy"

# One turn: does the work, and returns what was measured, in the measure's unit.
Turn: TypeAlias = Callable[[], float]


M_co = TypeVar("M_co", covariant=True)
M = TypeVar("M")


class Way(Protocol[M_co]):
    """A way to move a guest."""

    def move(self, *, watched: bool = False) -> M_co:
        """Once. A watched turn tells its memory, and takes longer."""
        ...


class Last(Generic[M]):
    """A way of moving, and what its last turn gave."""

    def __init__(self, way: Way[M]) -> None:
        self._way = way
        self._moved: M | None = None

    def turn(self, figure: Callable[[M], float], *, watched: bool = False) -> Turn:
        """Move, and tell this."""

        def move() -> float:
            self._moved = self._way.move(watched=watched)
            return figure(self._moved)

        return move

    def told(self, figure: Callable[[M], float]) -> Turn:
        """Tell this of the last turn; there was one."""

        def tell() -> float:
            assert self._moved is not None
            return figure(self._moved)

        return tell


@dataclass(frozen=True, slots=True)
class Bound:
    """What the median of ratios, ours by another's, is to keep.

    Attributes:
        limit: what it must keep.
        goal: what it should.
        least: whether more is better.
    """

    limit: float
    goal: float
    least: bool

    @property
    def text(self) -> str:
        """For people."""
        return f"{'≥' if self.least else '≤'} {self.limit:.3g}"

    def met(self, value: float) -> bool:
        """Whether this value keeps the limit."""
        return value >= self.limit if self.least else value <= self.limit


def at_least(limit: float, goal: float) -> Bound:
    """More is better."""
    return Bound(limit, goal, least=True)


def at_most(limit: float, goal: float) -> Bound:
    """Less is better."""
    return Bound(limit, goal, least=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Something that is done in several ways.

    Attributes:
        name: in JSON.
        text: for people.
        ways: by name, what a turn of each is; one is `OURS`.
        yardstick: what `BARE` does, for people.
        unit: ``s``, ``bytes`` or ``bytes/s``.
        target: what the median is to be at most (``s``, ``bytes``) or at least (``bytes/s``).
        bounds: by the name of another way, what the ratio to it is to keep.
        detail: of interest to those who ask for everything.
    """

    name: str
    text: str
    ways: Mapping[str, Turn]
    yardstick: str = ""
    unit: str = "s"
    target: float | None = None
    bounds: Mapping[str, Bound] = field(default_factory=dict)
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
        """Ours by another's, turn by turn; empty where the other has nothing."""
        if not all(self.values[way]):
            return []
        return [a / b for a, b in zip(self.values[OURS], self.values[way], strict=True)]

    def keeps(self, way: str) -> bool | None:
        """Whether the ratio to this way is within its bound; None if there is none."""
        bound, ratios = self.measure.bounds.get(way), self.ratios(way)
        return None if bound is None or not ratios else bound.met(statistics.median(ratios))

    def best(self, name: str, of: Sequence[str], chosen: str) -> Taken:
        """With the `chosen` one of several ways under this name, and without the others."""
        kept = {way: values for way, values in self.values.items() if way not in of}
        if chosen in self.values:
            kept[name] = self.values[chosen]
        return Taken(self.measure, kept)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None if there is none."""
        target = self.measure.target
        if target is None:
            return None
        return self.median() >= target if self.measure.unit == "bytes/s" else self.median() <= target


def take(
    measures: Sequence[Measure],
    runs: int,
    say: Callable[[str], None],
    *,
    warm: bool = False,
) -> list[Taken]:
    """Take all measures in turns.

    Each run goes through a measure's ways in the order contrary to that of the one before: what a way leaves
    behind for the next one, in caches or in the kernel, is the same for all then.

    Args:
        measures: what is measured.
        runs: how often.
        say: told how far it is.
        warm: whether all is warm; otherwise a first turn of each warms up and is not counted.
    """
    values = {each.name: {way: list[float]() for way in each.ways} for each in measures}
    for run in range(1 if warm else 0, runs + 1):
        where = "warming up" if run == 0 else f"run {run} of {runs}"
        for each in measures:
            ways = list(each.ways.items())
            for way, turn in reversed(ways) if run % 2 else ways:
                say(f"{where}: {way}")
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
