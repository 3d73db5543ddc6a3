"""The pager's part of pages that come later: a process forked from the endpoint.

It reads the faults in the endpoint's place, fetches single pages over a connection of its own, and lets the
guest have them early (`sterna.guest.early_pages`). It is there to be quick: nothing depends on it, and
whatever becomes of it, the endpoint's groups come as ever.
"""

from __future__ import annotations

from typing import Final

from sterna.guest.early_pages import EarlyPages
from sterna.guest.holder_bitmaps import bit_runs
from sterna.guest.late_entries import LateEntries
from sterna.limits import CHUNK_BYTES


class LatePager:
    """Made in the forked process.

    Args:
        entries: the endpoint's.
        early: likewise; this process' own from now on.

    Raises:
        GuestError: there is another pager.
        OSError: as `EarlyPages.after_fork`.
    """

    def __init__(self, entries: LateEntries, early: EarlyPages) -> None:
        early.after_fork()
        self._entries: Final = entries
        self._early: Final = early
        self._asked: Final[dict[tuple[int, int], int]] = {}  # region and word -> bits
        self._memory: Final = {number: one.memory.view for number, one in entries.regions.items()}
        self._pages: Final = {number: one.region.pages for number, one in entries.regions.items()}
        self._logs2: Final = {number: one.region.granule_log2 for number, one in entries.regions.items()}

    def fileno(self) -> int:
        """Readable when there are faults."""
        return self._entries.uffd.fileno()

    def news(self) -> list[tuple[int, int]]:
        """Region and page of accesses that wait for what was not asked for; those that need not are let go.

        Raises:
            GuestError: the holder is gone, or tells nonsense.
        """
        found: list[tuple[int, int]] = []
        for number, page in self._entries.faults():
            if self._early.is_installed(number, page):
                self._entries.resolve_around(number, page)
            elif self._early.is_early(number, page):
                self._entries.resolve(number, page, 1)
            elif not self._asked.get((number, page >> 6), 0) >> (page & 63) & 1:
                found.append((number, page))
        return found

    def wanted(self, region: int, page: int) -> list[tuple[int, int]]:
        """What to ask for when the guest waits for a page: runs of it and of its chunk's pages, once each.

        First the page with those behind it, then those before. Empty if it was asked for, or is the
        endpoint's: then its group is on its way, or has to be asked for there.
        """
        step = CHUNK_BYTES >> self._logs2[region]
        key, place = (region, page >> 6), page & 63
        asked = self._asked.get(key, 0)
        first = place - place % step
        base = page - place
        chunk = (1 << min(first + step, self._pages[region] - base)) - (1 << first)
        free = self._early.free(region, page >> 6) & chunk & ~asked
        if not free >> place & 1:
            return []
        self._asked[key] = asked | free
        behind = [(page + start, count) for start, count in bit_runs(free >> place)]
        return behind + [(base + start, count) for start, count in bit_runs(free & (1 << place) - 1)]

    def install(self, region: int, page: int, data: memoryview, hash_: int) -> bool:
        """A page has come, and was verified: let the guest have it.

        False: it has it, or the endpoint has taken the page's group, which may yet come damaged: whoever
        waits for the page (`is_missing`) has to be told there.

        Args:
            region: its region's id.
            page: its number there.
            data: its bytes.
            hash_: their XXH3-64, 0 if it is not known.

        Raises:
            GuestError: the holder is gone.
        """
        log2 = self._logs2[region]
        place = self._memory[region][page << log2 : page + 1 << log2]
        if not self._early.install(region, page, data, hash_, place):
            return False
        self._entries.resolve(region, page, 1)
        return True

    def is_missing(self, region: int, page: int) -> bool:
        """Whether the guest has to wait for it still."""
        return not self._early.is_installed(region, page) and not self._early.is_early(region, page)
