"""Page tables, the hot path: the same rules as `schema.PAGES`, with struct and numpy.

A batch of a MiB has a table of some runs and 16 hashes; Construct would take longer to read it than the
kernel to deliver the bytes. Tables of a few runs are checked by a plain loop, longer ones by numpy. Either
only says yes or no, at a glance: what exactly is wrong is found, in the order of the rules, by a second look,
and a test holds both against the schema.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt

from sterna.limits import BLANK_FACTOR, CHUNK_BYTES
from sterna.registry import Encoding, ErrorCode, Transfer
from sterna.wire.integrity import Buffer
from sterna.wire.page_rules import CARRIES_BYTES, RUN_COUNT
from sterna.wire.records import RUN_DTYPE, Pages, Region, Runs
from sterna.wire.rules import Bounds, Violation

_HEAD: Final = struct.Struct("<IIIIII")
_ROW: Final = struct.Struct("<QIIB7s")
_HASH: Final = np.dtype("<u8")
ROW_BYTES: Final = RUN_DTYPE.itemsize
HEAD_BYTES: Final = _HEAD.size
_RUN_COUNT_OFFSET: Final = 12
_CHUNK_LOG2: Final = CHUNK_BYTES.bit_length() - 1
_FEW_RUNS: Final = 32  # measured: below, the loop is cheaper than numpy
_NO_BYTES: Final = bytes(7)
_KNOWN: Final = np.zeros(256, bool)
_KNOWN[[int(encoding) for encoding in Encoding]] = True
_LOW: Final = np.uint64(0xFFFFFFFF)
_NEVER: Final = np.uint64(1 << 63)  # more than a run has bytes
_UP_TO: Final = ({Encoding.RAW}, {Encoding.RAW, Encoding.ZERO})
_CARRIES: Final = np.zeros(256, bool)
_CARRIES[[int(encoding) for encoding in CARRIES_BYTES]] = True


def _violation(code: ErrorCode, clause: str, detail: str, row: int = 0) -> Violation:
    return Violation(code, clause, detail, HEAD_BYTES + ROW_BYTES * row)


# --- public helpers -----------------------------------------------------------------------------


def make_runs(rows: Iterable[tuple[int, int, Encoding]], granule_log2: int) -> Runs:
    """A run array from (first page, count, encoding); only raw, zero and absent runs know their size.

    Args:
        rows: ascending and disjoint.
        granule_log2: log2 of the region's page size in bytes.
    """
    table = [
        (first, count, (count << granule_log2) if encoding == Encoding.RAW else 0, encoding, (0,) * 7)
        for first, count, encoding in rows
    ]
    return np.array(table, RUN_DTYPE)


def carries_bytes(runs: Runs) -> npt.NDArray[np.bool_]:
    """Which runs have bytes in the bulk part, and hence hashes."""
    carries: npt.NDArray[np.bool_] = _CARRIES[runs["encoding"]]
    return carries


def share_pages(one: Pages, other: Pages) -> bool:
    """Whether two tables that the codec has checked have a page in common."""
    first, end = one.runs["first"], one.runs["first"] + one.runs["count"]
    starts, ends = other.runs["first"], other.runs["first"] + other.runs["count"]
    if one.region != other.region or starts[0] >= end[-1] or first[0] >= ends[-1]:
        return False
    at = np.searchsorted(end, starts, side="right")  # of `one` the first run that ends behind each start
    inside = at < len(first)
    return bool((first[at[inside]] < ends[inside]).any())


def chunk_counts(runs: Runs, granule_log2: int) -> npt.NDArray[np.int64]:
    """Hashes of each run: its raw bytes in chunks, 0 for runs without bytes [PGS-12]."""
    raw_bytes = runs["count"].astype(np.int64) << granule_log2
    return np.where(carries_bytes(runs), (raw_bytes + (CHUNK_BYTES - 1)) >> _CHUNK_LOG2, 0)


def chunk_count(runs: Runs, granule_log2: int) -> int:
    """Hashes of all runs together [PGS-12]."""
    return int(chunk_counts(runs, granule_log2).sum())


def bulk_lengths(runs: Runs) -> Sequence[int]:
    """Length in bytes of each run's part of the bulk, in order; 0 for runs without bytes."""
    lengths: list[int] = runs["size_bytes"].tolist()
    return lengths


