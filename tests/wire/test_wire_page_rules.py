"""Rules about pages, each at its border; page tables have test_wire_pages."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from sterna.registry import BitmapEncoding, ErrorCode
from sterna.wire.page_rules import (
    BITMAP,
    HELD_REJECTED,
    NONE_REJECTED,
    PAGE_SPACE,
    RANGE,
    REJECTED,
    REJECTED_COUNT,
)
from sterna.wire.records import DirtyBitmap, Held, PageRange, PageRequest, Region
from sterna.wire.rules import DEFAULT_BOUNDS, Bounds, Violation

KNOWN = Bounds(regions={1: Region(1, 0, 16 << 12)})
PLAIN, RUNS = BitmapEncoding.PLAIN, BitmapEncoding.RUNS


def broken(rules, value, bounds=DEFAULT_BOUNDS):
    """The clause and the code of the first rule that does not hold, None if all do."""
    try:
        for rule in rules:
            rule.check(value, bounds)
    except Violation as violation:
        return violation.clause, violation.code
    return None


@pytest.mark.parametrize(
    ("first", "count", "bounds", "clause"),
    [
        (0, 1, DEFAULT_BOUNDS, None),
        (0, PAGE_SPACE, DEFAULT_BOUNDS, None),
        (PAGE_SPACE - 1, 1, DEFAULT_BOUNDS, None),
        (0, 0, DEFAULT_BOUNDS, "FRM-17"),
        (1, PAGE_SPACE, DEFAULT_BOUNDS, "FRM-17"),
        ((1 << 64) - 1, (1 << 64) - 1, DEFAULT_BOUNDS, "FRM-17"),
        (0, 16, KNOWN, None),
        (15, 1, KNOWN, None),
        (1, 16, KNOWN, "FRM-18"),
        (16, 1, KNOWN, "FRM-18"),
    ],
)
def test_ranges(first, count, bounds, clause):
    """[FRM-17] [FRM-18]"""
    for value in (PageRange(1, first, count), PageRequest(1, first, count)):
        assert (broken(RANGE, value, bounds) or (None,))[0] == clause
    assert broken(RANGE, PageRange(2, 0, 1), KNOWN) == ("FRM-18", ErrorCode.OUTSIDE_REGION)


@pytest.mark.parametrize(
    ("ranges", "right"),
    [
        ([], True),
        ([(1, 0, 2), (1, 2, 1), (2, 0, 1)], True),
        ([(1, 0, 2), (1, 1, 1)], False),
        ([(2, 0, 1), (1, 0, 1)], False),
        ([(1, 5, 1), (2, 0, 9), (2, 9, 1)], True),
    ],
)
def test_rejected_ranges_ascend(ranges, right):
    """[RAK-3]"""
    found = broken([REJECTED], [PageRange(*each) for each in ranges])
    assert found == (None if right else ("RAK-3", ErrorCode.OVERLAPPING_RUNS))


def test_rejected_ranges_are_limited():
    """[RAK-2]"""
    most = DEFAULT_BOUNDS.limits.rejected_runs
    assert broken([REJECTED_COUNT], most) is None
    assert broken([REJECTED_COUNT], most + 1) == ("RAK-2", ErrorCode.LIMIT_REJECTED)


def test_nothing_is_rejected_without_hashes():
    """[RAK-6] [BMP-9]"""
    for rule, clause in ((NONE_REJECTED, "RAK-6"), (HELD_REJECTED, "BMP-9")):
        for value in (False, True):
            assert broken([rule], value) is None
            found = broken([rule], value, replace(DEFAULT_BOUNDS, hashed=False))
            assert found == ((clause, ErrorCode.BAD_VALUE) if value else None)


def bitmap(bits, data, encoding=RUNS, first=0, kind=DirtyBitmap):
    if kind is Held:
        return Held(1, 1, False, first, bits, encoding, data)
    return DirtyBitmap(1, 1, first, bits, encoding, data)


def runs(*pairs):
    return b"".join(struct.pack("<QQ", *pair) for pair in pairs)


@pytest.mark.parametrize(
    ("value", "clause"),
    [
        (bitmap(16, b"\xff\xff", PLAIN), None),
        (bitmap(9, b"\xff\x01", PLAIN), None),
        (bitmap(0, b"", PLAIN), "BMP-1"),
        (bitmap(8, b"\0", PLAIN, first=PAGE_SPACE - 7), "BMP-1"),
        (bitmap(16, b"\xff", PLAIN), "BMP-2"),
        (bitmap(9, b"\xff\x02", PLAIN), "BMP-3"),
        (bitmap(8, b""), None),
        (bitmap(8, runs((0, 8))), None),
        (bitmap(8, runs((0, 4), (4, 4))), None),
        (bitmap(8, bytes(15)), "BMP-4"),
        (bitmap(8, runs((0, 0))), "BMP-5"),
        (bitmap(8, runs((1, 8))), "BMP-5"),
        (bitmap(8, runs((9, 1))), "BMP-5"),
        (bitmap(8, runs(((1 << 64) - 1, 2))), "BMP-5"),
        (bitmap(8, runs((2, (1 << 64) - 1))), "BMP-5"),
        (bitmap(8, runs((0, 4), (3, 1))), "BMP-6"),
        (bitmap(8, runs((4, 1), (0, 1))), "BMP-6"),
    ],
)
def test_bitmaps(value, clause):
    """[BMP-1] [BMP-2] [BMP-3] [BMP-4] [BMP-5] [BMP-6]"""
    assert (broken(BITMAP, value) or (None,))[0] == clause


@pytest.mark.parametrize("kind", [DirtyBitmap, Held])
def test_a_bitmap_stays_in_its_region(kind):
    """[FRM-18]"""
    assert broken(BITMAP, bitmap(16, b"", kind=kind), KNOWN) is None
    assert broken(BITMAP, bitmap(16, b"", first=1, kind=kind), KNOWN) == ("FRM-18", ErrorCode.OUTSIDE_REGION)
