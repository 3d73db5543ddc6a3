"""Page table entries that a guest gets back: of pages that are there, and were taken from it by a guess.

Before the pause nobody knows which pages will be stale, only which are likely to be. The entries of all
those are taken away then, because that is slow, and a thread gives those that turn out not to be stale back.
It goes through them in steps of what a fault at one of them is answered with, so a guest that runs meanwhile
is never far from what it needs. What is not reached does no harm: the next access faults, and is resolved by
the controller [HOL-40], or by the kernel when nothing is held any more.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from typing import Final

from sterna.linux.memfd import MemoryMap
from sterna.linux.userfaultfd import FaultDescriptor
from sterna.memory.bitmap import PageBitmap

_STEP_BYTES: Final = 2 << 20
# The memory lacks the page, or nothing is held there any more.
_HARMLESS: Final = frozenset({errno.EFAULT, errno.ENOENT})


class Restoring:
    """One thread over these pages, which starts at once.

    Args:
        uffd: with which the maps are registered. It stays open until `stop`.
        maps: the guest's own mappings, by region id.
        pages: what has no entry and is to get one. A page leaves its set when it has been tried.
        granules_log2: of the regions.
    """

    def __init__(
        self,
        uffd: FaultDescriptor,
        maps: Mapping[int, MemoryMap],
        pages: Mapping[int, PageBitmap],
        granules_log2: Mapping[int, int],
    ) -> None:
        self._uffd = uffd
        self._maps = maps
        self._pages = pages
        self._granules_log2 = granules_log2
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="restore", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when no entry will be made any more; that takes no longer than a step. Legal twice."""
        self._stopping = True
        self._thread.join()

    def wait(self) -> None:
        """Return when all pages were tried."""
        self._thread.join()

    def _main(self) -> None:
        for number, bitmap in self._pages.items():
            step = max(_STEP_BYTES >> self._granules_log2[number], 1)
            for start, count in zip(*(part.tolist() for part in bitmap.runs()), strict=True):
                first, end = start, start + count
                while first < end:
                    if self._stopping:
                        return
                    # Steps end where the windows do by which the controller answers faults.
                    after = min(end, first - first % step + step)
                    self._restore(number, first, after - first)
                    bitmap.clear(first, after - first)
                    first = after

    def _restore(self, number: int, first: int, count: int) -> None:
        log2 = self._granules_log2[number]
        try:
            self._uffd.resolve(self._maps[number].address + (first << log2), count << log2)
        except OSError as error:
            if error.errno not in _HARMLESS:
                raise
