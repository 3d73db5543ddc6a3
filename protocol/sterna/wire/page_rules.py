"""The rules about pages: ranges, page tables and bitmaps, against each other and against their region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.limits import BLANK_FACTOR, CHUNK_BYTES
from sterna.registry import Encoding, ErrorCode, Transfer
from sterna.wire.records import DirtyBitmap, Held, PageRange, PageRequest, Region
from sterna.wire.rules import Bounds, Rule

PAGE_SPACE: Final = 1 << 52  # 2**64 bytes of address space in pages of the smallest granule

_BAD = ErrorCode.BAD_VALUE

# --- ranges -------------------------------------------------------------------------------------

Ranged = PageRange | PageRequest


def _inside(region: int, first: int, count: int, bounds: Bounds) -> bool:
    """True if the pages are the region's, or no region table is known."""
    if bounds.regions is None:
        return True
    table = bounds.regions.get(region)
    return table is not None and first + count <= table.pages


RANGE: tuple[Rule[Ranged], ...] = (
    Rule(
        "FRM-17",
        _BAD,
        "an empty range of pages, or one beyond the address space",
        lambda r, _: r.count > 0 and r.first + r.count <= PAGE_SPACE,
    ),
    Rule(
        "FRM-18",
        ErrorCode.OUTSIDE_REGION,
        "a range of pages outside of its region",
        lambda r, bounds: _inside(r.region, r.first, r.count, bounds),
    ),
)

REJECTED_COUNT: Rule[int] = Rule(
    "RAK-2",
    ErrorCode.LIMIT_REJECTED,
    "more rejected ranges than announced",
    lambda count, b: count <= b.limits.rejected_runs,
)
NONE_REJECTED: Rule[int] = Rule(
    "RAK-6", _BAD, "pages are rejected in a session without hashes", lambda count, b: b.hashed or not count
)
REJECTED: Rule[Sequence[PageRange]] = Rule(
    "RAK-3",
    ErrorCode.OVERLAPPING_RUNS,
    "rejected ranges overlap or are not in order",
    lambda ranges, _: all((a.region, a.first + a.count) <= (b.region, b.first) for a, b in pairwise(ranges)),
)

# --- page tables: the reference; pages.py finds the same faults with numpy ------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One row of a page table."""

    first: int
    count: int
    size_bytes: int
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class Table:
    """A page table as the schema reads it."""

    attempt: int
    round: int
    region: int
    runs: tuple[Run, ...]
    hashes: tuple[int, ...]


PACKED: Final = frozenset({Encoding.ZSTD, Encoding.DELTA})
CARRIES_BYTES: Final = PACKED | {Encoding.RAW}

RUN_COUNT: tuple[Rule[int], ...] = (
    Rule("PGS-4", _BAD, "a batch without runs", lambda count, _: count > 0),
    Rule(
        "PGS-5",
        ErrorCode.LIMIT_RUNS,
        "more runs than announced",
        lambda count, b: count <= b.limits.batch_runs,
    ),
)
RUN_PAGES: Rule[int] = Rule("PGS-6", _BAD, "a run without pages", lambda count, _: count > 0)


def _of(table: Table, bounds: Bounds) -> Region:
    """The region of a table; PGS-1 and PGS-2 have been checked."""
    assert bounds.regions is not None
    return bounds.regions[table.region]


def _raw_bytes(run: Run, region: Region) -> int:
    return run.count << region.granule_log2


def _pages_bytes(table: Table, bounds: Bounds, *, carried: bool) -> int:
    """Of the pages of all runs that carry bytes, or of all others."""
    region = _of(table, bounds)
    return sum(_raw_bytes(run, region) for run in table.runs if (run.encoding in CARRIES_BYTES) is carried)


def _sized(run: Run, region: Region) -> bool:
    if run.encoding in CARRIES_BYTES:
        return 0 < run.size_bytes <= _raw_bytes(run, region)
    return run.size_bytes == 0