# --- reading and writing ------------------------------------------------------------------------


def parse(body: Buffer, bounds: Bounds) -> Pages:
    """The table of a PAGES body. The record's arrays are views of `body`, which must not change.

    Raises:
        Violation: PGS-1 to PGS-12, PGS-18, PGS-21, PGS-24, PGS-25, FRM-1 to FRM-4, FRM-12.
    """
    if len(body) < HEAD_BYTES:
        _short_head(body, bounds)
    attempt, number, region_id, run_count, hash_count, reserved = _HEAD.unpack_from(body)
    _check_head(run_count, reserved, bounds)
    hashes_at = HEAD_BYTES + run_count * ROW_BYTES
    if hashes_at + hash_count * _HASH.itemsize != len(body):
        _wrong_length(body, run_count, hash_count)
    runs = np.frombuffer(body, RUN_DTYPE, run_count, HEAD_BYTES)
    region = None if bounds.regions is None else bounds.regions.get(region_id)
    if not _surely_right(body[HEAD_BYTES:hashes_at], run_count, hash_count, region, bounds):
        _check_rows(runs)
        _check_table(runs, hash_count, _known_region(region_id, bounds), bounds)
    hashes = np.frombuffer(body, _HASH, hash_count, hashes_at)
    _check_hashes(hashes, bounds)
    return Pages(attempt, number, region_id, runs, hashes)


def build(record: Pages, bounds: Bounds) -> bytes:
    """The PAGES body of a table. Without a region table only what needs none is checked.

    Raises:
        Violation: as `parse`, for what the peer would refuse.
    """
    runs, hashes = record.runs, record.hashes
    if runs.dtype != RUN_DTYPE or hashes.dtype != _HASH or runs.ndim != 1 or hashes.ndim != 1:
        raise Violation(ErrorCode.MALFORMED, "FRM-1", "arrays of the wrong type or shape")
    run_count, hash_count = len(runs), len(hashes)
    _check_head(run_count, 0, bounds)
    rows = runs.tobytes()
    region = None if bounds.regions is None else bounds.regions.get(record.region)
    if not _surely_right(rows, run_count, hash_count, region, bounds):
        _check_rows(runs)
        if bounds.regions is None:
            _check_order(runs, bounds)
        else:
            _check_table(runs, hash_count, _known_region(record.region, bounds), bounds)
    _check_hashes(hashes, bounds)
    head = _HEAD.pack(record.attempt, record.round, record.region, run_count, hash_count, 0)
    return b"".join((head, rows, hashes.tobytes()))


# --- rules --------------------------------------------------------------------------------------


def _check_head(run_count: int, reserved: int, bounds: Bounds) -> None:
    for rule in RUN_COUNT:
        rule.check(run_count, bounds, _RUN_COUNT_OFFSET)
    if reserved:
        raise Violation(ErrorCode.BAD_VALUE, "FRM-3", "a reserved field is not zero", HEAD_BYTES - 4)


def _check_hashes(hashes: npt.NDArray[np.uint64], bounds: Bounds) -> None:
    """PGS-25, of a table that is right but for that."""
    if not bounds.hashed and hashes.any():
        raise Violation(ErrorCode.BAD_VALUE, "PGS-25", "a hash in a session without", HEAD_BYTES)


def _surely_right(
    rows: Buffer, run_count: int, hash_count: int, region: Region | None, bounds: Bounds
) -> bool:
    """True if a table obeys every rule; False is no verdict."""
    if region is None or region.transfer is not Transfer.COPY:
        return False
    if run_count > _FEW_RUNS:
        return _surely_right_many(rows, hash_count, region, bounds)
    granule_log2, encodings, end, carried, pages, chunks = region.granule_log2, bounds.encodings, 0, 0, 0, 0
    for first, count, size_bytes, encoding, reserved in _ROW.iter_unpack(rows):
        if first < end or not count or reserved != _NO_BYTES or encoding not in encodings:
            return False
        raw_bytes = count << granule_log2 if encoding == Encoding.RAW else 0
        if size_bytes != raw_bytes or encoding > Encoding.ZERO:
            return False
        chunks += (raw_bytes + CHUNK_BYTES - 1) >> _CHUNK_LOG2
        carried += raw_bytes
        pages += count
        end = first + count
    return end <= region.pages and chunks == hash_count and _fits(carried, pages << granule_log2, bounds)


