"""`sterna fuzz handover`: every interleaving of a handover, with up to so many faults."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number

from sterna.cli.exits import Exit
from sterna.cli.output import Output
from sterna.cli.units import Json
from sterna.core.policy import Switchover
from sterna.core.words import count_text
from sterna.errors import ConfigError
from sterna.sim.defects import Defect
from sterna.sim.explore import FAULTS, KINDS, Explored, explore, told
from sterna.sim.faults import Fault

FAULTS_MAX: Final = 8
PROGRESS_S: Final = 5.0
_BOTH: Final = (True, False)


@dataclass(frozen=True, slots=True)
class What:
    """What is explored, with a store and without one."""

    faults: int
    kinds: tuple[Fault, ...]
    defects: frozenset[Defect]
    switchover: Switchover
    resume: bool
    rounds: bool
    plain: bool


Flag = Annotated[bool | None, Parameter(negative="--no-store", show_default=False)]


def handover(
    *,
    faults: Annotated[int, Parameter(validator=Number(gte=0, lte=FAULTS_MAX))] = 2,
    store: Flag = None,
    jobs: Annotated[int, Parameter(validator=Number(gte=1, lte=2))] = 1,
    kind: Annotated[tuple[Fault, ...], Parameter(negative=(), show_default=False)] = (),
    switchover: Switchover = "stop-and-copy",
    resume: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    rounds: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    defect: Annotated[tuple[Defect, ...], Parameter(negative=(), show_default=False)] = (),
    plain: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    json: Json = False,
) -> int:
    """Every interleaving of a handover, from LOADED or the first round on, with up to so many faults.

    Args:
        faults: how many there may be; each one more makes it some thirty times as many states.
        store: with a lease store only, or without one only; both, if nothing is said.
        jobs: processes; one looks at hosts with a store, one at hosts without.
        kind: of the faults; may be given several times; all but opened-anew, if none is.
        switchover: of the migration; post-copy: all pages follow the guest.
        resume: sessions outlive connections, and whoever is started again takes his session up.
        rounds: begin in the first round of a migration, and not at LOADED.
        defect: let endpoints do this wrong, to see it found; may be given several times.
        plain: carry every step out in every state, to compare; it is many times slower.
        json: one JSON object on stdout.
    """
    output, started = Output(json=json), time.monotonic()
    stores = _BOTH if store is None else (store,)
    kinds = kind or FAULTS
    if stray := sorted(set(kinds) - set(KINDS)):
        raise ConfigError(f"--kind {stray[0]}: no step of an exploration; it knows {', '.join(KINDS)}")
    output.say(f"handover: every interleaving with up to {count_text(faults, 'fault')}{_of(kind)}")
    what = What(faults, kinds, frozenset(defect), switchover, resume, rounds, plain)
    found = list(_run(what, stores, jobs, output.say))
    seconds = time.monotonic() - started
    _tell(found, what, seconds, output)
    return Exit.FAILED if any(each.violation is not None for each in found) else Exit.OK


def _run(what: What, stores: tuple[bool, ...], jobs: int, say: Callable[[str], None]) -> Iterator[Explored]:
    if jobs > 1 and len(stores) > 1:
        yield from _beside(what, stores, say)
        return
    for store in stores:
        yield _explored(what, store, lambda found: say(f"  {_words(found)}"))


def _beside(what: What, stores: tuple[bool, ...], say: Callable[[str], None]) -> Iterator[Explored]:
    """Each in a process of its own, which notes how far it is."""
    spawn = multiprocessing.get_context("spawn")
    far, started = spawn.Array("Q", len(stores)), time.monotonic()
    with ProcessPoolExecutor(len(stores), spawn, partial(_begin, far)) as pool:
        both = [pool.submit(_noted, what, store, number) for number, store in enumerate(stores)]
        while wait(both, timeout=PROGRESS_S).not_done:
            counts = " and ".join(str(count) for count in far[:])
            say(f"  with a lease store and without one: {counts} states, {time.monotonic() - started:.0f} s")
        yield from (each.result() for each in both)


_noting: Final[list[SynchronizedArray[int]]] = []
"""In a process of its own: where to note how many states there are."""


def _begin(far: SynchronizedArray[int]) -> None:
    _noting.append(far)


def _noted(what: What, store: bool, number: int) -> Explored:
    def note(found: Explored) -> None:
        _noting[-1][number] = found.states

    found = _explored(what, store, note)
    note(found)
    return found


def _explored(what: What, store: bool, say: Callable[[Explored], None]) -> Explored:
    try:
        return explore(
            store=store,
            faults=what.faults,
            kinds=what.kinds,
            defects=what.defects,
            switchover=what.switchover,
            resume=what.resume,
            rounds=what.rounds,
            plain=what.plain,
            say=say,
        )
    except OverflowError as error:  # there is more to be met than has a number
        raise ConfigError(str(error)) from error


def _of(kinds: tuple[Fault, ...]) -> str:
    return f" of {', '.join(each.value for each in kinds)}" if kinds else ""


def _words(found: Explored) -> str:
    where = "with a lease store" if found.store else "without a lease store"
    met = f"{count_text(found.states, 'state')}, {count_text(found.steps, 'step')}"
    return f"{where}: {met}, {found.seconds:.0f} s"


def _tell(found: list[Explored], what: What, seconds: float, output: Output) -> None:
    rows = [
        (
            "yes" if each.store else "no",
            str(each.states),
            str(each.steps),
            str(each.machines),
            ", ".join(f"{name} {count}" for name, count in sorted(each.ends.items())),
            f"{each.seconds:.1f} s",
        )
        for each in found
    ]
    output.table(("store", "states", "steps", "machines", "ends", "time"), rows)
    for each in found if not output.json else ():
        if each.violation is not None:
            output.say(f"{each.violation}", style="red")
            for line in told(each.path):
                output.say(f"  {line}")
    violations = sum(each.violation is not None for each in found)
    states = sum(each.states for each in found)
    output.say(f"{count_text(states, 'state')} in {seconds:.1f} s, violations: {violations}")
    output.result(
        {
            "faults": what.faults,
            "switchover": what.switchover,
            "resume": what.resume,
            "rounds": what.rounds,
            "kinds": [each.value for each in what.kinds],
            "states": states,
            "seconds": round(seconds, 3),
            "violations": violations,
            "explored": [_fields(each) for each in found],
        }
    )


def _fields(each: Explored) -> dict[str, object]:
    return {
        "store": each.store,
        "states": each.states,
        "steps": each.steps,
        "machines": each.machines,
        "ends": dict(sorted(each.ends.items())),
        "seconds": round(each.seconds, 3),
        "violation": None if each.violation is None else str(each.violation),
        "path": told(each.path),
    }
