"""Page table entries of this process's own mapping of a guest's memory, made before somebody waits for them.

An endpoint writes the pages that a guest waits for through its own mapping: 16 faults of ours would be a
third of the guest's time. Most pages have come in rounds by then, and have their entries. To walk over those
costs nearly as much as to make them, some 60 microseconds a mebibyte, so the kernel is asked first.

And an endpoint that takes rounds in would have a fault for every page of the first one, which costs as
much as to copy the page. `Ahead` makes the entries in a thread that is faster than pages arrive. The memory
itself comes from the holder, who has it all brought anyway. So the kernel is asked as for reads, which it
answers for 16 pages at once: as for writes it takes three to four times as long. Pages that are not there yet
come by this mapping, and in the size that is asked for here: huge, as by a holder of ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import trio

from sterna.errors import GuestError
from sterna.linux.background import Background
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryMap
from sterna.linux.pagemap import PagemapScanner
from sterna.registry import ErrorCode

STEP_BYTES: Final = 64 << 20  # at once: some 20 ms, for which a cancellation may have to wait
AHEAD_BYTES: Final = 16 << 20  # a few milliseconds, for which whoever stops it may have to wait
_RANGES_MAX: Final = 1024  # more are one: a call each would cost more than the walk


class Ahead(Background):
    """Makes the entries of whole writable mappings in a thread, from their beginning, until it is stopped.

    Whether there is enough memory is not its business: it ends, and whoever needs the pages will see.
    """

    def __init__(self, memories: Collection[MemoryMap]) -> None:
        for memory in memories:
            memory.advise_huge_pages()
        super().__init__(_entries(tuple(memories)), "ahead")


def _entries(memories: Collection[MemoryMap]) -> Iterator[None]:
    for memory in memories:
        for first in range(0, memory.size_bytes, AHEAD_BYTES):
            yield
            try:
                memory.populate_entries(first, min(AHEAD_BYTES, memory.size_bytes - first))
            except MemoryError:
                return


async def populate(memory: MemoryMap, offset: int, length: int) -> None:
    """Have an entry for every page of this part of a writable mapping; the content stays as it is.

    Raises:
        GuestError: with FULL, there is not enough memory.
    """
    for start, end in _bare(memory, offset, length):
        for first in range(start, end, STEP_BYTES):
            await trio.to_thread.run_sync(_populate, memory, first, min(STEP_BYTES, end - first))


def _bare(memory: MemoryMap, offset: int, length: int) -> list[tuple[int, int]]:
    """Begin and end of what has no entries; all of it where the kernel does not tell."""
    try:
        with PagemapScanner() as scanner:
            there = scanner.scan_backed(memory.address + offset, length)
    except CapabilityMissing:
        return [(offset, offset + length)]
    if len(there) > _RANGES_MAX:
        return [(offset, offset + length)]
    edges = [offset, *(offset + edge * PAGE_BYTES for edge in there.ravel().tolist()), offset + length]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def _populate(memory: MemoryMap, offset: int, size: int) -> None:
    try:
        memory.populate_entries(offset, size)
    except MemoryError as error:
        raise GuestError(str(error), ErrorCode.FULL) from error
