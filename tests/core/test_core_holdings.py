"""What a destination remembers of rounds."""

from __future__ import annotations

import numpy as np
from core_support import PAGE

from sterna.core.bitmap_frames import add_frame
from sterna.core.holdings import Holdings
from sterna.limits import ROUNDS_APART
from sterna.memory.regions import PageSets, RegionTable
from sterna.wire import records as r

TABLE = RegionTable([r.Region(1, 0, 20 * PAGE), r.Region(4, 1 << 30, 8 * PAGE)])


def table_of(region: int, first: int, count: int) -> r.Pages:
    """A page table; what arrives is told from its runs alone."""
    runs = np.zeros(1, r.RUN_DTYPE)
    runs["first"], runs["count"] = first, count
    return r.Pages(1, 1, region, runs, np.zeros(0, "<u8"))


def arrive(holdings: Holdings, region: int, first: int, count: int, *rejected: r.PageRange) -> None:
    table = table_of(region, first, count)
    holdings.announce(table)
    holdings.take(table, rejected)


def told(holdings: Holdings) -> list[tuple[int, bool, int, int]]:
    """Round, rejected, region and page of everything that the frames list, in their order."""
    listed = []
    for frame in holdings.frames(4096):
        sets = PageSets(TABLE)
        add_frame(sets, frame)
        for region, (starts, counts) in sets.runs():
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
                listed += [
                    (frame.round, frame.rejected, region, page) for page in range(start, start + count)
                ]
    return listed


def test_pages_are_told_under_the_round_in_which_they_came():
    """[RES-6]"""
    holdings = Holdings(TABLE)
    assert (holdings.newest, holdings.complete, told(holdings)) == (0, 0, [])
    holdings.begin(1)
    arrive(holdings, 4, 2, 1)
    arrive(holdings, 1, 0, 3)
    holdings.begin(3)
    arrive(holdings, 1, 1, 1)
    assert told(holdings) == [(1, False, 1, 0), (1, False, 1, 2), (1, False, 4, 2), (3, False, 1, 1)]
    assert (holdings.newest, holdings.complete) == (3, 0)


def test_a_page_of_which_a_later_frame_has_begun_is_not_applied_any_more():
    """[RES-6]"""
    holdings = Holdings(TABLE)
    holdings.begin(1)
    arrive(holdings, 1, 0, 3)
    holdings.begin(2)
    holdings.announce(table_of(1, 1, 1))
    assert told(holdings) == [(1, False, 1, 0), (1, False, 1, 2)]


def test_of_complete_rounds_the_number_is_told():
    """[RES-5] [RES-6]"""
    holdings = Holdings(TABLE)
    holdings.begin(1)
    arrive(holdings, 1, 0, 3)
    holdings.end()
    assert (holdings.complete, told(holdings)) == (1, [])
    holdings.begin(2)
    arrive(holdings, 1, 1, 1)
    assert (holdings.complete, told(holdings)) == (1, [(2, False, 1, 1)])


def test_rejected_pages_are_told_until_they_come_again():
    """[RES-6]"""
    holdings = Holdings(TABLE)
    holdings.begin(1)
    arrive(holdings, 1, 0, 3, r.PageRange(1, 1, 2))
    assert told(holdings) == [(1, False, 1, 0), (1, True, 1, 1), (1, True, 1, 2)]
    holdings.end()
    assert told(holdings) == [(1, True, 1, 1), (1, True, 1, 2)]
    holdings.begin(2)
    arrive(holdings, 1, 1, 1)
    arrive(holdings, 4, 0, 1, r.PageRange(4, 0, 1))
    assert told(holdings) == [(2, False, 1, 1), (2, True, 1, 2), (2, True, 4, 0)]


def test_of_many_rounds_that_never_end_the_oldest_are_forgotten():
    holdings = Holdings(TABLE)
    for number in range(1, ROUNDS_APART + 3):
        holdings.begin(number)
        arrive(holdings, 1, number, 1)
    assert [each[0] for each in told(holdings)] == list(range(3, ROUNDS_APART + 3))


def test_the_last_complete_round_is_known_with_what_was_rejected_in_it():
    holdings = Holdings(TABLE)
    assert holdings.last is None
    holdings.begin(1)
    holdings.end()
    assert holdings.last is not None
    assert not holdings.last.any()
    holdings.begin(2)
    arrive(holdings, 1, 0, 3, r.PageRange(1, 1, 2))
    assert not holdings.last.any()
    holdings.end()
    ((region, (starts, counts)),) = holdings.last.runs()
    assert (region, starts.tolist(), counts.tolist()) == (1, [0], [3])
    holdings.begin(3)
    arrive(holdings, 1, 1, 2)
    assert holdings.last.count() == 3
    holdings.end()
    assert holdings.last.count() == 2
