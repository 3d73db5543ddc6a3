"""The groups in which stale pages travel after RUNNING [PCY-7].

A group is a maximal sequence of consecutive stale pages that does not cross a multiple of 64 KiB from its
region's start. Both sides make the same groups from the same bitmap, and number them through all copied
regions in the order of their pages. So a group is an integer, what is known of all groups is an array, and
the groups of a range of pages are a range of numbers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.memory.bitmap import Positions
from sterna.memory.regions import PageSets, RegionTable, chunk_pages


class Groups:
    """The groups of a set of stale pages, which is read once and may change afterwards.

    Attributes:
        table: the guest's regions.
        pages: stale pages in all groups.
    """

    __slots__ = ("_bounds", "_counts", "_starts", "pages", "table")

    def __init__(self, stale: PageSets) -> None:
        self.table: Final[RegionTable] = stale.table
        starts, counts, bounds, total = [], [], {}, 0
        for region in stale:
            first, count = _cut(*stale[region].runs(), chunk_pages(self.table[region].granule_log2))
            bounds[region] = (total, total + len(first))
            total += len(first)
            starts.append(first)
            counts.append(count)
        empty = np.empty(0, dtype=np.int64)
        self._starts: Final[Positions] = np.concatenate(starts) if starts else empty
        self._counts: Final[Positions] = np.concatenate(counts) if counts else empty
        self._bounds: Final = bounds
        self.pages: Final = int(self._counts.sum())

    def __len__(self) -> int:
        return len(self._starts)

    def region_of(self, group: int) -> int:
        """The region that a group lies in."""
        return next(region for region, (low, high) in self._bounds.items() if low <= group < high)

    def of(self, region: int) -> range:
        """The groups of a region. Raises KeyError if it is not copied."""
        return range(*self._bounds[region])

    def runs(self, groups: slice | Positions) -> tuple[Positions, Positions]:
        """First pages and page counts of these groups."""
        return self._starts[groups], self._counts[groups]

    def run(self, group: int) -> tuple[int, int]:
        """First page and page count of this group."""
        return self._starts.item(group), self._counts.item(group)

    def page_count(self, group: int) -> int:
        """Pages of a group."""
        return self._counts.item(group)

    def covering(self, region: int, first: int, count: int) -> range:
        """The groups with at least one of these pages; of a region that is not copied, none."""
        low, high = self._bounds.get(region, (0, 0))
        starts = self._starts[low:high]
        # Only the group that begins last before `first` can reach into the pages from there.
        begin = low + int(starts.searchsorted(first, side="right")) - 1
        if begin < low or sum(self.run(begin)) <= first:
            begin += 1
        return range(begin, low + int(starts.searchsorted(first + count)))

    def holds(self, region: int, first: int, count: int) -> bool:
        """Whether these pages are a part of one group, or all of it."""
        groups = self.covering(region, first, count) if count > 0 else ()
        if len(groups) != 1:
            return False
        start, pages = self.run(groups[0])
        return start <= first and first + count <= start + pages

    def find(
        self, region: int, starts: Positions, counts: Positions
    ) -> tuple[Positions, npt.NDArray[np.bool_]]:
        """What runs of pages are: the group of each, -1 if it has no stale page; and which are wrong.

        Wrong is a run that has stale pages and is not one whole group.
        """
        low, high = self._bounds[region]
        mine = self._starts[low:high]
        ends = mine + self._counts[low:high]
        first = np.searchsorted(
            ends, starts, side="right"
        )  # the first group that ends behind the run's start
        touches = np.searchsorted(mine, starts + counts) > first
        at = np.where(touches, first, 0)
        if not len(mine):
            return np.full(len(starts), -1, dtype=np.int64), np.zeros(len(starts), dtype=np.bool_)
        wrong = touches & ((mine[at] != starts) | (ends[at] != starts + counts))
        return np.where(touches, low + at, -1), wrong


def _cut(starts: Positions, counts: Positions, step: int) -> tuple[Positions, Positions]:
    """Maximal runs, cut at the multiples of `step` pages: no loop over runs or groups."""
    if not len(starts):
        return starts, counts
    ends = starts + counts
    block = starts // step
    parts = (ends - 1) // step - block + 1
    # The block of each part: that of its run, and as many more as there are parts of the run before it.
    before = np.cumsum(parts) - parts
    block = np.repeat(block - before, parts) + np.arange(int(parts.sum()), dtype=np.int64)
    first = np.maximum(np.repeat(starts, parts), block * step)
    return first, np.minimum(np.repeat(ends, parts), (block + 1) * step) - first
