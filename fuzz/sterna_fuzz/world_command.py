"""`sterna fuzz world`: hosts, stores and holders that fail, by the thousand seeds in virtual time."""

from __future__ import annotations

import shlex
from typing import Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number

from sterna.cli.exits import Exit
from sterna.cli.output import Output
from sterna.cli.units import Json
from sterna.core.words import count_text
from sterna.sim.defects import Defect
from sterna.sim.seeded import SEEDED
from sterna_fuzz.world_seeds import Explained, Findings, run_seeds

JOBS_MAX: Final = 256
COUNT_MAX: Final = 10_000_000

Jobs = Annotated[int, Parameter(validator=Number(gte=1, lte=JOBS_MAX))]
Broken = Annotated[tuple[Defect, ...], Parameter(negative=(), show_default=False)]


def world(
    *,
    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=1 << 64))] = 0,
    count: Annotated[int, Parameter(validator=Number(gte=1, lte=COUNT_MAX))] = 200,
    jobs: Jobs = 1,
    defect: Broken = (),
    json: Json = False,
) -> int:
    """Migrations between two hosts on which everything fails: links, endpoints, holders, records, store.

    Args:
        seed: the first one; each seed is a world of its own.
        count: how many seeds, from that one on.
        jobs: processes.
        defect: let endpoints do this wrong, to see it found; may be given several times.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    output.say(f"world: {count_text(count, 'seed')} from {seed} on")
    found = run_seeds(seed, count, jobs, output.say, frozenset(defect))
    _tell(found, defect, output)
    return Exit.FAILED if found.tally.failures else Exit.OK


def _tell(found: Findings, defects: tuple[Defect, ...], output: Output) -> None:
    tally = found.tally
    output.table(
        ("fault", "times", "what it is"),
        [(kind.value, str(tally.faults[kind]), kind.text) for kind in SEEDED],
    )
    for each in found.explained if not output.json else ():
        output.say(f"seed {each.seed}: {each.error}", style="red")
        for mishap in each.mishaps:
            output.say(f"  {mishap}")
        output.say(f"See it again: {again(each.seed, defects)}")
    rate = tally.seeds / max(found.seconds, 1e-9)
    output.say(
        f"{count_text(tally.seeds, 'seed')} in {found.seconds:.1f} s ({rate:.0f}/s): "
        f"{count_text(tally.completed, 'migration')} completed, {tally.rolled_back} rolled back, "
        f"{count_text(tally.lost, 'guest')} lost that had to be, violations: {len(tally.failures)}"
    )
    output.result(_fields(found, defects))


def _fields(found: Findings, defects: tuple[Defect, ...]) -> dict[str, object]:
    tally = found.tally
    return {
        "seeds": tally.seeds,
        "violations": len(tally.failures),
        "faults_injected": tally.faults.total(),
        "migrations_completed": tally.completed,
        "rolled_back": tally.rolled_back,
        "resumed": tally.resumed,
        "guest_lost_expected": tally.lost,
        "guest_lost_unexpected": sum(each.loss for each in tally.failures),
        "undecided": tally.undecided,
        "steps": tally.steps,
        "seconds": round(found.seconds, 3),
        "faults": {kind.value: tally.faults[kind] for kind in SEEDED},
        "failed": [_explained(each, defects) for each in found.explained],
    }


def _explained(each: Explained, defects: tuple[Defect, ...]) -> dict[str, object]:
    return {
        "seed": each.seed,
        "error": each.error,
        "faults": [str(mishap) for mishap in each.mishaps],
        "replay": again(each.seed, defects),
    }


def again(seed: int, defects: tuple[Defect, ...] = ()) -> str:
    """The command that shows a failing seed again."""
    words = ["sterna", "fuzz", "world", "--seed", str(seed), "--count", "1"]
    for each in defects:
        words += ["--defect", each.value]
    return shlex.join(words)
