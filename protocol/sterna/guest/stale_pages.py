"""The stale pages of a guest that runs before all of them are there, without a kernel's help.

A guest that asks before it touches a page needs no userfaultfd: `present` tells how far it may go, and the
page at which it had to stop is what it waits for. One virtual CPU, so there is one such page at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import trio

from sterna.errors import GuestError
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode, Transfer
from sterna.wire.records import PageRange, Region

# An entry is a hash of 8 bytes and what is known of its page; the rest is for what else one may want to know.
NOTES_BYTES_A_PAGE: Final = 16
NOTES_BYTES: Final = 1 << 20


def check_stale(stale: Mapping[int, PageBitmap], regions: Sequence[Region]) -> None:
    """Whether these bitmaps fit these regions.

    Raises:
        GuestError: with BAD_VALUE.
    """
    pages = {region.id: region.pages for region in regions if region.transfer is Transfer.COPY}
    for number, bitmap in stale.items():
        if number not in pages:
            raise GuestError(f"stale pages of region {number}, which is not copied", ErrorCode.BAD_VALUE)
        if bitmap.bits != pages[number]:
            text = f"{bitmap.bits} bits of stale pages for the {pages[number]} pages of region {number}"
            raise GuestError(text, ErrorCode.BAD_VALUE)


def notes_limit(regions: Sequence[Region]) -> int:
    """The most bytes that `DestinationGuest.notes` has for a guest with these regions."""
    return NOTES_BYTES + NOTES_BYTES_A_PAGE * sum(region.pages for region in regions)


class StalePages:
    """Pages that the guest must not touch yet, numbered through all regions in their order.

    Attributes:
        waits_for: the page that the guest waits for, None if it waits for none.
    """

    def __init__(self, regions: Sequence[Region], stale: Mapping[int, PageBitmap]) -> None:
        check_stale(stale, regions)
        self._first: dict[int, int] = {}
        self._pages: dict[int, int] = {}
        pages = 0
        for region in regions:
            self._first[region.id], self._pages[region.id] = pages, region.pages
            pages += region.pages
        self._missing = PageBitmap(pages)
        for number, bitmap in stale.items():
            starts, counts = bitmap.runs()
            self._missing.set_runs(starts + self._first[number], counts)
        self.waits_for: int | None = None
        self._told: int | None = None
        self._news = trio.Event()

    @property
    def any(self) -> bool:
        """Whether one is left."""
        return self._missing.any()

    def present(self, first: int, count: int) -> int:
        """How many pages from `first` on may be touched, up to `count`; then the guest waits for the next."""
        starts, _ = self._missing.runs_between(first, count)
        if not len(starts):
            return count
        self.waits_for = int(starts[0])
        self._news.set()
        return self.waits_for - first

    def installed(self, region: int, first: int, count: int) -> None:
        """These are there. If the guest waits for one of them it goes on.

        Raises:
            GuestError: with BAD_VALUE for pages that do not exist.
        """
        if not 0 <= first <= first + count <= self._pages.get(region, -1):
            raise GuestError(f"there are no pages {first}+{count} of region {region}", ErrorCode.BAD_VALUE)
        self._missing.clear(self._first[region] + first, count)
        if self.waits_for is not None and self.waits_for not in self._missing:
            self.waits_for = self._told = None

    def missing(self) -> dict[int, PageBitmap]:
        """Those that are left, by region."""
        found = {}
        for number, first in self._first.items():
            starts, counts = self._missing.runs_between(first, self._pages[number])
            found[number] = PageBitmap(self._pages[number])
            found[number].set_runs(starts - first, counts)
        return found

    async def faults(self) -> list[PageRange]:
        """Wait for a page that the guest waits for and that was not told yet."""
        while self.waits_for is None or self.waits_for == self._told:
            self._news = trio.Event()
            await self._news.wait()
        self._told = self.waits_for
        return [self.range_of(self._told)]

    def range_of(self, page: int) -> PageRange:
        """A page as its region numbers it."""
        first, number = max((first, region) for region, first in self._first.items() if first <= page)
        return PageRange(number, page - first, 1)
