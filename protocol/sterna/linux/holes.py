"""Memory that nobody has ever written, found without touching it: by SEEK_DATA or PAGEMAP_SCAN.

Reading such memory is not free: a shared mapping gets a page for it, a zeroed one, which costs more than
copying a page. The kernel knows what it has given pages to, and says it in milliseconds for a GiB. The end of
a file's data is sought page by page, several times slower than page tables are scanned: so of a file that is
mapped these tell what surely is there, and SEEK_DATA what lies between.

A hole reads as zeros at the moment of the question, and may be written right after it. Whoever builds on the
answer follows writes before it asks. What the kernel cannot tell of, or only in very many pieces, is no hole.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, is_memory_file
from sterna.linux.pagemap import PagemapScanner

# Rows of first byte and the byte behind the last, ascending; int64.
ByteRanges: TypeAlias = npt.NDArray[np.int64]

_NOTHING: Final = np.empty((0, 2), np.int64)

# Two system calls each, some tenths of a second for all: behind so many pieces everything counts as written.
_PIECES_MOST: Final = 1 << 17
# Fewer holes than this share of the file are read sooner than found.
_WORTH_ONE_IN: Final = 64
_BLOCK_BYTES: Final = 512  # of st_blocks, whatever the file system


class _Segment(NamedTuple):
    """A line of /proc/self/maps."""

    start: int
    end: int
    is_shared: bool
    offset: int
    inode: int


def file_holes(fd: int, offset: int, length: int, backed: ByteRanges = _NOTHING) -> ByteRanges:
    """Holes of a memory file between these bytes; the ranges count from `offset`. None of other files.

    `backed`: ranges that are known to have pages, ascending, counted likewise.
    """
    data, end = [], offset + length
    ends = dict((backed[:_PIECES_MOST] + offset).tolist())
    position = offset if _tells_holes(fd) else end
    if position == end:
        data.append((0, length))
    while position < end:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # that is: no data from there on
                raise
            break
        if start >= end:
            break
        full = len(data) >= _PIECES_MOST
        position = end if full else min(ends.get(start) or os.lseek(fd, start, os.SEEK_HOLE), end)
        data.append((start - offset, position - offset))
    return _between(np.array(data, np.int64).reshape(-1, 2), length)


def _tells_holes(fd: int) -> bool:
    """Whether there are enough of them: the search looks at every page that is there, 0.1 us each."""
    status = os.fstat(fd)
    return (
        is_memory_file(fd)
        and status.st_blocks * _BLOCK_BYTES <= status.st_size - status.st_size // _WORTH_ONE_IN
    )


def memory_holes(address: int, length: int) -> ByteRanges:
    """Holes in this process's memory between these bytes; the ranges count from `address`.

    Shared memory is told of where the rights of this process let it open what it has mapped (Linux wants
    CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN for it); private memory where PAGEMAP_SCAN is known.
    """
    found: list[ByteRanges] = [_NOTHING]
    with contextlib.suppress(OSError, CapabilityMissing):
        for segment in _segments(address, address + length):
            start, end = max(segment.start, address), min(segment.end, address + length)
            if segment.is_shared:
                holes = _shared_holes(segment, start, end)
            elif segment.inode:
                continue  # private pages over a file
            else:
                holes = _private_holes(start, end)
            found.append(holes + (start - address))
    return np.concatenate(found)


def _segments(start: int, end: int) -> Iterator[_Segment]:
    """What is mapped there, ascending."""
    with open("/proc/self/maps", "rb") as lines:
        for line in lines:
            span, rest = line.split(b" ", 1)
            first, last = span.split(b"-")
            if (high := int(last, 16)) <= start:
                continue
            if (low := int(first, 16)) >= end:
                return  # hundreds of libraries may follow
            rights, offset, _, inode = rest.split(maxsplit=4)[:4]
            yield _Segment(low, high, rights[3:4] == b"s", int(offset, 16), int(inode))


def _shared_holes(segment: _Segment, start: int, end: int) -> ByteRanges:
    path = f"/proc/self/map_files/{segment.start:x}-{segment.end:x}"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        backed = _NOTHING
        if _tells_holes(fd):
            with contextlib.suppress(CapabilityMissing):
                backed = _backed(start, end)
        return file_holes(fd, segment.offset + start - segment.start, end - start, backed)
    finally:
        os.close(fd)


def _private_holes(start: int, end: int) -> ByteRanges:
    return _between(np.clip(_backed(start, end), 0, end - start), end - start)


def _backed(start: int, end: int) -> ByteRanges:
    """What this process's page tables have. Memory may begin and end anywhere, pages do not."""
    low, high = start // PAGE_BYTES * PAGE_BYTES, -(-end // PAGE_BYTES) * PAGE_BYTES
    with contextlib.closing(PagemapScanner()) as scanner:
        return scanner.scan_backed(low, high - low).astype(np.int64) * PAGE_BYTES + (low - start)


def _between(data: ByteRanges, length: int) -> ByteRanges:
    """What lies between ranges that ascend, from 0 to `length`."""
    holes = np.stack((np.append(0, data[:, 1]), np.append(data[:, 0], length)), axis=1)
    return holes[holes[:, 0] < holes[:, 1]]
