"""What a benchmark has found: one shape for programs, and tables for people and for `BENCHMARKS.md`."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sterna.cli.output import Output
from sterna.cli.version import versions
from sterna.core.words import count_text, size_text
from sterna.limits import BATCH_BYTES
from sterna_interop.measuring import BARE, BARE_HASH, BARE_HASH_USUAL, BARE_USUAL, COPY, OURS, QEMU, Taken

_NAMES: Final = {
    OURS: "Sterna",
    BARE: "bare",
    BARE_HASH: "bare + hash",
    BARE_USUAL: f"bare, {size_text(BATCH_BYTES)}",
    BARE_HASH_USUAL: f"bare + hash, {size_text(BATCH_BYTES)}",
    QEMU: "QEMU",
    COPY: COPY,
}


_SCALES: Final[Mapping[str, Sequence[tuple[float, str]]]] = {
    "s": ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s")),
    "bytes": ((1.0, "B"), (1 << 10, "KiB"), (1 << 20, "MiB"), (1 << 30, "GiB")),
    "bytes/s": ((1.0, "B/s"), (1e3, "kB/s"), (1e6, "MB/s"), (1e9, "GB/s")),
}


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as people read them, and sentences below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a benchmark has found.

    Ratios to another way are called ``MEASURE_vs_WAY``, and those of the principal measure ``vs_WAY`` too.

    Attributes:
        bench: name of the benchmark.
        runs: turns that were counted.
        taken: the measures.
        principal: the measure that the benchmark is about, if it is about one.
        also: by the name of a measure, another one that its ratios have as well.
        section: name of its table, of a benchmark that has several.
        conditions: by name, what has to be known of how it was measured.
        skipped: by name of a measure, why it was not taken.
    """

    bench: str
    runs: int
    taken: Sequence[Taken]
    principal: str = ""
    also: Mapping[str, str] = field(default_factory=dict)
    section: str = ""
    conditions: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its table; the latest of this name is kept."""
        return self.section or self.bench

    @property
    def missed(self) -> list[str]:
        """Measures whose target, and ratios whose bound was not reached."""
        found = [each.measure.name for each in self.taken if each.met is False]
        return found + [names[0] for names, each, way in self._ratios() if each.keeps(way) is False]

    def _ratios(self) -> Iterator[tuple[list[str], Taken, str]]:
        """With their names, the shortest one first."""
        for each in self.taken:
            name = each.measure.name
            before = [f"{self.also[name]}_", f"{name}_"] if name in self.also else [f"{name}_"]
            before = ["", *before] if name == self.principal else before
            for way in each.values:
                if way != OURS and each.ratios(way):
                    yield [f"{one}vs_{way}" for one in before], each, way

    def fields(self) -> dict[str, object]:
        """As a JSON object."""
        return {
            "bench": self.bench,
            "runs": self.runs,
            "machine": machine(),
            "conditions": dict(self.conditions),
            "measures": {each.measure.name: _fields(each) for each in self.taken},
            "ratios": {
                name: _ratio_fields(each, way) for names, each, way in self._ratios() for name in names
            },
            "skipped": dict(self.skipped),
            "missed": self.missed,
        }

    def show(self, output: Output, *, everything: bool = True) -> None:
        """As a table for people, or as the command's JSON object."""
        table = self.table(everything=everything)
        output.table(table.columns, table.rows, title=table.title)
        if not output.json:
            for note in table.notes:
                output.say(f"  {note}")
        output.result(self.fields())

    def table(self, *, everything: bool = True) -> Table:
        """One line a measure where there is one yardstick only; else one a way."""
        shown = [each for each in self.taken if everything or not each.measure.detail]
        if all(set(each.values) == {OURS, BARE} and each.measure.yardstick for each in shown):
            columns, rows, notes = _narrow(shown)
        else:
            columns, rows, notes = _wide(shown)
        notes += [f"{name}: {text}" for name, text in self.conditions.items()]
        notes += [f"{name} was skipped: {reason}" for name, reason in self.skipped.items()]
        facts = ", ".join(f"{name} {value}" for name, value in machine().items())
        title = f"{self.name}, {count_text(self.runs, 'run')}; {facts}"
        return Table(title, columns, rows, notes)


