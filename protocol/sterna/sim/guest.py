"""A guest without content: pages have versions, and nothing else.

So a guest may have far more memory than the machine that simulates it: a page of 64 KiB, which is also a
chunk, takes eight bytes at each side. In the place of a chunk's hash travels the version of its page, so that
what the destination holds can be compared with the memory of the pause, page by page, although no byte was
sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.limits import GRANULE_MAX_LOG2
from sterna.memory.bitmap import PageBitmap, Words, expand_runs
from sterna.memory.pages import EncodedBatch
from sterna.memory.regions import RegionTable
from sterna.registry import Encoding
from sterna.wire import carries_bytes
from sterna.wire.records import RUN_DTYPE, PageRange, Pages, Region

PAGE_BYTES: Final = 1 << GRANULE_MAX_LOG2
_BULK_MAX: Final = 1 << 24
_NOTHING: Final = memoryview(bytearray(_BULK_MAX))  # stands for page bytes: only its length is looked at


@dataclass(frozen=True, slots=True)
class Writes:
    """What a guest writes.

    Attributes:
        rate_bytes_s: of pages, each counted whole, as a mean over a burst and the calm behind it.
        hot_bytes: the part of memory, from its start, that is swept again and again.
        cold_share: of the writes, those that go through all the rest of the memory.
        burst_s: length of a burst and of the calm behind it; 0 for none.
        burst_share: of the writes, those in bursts.
    """

    rate_bytes_s: float = 0.0
    hot_bytes: int = 0
    cold_share: float = 0.0
    burst_s: float = 0.0
    burst_share: float = 0.5

    def by(self, at_s: float) -> float:
        """Bytes of pages that a guest has written when it has run for so long."""
        if not self.burst_s:
            return at_s * self.rate_bytes_s
        period_s = 2 * self.burst_s
        whole, rest_s = divmod(at_s, period_s)
        burst, calm = min(rest_s, self.burst_s), max(0.0, rest_s - self.burst_s)
        weight = self.burst_share * burst + (1 - self.burst_share) * calm
        return self.rate_bytes_s * (whole * period_s + 2 * weight)


class PhantomGuest:
    """Memory as versions. At the source it is a `PageSource`, at the destination a `PageSink`.

    Attributes:
        region: its only one.
        versions: of each page; 0 was never written and reads as zeros.
        throttle: share of its time that is taken away.
        running: whether it writes.
    """

    def __init__(self, memory_bytes: int, writes: Writes | None = None, *, filled: float = 1.0) -> None:
        """A guest of so many bytes, rounded up to pages; the share `filled` was written before."""
        pages = max(1, -(-memory_bytes // PAGE_BYTES))
        log2 = GRANULE_MAX_LOG2
        self.region: Final = Region(0, 0, pages << log2, log2, log2)
        self.table: Final = RegionTable((self.region,))
        self.versions: Final[Words] = np.zeros(pages, np.uint64)
        self.versions[: math.ceil(pages * filled)] = 1
        self.throttle = 0.0
        self.running = False
        self._writes: Final = writes or Writes()
        hot = min(max(1, -(-self._writes.hot_bytes // PAGE_BYTES)), pages)
        # First page and length of both sweeps, and what each has written so far.
        self._sweeps: Final = ((0, hot), (hot, pages - hot))
        self._done = [0, 0]
        self._ran_s = 0.0
        self._dirty: Final = PageBitmap(pages)

    # ---- life ----

    def live(self, seconds: float) -> None:
        """So much time passes; it writes in it if it runs, and less if it is slowed down."""
        if not self.running:
            return
        self._ran_s += seconds * (1 - self.throttle)
        pages = self._writes.by(self._ran_s) / PAGE_BYTES
        cold = pages * self._writes.cold_share
        for number, due in enumerate((pages - cold, cold)):
            first, length = self._sweeps[number]
            count, self._done[number] = int(due) - self._done[number], int(due)
            if length:
                self._sweep(first, length, int(due) - count, count)

    def _sweep(self, first: int, length: int, begin: int, count: int) -> None:
        """`count` writes of a sweep, from its write number `begin` on."""
        if count >= length:
            begin, count = 0, length
        start = begin % length
        for at, size in ((start, min(count, length - start)), (0, max(0, count - (length - start)))):
            if size:
                self.versions[first + at : first + at + size] += np.uint64(1)
                self._dirty.set(first + at, size)

    def collect(self) -> Mapping[int, PageBitmap]:
        """The pages written since the last collect."""
        found = PageBitmap(self.region.pages)
        found |= self._dirty
        self._dirty.clear_all()
        return {self.region.id: found}

    # ---- PageSource ----

    def encode(
        self,
        region: int,
        starts: npt.ArrayLike,
        counts: npt.ArrayLike,
        *,
        zeros: bool = True,
        whole: bool = False,
        hashed: bool = True,
    ) -> EncodedBatch:
        """See `sterna.memory.pages.PageSource`: a run for each stretch of zero or other pages.

        A page is a chunk here, so a group is one page.
        """
        assert hashed, "versions travel as hashes"
        pages = expand_runs(np.asarray(starts, np.int64), np.asarray(counts, np.int64))
        versions = self.versions[pages]
        zero = (versions == 0) & zeros
        border = np.empty(len(pages), np.bool_)
        border[:1] = True
        border[1:] = whole | (np.diff(pages) != 1) | (zero[1:] != zero[:-1])
        at = np.flatnonzero(border)
        runs = np.zeros(len(at), RUN_DTYPE)
        runs["first"], runs["count"] = pages[at], np.diff(at, append=len(pages))
        runs["encoding"] = np.where(zero[at], int(Encoding.ZERO), int(Encoding.RAW))
        runs["size_bytes"] = np.where(zero[at], 0, runs["count"] * np.uint32(PAGE_BYTES))
        bulk = int(runs["size_bytes"].sum(dtype=np.uint64))
        buffers = (_NOTHING[:bulk],) if bulk else ()
        return EncodedBatch(region, runs, versions[~zero], buffers, len(pages), bulk)

    # ---- PageSink ----

    def targets(self, table: Pages) -> list[memoryview]:
        """See `sterna.memory.pages.PageSink`: one place, of the right length."""
        return [_NOTHING[: table.bulk_bytes]]

    def came(self, table: Pages, size_bytes: int) -> None:
        """See `sterna.memory.pages.PageSink`: bytes are not looked at."""

    def commit(self, table: Pages, *, hashed: bool = True) -> list[PageRange]:
        """See `sterna.memory.pages.PageSink`: the versions are those that came. Nothing is ever rejected."""
        assert hashed, "versions travel as hashes"
        raw = carries_bytes(table.runs)
        for run, carries in zip(table.runs, raw.tolist(), strict=True):
            first, count = int(run["first"]), int(run["count"])
            if not carries:
                self.versions[first : first + count] = 0
        pages = expand_runs(
            table.runs["first"][raw].astype(np.int64), table.runs["count"][raw].astype(np.int64)
        )
        self.versions[pages] = table.hashes
        return []

    @property
    def early_pages(self) -> int:
        """See `sterna.memory.pages.PageSink`: every page comes with its group."""
        return 0