def _fits(carried: int, decoded: int, bounds: Bounds) -> bool:
    """PGS-21 and PGS-24, of the bytes of pages that have some on the wire and of all pages."""
    most = bounds.limits.bulk_bytes
    return carried <= most and decoded - carried <= most * BLANK_FACTOR


def _surely_right_many(rows: Buffer, hash_count: int, region: Region, bounds: Bounds) -> bool:
    """The same for many rows, each as three words: first; count and size; encoding and what is reserved."""
    words = np.frombuffer(rows, _HASH).reshape(-1, 3)
    first, encoding = words[:, 0], words[:, 2]
    last = int(encoding.max())
    if last > Encoding.ZERO or not bounds.encodings.issuperset(_UP_TO[last]):
        return False
    count = words[:, 1] & _LOW
    end = first + count
    if not count.all() or int(first.max()) >= region.pages or int(end[-1]) > region.pages:
        return False
    if not (end[:-1] <= first[1:]).all():
        return False
    decoded = count << np.uint64(region.granule_log2)
    carried = decoded if last == Encoding.RAW else np.where(encoding == Encoding.RAW, decoded, 0)
    chunks = (carried + np.uint64(CHUNK_BYTES - 1)) >> np.uint64(_CHUNK_LOG2)
    return bool(
        (words[:, 1] >> np.uint64(32) == carried).all()
        and int(chunks.sum()) == hash_count
        and _fits(int(carried.sum()), int(decoded.sum()), bounds)
    )


def _short_head(body: Buffer, bounds: Bounds) -> NoReturn:
    """A body that ends inside its head: a wrong count that it still holds comes first."""
    if len(body) >= _RUN_COUNT_OFFSET + 4:
        _check_head(int.from_bytes(body[_RUN_COUNT_OFFSET : _RUN_COUNT_OFFSET + 4], "little"), 0, bounds)
    raise Violation(ErrorCode.MALFORMED, "FRM-1", "the table's head is cut", len(body))


def _wrong_length(body: Buffer, run_count: int, hash_count: int) -> NoReturn:
    """A body longer or shorter than its counts say. Each list must fit before its items are read [FRM-12]."""
    hashes_at = HEAD_BYTES + run_count * ROW_BYTES
    if hashes_at > len(body):
        raise Violation(ErrorCode.MALFORMED, "FRM-12", "fewer runs than counted", HEAD_BYTES)
    _check_rows(np.frombuffer(body, RUN_DTYPE, run_count, HEAD_BYTES))
    end = hashes_at + hash_count * _HASH.itemsize
    if end > len(body):
        raise Violation(ErrorCode.MALFORMED, "FRM-12", "fewer hashes than counted", hashes_at)
    raise Violation(ErrorCode.TRAILING_BYTES, "FRM-2", "bytes behind the last hash", end)


def _check_rows(runs: Runs) -> None:
    """PGS-6, FRM-4 and FRM-3 of the first row that breaks one of them."""
    empty = runs["count"] == 0
    unknown = ~_KNOWN[runs["encoding"]]
    reserved = runs["reserved"].any(axis=1)
    wrong = empty | unknown | reserved
    if not wrong.any():
        return
    row = int(wrong.argmax())
    if empty[row]:
        raise _violation(ErrorCode.BAD_VALUE, "PGS-6", "a run without pages", row)
    if unknown[row]:
        raise _violation(ErrorCode.BAD_VALUE, "FRM-4", f"no encoding {runs['encoding'][row]}", row)
    raise _violation(ErrorCode.BAD_VALUE, "FRM-3", "a reserved field is not zero", row)