def machine() -> dict[str, object]:
    """What matters of the machine and can be told."""
    return {
        **versions(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
    }


# ---- for programs ----


def _fields(taken: Taken) -> dict[str, object]:
    measure = taken.measure
    found: dict[str, object] = {
        way: {"median": taken.median(way), "min": min(values), "max": max(values)}
        for way, values in taken.values.items()
    }
    found |= {"unit": measure.unit, "text": measure.text}
    if measure.yardstick:
        found["yardstick"] = measure.yardstick
    if measure.target is not None:
        found |= {"target": measure.target, "met": taken.met}
    return found


def _ratio_fields(taken: Taken, way: str) -> dict[str, object]:
    pairs = taken.ratios(way)
    found: dict[str, object] = {"median": statistics.median(pairs), "pairs": pairs}
    bound = taken.measure.bounds.get(way)
    if bound is not None:
        name = "at_least" if bound.least else "at_most"
        found |= {name: bound.limit, "goal": bound.goal, "met": taken.keeps(way)}
    return found


# ---- for people ----


def _narrow(shown: Sequence[Taken]) -> tuple[list[str], list[list[str]], list[str]]:
    yardsticks = list(dict.fromkeys(each.measure.yardstick for each in shown))
    columns = ["measure", "median", "min-max", BARE, "ratio"]
    rows = [
        [
            each.measure.text,
            *_values(each, OURS),
            f"{_text(each.median(BARE), each.measure.unit)} [{yardsticks.index(each.measure.yardstick) + 1}]",
            f"{statistics.median(each.ratios()):.3g}",
        ]
        for each in shown
    ]
    if any(each.measure.target is not None for each in shown):
        columns.append("target")
        for row, each in zip(rows, shown, strict=True):
            row.append("" if each.met is None else f"{_target(each)}: {'met' if each.met else 'missed'}")
    return columns, rows, [f"[{number}] {text}" for number, text in enumerate(yardsticks, 1)]


def _wide(shown: Sequence[Taken]) -> tuple[list[str], list[list[str]], list[str]]:
    columns = ["measure", "by", "median", "min-max", "ratio", "target"]
    rows = []
    notes = ["ratio: the median of Sterna's by the other's, turn by turn"]
    for each in shown:
        for way in each.values:
            bound = each.measure.bounds.get(way)
            ratios = each.ratios(way) if way != OURS else []
            met = each.keeps(way) if way != OURS else each.met
            target = (_target(each) if way == OURS else "") if bound is None else bound.text
            rows.append(
                [
                    each.measure.text if way == OURS else "",
                    _name(way),
                    *_values(each, way),
                    f"{statistics.median(ratios):.2f}" if ratios else "",
                    target if met is None else f"{target}: {'met' if met else 'missed'}",
                ]
            )
            if bound is not None and ratios:
                pairs = " ".join(f"{ratio:.2f}" for ratio in ratios)
                notes.append(f"{each.measure.text} by {_name(way)}: {pairs}")
    return columns, rows, notes


def _name(way: str) -> str:
    return _NAMES.get(way, way)


def _values(taken: Taken, way: str) -> list[str]:
    unit, values = taken.measure.unit, taken.values[way]
    (scale, name), low, high = _scale(max(values), unit), min(values), max(values)
    spread = [f"{value / scale:.3g}" for value in (low, high)]
    return [_text(taken.median(way), unit), f"{'-'.join(dict.fromkeys(spread))} {name}"]


def _target(taken: Taken) -> str:
    target = taken.measure.target
    return "" if target is None else _text(target, taken.measure.unit)


def _text(value: float, unit: str) -> str:
    """Three digits, whatever the size."""
    scale, name = _scale(value, unit)
    return f"{value / scale:.3g} {name}"


def _scale(value: float, unit: str) -> tuple[float, str]:
    scales = _SCALES[unit]
    return next((each for each in scales if value < 999.5 * each[0]), scales[-1])
