"""`sterna bench many`: many sessions at once into one destination process, beside one of the same size.

Each session has a connection and a guest of its own; the guests are parts of one memory. All begin together.
How fair that was shows in how much later the last one has ended than the first one.

What a session costs that moves next to nothing (handshake, description, rounds, blackout, commit, end) is a
measure of its own: as many sessions at once, whose guests have one page each. Of a small guest it is most; so
guests of a quarter of the memory are a measure beside, for which there is no bound.
"""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number

from sterna.cli.output import Output
from sterna.cli.units import Json, Size
from sterna.core.words import size_text
from sterna.errors import ConfigError
from sterna.linux.memfd import PAGE_BYTES
from sterna_interop.bulk import SESSION
from sterna_interop.measured import Report
from sterna_interop.measuring import OURS, Last, Measure, Runs, at_least, progress, take
from sterna_interop.memories import Memories
from sterna_interop.moving_sterna import sterna, sterna_many
from sterna_interop.transfers import GIB, Write, memory_measures, write_to

SIZE_BYTES: Final = 8 << 30
MAPPED_BYTES: Final = 512 << 20  # more is the same memory file, mapped several times
SESSIONS: Final = 32
SMALLER: Final = 4
ONE: Final = "one"

Sessions = Annotated[int, Parameter(validator=Number(gte=1, lte=64))]


def many(
    *, size: Size = SIZE_BYTES, sessions: Sessions = SESSIONS, runs: Runs = 5, write: Write = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Many sessions into one destination process, beside a single one that moves as much.

    Args:
        size: memory of all guests together.
        sessions: how many there are.
        runs: turns of each way; medians are shown.
        write: file for the table, interop/BENCHMARKS.md; the benchmark's last one there is replaced.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    if size % (sessions * SMALLER * PAGE_BYTES):
        cut = f"cannot be cut into {sessions} guests of whole pages"
        raise ConfigError(f"{size_text(size)}, or a quarter of it, {cut}")
    memories, small = _memory_of(size), size // SMALLER
    ours, gib = Last(sterna_many(memories, sessions)), size / GIB
    smaller = Last(sterna_many(_memory_of(small), sessions))
    empty = Last(sterna_many(Memories(sessions * PAGE_BYTES), sessions))
    lasts = {OURS: ours, ONE: Last(sterna(memories))}
    measures = [
        Measure(
            name="goodput",
            text="goodput",
            ways={name: last.turn(lambda moved: size / moved.seconds) for name, last in lasts.items()},
            unit="bytes/s",
            bounds={ONE: at_least(0.9, 0.95)},
        ),
        Measure(
            name="cpu",
            text="CPU, a GiB",
            ways={name: last.told(lambda moved: sum(moved.cpu_s) / gib) for name, last in lasts.items()},
        ),
        Measure(
            name="goodput_small",
            text=f"goodput, {size_text(small // sessions)} each",
            ways={
                OURS: smaller.turn(lambda moved: small / moved.seconds),
                ONE: lasts[ONE].told(lambda moved: size / moved.seconds),
            },
            unit="bytes/s",
        ),
        Measure(
            name="cpu_small",
            text="  CPU, a GiB",
            ways={
                OURS: smaller.told(lambda moved: sum(moved.cpu_s) / gib * SMALLER),
                ONE: lasts[ONE].told(lambda moved: sum(moved.cpu_s) / gib),
            },
        ),
        Measure(name="first", text="first ended", ways={OURS: ours.told(lambda moved: moved.more[0])}),
        Measure(name="last", text="last ended", ways={OURS: ours.told(lambda moved: moved.more[1])}),
        Measure(
            name="session",
            text="a session of one page",
            ways={OURS: empty.turn(lambda moved: moved.seconds / sessions)},
        ),
        Measure(
            name="session_cpu",
            text="  CPU, both sides",
            ways={OURS: empty.told(lambda moved: sum(moved.cpu_s) / sessions)},
        ),
    ]
    with progress(output) as say:
        taken = take(measures, runs, say)
        taken += take(memory_measures(lasts, size), 1, say, warm=True)
    report = Report(
        bench="many",
        runs=runs,
        taken=taken,
        principal="goodput",
        conditions={
            "memory": f"{sessions} guests of {size_text(size // sessions)}, random; {ONE}: one of all of it"
            + _mapped(memories),
            "a session of one page": f"{sessions} of them at once, and their time by their number",
            "processes": "one for all sources, and one for all destinations",
            "connection": "plain TCP over loopback",
            "Sterna": SESSION,
        },
    )
    write_to(report, write, output)


def _mapped(memories: Memories) -> str:
    size, times = memories.size // memories.times, memories.times
    return "" if times == 1 else f"; {size_text(size)} are mapped {times} times"


def _memory_of(size: int) -> Memories:
    return Memories(size, times=1 if size % MAPPED_BYTES else size // MAPPED_BYTES)
