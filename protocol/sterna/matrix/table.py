"""The failure matrix as spec/matrix.toml has it: rules there, cells here.

A *cell* is a fault at a step of a migration, in one style of switchover, with or without a lease store. The
last rule that fits a cell says what must come of it. Who carries cells out asks `Expected.accepts` what a
side may say of it, and looks for himself who runs the guest.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Final

from sterna.core.events import Outcome
from sterna.errors import ConfigError
from sterna.registry import ErrorCode, Style

_PACKAGE: Final = Path(__file__).parent / "matrix.toml"  # a wheel has it here
_TREE: Final = Path(__file__).parents[3] / "spec" / "matrix.toml"

STYLES: Final = (Style.STOP_AND_COPY, Style.BITMAP, Style.POST_COPY)


class Survivor(StrEnum):
    """Who runs the guest in the end."""

    SOURCE = "source"
    DESTINATION = "destination"
    LOST = "lost"


class Recovery(StrEnum):
    """What it takes."""

    ITSELF = "itself"
    RETURN = "return"
    OPERATOR = "operator"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Step:
    """A named point of a migration.

    Attributes:
        stop: where an endpoint stops, as sterna.host.failpoint reads it.
        side: whose endpoint.
        stop_with_store: where it does if there is a store; empty if that is the same place.
        fails: a request of an endpoint that fails of itself and leads there; empty if none has to.
        styles: in which the step exists.
    """

    name: str
    stop: str
    side: Survivor
    text: str
    styles: frozenset[Style] = frozenset(STYLES)
    stop_with_store: str = ""
    fails: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens there.

    Attributes:
        back: how what failed comes back, in words.
        store: in which of the two cases it can happen: with a store, without.
    """

    name: str
    text: str
    back: str
    store: frozenset[bool] = frozenset({False, True})


@dataclass(frozen=True, slots=True)
class Told:
    """One way in which a session may end at a side: its outcome, and the codes that it may bear.

    Attributes:
        codes: empty for any and for none.
        names: of codes and of groups of them, as the file has it.
    """

    outcome: str
    codes: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Expected:
    """What must come of a cell.

    Attributes:
        runs: who may run the guest in the end; if there are several, a race decides.
        source: how the session may end there; empty if its endpoint was killed.
        destination: likewise.
        resumes: sessions are opened with `resume`, and end as completed.
    """

    runs: frozenset[Survivor]
    source: tuple[Told, ...]
    destination: tuple[Told, ...]
    recovery: Recovery
    clauses: tuple[str, ...]
    resumes: bool = False

    def accepts(self, side: Survivor, outcome: str, code: str | None) -> bool:
        """Whether a session may have ended so at this side."""
        ways = self.source if side is Survivor.SOURCE else self.destination
        return any(outcome == each.outcome and (not each.codes or code in each.codes) for each in ways)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell. Its name is how people and `sterna matrix --only` call it."""

    step: Step
    fault: Fault
    style: Style
    store: bool
    expected: Expected

    def accepts(self, side: Survivor, outcome: str, code: str | None) -> bool:
        """Whether the session may have ended so at this side. Moved without all pages, it is stranded."""
        strands = self.style is not Style.STOP_AND_COPY and outcome == Outcome.STRANDED
        return self.expected.accepts(side, Outcome.MOVED.value if strands else outcome, code)

    @property
    def stop(self) -> str:
        """Where the step's endpoint stops."""
        return (self.store and self.step.stop_with_store) or self.step.stop

    @property
    def name(self) -> str:
        """Step, fault, style, and whether there is a store."""
        kept = "store" if self.store else "no_store"
        return f"{self.step.name}/{self.fault.name}/{self.style.name.lower()}/{kept}"


@dataclass(frozen=True, slots=True)
class Matrix:
    """All of it, in the order of the file.

    Attributes:
        groups: of codes, by the name under which cells have them.
    """

    groups: Mapping[str, tuple[str, ...]]
    steps: tuple[Step, ...]
    faults: tuple[Fault, ...]
    cells: tuple[Cell, ...]


def matrix_path() -> Path:
    """Where the table is.

    Raises:
        ConfigError: this installation lacks it.
    """
    for path in (_PACKAGE, _TREE):
        if path.is_file():
            return path
    raise ConfigError(f"{_PACKAGE} is missing: install sterna again")


