"""Pages that the guest has before they count as installed: spec/holder.md, section 6.2.

Two processes decide about a page. The endpoint *takes* pages before it lets bytes of theirs come to their
place. The pager, a process forked from it, *installs* a page that a vCPU waits for, unless it was taken: it
writes the page and sets its early bit. Either decision is made under one lock, and neither is ever undone, so
a page has one writer. What is taken stays taken, and what is early is the guest's.

The lock is one of an open file description, of which each process has its own. So the kernel lets go of it
when the pager dies, at whichever step: before the early bit the page is as any other that has not come, and
behind it the page is there. What was taken, and the hash of each page that the pager has written, is in
anonymous memory that both share: the next endpoint has no use for the former, and has to do without the
latter.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.errors import GuestError
from sterna.guest.holder_bitmaps import bits_of, set_bits, words_of
from sterna.linux.byte_locks import ByteLocks
from sterna.registry import ErrorCode

Words = npt.NDArray[np.uint64]

DECIDING, LIVING = range(2)  # the bytes that are locked, by what one does meanwhile
_WORD_BYTES: Final = 8
_MAP_NORESERVE: Final = 0x4000  # the mmap module has no name for it
_FEW_PAGES: Final = 1 << 10  # as one integer; of more, numpy is quicker to find that none is set
# How often the pager may be found deciding. That takes it microseconds if it has a processor, for which it
# may have to wait some time slices of others: so the endpoint gives up its own at first, and then sleeps. It
# does nothing else meanwhile, so all of that is 50 ms, and a pager that is not done by then is ended.
_YIELDS: Final = 200
_TRIES: Final = 300  # the yields included
_STEP_S: Final = 0.0005
_FREE_WITHIN_S: Final = 3.0  # a process that was killed has ended by then


class _Region:
    """A region's bits and hashes. Single bits are looked at as plain integers, which numpy's are slower than.

    Attributes:
        early_words: of the shared bitmap of early pages.
        taken_words: likewise of taken ones.
        early: the same words, as integers.
        taken: likewise.
        installed: likewise, written by others.
        hashes: of what the pager has written, 0 where it is not known.
    """

    def __init__(self, early: Words, installed: Words, pages: int) -> None:
        size = (words_of(pages) + pages) * _WORD_BYTES
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map = mmap.mmap(-1, size, flags=flags)  # costs what is touched
        self.early_words = early
        self.taken_words: Words = np.frombuffer(self._map, np.uint64, words_of(pages))
        self.early = early.data.cast("B").cast("Q")
        self.installed = installed.data.cast("B").cast("Q")
        shared = memoryview(self._map).cast("Q")
        self.taken, self.hashes = shared[: words_of(pages)], shared[words_of(pages) :]

    def clear(self) -> None:
        self._map.madvise(mmap.MADV_REMOVE)


class EarlyPages:
    """What the endpoint and its pager know together. Made before the latter is forked.

    Args:
        file: a descriptor of the holder's file with the bitmaps; it stays as it is.
        early: the words of each region's bitmap of early pages, by region id.
        installed: likewise of installed ones.
        pages: of each region.

    Attributes:
        on_stuck: ends the pager, which was found deciding for too long.

    Raises:
        GuestError: BUSY, a process of the last endpoint's can still set early bits.
        OSError: the file cannot be opened.
    """

    def __init__(
        self,
        file: int,
        early: Mapping[int, Words],
        installed: Mapping[int, Words],
        pages: Mapping[int, int],
    ) -> None:
        self.on_stuck: Callable[[], None] = _nobody
        self._regions: Final = {
            number: _Region(words, installed[number], pages[number]) for number, words in early.items()
        }
        self._locks = ByteLocks.on(file)
        try:
            _wait_for(lambda: self._locks.is_free(LIVING), "the last endpoint's pager lives")
        except BaseException:
            self._locks.close()
            raise

    def fileno(self) -> int:
        """A descriptor that a forked process has to keep, until `after_fork`."""
        return self._locks.fileno()

    def is_early(self, region: int, page: int) -> bool:
        """Whether the guest has got this page early."""
        return bool(self._regions[region].early[page >> 6] >> (page & 63) & 1)

    def is_installed(self, region: int, page: int) -> bool:
        """Whether this page is installed, or was never stale."""
        return bool(self._regions[region].installed[page >> 6] >> (page & 63) & 1)

    def close(self) -> None:
        """There is no pager any more, nor will be: no page becomes early. Legal twice."""
        self._locks.close()

    # ---- the endpoint's ----

    def renew(self) -> None:
        """No guest has run, and other pages are expected: nothing was taken."""
        for one in self._regions.values():
            one.clear()

    def take_all(self, region: int, first: int, count: int) -> bool:
        """See `sterna.memory.merging.Claims`.

        Raises:
            GuestError: BUSY, the pager decides for ever.
        """
        one = self._regions[region]
        self._decide()
        try:
            if _any_set(one.early_words, first, count):
                return False
            set_bits(one.taken_words, first, count)
        finally:
            self._decided()
        return True

    def take_rest(self, region: int, first: int, count: int) -> int:
        """See `sterna.memory.merging.Claims`.

        Raises:
            GuestError: as `take_all`.
        """
        one = self._regions[region]
        self._decide()
        try:
            set_bits(one.taken_words, first, count)
            return bits_of(one.early_words, first, count)
        finally:
            self._decided()

    def noted(self, region: int, page: int) -> int:
        """See `sterna.memory.merging.Claims`."""
        return self._regions[region].hashes[page]

    def _decide(self) -> None:
        """Have the lock. Whatever the pager does, the endpoint does not wait for it for ever."""
        if self._locks.fileno() < 0 or self._locks.try_lock(DECIDING):
            return
        for tried in range(_TRIES):
            if tried < _YIELDS:
                os.sched_yield()
            else:
                time.sleep(_STEP_S)
            if self._locks.try_lock(DECIDING):
                return
        self.on_stuck()
        _wait_for(lambda: self._locks.try_lock(DECIDING), "another process holds the lock of early pages")

    def _decided(self) -> None:
        if self._locks.fileno() >= 0:
            self._locks.unlock(DECIDING)

    # ---- the pager's ----

    def after_fork(self) -> None:
        """From here on this is the pager's, and says so for as long as it lives.

        Raises:
            GuestError: BUSY, there is another one.
            OSError: the file cannot be opened.
        """
        self._locks.anew()
        _wait_for(lambda: self._locks.try_lock(LIVING), "there is a pager")

    def free(self, region: int, word: int) -> int:
        """Which of 64 pages `install` would install, a bit each, as it looks without the lock."""
        one = self._regions[region]
        return ~(one.taken[word] | one.installed[word] | one.early[word])

    def install(self, region: int, page: int, data: memoryview, hash_: int, place: memoryview) -> bool:
        """Write a page that was verified, unless another may, or it is there: then False.

        Args:
            region: its region's id.
            page: its number there.
            data: its bytes.
            hash_: their XXH3-64, 0 if it is not known.
            place: where they belong.
        """
        one = self._regions[region]
        word, bit = page >> 6, 1 << (page & 63)
        self._locks.lock(DECIDING)
        try:
            if (one.taken[word] | one.installed[word] | one.early[word]) & bit:
                return False
            place[:] = data
            one.hashes[page] = hash_
            one.early[word] |= bit
        finally:
            self._locks.unlock(DECIDING)
        return True


def _nobody() -> None:
    """There is no pager that could be ended."""


def _any_set(words: Words, first: int, count: int) -> bool:
    """Whether one of these bits is set."""
    if count <= _FEW_PAGES:
        return bits_of(words, first, count) > 0
    end, low, high = first + count, first + 63 >> 6, first + count >> 6
    if bool(words[low:high].any()):
        return True
    return bits_of(words, first, (low << 6) - first) > 0 or bits_of(words, high << 6, end - (high << 6)) > 0


def _wait_for(done: Callable[[], bool], why: str) -> None:
    """For a process that is about to end.

    Raises:
        GuestError: BUSY, it does not.
    """
    deadline = time.monotonic() + _FREE_WITHIN_S
    while not done():
        if time.monotonic() > deadline:
            raise GuestError(why, ErrorCode.BUSY)
        time.sleep(_STEP_S)
