"""Sets of pages as HELD and DIRTY_BITMAP carry them."""

from __future__ import annotations

import numpy as np
import pytest
from core_support import PAGE
from hypothesis import given
from hypothesis import strategies as st

from sterna.core.bitmap_frames import Ascending, add_frame, dirty_frames, held_frames, pieces, runs_of
from sterna.errors import RemoteProtocolError
from sterna.limits import HANDSHAKE_BODY_BYTES
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import BitmapEncoding, ErrorCode, Transfer
from sterna.wire import decode_body, encode_body
from sterna.wire import records as r

TABLE = RegionTable(
    [
        r.Region(2, 0, 300 * PAGE),
        r.Region(5, 1 << 30, 64 * PAGE),
        r.Region(7, 1 << 31, PAGE, transfer=Transfer.SHARED),
    ]
)
SMALL = 32 + 48  # room for three runs, or 384 bits


def pages_of(*numbers: tuple[int, int]) -> PageSets:
    sets = PageSets(TABLE)
    for region, page in numbers:
        sets[region].set(page)
    return sets


PAGES = st.one_of(st.tuples(st.just(2), st.integers(0, 299)), st.tuples(st.just(5), st.integers(0, 63)))
RUNS = st.lists(st.tuples(st.integers(0, 199), st.integers(1, 100)), max_size=4)


def set_of(few: list[tuple[int, int]], runs: list[tuple[int, int]]) -> PageSets:
    sets = pages_of(*few)
    for first, count in runs:
        sets[2].set(first, count)
    return sets


SETS = st.builds(set_of, st.lists(PAGES), RUNS)


@given(SETS, st.integers(SMALL, 200), st.booleans())
def test_frames_carry_the_set_in_order_within_the_limit(sets, control_bytes, rejected):
    """[BMP-1] [BMP-2] [BMP-3] [BMP-4] [BMP-5] [BMP-6] [BMP-8]"""
    again, order = PageSets(TABLE), Ascending()
    for frame in held_frames(9, sets, control_bytes, rejected=rejected):
        body = encode_body(frame)
        assert len(body) <= control_bytes
        assert decode_body(frame.type, body) == frame
        assert (frame.round, frame.rejected) == (9, rejected)
        order.check(frame)
        add_frame(again, frame)
    assert again == sets


@given(SETS)
def test_stale_pages_go_the_same_way(sets):
    again, order = PageSets(TABLE), Ascending()
    for frame in dirty_frames(3, sets, HANDSHAKE_BODY_BYTES):
        assert frame.attempt == 3
        order.check(frame)
        add_frame(again, frame)
    assert again == sets


def test_each_piece_is_written_in_the_way_that_takes_less():
    together = pages_of(*[(2, page) for page in range(250)])
    alternating = pages_of(*[(2, page) for page in range(0, 300, 2)])
    (run,) = pieces(together, 4096)
    assert (run.encoding, run.first, run.bits, len(run.data)) == (BitmapEncoding.RUNS, 0, 250, 16)
    (plain,) = pieces(alternating, 4096)
    assert (plain.encoding, plain.first, plain.bits, len(plain.data)) == (BitmapEncoding.PLAIN, 0, 299, 38)


def test_nothing_is_said_of_nothing():
    assert list(pieces(PageSets(TABLE), 4096)) == []


def test_runs_of_both_encodings():
    plain = r.Held(1, 2, False, 100, 9, BitmapEncoding.PLAIN, b"\x03\x01")
    rows = np.array([[0, 2], [8, 1]], "<u8").tobytes()
    runs = r.Held(1, 2, False, 100, 9, BitmapEncoding.RUNS, rows)
    for frame in (plain, runs):
        starts, counts = runs_of(frame)
        assert (starts.tolist(), counts.tolist()) == ([100, 108], [2, 1])


@pytest.mark.parametrize(("region", "first"), [(7, 0), (9, 0), (2, 293)], ids=["skipped", "none", "beyond"])
def test_pages_that_do_not_travel_are_refused(region, first):
    """[FRM-18]"""
    frame = r.Held(1, region, False, first, 8, BitmapEncoding.PLAIN, b"\x01")
    with pytest.raises(RemoteProtocolError) as error:
        add_frame(PageSets(TABLE), frame)
    assert error.value.code is ErrorCode.OUTSIDE_REGION


def held(round_: int, region: int, first: int, *, rejected: bool = False) -> r.Held:
    return r.Held(round_, region, rejected, first, 8, BitmapEncoding.PLAIN, b"\x01")


@pytest.mark.parametrize(
    "second",
    [
        held(3, 5, 15),
        held(3, 5, 0),
        held(3, 2, 90),
        held(2, 9, 90, rejected=True),
        held(3, 5, 8),
    ],
    ids=["overlaps", "before", "region", "round", "again"],
)
def test_frames_out_of_order_are_refused(second):
    """[BMP-8]"""
    order = Ascending()
    order.check(held(3, 5, 8))
    with pytest.raises(RemoteProtocolError) as error:
        order.check(second)
    assert error.value.code is ErrorCode.OVERLAPPING_RUNS


def test_a_frame_may_begin_where_the_one_before_ends():
    order = Ascending()
    for frame in (
        held(3, 5, 8),
        held(3, 5, 16),
        held(3, 6, 0),
        held(3, 2, 0, rejected=True),
        held(4, 1, 0),
        r.DirtyBitmap(1, 9, 0, 8, BitmapEncoding.PLAIN, b"\x01"),
    ):
        order.check(frame) if isinstance(frame, r.Held) else Ascending().check(frame)
