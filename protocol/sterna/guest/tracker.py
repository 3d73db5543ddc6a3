"""Dirty tracking of a mapping of one's own: which pages were written since the last question.

Both trackers answer a superset of the true writes and lose none: a write is in this answer or in the next.

`UffdTracker` has the kernel write-protect the pages (userfaultfd, asynchronously) and asks PAGEMAP_SCAN. The
scan reports a page and protects it again in one step; the content is read by the sender afterwards. It is
exact, costs the guest a fault of about a microsecond at the first write to a page, and a clean GiB is
scanned in a fraction of a millisecond.

`CompareTracker` needs nothing of the kernel: it keeps a copy of the memory and compares. A copy rather than
a hash a page, because comparing and copying are single numpy calls over a MiB without the interpreter lock,
where hashing 4 KiB at a time is a Python call a page that stops the guest's thread; and because it cannot
collide. It takes as much memory again. A page that differs is reported and the copy updated, in this order,
so whatever the copy then holds is no newer than what the sender will read. One case it cannot see: a page
that is changed, sent, and changed back to what the copy holds, all between two questions. The workload's
pages carry a generation that only grows, so for them it does not exist; a guest whose pages may return to an
earlier content must not be followed this way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap
from sterna.linux.memory import SHARED_HUGE_PAGES, shared_huge_pages
from sterna.linux.pagemap import PagemapScanner
from sterna.linux.userfaultfd import WRITE_TRACKING, Mode, Userfaultfd
from sterna.memory.bitmap import PageBitmap

_PAGE_WORDS: Final = PAGE_BYTES // 8
_TABLE_BYTES: Final = PAGE_BYTES * (PAGE_BYTES // 8)  # what one page table maps; a huge page
# Compared at once: live pages, their copies and the result stay in a second-level cache.
_STEP_PAGES: Final = 64


class Tracker(Protocol):
    """Follows writes to one mapping. Not thread-safe; the writers may be other threads."""

    @property
    def name(self) -> str:
        """For people, and for the JSON of the commands."""
        ...

    def start(self) -> None:
        """Report everything that is written from the return on."""
        ...

    def collect(self, *, keep: bool = False) -> PageBitmap:
        """Pages written since the last `collect` or `start`; they are forgotten in the same step.

        `keep`: they need not be, and may be told again. To forget takes a quarter of the time.
        """
        ...

    def stop(self) -> None:
        """No tracking any more; legal at any time."""
        ...


class UffdTracker:
    """userfaultfd write protection, resolved by the kernel, and PAGEMAP_SCAN."""

    name: Final = "userfaultfd"

    def __init__(self, memory: MemoryMap) -> None:
        self._memory = memory
        self._uffd: Userfaultfd | None = None
        self._scanner: PagemapScanner | None = None

    def start(self) -> None:
        """Protect every page.

        Raises:
            CapabilityMissing: the kernel or our rights do not allow it.
        """
        self.stop()
        memory = self._memory
        self._uffd = Userfaultfd(WRITE_TRACKING)
        try:
            self._scanner = PagemapScanner()
            self._uffd.register(memory.address, memory.size_bytes, Mode.WP)
            self._scanner.protect(memory.address, memory.size_bytes)
        except BaseException:
            self.stop()
            raise

    def collect(self, *, keep: bool = False) -> PageBitmap:
        """Scan, and protect again unless they are kept."""
        if self._scanner is None:
            raise RuntimeError("collect before start")
        memory = self._memory
        found = self._scanner.scan_written(memory.address, memory.size_bytes, rearm=not keep)
        runs = found.astype(np.int64)
        bitmap = PageBitmap(memory.size_bytes // PAGE_BYTES)
        bitmap.set_runs(runs[:, 0], runs[:, 1] - runs[:, 0])
        return bitmap

    def stop(self) -> None:
        """Closing the descriptor ends all protection."""
        if self._scanner is not None:
            self._scanner.close()
            self._scanner = None
        if self._uffd is not None:
            self._uffd.close()
            self._uffd = None


class CompareTracker:
    """Comparison with a copy of the memory."""

    name: Final = "compare"

    def __init__(self, memory: MemoryMap) -> None:
        self._pages: npt.NDArray[np.uint64] = memory.array.view(np.uint64).reshape(-1, _PAGE_WORDS)
        self._copy: npt.NDArray[np.uint64] | None = None
        self._differs = np.empty((_STEP_PAGES, _PAGE_WORDS), dtype=np.bool_)

    def start(self) -> None:
        """Copy the memory. What is written meanwhile differs from the copy, or was seen by it."""
        self._copy = self._pages.copy()

    def collect(self, *, keep: bool = False) -> PageBitmap:
        """Compare, and bring the copy up to date where it differs."""
        del keep  # to forget is to copy what differs, and that is little
        if self._copy is None:
            raise RuntimeError("collect before start")
        changed = np.zeros(len(self._pages), dtype=np.bool_)
        for first in range(0, len(self._pages), _STEP_PAGES):
            live = self._pages[first : first + _STEP_PAGES]
            copy = self._copy[first : first + _STEP_PAGES]
            differs = np.not_equal(live, copy, out=self._differs[: len(live)]).any(axis=1)
            if differs.any():
                changed[first : first + _STEP_PAGES] = differs
                copy[differs] = live[differs]
        return PageBitmap.from_mask(changed)

    def stop(self) -> None:
        """Give the copy's memory back."""
        self._copy = None


