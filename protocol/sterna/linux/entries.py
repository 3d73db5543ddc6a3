"""Page table entries of memory that is about to be read, made in a thread before somebody waits for them.

A process that maps a guest's memory has a fault for every 16 pages that it reads for the first time, 50 ms a
GiB. To read one byte of each 16 pages makes the same entries, and is done ten times as fast as pages leave: a
thread that begins with the first of them stays ahead of whoever sends. Where the entries are there already,
as in a process that has its guest within itself, it takes 2 ms a GiB.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

# Of which one read makes all entries, if the kernel has the pages (fault_around_bytes).
AROUND_BYTES: Final = 64 << 10
# Some milliseconds, for which whoever stops it may have to wait; and enough bytes for numpy to let go of the
# interpreter's lock.
STEP_BYTES: Final = 64 << 20


class EntriesAhead:
    """Makes the entries of these pieces of memory, in their order, until it is stopped.

    Pages that are not there yet come by this, as by any read: leave out what nobody reads.
    """

    def __init__(self, pieces: Iterable[npt.NDArray[np.uint8]]) -> None:
        self._pieces = pieces
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="entries", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """It touches nothing after this, and has let go of the memory. Legal twice."""
        self._stopped = True
        self.join()

    def join(self) -> None:
        """Wait until it has come to its end."""
        self._thread.join()

    def _work(self) -> None:
        pieces, self._pieces = self._pieces, ()
        for piece in pieces:
            for first in range(0, len(piece), STEP_BYTES):
                if self._stopped:
                    return
                piece[first : first + STEP_BYTES : AROUND_BYTES].max()
