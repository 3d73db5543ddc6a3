"""Region tables, and sets of pages over them."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.errors import GuestError, PeerMisbehaved
from sterna.memory.bitmap import PageBitmap, expand_runs
from sterna.memory.regions import PageSets, RegionTable, chunk_pages
from sterna.registry import ErrorCode, Transfer
from sterna.wire.records import PageRange, Region

RAM = Region(7, 0, 100 * 4096)
BIG = Region(2, 1 << 32, 10 * 65536, granule_log2=16)
SHARED = Region(3, 1 << 40, 50 * 4096, transfer=Transfer.SHARED)
TABLE = RegionTable([RAM, SHARED, BIG])


def test_the_table_knows_copied_regions_by_ascending_id():
    assert TABLE.regions == (BIG, SHARED, RAM)
    assert TABLE.copied == (BIG, RAM)
    assert list(TABLE) == [2, 7]
    assert len(TABLE) == 2
    assert TABLE.pages == 110
    assert TABLE.size_bytes == 100 * 4096 + 10 * 65536
    assert TABLE[7] is RAM
    assert 7 in TABLE
    assert 3 not in TABLE
    with pytest.raises(KeyError):
        TABLE[3]


def test_an_id_twice():
    with pytest.raises(ValueError, match="twice"):
        RegionTable([RAM, Region(7, 1 << 50, 4096, transfer=Transfer.SHARED)])


def test_chunks_are_a_whole_number_of_pages():
    assert [chunk_pages(granule) for granule in range(12, 17)] == [16, 8, 4, 2, 1]


def test_ranges_of_a_peer():
    """[FRM-18]"""
    TABLE.check_ranges([PageRange(7, 0, 100), PageRange(2, 9, 1)])
    for bad in (PageRange(7, 0, 101), PageRange(7, 1 << 63, 1 << 31), PageRange(3, 0, 1), PageRange(1, 0, 1)):
        with pytest.raises(PeerMisbehaved) as caught:
            TABLE.check_ranges([PageRange(7, 0, 1), bad])
        assert caught.value.code is ErrorCode.OUTSIDE_REGION


def test_sets_begin_empty_or_full():
    empty, full = PageSets(TABLE), PageSets.full(TABLE)
    assert (empty.count(), empty.size_bytes(), empty.any()) == (0, 0, False)
    assert (full.count(), full.size_bytes(), full.any()) == (110, TABLE.size_bytes, True)
    assert list(full) == [2, 7]
    assert len(full) == 2
    assert repr(full) == "<PageSets 110 of 110 pages>"
    assert empty != full
    assert empty != "something else"
    empty.fill()
    assert empty == full
    full.clear_all()
    assert full == PageSets(TABLE)


def test_algebra_works_region_by_region():
    left, right = PageSets(TABLE), PageSets(TABLE)
    left[2].set(0, 5)
    left[7].set(10, 5)
    right[7].set(12, 10)
    either = left.copy()
    either |= right
    assert (either[2].count(), either[7].count()) == (5, 12)
    both = left.copy()
    both &= right
    assert (both[2].count(), both[7].count()) == (0, 3)
    rest = left.copy()
    rest -= right
    assert (rest[2].count(), rest[7].count()) == (5, 2)
    changed = left.copy()
    changed ^= right
    assert (changed[2].count(), changed[7].count()) == (5, 9)
    assert left.count() == 10
    assert left.size_bytes() == 5 * 65536 + 5 * 4096
    with pytest.raises(ValueError, match="different regions"):
        left |= PageSets(RegionTable([RAM]))


def test_collect_answers():
    """A guest may answer all, or only some regions, and regions that are not copied."""
    dirty = PageBitmap(100)
    dirty.set(3)
    sets = PageSets.collected(TABLE, {7: dirty, 3: PageBitmap.full(50)})
    assert sets.count() == 1
    assert 3 in sets[7]
    dirty.set(4)  # the answer was copied
    assert sets.count() == 1
    answer = {2: PageBitmap.full(10), 7: PageBitmap.full(100)}
    assert PageSets.collected(TABLE, answer) == PageSets.full(TABLE)
    assert not PageSets.collected(TABLE, {}).any()


@pytest.mark.parametrize("answer", [{9: PageBitmap(1)}, {7: PageBitmap(99)}, {2: PageBitmap(100)}])
def test_collect_answers_that_make_no_sense(answer):
    with pytest.raises(GuestError) as caught:
        PageSets.collected(TABLE, answer)
    assert caught.value.code is ErrorCode.GUEST_FAILED


def test_ranges():
    sets = PageSets(TABLE)
    sets.add_ranges([PageRange(7, 98, 2), PageRange(2, 0, 3), PageRange(7, 0, 1)])
    runs = {region: (starts.tolist(), counts.tolist()) for region, (starts, counts) in sets.runs()}
    assert runs == {2: ([0], [3]), 7: ([0, 98], [1, 2])}
    with pytest.raises(IndexError):
        sets.add_ranges([PageRange(7, 99, 2)])
    with pytest.raises(KeyError):
        sets.add_ranges([PageRange(3, 0, 1)])


def test_runs_skip_regions_without_pages():
    sets = PageSets(TABLE)
    sets[7].set(1)
    assert [region for region, _ in sets.runs()] == [7]


@pytest.mark.parametrize("batch_bytes", [1, 4096, 65536, 1 << 20])
def test_batches_keep_their_bounds_in_every_region(batch_bytes):
    sets = PageSets.full(TABLE)
    sets[7].clear(50)
    seen = PageSets(TABLE)
    for region, starts, counts in sets.batches(batch_bytes, 1):
        assert len(starts) == 1
        size_bytes = int(counts.sum()) << TABLE[region].granule_log2
        assert size_bytes <= max(batch_bytes, 1 << TABLE[region].granule_log2)
        assert not seen[region].has(expand_runs(starts, counts)).any()
        seen[region].set_runs(starts, counts)
    assert seen == sets


def test_batches_ascend():
    order = [(region, int(starts[0])) for region, starts, _ in PageSets.full(TABLE).batches(65536, 9)]
    assert order == sorted(order)
    assert np.array_equal([region for region, _ in order], [2] * 10 + [7] * 7)
