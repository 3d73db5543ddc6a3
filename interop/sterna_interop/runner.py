"""Runs cases, so many at a time, and makes verdicts of what is left of the shims.

Nothing that a shim does can make the runner fail: it ends every process, bounds everything that it reads,
and turns what it sees into a verdict. What goes wrong in the kit itself is the verdict `kit_error`.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import trio

from sterna.errors import ConfigError
from sterna_interop.case import Unexpected
from sterna_interop.contract import Role
from sterna_interop.credentials import Credentials
from sterna_interop.implementations import Implementation
from sterna_interop.process import Ended
from sterna_interop.results import CaseResult, Verdict
from sterna_interop.start import Start, Zygote, program

WAITS_AFTER_S: Final = 0.5  # most cells are over by then
WAITING_EACH: Final = 2  # cells that wait, for each that works: they may have to do something yet


@dataclass(frozen=True, slots=True)
class Settings:
    """What all cases of a run share.

    Attributes:
        directory: where each case gets a directory of its own.
        zygotes: by module of a shim that is in this package.
    """

    directory: Path
    credentials: Credentials
    seed: int = 1
    zygotes: Mapping[str, Zygote] = field(default_factory=dict)

    def place(self, blank: CaseResult) -> Path:
        """The directory of a cell, which makes it."""
        parts = (blank.case, blank.source, blank.destination, blank.transport)
        return self.directory / "-".join(parts)

    def starts(self, implementation: Implementation) -> Start:
        """How this one's shim is started."""
        zygote = self.zygotes.get(implementation.module)
        return program(implementation.command) if zygote is None else zygote.start


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to be run.

    Attributes:
        blank: what its result says of itself before it has run.
        directory: what it leaves there.
    """

    blank: CaseResult
    run: Callable[[], Awaitable[CaseResult]]
    directory: Path | None = None


async def run_cells(
    cells: Sequence[Cell], *, jobs: int, on_result: Callable[[CaseResult], None]
) -> list[CaseResult]:
    """Run all of them, so many at a time; results in the order of `cells`.

    A cell that has run for `WAITS_AFTER_S` does hardly anything but wait, for a deadline say: another one may
    run beside it.

    Raises:
        ConfigError: in a group: a shim's command cannot be started.
    """
    results: list[CaseResult | None] = [None] * len(cells)
    working, waiting = trio.Semaphore(jobs), trio.Semaphore(WAITING_EACH * jobs)

    async def one(index: int, cell: Cell) -> None:
        await working.acquire()
        place = _Place(working)
        nursery.start_soon(place.change, waiting)
        results[index] = result = await _guarded(cell)
        place.leave()
        on_result(result)

    async with trio.open_nursery() as nursery:
        for index, cell in enumerate(cells):
            nursery.start_soon(one, index, cell)
    return [result for result in results if result is not None]


class _Place:
    """What a cell holds of how many may run.

    Args:
        held: what it has acquired.
    """

    def __init__(self, held: trio.Semaphore) -> None:
        self._held = held
        self._scope: Final = trio.CancelScope()

    async def change(self, waiting: trio.Semaphore) -> None:
        """Have a place among those that wait, as soon as this cell has run for long and there is one."""
        with self._scope:
            await trio.sleep(WAITS_AFTER_S)
            await waiting.acquire()
            if not self._scope.cancel_called:  # the cell has not left meanwhile
                self._held, waiting = waiting, self._held
            waiting.release()

    def leave(self) -> None:
        """The cell has run."""
        self._scope.cancel()
        self._held.release()


async def _guarded(cell: Cell) -> CaseResult:
    began = time.monotonic()
    try:
        result = await cell.run()
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001 - whatever it is, it is ours, and the other cases go on
        result = replace(cell.blank, verdict=Verdict.KIT_ERROR, detail=traceback.format_exc(limit=-8))
    return replace(result, duration_ms=round((time.monotonic() - began) * 1000))


def judged(result: CaseResult, unexpected: Unexpected | None) -> CaseResult:
    """The result with its verdict, when something could be judged."""
    if unexpected is None:
        return replace(result, verdict=Verdict.PASS)
    return replace(result, verdict=Verdict.FAIL, expected=unexpected.expected, actual=unexpected.actual)


def not_judged(result: CaseResult, sides: Mapping[Role, Ended]) -> CaseResult | None:
    """The result if a shim has left nothing to be judged: not supported, crashed, failed, hanging."""
    for role, ended in sides.items():
        if not ended.supported:
            return replace(result, verdict=Verdict.UNSUPPORTED, detail=f"the {role} does not know this")
    troubles = [
        (not trouble[0], ended.dialled, role, trouble[1])
        for role, ended in sides.items()
        if (trouble := ended.trouble) is not None
    ]
    if not troubles:
        return None
    # A crash explains the other side's trouble, and so does one that never came.
    calm, _, role, text = min(troubles)
    return replace(result, verdict=Verdict.FAIL if calm else Verdict.CRASH, detail=f"{role}: {text}")


RECORDING: Final = "recording"


def artifacts(sides: Mapping[Role, Ended], directory: Path) -> dict[str, str]:
    """What the shims printed and reported, and how to look at what passed between them."""
    texts = {}
    if (directory / RECORDING).exists():
        texts[RECORDING] = f"sterna inspect {directory / RECORDING}"
    for role, ended in sides.items():
        report = "" if ended.report is None else ended.report.to_json()
        for name, text in (("stdout", ended.stdout), ("stderr", ended.stderr), ("result.json", report)):
            if text:
                texts[f"{role} {name}"] = text
    return texts
