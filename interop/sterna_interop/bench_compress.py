"""`sterna bench compress`: compressible and slowly changing memory through a link of 1 Gbit/s.

What counts is what goes over the wire. QEMU has two ways to send less: XBZRLE sends changes of pages that are
in its cache, and multifd compresses with zstd; one excludes the other, and the better one is the peer. All
have the same link, the same memory for a cache, and the same time to stand still. Beside it stands
what Sterna loses by trying: random and compressible memory over loopback, packed where that pays and never.
And what memory it takes at each side to pack, where that is most.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sterna import Options
from sterna.cli.output import Output
from sterna.cli.units import Json, Rate, Size, format_rate, format_size
from sterna.core.policy import PolicySettings
from sterna.core.words import size_text
from sterna.net.options import Compress
from sterna_interop.bulk import SESSION, TCP
from sterna_interop.measured import Report
from sterna_interop.measuring import (
    OURS,
    QEMU,
    Last,
    Measure,
    Runs,
    Taken,
    Way,
    at_least,
    at_most,
    progress,
    take,
)
from sterna_interop.memories import Memories
from sterna_interop.moving_slowly import SternaSlowly
from sterna_interop.moving_sterna import PATIENT, PLAIN, sterna
from sterna_interop.moving_written import LESS_BYTES, QemuWritten, Written, WrittenMove, memory_of
from sterna_interop.qemu import Settings, version
from sterna_interop.transfers import Against, Write, memory_measures, need, write_to

SIZE_BYTES: Final = 512 << 20
HOT_BYTES: Final = 64 << 20
RATE_BYTES_S: Final = 25 << 20
CAP_BYTES_S: Final = 125_000_000
CACHE_BYTES: Final = 64 << 20
DOWNTIME_S: Final = 0.3
RAW: Final = "raw"
# A quarter of a second over loopback says little about a difference of a twentieth: it takes many of them.
LOOPBACK_TURNS: Final = 4
_QEMU: Final[Mapping[str, Settings]] = {
    "xbzrle": Settings(
        downtime_ms=int(DOWNTIME_S * 1000),
        capabilities=("xbzrle",),
        parameters={"xbzrle-cache-size": CACHE_BYTES},
    ),
    "multifd zstd": Settings(
        channels=2,
        downtime_ms=int(DOWNTIME_S * 1000),
        parameters={"multifd-compression": "zstd"},
    ),
}
_OPTIONS: Final = Options(
    policy=PolicySettings(allowed_downtime_s=DOWNTIME_S),
    versions_bytes=CACHE_BYTES,
    compress=Compress.ALWAYS,
)


def compress(
    *, size: Size = SIZE_BYTES, hot: Size = HOT_BYTES, dirty_rate: Rate = RATE_BYTES_S, runs: Runs = 5,
    against: Against = None, write: Write = None, json: Json = False,
) -> None:  # fmt: skip
    """Compressible and slowly changing memory through 1 Gbit/s, beside QEMU's XBZRLE and multifd zstd.

    Args:
        size: memory of the guest, at most 3GiB.
        hot: the part of it to which the guest writes, a power of two.
        dirty_rate: of how many pages it writes a word a second, in bytes of these pages.
        runs: turns of each way; medians are shown.
        against: measure QEMU as well, in its better one of XBZRLE and multifd zstd.
        write: file for the table, interop/BENCHMARKS.md; the benchmark's last one there is replaced.
        json: one JSON object on stdout.
    """
    need(against)
    output = Output(json=json)
    written = Written(size, hot, dirty_rate, DOWNTIME_S)
    conditions = {
        "guest": f"{size_text(size)}: a quarter zero, a quarter random, the rest to be compressed; "
        f"it writes a word of each page, in {size_text(hot)} of it, {format_rate(dirty_rate)} of pages",
        "connection": f"{TCP} over loopback, through a process that passes {format_rate(CAP_BYTES_S)} on; "
        "random and compressible memory: not through it",
        "caches": f"{format_size(CACHE_BYTES)} each, for versions that were sent",
        "memory": "beyond the guest's and an idle endpoint's: --compress always, no cache, "
        "random memory and (compressible) such as the guest's",
        "downtime": f"stop-and-copy, {DOWNTIME_S * 1000:g} ms allowed to each",
        "Sterna": f"--compress always; random and compressible memory: auto, and off ({RAW}), "
        f"{LOOPBACK_TURNS} turns each in a run, which of them is first alternates. {SESSION}",
    }
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sterna-bench-")))
        say = stack.enter_context(progress(output))
        memories = memory_of(written, compressible=True)
        ways: dict[str, Way[WrittenMove]] = {OURS: SternaSlowly(written, memories, _OPTIONS, CAP_BYTES_S)}
        if against is not None:
            for name, settings in _QEMU.items():
                ways[name] = QemuWritten(written, directory, settings, memories, link_bytes_s=CAP_BYTES_S)
        taken = take(_measures(ways), runs, say)
        if against is not None:
            taken, conditions["QEMU"] = _best(taken)
        turns = runs * LOOPBACK_TURNS
        for kind in (_random, _compressible):
            taken += take(kind(size), turns, lambda text: say(f"over loopback: {text}"))
        for compressible in (False, True):
            watched = _memory(size, compressible=compressible)
            taken += take(watched, 1, lambda text: say(f"memory of each side: {text}"), warm=True)
    report = Report(
        bench="compress",
        runs=runs,
        taken=taken,
        principal="sent",
        conditions=conditions,
    )
    write_to(report, write, output)


def _measures(ways: Mapping[str, Way[WrittenMove]]) -> list[Measure]:
    lasts = {name: Last(way) for name, way in ways.items()}

    def told(figure: Callable[[WrittenMove], float]) -> dict[str, Callable[[], float]]:
        return {name: last.told(figure) for name, last in lasts.items()}

    return [
        Measure(
            name="sent",
            text="on the wire",
            ways={name: last.turn(lambda moved: moved.sent_bytes) for name, last in lasts.items()},
            unit="bytes",
            bounds={QEMU: at_most(0.9, 0.7)},
        ),
        Measure(name="time", text="time", ways=told(lambda moved: moved.seconds)),
        Measure(name="blackout", text="blackout", ways=told(lambda moved: moved.blackout_s)),
        Measure(name="cpu", text="CPU, both sides", ways=told(lambda moved: moved.cpu_s)),
        Measure(name="written", text="written", ways=told(lambda moved: moved.rate_bytes_s), unit="bytes/s"),
    ]


def _random(size: int) -> list[Measure]:
    return _over_loopback("random", Memories(size))


def _compressible(size: int) -> list[Measure]:
    return _over_loopback("compressible", Memories(size, compressible=True))


def _over_loopback(name: str, memories: Memories) -> list[Measure]:
    """Packed where that pays, and never."""
    options = Options(policy=PATIENT, compress=Compress.AUTO)
    lasts = {
        OURS: Last(sterna(memories, PLAIN, options)),
        RAW: Last(sterna(memories)),
    }
    return [
        Measure(
            name=name,
            text=f"{name} memory",
            ways={way: last.turn(lambda moved: memories.size / moved.seconds) for way, last in lasts.items()},
            unit="bytes/s",
            bounds={RAW: at_least(1 / 1.05, 1.0)},
        ),
        Measure(
            name=f"{name}_cpu",
            text="  CPU, both sides",
            ways={way: last.told(lambda moved: sum(moved.cpu_s)) for way, last in lasts.items()},
        ),
    ]


def _memory(size: int, *, compressible: bool) -> list[Measure]:
    """What packing takes: copies of random memory wait until they have been sent, but none arrives packed."""
    options = Options(policy=PATIENT, compress=Compress.ALWAYS, versions_bytes=0)
    way = sterna(Memories(size, compressible=compressible), PLAIN, options)
    return memory_measures({OURS: Last(way)}, size, "compressible" if compressible else "")


def _best(taken: list[Taken]) -> tuple[list[Taken], str]:
    """Only QEMU's way that sends less, and a sentence."""
    chosen = min(_QEMU, key=taken[0].median)
    sent = ", ".join(f"{name} {size_text(round(taken[0].median(name)))}" for name in _QEMU)
    text = (
        f"{version()}, TCG, {LESS_BYTES} bytes less, or 7.2 loses writes; the "
        f"better one by its median: {sent}"
    )
    return [each.best(QEMU, list(_QEMU), chosen) for each in taken], text
