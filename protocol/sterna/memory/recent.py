"""The newest versions of pages that were sent, in bounded memory: what a `delta` is a change of [PGS-19].

There is room for so many pages and no more. A guest that writes to more of them in turn would drive each page
out just before it comes again, with any order of eviction that goes by time. So nobody is driven out who was
of use lately: a page has its place as long as it comes back in the next round, and what comes when all places
are taken goes without. Of twice as many pages as there is room for, half are found.

The memory is that of the pages that were put in, not of all the room. Threads may share it, as long as no two
of them are at the same page: a page that `known` tells of is driven out by nobody in the same round.
"""

from __future__ import annotations

from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.memory.bitmap import Positions
from sterna.memory.regions import RegionTable

_NOWHERE: Final = -1
_KEPT_ROUNDS: Final = 2


class RecentPages:
    """Versions of the pages of all copied regions, each of which has pages of one size.

    Attributes:
        is_filled: whether there were any versions when the round began.
    """

    def __init__(self, table: RegionTable, room_bytes: int) -> None:
        """`room_bytes`: of memory for the versions; beside them go four bytes for each page of the guest."""
        self.is_filled = False
        self._lock: Final = Lock()
        self._by_region: Final[dict[int, _Places]] = {}
        total = sum(region.size_bytes for region in table.copied)
        for region in table.copied:
            share = min(room_bytes * region.size_bytes // max(total, 1), region.size_bytes)
            self._by_region[region.id] = _Places(region.pages, 1 << region.granule_log2, share)

    def next_round(self) -> None:
        """Another round begins."""
        with self._lock:
            self.is_filled = any(places.is_used for places in self._by_region.values())
            for places in self._by_region.values():
                places.next_round()

    def clear(self) -> None:
        """Forget all of them: what the destination holds is not known any more."""
        with self._lock:
            for places in self._by_region.values():
                places.clear()

    def known(self, region: int, pages: Positions) -> npt.NDArray[np.bool_]:
        """Which of these pages have a version here."""
        with self._lock:
            known: npt.NDArray[np.bool_] = self._by_region[region].place_of[pages] != _NOWHERE
        return known

    def versions(self, region: int, first: int, count: int) -> npt.NDArray[np.uint8]:
        """The bytes of pages that follow each other and are all known: shape (pages, bytes), a copy."""
        places = self._by_region[region]
        with self._lock:
            versions: npt.NDArray[np.uint8] = places.bytes[places.place_of[first : first + count]]
        return versions

    def sent(self, region: int, pages: Positions, versions: npt.NDArray[np.uint8]) -> None:
        """These are the newest ones, of shape (pages, bytes)."""
        with self._lock:
            self._by_region[region].put(pages, versions)

    def forget(self, region: int, pages: Positions) -> None:
        """These pages were sent as zeros."""
        with self._lock:
            self._by_region[region].drop(pages)


class _Places:
    """The pages of a region that have a place, and the places."""

    def __init__(self, pages: int, page_bytes: int, room_bytes: int) -> None:
        count = room_bytes // page_bytes
        self.bytes: Final = np.empty((count, page_bytes), np.uint8)  # the kernel gives what is written to
        self.place_of: Final = np.full(pages, _NOWHERE, np.int32)
        self._page_at: Final = np.full(count, _NOWHERE, np.int64)
        self._put_in: Final = np.zeros(count, np.int32)  # the round
        self._round = _KEPT_ROUNDS
        self._free = np.arange(count)
        self._taken = 0  # of those

    @property
    def is_used(self) -> bool:
        return bool((self._page_at != _NOWHERE).any())

    def next_round(self) -> None:
        self._round += 1
        self._look_for_room()

    def clear(self) -> None:
        self.place_of[:] = _NOWHERE
        self._page_at[:] = _NOWHERE
        self._look_for_room()

    def _look_for_room(self) -> None:
        idle = self._put_in <= self._round - _KEPT_ROUNDS
        self._free = np.flatnonzero((self._page_at == _NOWHERE) | idle)
        self._taken = 0

    def put(self, pages: Positions, versions: npt.NDArray[np.uint8]) -> None:
        places = self.place_of[pages]
        new = np.flatnonzero(places == _NOWHERE)
        free = self._free[self._taken : self._taken + len(new)]
        # A place that was free when the round began may have got its page back since.
        free = free[(self._page_at[free] == _NOWHERE) | (self._put_in[free] < self._round)]
        self._taken += len(new)
        new = new[: len(free)]
        owners = self._page_at[free]
        self.place_of[owners[owners != _NOWHERE]] = _NOWHERE
        self.place_of[pages[new]] = free
        self._page_at[free] = pages[new]
        # Looked up once more: who was just driven out may be among these pages.
        places = self.place_of[pages]
        kept = places != _NOWHERE
        self.bytes[places[kept]] = versions[kept]
        self._put_in[places[kept]] = self._round

    def drop(self, pages: Positions) -> None:
        places = self.place_of[pages]
        held = places != _NOWHERE
        self.place_of[pages[held]] = _NOWHERE
        self._page_at[places[held]] = _NOWHERE
