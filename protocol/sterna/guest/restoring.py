"""Page table entries that are taken from a guest and given back to it, beside what its holder does.

Entries of stale pages are taken in the blackout, while the state is loaded: that is a quarter of a
microsecond for each, and nothing touches these pages before the guest runs.

Before the pause nobody knows which pages will be stale, only which are likely to be. The entries of all
those are taken away then, because that is slow, and a thread gives those that turn out not to be stale back.
It goes through them in steps of what a fault at one of them is answered with, so a guest that runs meanwhile
is never far from what it needs. What is not reached does no harm: the next access faults, and is resolved by
the controller [HOL-40], or by the kernel when nothing is held any more.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping
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
        self._take: Callable[[], None] | None = None  # what comes before
        self._failure: Exception | None = None
        self._stopping = self._ending = False
        self._thread = threading.Thread(target=self._main, name="restore", daemon=True)
        self._thread.start()

    def begin(self, pages: Mapping[int, PageBitmap], take: Callable[[], None] | None = None) -> None:
        """Take entries, and give these one. Who has begun before has to stop first.

        Args:
            pages: what has no entry and is to get one, soon. A page leaves its set when it has been tried.
            take: takes entries from others, at once; whatever becomes of `pages`, it is called.

        Raises:
            Exception: what `take` raises, if there is no thread any more.
        """
        with self._changed:
            if not self._ending:  # else they are left to their faults
                self._pages, self._take, self._stopping = pages, take, False
                self._changed.notify_all()
                return
        if take is not None:
            take()

    def taken(self) -> None:
        """Return when all entries are taken.

        Raises:
            Exception: what `take` has raised, in all calls from then on.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._take is None)
            if self._failure is not None:
                raise self._failure

    def stop(self) -> None:
        """Return when no entry will be made any more; that takes no longer than a step. Legal twice.

        Raises:
            Exception: as `taken`.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.wait()
        self.taken()

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
                pages, take = self._pages, self._take
            if take is not None:
                self._taking(take)
            with self._changed:
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

    def _taking(self, take: Callable[[], None]) -> None:
        failure: Exception | None = RuntimeError("no entries were taken")
        try:
            take()
            failure = None
        except (OSError, MemoryError) as error:
            failure = error  # it is raised where somebody waits for it
        finally:
            with self._changed:
                self._take, self._failure = None, failure
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