def choose_tracker(memory: MemoryMap, wanted: str = "auto") -> tuple[Tracker, str]:
    """The best tracker that works here, and why it is not a better one (empty if it is the best).

    Args:
        memory: what is to be followed; nothing is left registered.
        wanted: ``auto``, ``userfaultfd`` or ``compare``.

    Raises:
        CapabilityMissing: ``userfaultfd`` was demanded and does not work.
        ValueError: an unknown name.
    """
    if wanted not in {"auto", "userfaultfd", "compare"}:
        raise ValueError(f"no tracker {wanted!r}")
    if wanted == "compare":
        return CompareTracker(memory), "asked for"
    try:
        _try_userfaultfd()
    except CapabilityMissing as missing:
        if wanted == "userfaultfd":
            raise
        return CompareTracker(memory), str(missing)
    return UffdTracker(memory), ""


def _try_userfaultfd() -> None:
    """Track a page, not the memory itself: protecting untouched memory costs page tables for all of it."""
    with _probe_memory(PAGE_BYTES) as memory:
        tracker = UffdTracker(memory)
        try:
            tracker.start()
        finally:
            tracker.stop()
    _check_huge_pages()


def _check_huge_pages() -> None:
    """Whether writes to a huge page are still reported when it was unmapped, by reclaim or a split.

    A range without a page table is what it leaves behind. A page that is not mapped counts as written
    everywhere, such a range only with newer kernels; with others the writes would be lost.

    Raises:
        CapabilityMissing: there are huge pages, and ranges without page tables are not reported.
    """
    try:
        if shared_huge_pages() in {"never", "deny"}:
            return
    except OSError:
        return
    with _probe_memory(2 * _TABLE_BYTES) as memory, Userfaultfd(WRITE_TRACKING) as uffd:
        uffd.register(memory.address, memory.size_bytes, Mode.WP)
        scanner = PagemapScanner()
        try:
            found = scanner.scan_written(memory.address, memory.size_bytes, rearm=False)
        finally:
            scanner.close()
    if found.tolist() != [[0, 2 * _TABLE_BYTES // PAGE_BYTES]]:
        raise CapabilityMissing(
            "pagemap_scan",
            "this kernel may lose writes to huge pages when it reclaims them",
            f"echo never > {SHARED_HUGE_PAGES}, or a newer kernel",
        )


@contextlib.contextmanager
def _probe_memory(size_bytes: int) -> Iterator[MemoryMap]:
    with contextlib.closing(MemoryFile("sterna-probe", size_bytes)) as file:
        memory = file.map()
        try:
            yield memory
        finally:
            memory.close()
