"""Bitmaps, page tables and region tables that wrap, overlap, or leave what they describe.

Tables are generated from the edges of their fields, and what must become of each is computed here a second
time, with Python's integers and in the words of the specification, not with the product's rules. Bitmaps
belong to features that are reserved in this draft: an endpoint refuses their frames, but reads them first.

Published bugs of this class: CVE-2014-7840 (QEMU's ram_load wrote where a page's offset told it to), QEMU's
RECV_BITMAP needed an end mark to notice a bitmap of the wrong length, Propolis left the bounds of bitmaps to
its callers, CVE-2025-54566 (two objects of a stream that contradict each other), CVE-2013-4148 and
CVE-2013-4149 (sizes multiplied into another number).

[BMP-1] [BMP-2] [BMP-3] [BMP-4] [BMP-5] [BMP-6] [FRM-18] [PGS-2] [PGS-3] [PGS-6] [PGS-7] [PGS-8] [PGS-9]
[PGS-10] [PGS-11] [PGS-12] [PGS-14] [PGS-21] [GST-3] [GST-6] [GST-7] [GST-8] [CON-27] [MEM-15] [SEC-9]
[SEC-10]
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace

import numpy as np
import pytest
from withstand_judge import judge, judge_accepted, judge_any
from withstand_support import LIMITS, SAMPLES, Victim, at_home, sample

from sterna.core.tables import DestinationState, SourceState
from sterna.errors import RemoteProtocolError
from sterna.memory.pages import hash_chunks
from sterna.registry import BitmapEncoding, Encoding, ErrorCode, FrameType, RegionKind, Transfer
from sterna.wire import Bounds, decode_body, unchecked
from sterna.wire import records as r

F, C = FrameType, ErrorCode
PAGE = 4096
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
PLAIN, RUNS = BitmapEncoding.PLAIN, BitmapEncoding.RUNS
PAGES = 3  # of region 0 of the recorded guest


# ---- bitmaps ----


def runs(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", start, count) for start, count in pairs)


# first page, bits, encoding, data; code and clause.
BITMAPS: dict[str, tuple[tuple[int, int, BitmapEncoding, bytes], ErrorCode | None, str]] = {
    "all pages": ((0, 3, PLAIN, b"\x07"), None, ""),
    "all pages as a run": ((0, 3, RUNS, runs((0, 3))), None, ""),
    "neighbouring runs": ((0, 3, RUNS, runs((0, 1), (1, 2))), None, ""),
    "no runs": ((0, 3, RUNS, b""), None, ""),
    "no bits": ((0, 0, PLAIN, b""), C.BAD_VALUE, "BMP-1"),
    "no bits as runs": ((0, 0, RUNS, b""), C.BAD_VALUE, "BMP-1"),
    "as many bits as can be said": ((0, U64, RUNS, b""), C.BAD_VALUE, "BMP-1"),
    "wraps to the first page": ((U64, 2, RUNS, b""), C.BAD_VALUE, "BMP-1"),
    "from the last number": ((U64, 1, RUNS, b""), C.BAD_VALUE, "BMP-1"),
    "beyond the address space": ((1 << 52, 1, RUNS, b""), C.BAD_VALUE, "BMP-1"),
    "a byte short": ((0, 3, PLAIN, b""), C.BAD_VALUE, "BMP-2"),
    "a byte long": ((0, 3, PLAIN, b"\x07\0"), C.BAD_VALUE, "BMP-2"),
    "a terabyte of bits in a byte": ((0, 1 << 28, PLAIN, b"\x07"), C.BAD_VALUE, "BMP-2"),
    "half a run": ((0, 3, RUNS, runs((0, 1))[:8]), C.BAD_VALUE, "BMP-4"),
    "a byte behind the runs": ((0, 3, RUNS, runs((0, 1)) + b"\0"), C.BAD_VALUE, "BMP-4"),
    "an empty run": ((0, 3, RUNS, runs((1, 0))), C.BAD_VALUE, "BMP-5"),
    "a run behind the last bit": ((0, 3, RUNS, runs((3, 1))), C.BAD_VALUE, "BMP-5"),
    "a run across the last bit": ((0, 3, RUNS, runs((2, 2))), C.BAD_VALUE, "BMP-5"),
    "a run that wraps": ((0, 3, RUNS, runs((U64, 2))), C.BAD_VALUE, "BMP-5"),
    "a run as long as can be said": ((0, 3, RUNS, runs((1, U64))), C.BAD_VALUE, "BMP-5"),
    "a run twice": ((0, 3, RUNS, runs((0, 1), (0, 1))), C.OVERLAPPING_RUNS, "BMP-6"),
    "runs that overlap": ((0, 3, RUNS, runs((0, 2), (1, 1))), C.OVERLAPPING_RUNS, "BMP-6"),
    "runs in the wrong order": ((0, 3, RUNS, runs((2, 1), (0, 1))), C.OVERLAPPING_RUNS, "BMP-6"),
    "one page too many": ((0, 4, PLAIN, b"\x07"), C.OUTSIDE_REGION, "FRM-18"),
    "behind the region": ((3, 1, PLAIN, b"\0"), C.OUTSIDE_REGION, "FRM-18"),
    "the last page of the address space": (((1 << 52) - 1, 1, PLAIN, b"\1"), C.OUTSIDE_REGION, "FRM-18"),
}  # fmt: skip
for _bits in range(1, 4):
    for _bit in range(_bits, 8):
        BITMAPS[f"bit {_bit} of {_bits}"] = (
            (0, _bits, PLAIN, bytes([1 << _bit])), C.TRAILING_BYTES, "BMP-3",
        )  # fmt: skip


def bitmap(frame: FrameType, *fields: object, region: int = 0) -> r.Record:
    first, bits, encoding, data = fields
    if frame is F.HELD:
        return r.Held(1, region, False, first, bits, encoding, data)  # type: ignore[arg-type]
    return r.DirtyBitmap(1, region, first, bits, encoding, data)  # type: ignore[arg-type]


def check_bitmap(frame: FrameType, record: r.Record, code: ErrorCode | None, clause: str) -> None:
    """Its own code, or else that of a frame which is not due."""
    if frame is F.HELD:
        victim = Victim("source").until(SourceState.ACKING)
    else:
        victim = Victim("destination").until(DestinationState.READY)
    victim.attack(victim.record(record))
    wanted, where = (code, clause) if code is not None else (C.UNEXPECTED_FRAME, "CON-3")
    judge(victim, wanted, clause=where)
    assert victim.growth_bytes < 128 * 1024


@pytest.mark.parametrize("frame", [F.HELD, F.DIRTY_BITMAP], ids=lambda frame: frame.name)
@pytest.mark.parametrize("name", BITMAPS)
def test_a_bitmap(frame: FrameType, name: str) -> None:
    """[BMP-1] to [BMP-6], [FRM-18], in this order."""
    fields, code, clause = BITMAPS[name]
    check_bitmap(frame, bitmap(frame, *fields), code, clause)


@pytest.mark.parametrize("frame", [F.HELD, F.DIRTY_BITMAP], ids=lambda frame: frame.name)
@pytest.mark.parametrize("region", [2, 3, U32])
def test_a_bitmap_of_no_region(frame: FrameType, region: int) -> None:
    record = bitmap(frame, 0, 1, PLAIN, b"\1", region=region)
    check_bitmap(frame, record, C.OUTSIDE_REGION, "FRM-18")


# ---- page tables ----

FIRSTS = (0, 1, 2, 3, 1 << 52, U64 - 1, U64)
COUNTS = (0, 1, 2, 3, 4, U32)
ENCODINGS = (Encoding.RAW, Encoding.ZERO, Encoding.ZSTD, Encoding.ABSENT, 9)
# A run's stated bytes: the right ones, none, one too few, all that can be said.
SIZES = ("right", 0, "short", U32)
Run = tuple[int, int, int, int]  # first, count, size_bytes, encoding


def one_run() -> list[Run]:
    found = []
    for first, count, encoding, size in itertools.product(FIRSTS, COUNTS, ENCODINGS, SIZES):
        raw = min(count * PAGE, U32)
        size_bytes = {"right": raw if encoding == Encoding.RAW else 0, "short": max(raw - 1, 0)}.get(
            size, size
        )
        found.append((first, count, int(size_bytes), int(encoding)))
    return list(dict.fromkeys(found))


def verdict(table: list[Run], hashes: int) -> tuple[ErrorCode, str] | None:
    """What 5.10 says of a table of region 0: the rows in order, then each clause over all rows."""
    for _, count, _, encoding in table:
        if count == 0:
            return C.BAD_VALUE, "PGS-6"
        if encoding > Encoding.ABSENT:
            return C.BAD_VALUE, "FRM-4"
    if any(first + count > PAGES for first, count, _, _ in table):
        return C.OUTSIDE_REGION, "PGS-7"
    if any(a[0] + a[1] > b[0] for a, b in itertools.pairwise(table)):
        return C.OVERLAPPING_RUNS, "PGS-8"
    if any(encoding not in {Encoding.RAW, Encoding.ZERO} for *_, encoding in table):
        return C.NOT_SELECTED, "PGS-9"
    if any(encoding == Encoding.RAW and size != count * PAGE for _, count, size, encoding in table):
        return C.BAD_VALUE, "PGS-10"
    if any(encoding == Encoding.ZERO and size for _, _, size, encoding in table):
        return C.BAD_VALUE, "PGS-11"
    if sum(count for _, count, _, encoding in table if encoding == Encoding.RAW) * PAGE > LIMITS.bulk_bytes:
        return C.LIMIT_BULK, "PGS-21"
    blank = sum(count for _, count, _, encoding in table if encoding == Encoding.ZERO)
    if blank * PAGE > 64 * LIMITS.bulk_bytes:
        return C.LIMIT_BULK, "PGS-24"
    chunks = sum(-(-count * PAGE // 65536) for _, count, _, encoding in table if encoding == Encoding.RAW)
    return None if chunks == hashes else (C.COUNT_MISMATCH, "PGS-12")


def table_body(table: list[Run], hashes: int, region: int = 0) -> bytes:
    rows = np.array([(*run, (0,) * 7) for run in table], r.RUN_DTYPE)
    return unchecked.body(r.Pages(1, 1, region, rows, np.zeros(hashes, "<u8")))


REGIONS = {region.id: region for region in decode_body(F.GUEST, sample(F.GUEST)).regions}  # type: ignore[union-attr]
BOUNDS = Bounds(LIMITS, REGIONS, frozenset({Encoding.RAW, Encoding.ZERO}))


def decoded(body: bytes) -> tuple[ErrorCode, str] | None:
    try:
        decode_body(F.PAGES, body, BOUNDS)
    except RemoteProtocolError as error:
        return error.code, error.clause
    return None


def test_every_table_of_one_run() -> None:
    """At the codec, with no hash and with one."""
    seen = set()
    for run in one_run():
        for hashes in 0, 1:
            wanted = verdict([run], hashes)
            assert decoded(table_body([run], hashes)) == wanted, (run, hashes)
            seen.add(wanted[1] if wanted else None)
    assert seen == {None, "PGS-6", "FRM-4", "PGS-7", "PGS-9", "PGS-10", "PGS-11", "PGS-12"}


@pytest.mark.slow
def test_every_table_of_two_runs() -> None:
    """Their order, and what they cover together; sizes are the right ones here."""
    right = [run for run in one_run() if run[2] == (run[1] * PAGE if run[3] == Encoding.RAW else 0)]
    seen = set()
    for pair in itertools.product(right, repeat=2):
        wanted = verdict(list(pair), 1)
        assert decoded(table_body(list(pair), 1)) == wanted, pair
        seen.add(wanted[1] if wanted else None)
    assert {None, "PGS-7", "PGS-8"} <= seen


WHOLE = [run for run in one_run() if run[0] in {0, 2, U64} and run[1] in {1, 4, U32}]


@pytest.mark.parametrize("run", WHOLE, ids=lambda run: "-".join(map(str, run)))
def test_a_table_in_a_round(run: Run) -> None:
    """In a real round: refused before a byte of it is taken, or legal. Guest memory is as it was."""
    victim = at_home("destination", F.PAGES)
    before = bytes(victim.room._memory)
    wanted = verdict([run], 0)
    victim.attack(victim.frame(F.PAGES, table_body([run], 0), bulk_bytes=0))
    if wanted is None:
        judge_accepted(victim)
        return
    assert victim.room._memory is None
    judge(victim, wanted[0], clause=wanted[1])
    assert not any(before)


@pytest.mark.parametrize("region", [2, 7, U32])
def test_a_table_of_no_region(region: int) -> None:
    """[PGS-2]"""
    victim = at_home("destination", F.PAGES)
    victim.attack(victim.frame(F.PAGES, table_body([(0, 1, 0, 1)], 0, region)))
    judge(victim, C.OUTSIDE_REGION, clause="PGS-2")


def test_more_pages_in_a_table_than_announced() -> None:
    """[PGS-21] [PGS-9] What is not selected comes first: zstd and delta need no bytes to be refused."""
    for encoding in Encoding.ZSTD, Encoding.DELTA, Encoding.ABSENT:
        victim = at_home("destination", F.PAGES)
        victim.attack(victim.frame(F.PAGES, table_body([(0, 1, 4096, encoding)], 1), bytes(4096)))
        judge(victim, C.NOT_SELECTED, clause="PGS-9")


# ---- pages that come twice ----


def pages(number: int, content: bytes, *, round_: int = 1) -> tuple[r.Pages, bytes]:
    rows = np.array([(number, 1, PAGE, Encoding.RAW, (0,) * 7)], r.RUN_DTYPE)
    hashes = np.array(hash_chunks(memoryview(content), [0], [PAGE]), "<u8")
    return r.Pages(1, round_, 0, rows, hashes), content


def test_a_page_twice_in_a_round() -> None:
    """[CON-27] [MEM-15] It does not get past the count of all pages, and not past SEAL with other content."""
    victim = at_home("destination", F.PAGES)
    for fill in b"abcd":
        victim.attack(victim.record(*pages(0, bytes([fill]) * PAGE)))
    assert victim.machine.result is None
    victim.attack(victim.record(*pages(0, b"e" * PAGE)))
    judge(victim, C.COUNT_MISMATCH, clause="CON-27")


def test_the_honest_page_is_overwritten() -> None:
    """[MEM-15] [SEA-3] An attacker's page behind the honest ones, with everything right about it."""
    victim = Victim("destination").until(DestinationState.BLACKOUT, F.ROUND_END)
    victim.attack(victim.record(*pages(1, b"x" * PAGE, round_=2)))
    assert victim.machine.result is None
    end = decode_body(F.ROUND_END, victim.recorded["destination"][victim.next].body)
    assert isinstance(end, r.RoundEnd)
    sequence = victim.machine._lanes.control.reader.next_sequence - 1
    honest = replace(
        end, pages=end.pages + 1, bulk_bytes=end.bulk_bytes + PAGE, last_sequences=((0, sequence),)
    )
    victim.attack(victim.record(honest))
    victim.next += 1
    victim.attack(victim.again(victim.recorded["destination"][victim.next]))
    seal = decode_body(F.SEAL, sample(F.SEAL))
    assert isinstance(seal, r.Seal)
    victim.attack(victim.record(replace(seal, last_sequences=((0, sequence),))))
    judge(victim, C.DIGEST_MISMATCH, clause="MEM-15")
    assert "load_state" not in victim.room.calls