def _known_region(region_id: int, bounds: Bounds) -> Region:
    """The region of a table: PGS-1, PGS-2, PGS-3."""
    if bounds.regions is None:
        raise Violation(ErrorCode.UNEXPECTED_FRAME, "PGS-1", "pages before the guest")
    region = bounds.regions.get(region_id)
    if region is None:
        raise Violation(ErrorCode.OUTSIDE_REGION, "PGS-2", f"no region {region_id}")
    if region.transfer is not Transfer.COPY:
        raise Violation(ErrorCode.BAD_VALUE, "PGS-3", f"region {region_id} is not copied")
    return region


def _require(right: npt.NDArray[np.bool_], code: ErrorCode, clause: str, detail: str) -> None:
    """A rule over all rows."""
    if not right.all():
        raise _violation(code, clause, detail, int(right.argmin()))


def _check_order(runs: Runs, bounds: Bounds) -> None:
    """PGS-8 and PGS-9, which need no region. Sums of first and count do not wrap: PGS-7 came before."""
    first, count = runs["first"], runs["count"].astype(np.uint64)
    starts = np.concatenate(([True], first[1:] >= first[:-1] + count[:-1]))
    _require(starts, ErrorCode.OVERLAPPING_RUNS, "PGS-8", "runs overlap or are not in order")
    selected = np.zeros(256, bool)
    selected[[int(encoding) for encoding in bounds.encodings]] = True
    _require(selected[runs["encoding"]], ErrorCode.NOT_SELECTED, "PGS-9", "an encoding that was not selected")


def _check_table(runs: Runs, hash_count: int, region: Region, bounds: Bounds) -> None:
    """PGS-7 to PGS-12, PGS-18, PGS-21 and PGS-24, each over all rows."""
    first, count = runs["first"], runs["count"].astype(np.uint64)
    pages = np.uint64(region.pages)
    inside = (first < pages) & (count <= pages - np.minimum(first, pages))
    _require(inside, ErrorCode.OUTSIDE_REGION, "PGS-7", "pages outside of their region")
    _check_order(runs, bounds)
    size_bytes, raw_bytes = runs["size_bytes"], count << np.uint64(region.granule_log2)
    raw = runs["encoding"] == Encoding.RAW
    _require(
        ~raw | (size_bytes == raw_bytes),
        ErrorCode.BAD_VALUE,
        "PGS-10",
        "a raw run's size is not that of its pages",
    )
    carried = carries_bytes(runs)
    sized = np.where(carried, (size_bytes > 0) & (size_bytes <= raw_bytes), size_bytes == 0)
    _require(sized, ErrorCode.BAD_VALUE, "PGS-11", "a run's size does not fit its encoding")
    # The sums do not wrap: disjoint runs (PGS-8) of one region (PGS-7) have less than 2**64 bytes.
    most = bounds.limits.bulk_bytes
    if (carried_bytes := int(raw_bytes[carried].sum())) > most:
        raise Violation(ErrorCode.LIMIT_BULK, "PGS-21", f"a batch of {carried_bytes} bytes", HEAD_BYTES)
    if (blank_bytes := int(raw_bytes[~carried].sum())) > most * BLANK_FACTOR:
        raise Violation(ErrorCode.LIMIT_BULK, "PGS-24", f"{blank_bytes} bytes of nothing", HEAD_BYTES)
    # A product with what a side announced might wrap; no run has more bytes than the bound here.
    expansion = np.uint64(min(bounds.limits.expansion, 1 << 48))
    least_bytes = (raw_bytes + (expansion - np.uint64(1))) // expansion if expansion else _NEVER
    _require(
        raw | ~carried | (size_bytes >= least_bytes),
        ErrorCode.LIMIT_EXPANSION,
        "PGS-18",
        "a run that expands more than announced",
    )
    chunks = chunk_count(runs, region.granule_log2)
    if chunks != hash_count:
        raise Violation(
            ErrorCode.COUNT_MISMATCH, "PGS-12", f"{hash_count} hashes for {chunks} chunks", HEAD_BYTES
        )
