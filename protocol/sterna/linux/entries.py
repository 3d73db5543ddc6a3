"""Page table entries of memory that is about to be read, made in a thread before somebody waits for them.

A process that maps a guest's memory has a fault for every 16 pages that it reads for the first time, 50 ms a
GiB. To read one byte of each 16 pages makes the same entries, and is done ten times as fast as pages leave: a
thread that begins with the first of them stays ahead of whoever sends. Where the entries are there already,
as in a process that has its guest within itself, it takes 2 ms a GiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from sterna.linux.background import Background

# Of which one read makes all entries, if the kernel has the pages (fault_around_bytes).
AROUND_BYTES: Final = 64 << 10
# So many reads at once: a millisecond of faults, for which whoever stops it may have to wait. numpy lets go
# of the interpreter's lock meanwhile.
READS: Final = 256

Place: TypeAlias = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Memory, and offsets of the bytes there that are to be read."""


class EntriesAhead(Background):
    """Reads these places, in their order, until it is stopped.

    Pages that are not there yet come by this, as by any read: leave out what nobody reads.

    Raises:
        RuntimeError: there can be no more threads.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        super().__init__(_read(places), "entries")


def _read(places: Iterable[Place]) -> Iterator[None]:
    for memory, offsets in places:
        yield
        for first in range(0, len(offsets), READS):
            yield
            memory.take(offsets[first : first + READS])