# ---- regions ----


def two(address: int, size_bytes: int, **changes: object) -> tuple[r.Region, ...]:
    second = r.Region(1, address, size_bytes)
    return r.Region(0, 4 * PAGE, 4 * PAGE), replace(second, **changes)  # type: ignore[arg-type]


LAYOUTS: dict[str, tuple[tuple[r.Region, ...], ErrorCode | None, str]] = {
    "below": (two(0, 4 * PAGE), None, ""),
    "above": (two(8 * PAGE, 4 * PAGE), None, ""),
    "the same": (two(4 * PAGE, 4 * PAGE), C.BAD_REGION, "GST-8"),
    "inside": (two(5 * PAGE, PAGE), C.BAD_REGION, "GST-8"),
    "around": (two(0, 16 * PAGE), C.BAD_REGION, "GST-8"),
    "over the start": (two(3 * PAGE, 2 * PAGE), C.BAD_REGION, "GST-8"),
    "over the end": (two(7 * PAGE, 2 * PAGE), C.BAD_REGION, "GST-8"),
    "of the same id": (two(8 * PAGE, PAGE, id=0), C.BAD_REGION, "GST-3"),
    "empty": (two(8 * PAGE, 0), C.BAD_REGION, "GST-6"),
    "not aligned": (two(8 * PAGE + 1, PAGE), C.BAD_REGION, "GST-6"),
    "not whole pages": (two(8 * PAGE, PAGE + 1), C.BAD_REGION, "GST-6"),
    "a granule of a byte": (two(8 * PAGE, PAGE, granule_log2=0), C.BAD_REGION, "GST-4"),
    "a granule that shifts everything out": (two(8 * PAGE, PAGE, granule_log2=64), C.BAD_REGION, "GST-4"),
    "a granule of 255": (two(8 * PAGE, PAGE, granule_log2=255), C.BAD_REGION, "GST-4"),
    "a fault granule of 255": (two(8 * PAGE, PAGE, fault_granule_log2=255), C.BAD_REGION, "GST-5"),
    "of no kind": (two(8 * PAGE, PAGE, kind=9), C.BAD_VALUE, "FRM-4"),
    "of no transfer": (two(8 * PAGE, PAGE, transfer=9), C.BAD_VALUE, "FRM-4"),
    "wraps": (two((1 << 64) - PAGE, 2 * PAGE), C.BAD_REGION, "GST-7"),
    "as large as can be said": (two(8 * PAGE, (1 << 64) - 8 * PAGE), C.LIMIT_MEMORY, "GST-9"),
    "of a kind that is not here": (two(8 * PAGE, PAGE, kind=RegionKind.PMEM), C.REGION_KIND, ""),
    "not copied": (two(8 * PAGE, PAGE, transfer=Transfer.SHARED), C.REGION_KIND, ""),
    "of pages that are not here": (two(16 * PAGE, 16 * PAGE, granule_log2=16), C.PAGE_SIZE, ""),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_of_two_regions(name: str) -> None:
    """[GST-3] to [GST-9] by the codec, the rest by the host: nothing is granted, REFUSE names the code."""
    regions, code, clause = LAYOUTS[name]
    victim = at_home("destination", F.GUEST)
    guest = decode_body(F.GUEST, sample(F.GUEST))
    assert isinstance(guest, r.Guest)
    victim.attack(victim.record(replace(guest, regions=regions)))
    if code is None:
        judge_accepted(victim)
    else:
        judge(victim, code, clause=clause or None)


def test_pages_of_a_region_that_is_not_copied() -> None:
    """[PGS-3]"""
    bounds = Bounds(LIMITS, {0: replace(REGIONS[0], transfer=Transfer.SHARED)})
    with pytest.raises(RemoteProtocolError) as caught:
        decode_body(F.PAGES, table_body([(0, 1, 0, 1)], 0), bounds)
    assert (caught.value.code, caught.value.clause) == (C.BAD_VALUE, "PGS-3")


RANGES = (0, 1, 2, 3, (1 << 52) - 1, 1 << 52, U64)


@pytest.mark.slow
@pytest.mark.parametrize("frame", [F.ROUND_ACK, F.PAGE_REQUEST], ids=lambda frame: frame.name)
def test_every_range_of_pages(frame: FrameType) -> None:
    """[FRM-17] [FRM-18] [RAK-3] From and to the edges; only what lies in the region is read on."""
    for first, count, region in itertools.product(RANGES, RANGES, (0, 1, 2, U32)):
        victim = at_home("source", frame)
        one = r.PageRange(region, first, count)
        if frame is F.PAGE_REQUEST:
            victim.attack(victim.record(r.PageRequest(region, first, count)))
        else:
            sample_ack = SAMPLES[F.ROUND_ACK]
            assert isinstance(sample_ack, r.RoundAck)
            victim.attack(victim.record(replace(sample_ack, rejected=(one,))))
        if count == 0 or first + count > 1 << 52:
            judge(victim, C.BAD_VALUE, clause="FRM-17")
        elif region > 1 or first + count > (PAGES, 1)[region]:
            judge(victim, C.OUTSIDE_REGION, clause="FRM-18")
        elif frame is F.PAGE_REQUEST:
            judge(victim, C.NOT_SELECTED, clause="NEG-7")
        else:
            judge_any(victim)


def test_rejected_ranges_that_overlap() -> None:
    """[RAK-3]"""
    for ranges in (
        ((0, 0, 2), (0, 1, 1)), ((0, 1, 1), (0, 0, 1)), ((0, 0, 1), (0, 0, 1)), ((1, 0, 1), (0, 0, 1)),
    ):  # fmt: skip
        victim = at_home("source", F.ROUND_ACK)
        rejected = tuple(r.PageRange(*each) for each in ranges)
        victim.attack(victim.record(r.RoundAck(1, 1, 1, 0, rejected)))
        judge(victim, C.OVERLAPPING_RUNS, clause="RAK-3")
