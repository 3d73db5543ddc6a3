"""`sterna matrix`: one fault at each step of a migration, and whether what must come of it does."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from sterna.cli.endpoint import Flag, PathOption
from sterna.cli.exits import Exit
from sterna.cli.output import Output
from sterna.cli.units import Json
from sterna.core.words import count_text
from sterna.limits import STREAMS_MAX

if TYPE_CHECKING:
    from sterna.matrix.outcome import Report

JOBS_MAX: Final = 64
_SEEDS: Final = 1 << 32


def matrix(
    *,
    full: Flag = False,
    real: Flag = False,
    virtual: Flag = False,
    guest: Literal["process", "kvm"] = "process",
    streams: Annotated[int, Parameter(validator=Number(gte=0, lte=STREAMS_MAX))] = 0,
    seed: Annotated[int | None, Parameter(validator=Number(gte=0, lt=_SEEDS), show_default=False)] = None,
    only: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    jobs: Annotated[int | None, Parameter(validator=Number(gte=1, lte=JOBS_MAX), show_default=False)] = None,
    keep: PathOption = None,
    json: Json = False,
) -> int:
    """Break migrations at every step, and look who runs the guest afterwards.

    A cell is a fault at a step, in a style of switchover, with a lease store or without; spec/matrix.md has
    all of them, and what must come of each. They are carried out in virtual time, all of them, and with real
    processes: a guest that writes all the time moves between two holders over TLS; an endpoint stops itself
    at the step, and then the fault happens: SIGKILL, SIGSTOP, a cut connection, a store or records out of
    reach. The guest's journal and an audit of its memory are judged by another program.

    The exit code is 0 if of every cell came what must, 1 if not: what failed has a command that repeats it.

    Args:
        full: every cell that real processes can show, which takes a while; without it a sample of them.
        real: with real processes; only so, unless --virtual is given, too. Neither of them means both.
        virtual: in virtual time; only so, unless --real is given, too.
        guest: what moves between real processes: a process guest, or a virtual machine.
        streams: data connections of real processes; a cut goes through all connections.
        seed: of the sample, and of races in virtual time; without it one is chosen and told.
        only: carry out these cells: names, or globs like `*/cut/*`; may be given several times.
        jobs: so many at a time; by default as many as there are processors.
        keep: directory for logs, journal and records of real cells that have failed.
        json: one JSON object on stdout.
    """
    import trio

    from sterna.cli.scratch import scratch
    from sterna.matrix.run import Way, carry_out, choose
    from sterna.matrix.table import load

    output = Output(json=json)
    seed = secrets.randbelow(_SEEDS) if seed is None else seed
    wanted = [way for way, wish in ((Way.VIRTUAL, virtual), (Way.REAL, real)) if wish]
    chosen = choose(load(), wanted or list(Way), full=full, seed=seed, only=only, guest=guest)
    reports: list[Report] = []
    output.say(f"{count_text(len(chosen), 'cell')}, seed {seed}")

    def on_report(report: Report) -> None:
        reports.append(report)
        _tell(output, report, f"{len(reports)}/{len(chosen)}")

    with scratch("sterna-matrix-") as directory:
        trio.run(
            partial(
                carry_out,
                chosen,
                directory,
                on_report,
                at_once=jobs or os.cpu_count() or 1,
                seed=seed,
                keep=keep,
                guest=guest,
                streams=streams,
            )
        )
    given = (("--guest", guest, "process"), ("--streams", str(streams), "0"))
    more = [word for option, value, usual in given if value != usual for word in (option, value)]
    return _conclude(output, reports, seed, more)


def _tell(output: Output, report: Report, count: str) -> None:
    name = f"{count} {report.way} {report.cell.name}"
    if report.passed:
        if report.way == "real":  # the others are over before anybody could read of them
            output.say(f"{name}: {report.runs}, {report.seconds:.1f} s")
        return
    output.say(f"{name}: FAILED", style="red")
    for failure in report.failures:
        output.say(f"  {failure}")


def _conclude(output: Output, reports: Sequence[Report], seed: int, more: Sequence[str]) -> Exit:
    from sterna.matrix.outcome import totals

    figures = totals(reports)
    failed = [report for report in reports if not report.passed]
    output.table(("fault", "cells", "passed", "at source", "at destination", "nobody"), _rows(reports))
    output.say(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in figures.items()))
    needless = [report for report in reports if report.needless]
    if needless:
        output.say("the guest ran before what the table waits for had come back, as it may in a race:")
        output.say("  " + ", ".join(f"{report.way} {report.cell.name}" for report in needless))
    for report in failed:
        output.say(f"again: {_command(report, seed, more)}")
    output.result({**figures, "seed": seed, "failures": [_fields(report, seed, more) for report in failed]})
    return Exit.FAILED if failed else Exit.OK


def _rows(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    rows = []
    for fault in dict.fromkeys(report.cell.fault for report in reports):
        of_fault = [report for report in reports if report.cell.fault == fault]
        runs = [report.runs for report in of_fault]
        passed = sum(report.passed for report in of_fault)
        counts = (len(of_fault), passed, *(runs.count(one) for one in ("source", "destination", "nobody")))
        rows.append((fault.name.replace("_", " "), *map(str, counts)))
    return rows


def _fields(report: Report, seed: int, more: Sequence[str]) -> dict[str, object]:
    return {
        "cell": report.cell.name,
        "way": report.way,
        "runs": report.runs,
        "told": dict(report.told),
        "failures": list(report.failures),
        "again": _command(report, seed, more),
    }


def _command(report: Report, seed: int, more: Sequence[str]) -> str:
    kind = more if report.way == "real" else ()
    return shlex.join(
        ["sterna", "matrix", f"--{report.way}", *kind, "--seed", str(seed), "--only", report.cell.name]
    )
