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
# What the blackout needs of the holder next has the interpreter and the mapping to itself: all that it can do
# before a disk has taken a record.
_AFTER_S: Final = 0.004
# The memory lacks the page, or nothing is held there any more.
_HARMLESS: Final = frozenset({errno.EFAULT, errno.ENOENT})


class Restoring:
    """One thread, which waits until it is told of pages: to start one takes milliseconds of a blackout.

    Args:
        uffd: with which the maps are registered. It stays open until `end`.
        maps: the guest's own mappings, by region id.
        granules_log2: of the regions.

    Raises:
        RuntimeError: there is no thread to be had.
    """

    def __init__(
        self, uffd: FaultDescriptor, maps: Mapping[int, MemoryMap], granules_log2: Mapping[int, int]
    ) -> None:
        self._uffd = uffd
        self._maps = maps
        self._granules_log2 = granules_log2
        self._changed = threading.Condition()
        self._pages: Mapping[int, PageBitmap] | None = None  # what it is at
        self._stopping = self._ending = False
        self._thread = threading.Thread(target=self._main, name="restore", daemon=True)
        self._thread.start()

    def begin(self, pages: Mapping[int, PageBitmap]) -> None:
        """Give these an entry, soon and beside what the caller does. Who has begun before has to stop first.

        Args:
            pages: what has no entry and is to get one. A page leaves its set when it has been tried.
        """
        with self._changed:
            if not self._ending:  # else they are left to their faults
                self._pages, self._stopping = pages, False
                self._changed.notify_all()

    def stop(self) -> None:
        """Return when no entry will be made any more; that takes no longer than a step. Legal twice."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.wait()

    def wait(self) -> None:
        """Return when all pages were tried."""
        with self._changed:
            self._changed.wait_for(lambda: self._pages is None)

    def end(self) -> None:
        """As `stop`, and the thread is no more."""
        with self._changed:
            self._stopping = self._ending = True
            self._changed.notify_all()
        self._thread.join()

    def _main(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pages is not None or self._ending)
                pages = self._pages
                self._changed.wait_for(lambda: self._stopping, 0 if pages is None else _AFTER_S)
            if pages is None:
                return
            done = False
            try:
                self._restore_all(pages)
                done = True
            finally:
                with self._changed:
                    self._pages, self._ending = None, self._ending or not done
                    self._changed.notify_all()

    def _restore_all(self, pages: Mapping[int, PageBitmap]) -> None:
        for number, bitmap in pages.items():
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
