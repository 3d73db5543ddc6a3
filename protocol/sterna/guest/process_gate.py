"""Where a process guest's workload waits for pages that come later, and how long it did.

The workload's own code must not be what faults: numpy may hold the interpreter lock while it touches memory,
and then the whole holder would wait, its socket too. So the pages of a block are touched before it, one word
each, by a call that holds no lock. All of them, always: the kernel may have taken an entry away again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.guest.holder_bitmaps import bits_of
from sterna.guest.holder_frames import JsonObject
from sterna.limits import CHUNK_BYTES
from sterna.linux.memfd import PAGE_BYTES, MemoryMap

_STEPS_LOG2: Final = 4  # parts of an octave in which times are counted
_STEPS: Final = 1 << _STEPS_LOG2
CHUNK_PAGES: Final = CHUNK_BYTES // PAGE_BYTES  # which an endpoint asks for together


class Times:
    """How long things took, in a bounded number of counters: parts of an octave, so exact to 4 %.

    Attributes:
        count: of times.
        total_ns: their sum.
        max_ns: the longest; 0 if there is none.
    """

    def __init__(self) -> None:
        self.count = self.total_ns = self.max_ns = 0
        self._counts: dict[int, int] = {}  # by the time's leading bits: at most some hundred

    def add(self, ns: int) -> None:
        """One more."""
        self.count += 1
        self.total_ns += ns
        self.max_ns = max(self.max_ns, ns)
        shift = max(ns.bit_length() - _STEPS_LOG2 - 1, 0)
        step = shift << _STEPS_LOG2 + 1 | ns >> shift
        self._counts[step] = self._counts.get(step, 0) + 1

    def quantile_ns(self, share: float) -> int:
        """The time that this share of all does not exceed, to 4 %; 0 if there is none."""
        wanted = max(1, round(share * self.count))
        for step, count in sorted(self._counts.copy().items()):
            wanted -= count
            if wanted <= 0:
                shift, lead = step >> _STEPS_LOG2 + 1, step & 2 * _STEPS - 1
                return min((lead << shift) + (1 << shift >> 1), self.max_ns)
        return 0

    def figures(self, name: str) -> JsonObject:
        """For the status of a guest whose waits for pages these are, by what they are called."""
        return {
            f"{name}_count": self.count,
            f"{name}_p50_ns": self.quantile_ns(0.5),
            f"{name}_p99_ns": self.quantile_ns(0.99),
            f"{name}_max_ns": self.max_ns,
            f"{name}_total_ns": self.total_ns,
        }


class PageTimes:
    """How long a guest has waited for its pages.

    Args:
        pages: of its memory.

    Attributes:
        all: of the accesses that had to wait.
        first: of these, the first in each chunk: what nobody has asked for behind another page.
    """

    def __init__(self, pages: int) -> None:
        self.all, self.first = Times(), Times()
        self._waited = bytearray(-(-pages // CHUNK_PAGES))  # by chunk

    def add(self, page: int, ns: int) -> None:
        """One more, for this page."""
        self.all.add(ns)
        if not self._waited[page // CHUNK_PAGES]:
            self._waited[page // CHUNK_PAGES] = True
            self.first.add(ns)

    def figures(self) -> JsonObject:
        """For the guest's status."""
        return self.all.figures("fault") | self.first.figures("fault_first")


class FaultGate:
    """Lets a workload through to pages that are there. For one thread, which is the one that waits.

    Args:
        memory: the guest's mapping.
        stale: words of the bitmap of pages that come later.
        there: words of the bitmaps of pages that are there, which other processes set: of installed ones, and
            of early ones.

    Attributes:
        times: of the accesses that had to wait.
    """

    def __init__(
        self, memory: MemoryMap, stale: npt.NDArray[np.uint64], there: Sequence[npt.NDArray[np.uint64]]
    ) -> None:
        self.times = PageTimes(len(stale) * 64)
        self._memory = memory
        self._stale = stale
        self._there = tuple(there)

    def enter(self, first: int, count: int) -> bool:
        """Wait until these pages are there. False: somebody let go who waited, and they are not."""
        late = self._missing(first, count)
        for page in range(count):
            offset = (first + page) * PAGE_BYTES
            if not late >> page & 1:
                self._memory.touch(offset)
                continue
            started = time.perf_counter_ns()
            self._memory.touch(offset)
            self.times.add(first + page, time.perf_counter_ns() - started)
            late = self._missing(first, count)  # its neighbours may have come with it
        return not self._missing(first, count)

    def _missing(self, first: int, count: int) -> int:
        """Which of these pages are missing, a bit each."""
        missing = bits_of(self._stale, first, count)
        for words in self._there if missing else ():
            missing &= ~bits_of(words, first, count)
        return missing
