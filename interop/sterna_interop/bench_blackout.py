"""`sterna bench blackout`: how long a guest stands still, beside one that writes nothing.

A guest of the process kind is moved over mutual TLS on loopback, with durable records, while it writes; and
in turns with it, in the same way, one that does not write. What both stand still for is what the endpoints
have to say to each other, to their holders and to the disk; the rest is the price of the writes.

Each turn starts processes of its own, so there is nothing to warm up; of a large guest a turn takes long, for
its memory is filled, and audited in the end.

With ``--against qemu`` everything is plain, and instead of the idle one QEMU's machine is moved in turns with
ours, with a program that writes as much: by post-copy where ours goes by bitmap, its shortest switchover.
That is another table, and by default of a larger guest: QEMU's program has no room in a small one. It writes
a word of each page, so ours writes their heads alone there; one that writes whole pages stands beside. QEMU's
turns do not lie around their median, but in two groups, so each is told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from cyclopts import Parameter

from sterna.cli.output import Output
from sterna.cli.units import Downtime, Json, Rate, Size, format_duration
from sterna.core.words import rate_text, size_text
from sterna.linux.memory import available_bytes
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
from sterna_interop.memories import Memories
from sterna_interop.moving import Moved
from sterna_interop.moving_bare import bare
from sterna_interop.moving_demo import CPU, MEMORY, WHOLE, WRITES, Demo, demo_of
from sterna_interop.moving_tls import Certificates
from sterna_interop.moving_written import QemuWritten, Written, WrittenMove, memory_of, without_guest_s
from sterna_interop.qemu import Settings, version
from sterna_interop.transfers import Against, Write, memory_measures, need, write_to

MEMORY_BYTES: Final = 256 << 20
RATE_BYTES_S: Final = 1 << 30
DOWNTIME_S: Final = 0.3
# Beside QEMU: the largest for which there is room, or the last one.
BESIDE_QEMU_BYTES: Final = (4 << 30, 2 << 30, 1 << 30, 512 << 20)
BESIDE_QEMU_RATE_BYTES_S: Final = 500 << 20
_SIDES: Final = 4  # two of ours, two of QEMU's
_SPARE_BYTES: Final = 1 << 30
IDLE: Final = "idle"
BESIDE_QEMU: Final = "blackout beside QEMU"

AskedSize = Annotated[Size | None, Parameter(show_default=False)]
AskedRate = Annotated[Rate | None, Parameter(show_default=False)]
Style = Annotated[Literal["bitmap", "stop-and-copy"], Parameter(show_choices=True)]


@dataclass(frozen=True, slots=True)
class Guest:
    """What is moved. Sizes in bytes, the rate in bytes a second."""

    memory: int
    hot: int
    rate: int

    @classmethod
    def chosen(cls, memory: int | None, hot: int | None, rate: int | None, against: str | None) -> Self:
        """What was asked for, and of the rest what is usual."""
        if against is None:
            usual = cls(MEMORY_BYTES, MEMORY_BYTES, RATE_BYTES_S)
        else:
            room = available_bytes() - _SPARE_BYTES
            fitting = (size for size in BESIDE_QEMU_BYTES if _SIDES * size <= room)
            usual = cls(next(fitting, BESIDE_QEMU_BYTES[-1]), MEMORY_BYTES, BESIDE_QEMU_RATE_BYTES_S)
        return cls(
            usual.memory if memory is None else memory,
            usual.hot if hot is None else hot,
            usual.rate if rate is None else rate,
        )

    def written(self, downtime_s: float, switchover: str) -> Written:
        """The same for QEMU.

        Raises:
            ConfigError: its program has no room there.
        """
        return Written(self.memory, self.hot, self.rate, downtime_s, switchover, option="--memory")


def blackout(
    *, switchover: Style = "bitmap", memory: AskedSize = None, hot: AskedSize = None,
    dirty_rate: AskedRate = None, downtime: Downtime = DOWNTIME_S, runs: Runs = 5, against: Against = None,
    write: Write = None, json: Json = False,
) -> None:  # fmt: skip
    """How long a writing guest stands still, beside an idle one, or beside QEMU's.

    Args:
        switchover: how it is moved in the end.
        memory: of the guest; by default 256MiB, and beside QEMU 4GiB, or less if there is no room for that.
        hot: the part of it that the guest writes to; by default 256MiB.
        dirty_rate: what the guest writes a second; by default 1GiB/s, and beside QEMU 500MiB/s.
        downtime: how long it may stand still, for a switchover by stop-and-copy.
        runs: turns of each way; medians are shown.
        against: measure QEMU instead of an idle guest; --hot is a power of two then, and --memory 64MiB more.
        write: file for the table, interop/BENCHMARKS.md; the benchmark's last one there is replaced.
        json: one JSON object on stdout.
    """
    need(against)
    output = Output(json=json)
    guest = Guest.chosen(memory, hot, dirty_rate, against)
    written = None if against is None else guest.written(downtime, switchover)
    conditions = {
        "guest": f"{size_text(guest.memory)}, of which it writes {size_text(guest.hot)}, {switchover}",
        "bare": "a loop over as much memory, once, which nobody writes to, over the same kind of connection",
        "CPU": CPU,
        "memory": MEMORY,
    }
    with ExitStack() as stack:
        say = stack.enter_context(progress(output))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sterna-bench-")))
        if written is None:
            ways = _beside_idle(guest, downtime, switchover)
            loop = Last(bare(Memories(guest.memory), contexts=Certificates(directory).contexts()))
        else:
            say("filling memory for QEMU's guest")
            memories = memory_of(written)
            ways = _beside_qemu(written, directory, memories)
            loop = Last(bare(memories))
            conditions |= {
                "writes": WRITES,
                "whole pages": WHOLE,
                "connection": "plain TCP over loopback; the destination's memory is there beforehand",
                "QEMU": f"{version()}, TCG, {'post-copy' if switchover == 'bitmap' else 'pre-copy'}; "
                "blackout from its event STOP to its event RESUME",
            }
        lasts = {name: Last(way) for name, way in ways.items()}
        measures = _measures(lasts, loop)
        if written is not None:
            measures.append(_whole(lasts[QEMU], Last(demo_of(written, whole=True))))
        taken = take(measures, runs, say, warm=True)
        taken += take(memory_measures(lasts, guest.memory), 1, say, warm=True)
    conditions |= _told(taken, guest.rate)
    report = Report(
        bench="blackout",
        section=BESIDE_QEMU if against else "",
        runs=runs,
        taken=taken,
        principal="blackout",
        conditions=conditions,
    )
    write_to(report, write, output)


def _beside_idle(guest: Guest, downtime_s: float, switchover: str) -> dict[str, Way[WrittenMove]]:
    common = (
        *("--memory", f"{guest.memory}B", "--hot", f"{guest.hot}B"),
        *("--switchover", switchover, "--downtime", format_duration(downtime_s)),
    )
    return {
        name: Demo((*common, "--dirty-rate", f"{rate}B/s")) for name, rate in ((OURS, guest.rate), (IDLE, 0))
    }


def _beside_qemu(written: Written, directory: Path, memories: Memories) -> dict[str, Way[WrittenMove]]:
    capabilities = ("postcopy-ram",) if written.switchover == "bitmap" else ()
    settings = Settings(capabilities=capabilities)
    return {
        OURS: demo_of(written),
        QEMU: QemuWritten(written, directory, settings, memories),
    }


def _measures(lasts: Mapping[str, Last[WrittenMove]], loop: Last[Moved]) -> list[Measure]:
    ours = lasts[OURS]
    return [
        Measure(
            name="blackout",
            text="blackout",
            ways={name: last.turn(lambda moved: moved.blackout_s) for name, last in lasts.items()},
            bounds={IDLE: at_most(2.0, 1.5), QEMU: at_most(1.0, 0.5)},
        ),
        Measure(
            name="guest",
            text="between two writes",
            ways={OURS: ours.told(lambda moved: moved.blackout_guest_s)},
        ),
        Measure(
            name="total",
            text="until it runs there",
            ways={
                **{name: last.told(lambda moved: moved.seconds) for name, last in lasts.items()},
                BARE: loop.turn(lambda moved: moved.seconds),
            },
            detail=True,
        ),
        Measure(
            name="cpu",
            text="CPU, both sides",
            ways={
                **{name: last.told(without_guest_s) for name, last in lasts.items()},
                BARE: loop.told(lambda moved: sum(moved.cpu_s)),
            },
        ),
        Measure(
            name="written",
            text="written",
            ways={
                name: last.told(lambda moved: moved.rate_bytes_s)
                for name, last in lasts.items()
                if name != IDLE
            },
            unit="bytes/s",
        ),
    ]


def _whole(qemu: Last[WrittenMove], whole: Last[WrittenMove]) -> Measure:
    """Ours that writes whole pages, beside what QEMU has done in this turn."""
    return Measure(
        name="blackout_whole",
        text="blackout, whole pages",
        ways={
            OURS: whole.turn(lambda moved: moved.blackout_s),
            QEMU: qemu.told(lambda moved: moved.blackout_s),
        },
    )


def _told(taken: list[Taken], rate: int) -> dict[str, str]:
    """What more has to be known: whether the guest wrote as it was asked to, and QEMU's single turns."""
    found = {"written": f"{rate_text(rate)} asked for"}
    if QEMU in taken[0].values:
        turns = " ".join(f"{seconds * 1e3:.3g}" for seconds in taken[0].values[QEMU])
        found["QEMU's blackouts"] = f"{turns} ms"
    return found
