"""PAGEMAP_SCAN on /proc/self/pagemap (Linux 6.7): which pages of a range were written, which exist at all.

One call walks the page tables, reports runs of written pages and write-protects them again, page by page in
one step: a write is in this answer or in the next. The range must be registered for asynchronous write
protection (`sterna.linux.userfaultfd`). Content is to be read *after* the scan, never before it, or a write
in between would be neither in the copy nor in the next answer.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from sterna.linux.descriptor import Descriptor
from sterna.linux.errors import CapabilityMissing
from sterna.linux.ioctl import iowr

PageRuns: TypeAlias = npt.NDArray[np.uint64]

# struct pm_scan_arg { u64 size, flags, start, end, walk_end, vec, vec_len, max_pages,
#                      category_inverted, category_mask, category_anyof_mask, return_mask }
_SCAN_ARG: Final = struct.Struct("=12Q")
_WALK_END: Final = 4
_IOC_SCAN: Final = iowr(ord("f"), 16, _SCAN_ARG.size)

_WP_MATCHING: Final = 1 << 0
_CHECK_WPASYNC: Final = 1 << 1
_IS_WRITTEN: Final = 1 << 1
_IS_BACKED: Final = 1 << 3 | 1 << 4  # PAGE_IS_PRESENT, PAGE_IS_SWAPPED
_IS_ZERO_PAGE: Final = 1 << 5  # the one page of zeros that stands for what was only read (PAGE_IS_PFNZERO)

# struct page_region { u64 start, end, categories }
_REGION_WORDS: Final = 3
# Rows a call may fill. More runs than this cost one more call, 2 ms for a GiB with 8192 of them.
_VECTOR_ROWS: Final = 8192

_PAGEMAP: Final = "/proc/self/pagemap"
_PAGE: Final = mmap.PAGESIZE


class _Scan(NamedTuple):
    """Which pages are reported, and what becomes of them: the fields of pm_scan_arg from its end.

    Those that have, once `inverted` was flipped, every category of `every` and one of `any`, if it has some.
    """

    flags: int
    inverted: int
    every: int
    any: int
    returned: int


class PagemapScanner(Descriptor):
    """Asks for written pages of this process's memory. One thread at a time.

    Raises:
        CapabilityMissing: there is nothing to ask.
    """

    def __init__(self, vector_rows: int = _VECTOR_ROWS) -> None:
        try:
            super().__init__(os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise CapabilityMissing(
                "pagemap_scan",
                f"{_PAGEMAP}: {error.strerror}",
                "mount /proc, and let this process see itself there",
            ) from error
        self._rows = np.empty((vector_rows, _REGION_WORDS), dtype=np.uint64)  # most are never touched

    def scan_written(self, start: int, length: int, *, rearm: bool = True) -> PageRuns:
        """Runs of pages written since they were last protected.

        Args:
            start: address of the range, a multiple of the page size.
            length: bytes, likewise.
            rearm: protect the reported pages again, in the same step; otherwise only look.

        Returns:
            Array of shape (runs, 2), ascending: first page and the page after the last, counted from `start`.

        Raises:
            CapabilityMissing: the kernel lacks PAGEMAP_SCAN, or the range is not registered.
        """
        how = _Scan(_CHECK_WPASYNC | (_WP_MATCHING if rearm else 0), 0, _IS_WRITTEN, 0, _IS_WRITTEN)
        return self._scan_all(start, length, how)

    def scan_backed(self, start: int, length: int) -> PageRuns:
        """Runs of pages that are in memory or in swap, as `scan_written` returns them.

        All others of private memory read as zeros: nobody has written them. Others of shared memory may be
        there as well, for this process has not touched them, or not lately.

        Raises:
            CapabilityMissing: the kernel lacks PAGEMAP_SCAN.
        """
        return self._scan_all(start, length, _Scan(0, _IS_ZERO_PAGE, _IS_ZERO_PAGE, _IS_BACKED, _IS_BACKED))

    def _scan_all(self, start: int, length: int, how: _Scan) -> PageRuns:
        found: list[PageRuns] = []
        position, end = start, start + length
        while position < end:
            rows, position = self._scan(position, end, self._rows, how)
            found.append((rows[:, :2] - np.uint64(start)) // np.uint64(_PAGE))
        return np.concatenate(found) if found else np.empty((0, 2), dtype=np.uint64)

    def protect(self, start: int, length: int) -> None:
        """Protect every written page of the range without saying which: the start of tracking."""
        how = _Scan(_CHECK_WPASYNC | _WP_MATCHING, 0, _IS_WRITTEN, 0, _IS_WRITTEN)
        self._scan(start, start + length, None, how)

    def _scan(
        self, start: int, end: int, vector: npt.NDArray[np.uint64] | None, how: _Scan
    ) -> tuple[PageRuns, int]:
        address, size = (0, 0) if vector is None else (vector.ctypes.data, len(vector))
        argument = bytearray(
            _SCAN_ARG.pack(_SCAN_ARG.size, how.flags, start, end, 0, address, size, 0, *how[1:])
        )
        try:
            filled = fcntl.ioctl(self._fd, _IOC_SCAN, argument)
        except OSError as error:
            raise CapabilityMissing(
                "pagemap_scan", f"PAGEMAP_SCAN: {error.strerror}", "Linux 6.7 or newer has it"
            ) from error
        rows = self._rows[:filled] if vector is not None else self._rows[:0]
        return rows, _SCAN_ARG.unpack(argument)[_WALK_END]