@cache
def load() -> Matrix:
    """The matrix of this release.

    Raises:
        ConfigError: it is missing.
        ValueError: it contradicts itself.
    """
    return parse(matrix_path().read_text(encoding="utf-8"))


def parse(text: str) -> Matrix:
    """Cells from rules.

    Raises:
        ValueError: a rule names what there is not or fits no cell, or a cell has no rule.
    """
    table = tomllib.loads(text)
    steps = tuple(_step(name, fields) for name, fields in table["steps"].items())
    faults = tuple(_fault(name, fields) for name, fields in table["faults"].items())
    rules = [_Rule.of(fields, steps, faults, table["codes"]) for fields in table["rule"]]
    cells = tuple(_cells(steps, faults, rules))
    if idle := [rule.where for rule in rules if not any(rule.is_of(cell) for cell in cells)]:
        raise ValueError(f"rules that decide nothing: {', '.join(idle)}")
    groups = {name: tuple(codes) for name, codes in table["codes"].items()}
    return Matrix(groups, steps, faults, cells)


def _step(name: str, fields: Mapping[str, Any]) -> Step:
    side, store = Survivor(fields["side"]), fields.get("stop_with_store", "")
    return Step(name, fields["stop"], side, fields["text"], _styles(fields), store, fields.get("fails", ""))


def _fault(name: str, fields: Mapping[str, Any]) -> Fault:
    return Fault(name, fields["text"], fields["back"], frozenset(fields.get("store", (False, True))))


def _styles(fields: Mapping[str, Any]) -> frozenset[Style]:
    names = fields.get("styles")
    return frozenset(STYLES if names is None else (Style[name.upper()] for name in names))


@dataclass(frozen=True, slots=True)
class _Rule:
    """Which cells, and what must come of them."""

    where: str
    fault: Fault
    steps: tuple[Step, ...]
    styles: frozenset[Style]
    store: frozenset[bool]
    expected: Expected

    @classmethod
    def of(
        cls,
        fields: Mapping[str, Any],
        steps: tuple[Step, ...],
        faults: tuple[Fault, ...],
        groups: Mapping[str, list[str]],
    ) -> _Rule:
        where = f"{fields['fault']} at {fields['steps']}"
        first, _, last = fields["steps"].partition("..")
        names = [step.name for step in steps]
        begin, end = names.index(first), names.index(last or first)
        if end < begin:
            raise ValueError(f"{where}: in the wrong order")
        store = fields.get("store")
        runs = fields["runs"]
        expected = Expected(
            frozenset(map(Survivor, [runs] if isinstance(runs, str) else runs)),
            _told(fields["source"], groups),
            _told(fields["destination"], groups),
            Recovery(fields["recovery"]),
            tuple(fields["clauses"]),
            resumes=fields.get("resume", False),
        )
        return cls(
            where,
            next(fault for fault in faults if fault.name == fields["fault"]),
            steps[begin : end + 1],
            _styles(fields),
            frozenset((False, True) if store is None else (store,)),
            expected,
        )

    def fits(self, step: Step, fault: Fault, style: Style, store: bool) -> bool:
        return fault == self.fault and step in self.steps and style in self.styles and store in self.store

    def is_of(self, cell: Cell) -> bool:
        return cell.expected is self.expected


def _told(text: str, groups: Mapping[str, list[str]]) -> tuple[Told, ...]:
    """`moved lost / rolled_back stale_epoch` as two ways; of `nothing` there are none."""
    if text == "nothing":
        return ()
    ways = []
    for way in text.split("/"):
        outcome, *names = way.split()
        codes = {code for name in names for code in groups.get(name, [name])}
        if unknown := [code for code in codes if code.upper() not in ErrorCode.__members__]:
            raise ValueError(f"no such code: {', '.join(sorted(unknown))}")
        ways.append(Told(Outcome(outcome).value, frozenset(codes), tuple(names)))
    return tuple(ways)


def _cells(steps: tuple[Step, ...], faults: tuple[Fault, ...], rules: list[_Rule]) -> Iterator[Cell]:
    for step in steps:
        for fault in faults:
            for style in STYLES:
                for store in (False, True):
                    if style in step.styles and store in fault.store:
                        fitting = [rule for rule in rules if rule.fits(step, fault, style, store)]
                        if not fitting:
                            raise ValueError(f"{fault.name} at {step.name} in {style.name}: no rule")
                        yield Cell(step, fault, style, store, fitting[-1].expected)
