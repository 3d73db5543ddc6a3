"""The groups of stale pages, against their definition page by page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.memory.groups import Groups
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import Transfer
from sterna.wire.records import Region

# Granules of 4, 16 and 64 KiB: 16, 4 and 1 pages in 64 KiB.
TABLE = RegionTable(
    [
        Region(3, 0, 100 << 12),
        Region(4, 1 << 32, 40 << 14, granule_log2=14),
        Region(6, 1 << 33, 1 << 12, transfer=Transfer.SHARED),
        Region(9, 1 << 34, 10 << 16, granule_log2=16),
    ]
)
PAGES_OF = {3: 16, 4: 4, 9: 1}


def runs_of(region: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    pages = TABLE[region].pages
    run = st.integers(0, pages - 1).flatmap(
        lambda first: st.tuples(st.just(first), st.integers(1, pages - first))
    )
    return st.lists(run, max_size=6)


def sets_of(runs: dict[int, list[tuple[int, int]]]) -> PageSets:
    sets = PageSets(TABLE)
    for region, some in runs.items():
        for first, count in some:
            sets[region].set(first, count)
    return sets


SETS = st.fixed_dictionaries({region: runs_of(region) for region in TABLE}).map(sets_of)


def by_definition(stale: PageSets) -> list[tuple[int, int, int]]:
    """(region, first page, pages), page by page."""
    groups: list[tuple[int, int, int]] = []
    for region, step in PAGES_OF.items():
        previous = -2
        for page in range(TABLE[region].pages):
            if page not in stale[region]:
                continue
            if page == previous + 1 and page % step:
                number, first, count = groups[-1]
                groups[-1] = (number, first, count + 1)
            else:
                groups.append((region, page, 1))
            previous = page
    return groups


def listed(groups: Groups) -> list[tuple[int, int, int]]:
    starts, counts = groups.runs(slice(None))
    regions = [groups.region_of(number) for number in range(len(groups))]
    return list(zip(regions, starts.tolist(), counts.tolist(), strict=True))


@given(SETS)
def test_groups_follow_from_the_set(stale):
    """[PCY-7]"""
    groups = Groups(stale)
    assert listed(groups) == by_definition(stale)
    assert groups.pages == stale.count()
    assert [groups.page_count(number) for number in range(len(groups))] == [
        count for _, _, count in listed(groups)
    ]
    assert [number for region in TABLE for number in groups.of(region)] == list(range(len(groups)))


@given(SETS, st.sampled_from([3, 4, 9]), st.data())
def test_groups_of_a_range_of_pages(stale, region, data):
    first = data.draw(st.integers(0, TABLE[region].pages - 1))
    count = data.draw(st.integers(1, TABLE[region].pages - first))
    groups = Groups(stale)
    assert list(groups.covering(region, first, count)) == [
        number
        for number, (where, start, pages) in enumerate(listed(groups))
        if where == region and start < first + count and first < start + pages
    ]


@given(SETS, st.sampled_from([3, 4, 9]), st.data())
def test_what_runs_are(stale, region, data):
    """A group, nothing of the set, or neither."""
    all_groups = listed(groups := Groups(stale))
    runs = data.draw(runs_of(region))
    runs += [(start, pages) for where, start, pages in all_groups if where == region]
    starts = np.array([first for first, _ in runs], dtype=np.int64)
    counts = np.array([count for _, count in runs], dtype=np.int64)
    numbers, wrong = groups.find(region, starts, counts)
    for (first, count), number, bad in zip(runs, numbers.tolist(), wrong.tolist(), strict=True):
        whole = (region, first, count) in all_groups
        stranger = not any(page in stale[region] for page in range(first, first + count))
        assert bad == (not whole and not stranger)
        assert (number == -1) == stranger
        if whole:
            assert all_groups[number] == (region, first, count)


def test_a_region_without_pages_of_the_set_and_one_that_does_not_travel():
    groups = Groups(sets_of({9: [(2, 3)]}))
    assert listed(groups) == [(9, 2, 1), (9, 3, 1), (9, 4, 1)]
    assert not groups.of(3)
    assert not groups.covering(3, 0, 100)
    assert not groups.covering(6, 0, 1)
    with pytest.raises(KeyError):
        groups.of(6)


def test_nothing_is_stale():
    groups = Groups(PageSets(TABLE))
    assert (len(groups), groups.pages) == (0, 0)
    assert len(Groups(PageSets(RegionTable([])))) == 0


def test_a_gibibyte_of_scattered_pages():
    """Half of the pages of a GiB, each a group of its own: what a loop would take a second for."""
    table = RegionTable([Region(0, 0, 1 << 30)])
    stale = PageSets(table)
    stale[0].set_runs(np.arange(0, 1 << 18, 2), np.ones(1 << 17, dtype=np.int64))
    groups = Groups(stale)
    assert (len(groups), groups.pages) == (1 << 17, 1 << 17)
    assert list(groups.covering(0, 1 << 17, 5)) == [1 << 16, (1 << 16) + 1, (1 << 16) + 2]


def test_a_part_of_a_group_is_one_that_crosses_no_border() -> None:
    """[PCY-27] [PCY-28]"""
    stale = PageSets(TABLE)
    stale[3].set(5, 30)
    groups = Groups(stale)
    for right in ((5, 11), (5, 1), (7, 3), (16, 16), (34, 1)):
        assert groups.holds(3, *right)
    for wrong in ((4, 1), (4, 2), (5, 12), (15, 2), (34, 2), (5, 0), (5, -1), (1 << 40, 1)):
        assert not groups.holds(3, *wrong)
    assert not groups.holds(4, 5, 1)
    assert not groups.holds(99, 5, 1)
