"""Benchmarks of whole transfers: one memory, moved several ways in turns, and what each of them costs.

Time is the principal measure, or the rate that follows from it. Beside it stand the CPU seconds of each side
and of both, for each GiB of the guest, and how much memory each side takes beyond the guest's. That last one
is sampled in turns of their own, whose times do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol, TypeAlias, TypeVar

from cyclopts import Parameter

from sterna.cli.output import Output
from sterna.core.words import rate_text
from sterna_interop.benchmarks_file import check_file, write_section
from sterna_interop.measured import Report
from sterna_interop.measuring import (
    BARE,
    BARE_HASH,
    BARE_HASH_USUAL,
    COPY,
    OURS,
    QEMU,
    Bound,
    Last,
    Measure,
    Taken,
    Way,
    at_most,
    take,
)
from sterna_interop.memories import Memories
from sterna_interop.moving import Moved
from sterna_interop.qemu import program, version

GIB: Final = 1 << 30
WATCHED_RUNS: Final = 3
CPU_BOUND: Final = at_most(1.0, 0.7)
MEMORY_BYTES: Final = 96 << 20

Against: TypeAlias = Annotated[Literal["qemu"] | None, Parameter(show_default=False)]
Write: TypeAlias = Annotated[str | None, Parameter(show_default=False, validator=check_file)]


def need(against: str | None) -> None:
    """Before anything else is done: raise ConfigError unless that is there.

    Raises:
        ConfigError: it is to be measured, and is not installed.
    """
    if against == QEMU:
        program()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """What is to be measured.

    Attributes:
        memories: what is moved.
        ways: by name.
        rate: whether the principal measure is a rate; if not, it is the time.
        bounds: of the principal measure, by the name of the other way.
        copied: whether a plain copy of the memory stands beside it.
        unverified: Sterna without page hashes, which is measured as well, in the same turns.
        unverified_bounds: of its rate or time, by the name of the other way.
    """

    memories: Memories
    ways: Mapping[str, Way[Moved]]
    bounds: Mapping[str, Bound]
    rate: bool = True
    copied: bool = True
    unverified: Way[Moved] | None = None
    unverified_bounds: Mapping[str, Bound] = field(default_factory=dict)

    @property
    def principal(self) -> str:
        """Name of the principal measure."""
        return "goodput" if self.rate else "time"

    def take(self, runs: int, say: Callable[[str], None]) -> list[Taken]:
        """All measures."""
        lasts = {name: Last(way) for name, way in self.ways.items()}
        measures = [self._principal(lasts), *self._cpu(lasts)]
        if self.unverified is not None:
            measures += self._unverified(lasts, Last(self.unverified))
        taken = take(measures, runs, say)
        # Yardsticks do nothing that takes memory.
        watched = {name: last for name, last in lasts.items() if not name.startswith(BARE)}
        measures = memory_measures(watched, self.memories.size)
        return taken + take(measures, min(runs, WATCHED_RUNS), lambda text: say(f"memory: {text}"), warm=True)

    def _figure(self, seconds: float) -> float:
        return self.memories.size / seconds if self.rate else seconds

    def _principal(self, lasts: Mapping[str, Last[Moved]]) -> Measure:
        ways = {name: last.turn(lambda moved: self._figure(moved.seconds)) for name, last in lasts.items()}
        if self.copied:
            ways[COPY] = lambda: self._figure(self.memories.copy())
        unit = "bytes/s" if self.rate else "s"
        return Measure(name=self.principal, text=self.principal, ways=ways, unit=unit, bounds=self.bounds)

    def _unverified(self, lasts: Mapping[str, Last[Moved]], ours: Last[Moved]) -> list[Measure]:
        """Beside what the other ways that hash nothing have done in this turn."""
        others = {
            name: last for name, last in lasts.items() if name not in {OURS, BARE_HASH, BARE_HASH_USUAL}
        }
        gib = self.memories.size / GIB

        def seconds(moved: Moved) -> float:
            return self._figure(moved.seconds)

        def cpu_s(moved: Moved) -> float:
            return sum(moved.cpu_s) / gib

        return [
            Measure(
                name="unverified",
                text=f"{self.principal}, unverified",
                ways={OURS: ours.turn(seconds)} | {name: last.told(seconds) for name, last in others.items()},
                unit="bytes/s" if self.rate else "s",
                bounds=self.unverified_bounds,
            ),
            Measure(
                name="unverified_cpu",
                text="  CPU, a GiB",
                ways={OURS: ours.told(cpu_s)} | {name: last.told(cpu_s) for name, last in others.items()},
            ),
        ]

    def _cpu(self, lasts: Mapping[str, Last[Moved]]) -> list[Measure]:
        gib = self.memories.size / GIB
        figures: Mapping[str, tuple[str, Callable[[Moved], float]]] = {
            "cpu": ("CPU, a GiB", lambda moved: sum(moved.cpu_s) / gib),
            "cpu_source": ("  source", lambda moved: moved.cpu_s[0] / gib),
            "cpu_destination": ("  destination", lambda moved: moved.cpu_s[1] / gib),
        }
        return [
            Measure(
                name=name,
                text=text,
                ways={way: last.told(figure) for way, last in lasts.items()},
                bounds={QEMU: CPU_BOUND} if name == "cpu" else {},
            )
            for name, (text, figure) in figures.items()
        ]


class Watched(Protocol):
    """What a watched turn gives."""

    @property
    def peak_bytes(self) -> tuple[int, int]:
        """The most that each side had beyond the guest's memory and beyond what it had before."""
        ...


W = TypeVar("W", bound=Watched)


def memory_measures(lasts: Mapping[str, Last[W]], guest_bytes: int, of: str = "") -> list[Measure]:
    """What each side takes beyond the guest's memory, in turns of their own that are watched.

    `of`: what memory it is, if there is more than one kind.
    """
    target = MEMORY_BYTES + guest_bytes // 100
    prefix = f"memory_{of}_" if of else "memory_"

    def peak(side: int) -> Callable[[W], float]:
        return lambda moved: moved.peak_bytes[side]

    return [
        Measure(
            name=f"{prefix}source",
            text=f"memory, source{of and ', '}{of}",
            ways={name: last.turn(peak(0), watched=True) for name, last in lasts.items()},
            unit="bytes",
            target=target,
        ),
        Measure(
            name=f"{prefix}destination",
            text="  destination",
            ways={name: last.told(peak(1)) for name, last in lasts.items()},
            unit="bytes",
            target=target,
        ),
    ]


def write_to(report: Report, path: str | None, output: Output) -> None:
    """Show it, and put its table into a file if there is one."""
    report.show(output)
    if path is not None:
        write_section(report, Path(path), output)


def best_of_qemu(taken: Sequence[Taken], ways: Sequence[str]) -> tuple[list[Taken], str]:
    """Only that one of QEMU's ways which the first measure shows as the better one; and a sentence."""
    first = taken[0]
    better = max if first.measure.unit == "bytes/s" else min
    chosen = better(ways, key=first.median)
    unit = first.measure.unit
    medians = ", ".join(
        f"{name} {rate_text(first.median(name)) if unit == 'bytes/s' else f'{first.median(name):.3f} s'}"
        for name in ways
    )
    text = (
        f"{version()}, memory-backend-file of the same memory, share and prealloc on, bandwidth unlimited; "
        f"the best by its median: {medians}"
    )
    return [each.best(QEMU, ways, chosen) for each in taken], text
