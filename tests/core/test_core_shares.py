"""Which page travels where."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sterna.core import shares
from sterna.core.shares import around, page_shares
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import Transfer
from sterna.wire.records import Region

PAGES_AND_GRANULE = st.tuples(st.integers(1, 5000), st.sampled_from([12, 16, 21]))


@given(st.integers(1, 16), st.lists(PAGES_AND_GRANULE, max_size=4))
def test_every_page_has_one_connection_and_each_about_as_many(streams, sizes):
    """[STR-7]"""
    regions = tuple(
        Region(number, number << 40, pages << granule, granule)
        for number, (pages, granule) in enumerate(sizes)
    )
    table = RegionTable(regions)
    parts = page_shares(table, streams)
    assert set(parts) == set(range(1, streams + 1))
    union, total = PageSets(table), 0
    for part in parts.values():
        union |= part
        total += part.count()
    assert union == PageSets.full(table)
    assert total == table.pages
    sizes_bytes = [part.size_bytes() for part in parts.values()]
    assert max(sizes_bytes) - min(sizes_bytes) <= (len(regions) + 1) * max(shares.BLOCK_BYTES, 1 << 21)


def test_what_is_not_copied_has_none():
    rom = Region(1, 0, 1 << 24, transfer=Transfer.SHARED)
    table = RegionTable((rom, Region(2, 1 << 30, 1 << 24)))
    parts = page_shares(table, 2)
    assert [part.size_bytes() for part in parts.values()] == [1 << 23, 1 << 23]


@given(st.lists(PAGES_AND_GRANULE, min_size=1, max_size=3), st.data())
def test_what_lies_around_pages_is_the_blocks_that_hold_them(sizes, data):
    regions = tuple(
        Region(number, number << 40, pages << granule, granule)
        for number, (pages, granule) in enumerate(sizes)
    )
    pages, expected = PageSets(RegionTable(regions)), PageSets(RegionTable(regions))
    for region in regions:
        step = max(shares.NEAR_BYTES >> region.granule_log2, 1)
        for first in data.draw(st.lists(st.integers(0, region.pages - 1), max_size=5)):
            count = data.draw(st.integers(1, region.pages - first))
            pages[region.id].set(first, count)
            begin = first // step * step
            end = min(-(-(first + count) // step) * step, region.pages)
            expected[region.id].set(begin, end - begin)
    assert around(pages) == expected
