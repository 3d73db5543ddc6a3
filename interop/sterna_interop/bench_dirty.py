"""`sterna bench dirty`: a guest that writes while it is moved, in all and while it stands still.

Two rates at once, a modest and a high one. What counts is the whole migration's time, and the blackout of
stop-and-copy. QEMU gets a limit for that of 20 ms: with its default it takes what it may, and is no peer.
Sterna gets its own default, since it counts what a pause costs apart from the bytes, and does not pause a
guest where the limit cannot be kept. Rates are those that were achieved: on a machine with other work a guest
may write less than it was asked to, and beside the ratios stands by how much.

Guests that are compared write alike: QEMU's a word of each page, ours the head of each, which it verifies.
Beside the highest rate stands a guest of ours that verifies and writes whole pages. It has no bound, since it
competes with its own migration for the processors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from sterna.cli.output import Output
from sterna.cli.units import Downtime, Json, Rate, Size, format_rate
from sterna.core.words import duration_text, size_text
from sterna_interop.bulk import QEMU_CHANNELS, TCP
from sterna_interop.measured import Report
from sterna_interop.measuring import (
    BARE,
    OURS,
    QEMU,
    Last,
    Measure,
    Runs,
    Taken,
    Way,
    at_most,
    progress,
    take,
)
from sterna_interop.moving import Moved
from sterna_interop.moving_bare import bare
from sterna_interop.moving_demo import CPU, MEMORY, WHOLE, WRITES, demo_of
from sterna_interop.moving_written import (
    LESS_BYTES,
    QemuWritten,
    Written,
    WrittenMove,
    memory_of,
    without_guest_s,
)
from sterna_interop.qemu import Settings
from sterna_interop.transfers import Against, Write, best_of_qemu, memory_measures, need, write_to

SIZE_BYTES: Final = 1 << 30
HOT_BYTES: Final = 256 << 20
RATES_BYTES_S: Final = (100 << 20, 500 << 20)
DOWNTIME_S: Final = 0.3
TOTAL_BOUND: Final = at_most(1.0, 0.7)
BLACKOUT_BOUND: Final = at_most(1.0, 0.5)

AskedRate = Annotated[Rate | None, Parameter(show_default=False)]


def dirty(
    *, size: Size = SIZE_BYTES, hot: Size = HOT_BYTES, dirty_rate: AskedRate = None,
    downtime: Downtime = DOWNTIME_S, runs: Runs = 5, against: Against = None, write: Write = None,
    json: Json = False,
) -> None:  # fmt: skip
    """A guest that writes while it is moved, beside QEMU's: time in all, and blackout.

    Args:
        size: memory of the guest, at most 3GiB.
        hot: the part of it that the guest writes to, a power of two.
        dirty_rate: what it writes a second; by default once 100MiB/s and once 500MiB/s.
        downtime: how long it may stand still with Sterna; with QEMU 20ms.
        runs: turns of each way; medians are shown.
        against: measure QEMU as well, in its better one of one channel and multifd with two.
        write: file for the table, interop/BENCHMARKS.md; the benchmark's last one there is replaced.
        json: one JSON object on stdout.
    """
    need(against)
    output = Output(json=json)
    rates = RATES_BYTES_S if dirty_rate is None else (dirty_rate,)
    conditions = {
        "guest": f"{size_text(size)}, of which it writes {size_text(hot)} in blocks of 128 KiB",
        "downtime": f"stop-and-copy; {duration_text(downtime)} allowed to Sterna, 20 ms to QEMU",
        "connection": f"{TCP} over loopback",
        "bare": "a loop over as much memory, once, which nobody writes to",
        "CPU": CPU,
        "memory": MEMORY,
        "writes": WRITES,
        "whole pages": WHOLE,
        "Sterna": "sterna demo --room --heads: holders, endpoints and durable records; the guest is followed "
        "by the kernel and audited; blackout as its source saw it",
    }
    taken: list[Taken] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sterna-bench-")))
        say = stack.enter_context(progress(output))
        guests = [Written(size, hot, rate, downtime) for rate in rates]
        memories = memory_of(guests[0])
        loop = Last(bare(memories))
        for rate, written in zip(rates, guests, strict=True):
            ways: dict[str, Way[WrittenMove]] = {OURS: demo_of(written)}
            if against is not None:
                for name, channels in QEMU_CHANNELS.items():
                    settings = Settings(channels=channels)
                    ways[name] = QemuWritten(written, directory, settings, memories)
            lasts = {name: Last(way) for name, way in ways.items()}
            measures = _measures(rate, lasts, loop)
            if rate == max(rates):
                measures += _whole(rate, lasts, Last(demo_of(written, whole=True)))
            found = take(measures, runs, _named(say, rate))
            if rate == max(rates):
                found += take(memory_measures(lasts, size), 1, _named(say, rate), warm=True)
            if against is not None:
                found, text = best_of_qemu(found, list(QEMU_CHANNELS))
                conditions[f"QEMU at {format_rate(rate)}"] = text
            taken += found
    if against is not None:
        conditions["QEMU's guest"] = (
            f"TCG, {LESS_BYTES} bytes less, or 7.2 loses writes; blackout "
            "from its event STOP to its event RESUME"
        )
    report = Report(
        bench="dirty",
        runs=runs,
        taken=taken,
        principal=f"time_{_mark(max(rates))}",
        also={f"cpu_{_mark(max(rates))}": "cpu"},
        conditions=conditions,
    )
    write_to(report, write, output)


def _named(say: Callable[[str], None], rate: int) -> Callable[[str], None]:
    return lambda text: say(f"{format_rate(rate)}: {text}")


def _mark(rate: int) -> str:
    """What the names of its measures end with."""
    return f"{rate >> 20}"


def _measures(rate: int, lasts: Mapping[str, Last[WrittenMove]], loop: Last[Moved]) -> list[Measure]:
    mark = _mark(rate)
    return [
        Measure(
            name=f"time_{mark}",
            text=f"{mark} MiB/s: time",
            ways={
                **{name: last.turn(lambda moved: moved.seconds) for name, last in lasts.items()},
                BARE: loop.turn(lambda moved: moved.seconds),
            },
            bounds={QEMU: TOTAL_BOUND},
        ),
        Measure(
            name=f"blackout_{mark}",
            text="  blackout",
            ways={name: last.told(lambda moved: moved.blackout_s) for name, last in lasts.items()},
            bounds={QEMU: BLACKOUT_BOUND},
        ),
        Measure(
            name=f"cpu_{mark}",
            text="  CPU, both sides",
            ways={
                **{name: last.told(without_guest_s) for name, last in lasts.items()},
                BARE: loop.told(lambda moved: sum(moved.cpu_s)),
            },
        ),
        Measure(
            name=f"written_{mark}",
            text="  written",
            ways={name: last.told(lambda moved: moved.rate_bytes_s) for name, last in lasts.items()},
            unit="bytes/s",
        ),
        Measure(
            name=f"sent_{mark}",
            text="  sent",
            ways={name: last.told(lambda moved: moved.sent_bytes) for name, last in lasts.items()},
            unit="bytes",
        ),
    ]


def _whole(rate: int, lasts: Mapping[str, Last[WrittenMove]], whole: Last[WrittenMove]) -> list[Measure]:
    """Ours that writes whole pages, beside what the others have done in this turn."""
    mark = _mark(rate)
    others = {name: last for name, last in lasts.items() if name != OURS}

    def seconds(moved: WrittenMove) -> float:
        return moved.seconds

    def blackout_s(moved: WrittenMove) -> float:
        return moved.blackout_s

    return [
        Measure(
            name=f"time_{mark}_whole",
            text=f"{mark} MiB/s, whole pages: time",
            ways={OURS: whole.turn(seconds)} | {name: last.told(seconds) for name, last in others.items()},
        ),
        Measure(
            name=f"blackout_{mark}_whole",
            text="  blackout",
            ways={OURS: whole.told(blackout_s)}
            | {name: last.told(blackout_s) for name, last in others.items()},
        ),
    ]