def _chunks(table: Table, region: Region) -> int:
    return sum(
        -(-_raw_bytes(run, region) // CHUNK_BYTES) for run in table.runs if run.encoding in CARRIES_BYTES
    )


TABLE: tuple[Rule[Table], ...] = (
    Rule("PGS-1", ErrorCode.UNEXPECTED_FRAME, "pages before the guest", lambda _, b: b.regions is not None),
    Rule("PGS-2", ErrorCode.OUTSIDE_REGION, "no such region", lambda t, b: t.region in (b.regions or ())),
    Rule("PGS-3", _BAD, "a region that is not copied", lambda t, b: _of(t, b).transfer is Transfer.COPY),
    Rule(
        "PGS-7",
        ErrorCode.OUTSIDE_REGION,
        "pages outside of their region",
        lambda t, b: all(run.first + run.count <= _of(t, b).pages for run in t.runs),
    ),
    Rule(
        "PGS-8",
        ErrorCode.OVERLAPPING_RUNS,
        "runs overlap or are not in order",
        lambda t, _: all(x.first + x.count <= y.first for x, y in pairwise(t.runs)),
    ),
    Rule(
        "PGS-9",
        ErrorCode.NOT_SELECTED,
        "an encoding that was not selected",
        lambda t, b: all(run.encoding in b.encodings for run in t.runs),
    ),
    Rule(
        "PGS-10",
        _BAD,
        "a raw run's size is not that of its pages",
        lambda t, b: all(
            run.size_bytes == _raw_bytes(run, _of(t, b)) for run in t.runs if run.encoding is Encoding.RAW
        ),
    ),
    Rule(
        "PGS-11",
        _BAD,
        "a run's size does not fit its encoding",
        lambda t, b: all(_sized(run, _of(t, b)) for run in t.runs),
    ),
    Rule(
        "PGS-21",  # checked here and not last [5.10]
        ErrorCode.LIMIT_BULK,
        "a batch of more bytes than announced",
        lambda t, b: _pages_bytes(t, b, carried=True) <= b.limits.bulk_bytes,
    ),
    Rule(
        "PGS-24",
        ErrorCode.LIMIT_BULK,
        "more pages without bytes than announced",
        lambda t, b: _pages_bytes(t, b, carried=False) <= b.limits.bulk_bytes * BLANK_FACTOR,
    ),
    Rule(
        "PGS-18",
        ErrorCode.LIMIT_EXPANSION,
        "a run that expands more than announced",
        lambda t, b: all(
            _raw_bytes(run, _of(t, b)) <= run.size_bytes * b.limits.expansion
            for run in t.runs
            if run.encoding in PACKED
        ),
    ),
    Rule(
        "PGS-12",
        ErrorCode.COUNT_MISMATCH,
        "the hashes do not match the runs",
        lambda t, b: len(t.hashes) == _chunks(t, _of(t, b)),
    ),
    Rule("PGS-25", _BAD, "a hash in a session without", lambda t, b: b.hashed or not any(t.hashes)),
)

# --- bitmaps ------------------------------------------------------------------------------------

Bitmap = DirtyBitmap | Held

HELD_REJECTED: Rule[bool] = Rule(
    "BMP-9", _BAD, "pages are rejected in a session without hashes", lambda flag, b: b.hashed or not flag
)


def _bitmap_runs(data: bytes) -> npt.NDArray[np.uint64]:
    """Starts and counts, shape (2, runs)."""
    return np.frombuffer(data, "<u8").reshape(-1, 2).T


def _within(data: bytes, bits: int) -> bool:
    start, count = _bitmap_runs(data)
    return bool(((start < bits) & (count > 0) & (count <= bits - np.minimum(start, bits))).all())


def _apart(data: bytes) -> bool:
    """Sums do not wrap: all runs are within the bitmap."""
    start, count = _bitmap_runs(data)
    return bool((start[:-1] + count[:-1] <= start[1:]).all())


def _plain(bitmap: Bitmap) -> bool:
    return bitmap.encoding == 0


BITMAP: tuple[Rule[Bitmap], ...] = (
    Rule(
        "BMP-1",
        _BAD,
        "an empty bitmap, or one beyond the address space",
        lambda b, _: b.bits > 0 and b.first + b.bits <= PAGE_SPACE,
    ),
    Rule(
        "BMP-2",
        _BAD,
        "a plain bitmap's length is not that of its bits",
        lambda b, _: not _plain(b) or len(b.data) == (b.bits + 7) // 8,
    ),
    Rule(
        "BMP-3",
        ErrorCode.TRAILING_BYTES,
        "bits behind a bitmap's last one",
        lambda b, _: not _plain(b) or b.bits % 8 == 0 or b.data[-1] >> (b.bits % 8) == 0,
    ),
    Rule(
        "BMP-4",
        _BAD,
        "the length of a bitmap in runs is no multiple of 16",
        lambda b, _: _plain(b) or len(b.data) % 16 == 0,
    ),
    Rule(
        "BMP-5",
        _BAD,
        "an empty run of bits, or one that leaves the bitmap",
        lambda b, _: _plain(b) or _within(b.data, b.bits),
    ),
    Rule(
        "BMP-6",
        ErrorCode.OVERLAPPING_RUNS,
        "runs of bits overlap or are not in order",
        lambda b, _: _plain(b) or _apart(b.data),
    ),
    Rule(
        "FRM-18",
        ErrorCode.OUTSIDE_REGION,
        "a bitmap outside of its region",
        lambda b, bounds: _inside(b.region, b.first, b.bits, bounds),
    ),
)
