"""`sterna bench scale`: whether a guest of 12 GiB takes twelve times as long as one of a GiB, or longer.

Both are mappings of the same GiB, the large one of it twelve times, at both sides: so it fits into most
machines, and the caches see as much memory as there is in either. Everything that grows with the guest's
size does grow: bitmaps, page tables, the digest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sterna.cli.output import Output
from sterna.cli.units import Json, Size
from sterna.core.words import size_text
from sterna.errors import ConfigError
from sterna_interop.bulk import SESSION
from sterna_interop.measured import Report
from sterna_interop.measuring import OURS, Last, Measure, Runs, at_most, progress, take
from sterna_interop.memories import Memories
from sterna_interop.moving import Moved
from sterna_interop.moving_sterna import sterna
from sterna_interop.transfers import GIB, Write, memory_measures, write_to

SMALL_BYTES: Final = 1 << 30
LARGE_BYTES: Final = 12 << 30
SMALL: Final = "small"


def scale(
    *, size: Size = LARGE_BYTES, small: Size = SMALL_BYTES, runs: Runs = 5, write: Write = None,
    json: Json = False,
) -> None:  # fmt: skip
    """The time that a GiB takes in a large guest, beside that in a small one.

    Args:
        size: memory of the large guest, a multiple of that of the small one.
        small: memory of the small guest.
        runs: turns of each; medians are shown.
        write: file for the table, interop/BENCHMARKS.md; the benchmark's last one there is replaced.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    if size % small:
        raise ConfigError(f"{size_text(size)} is no multiple of {size_text(small)}")
    memories = {OURS: Memories(size, times=size // small), SMALL: Memories(small)}
    lasts = {name: Last(sterna(each)) for name, each in memories.items()}

    def of(name: str, figure: Callable[[Moved], float]) -> Callable[[Moved], float]:
        return lambda moved: figure(moved) * GIB / memories[name].size

    measures = [
        Measure(
            name="time",
            text="time, a GiB",
            ways={name: last.turn(of(name, lambda moved: moved.seconds)) for name, last in lasts.items()},
            bounds={SMALL: at_most(1.1, 1.0)},
        ),
        Measure(
            name="cpu",
            text="CPU, a GiB",
            ways={name: last.told(of(name, lambda moved: sum(moved.cpu_s))) for name, last in lasts.items()},
        ),
    ]
    with progress(output) as say:
        taken = take(measures, runs, say)
        taken += take(memory_measures(lasts, size), 1, say, warm=True)
    report = Report(
        bench="scale",
        runs=runs,
        taken=taken,
        principal="time",
        conditions={
            "memory": f"{size_text(size)}, which are {size_text(small)} of random memory mapped "
            f"{size // small} times; {SMALL}: the same, once",
            "connection": "plain TCP over loopback",
            "Sterna": SESSION,
        },
    )
    write_to(report, write, output)
