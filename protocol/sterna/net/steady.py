"""Pages of a running guest, copied before they are hashed where a link is too slow to go without.

Page bytes normally go from guest memory to the socket without a copy (sterna.memory.pages). A page that the
guest writes between its hash and its departure is rejected and sent again, which is cheap while that gap is
short. On a slow link it is as long as a batch takes to leave, and a guest that writes its hot pages in less
would have nearly all of them rejected, until the destination takes the sender for a broken one [RAK-5]. So
where the gap is long, or many pages were rejected, a batch is copied first and its hashes are those of the
copy: what arrives then always matches. A copy costs a tenth of a millisecond a mebibyte, which no slow link
notices.

How long the gap is shows in how long the batch before took: the next one is encoded when it has left. With
several connections it is as many times as long, since each of them has one under way. How long it may be
depends on the guest's size: what is written meanwhile must be a small share of the first round. After that
round `REJECTED_SHARE` decides.

A process that moves many guests at once has long gaps and no time for copies, and most guests write little.
So where the gap is long, some of a batch's bytes are looked at once more when it has left. As long as they
are what they were, the next batch goes as it is. What is spoiled before that shows is about one batch: of
batches that are spoiled by half, every second look tells. A guest must be large enough to bear that.

Memory of which the first round is about to read is prepared besides (sterna.net.ahead).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from sterna.core.events import Event, RoundFinished, RoundStarted
from sterna.limits import CHUNK_BYTES
from sterna.memory.pages import EncodedBatch, RegionPages, hash_chunks
from sterna.net.ahead import ReadAhead

# What a core writes that does nothing else, and what it may spoil of a guest: half of what RAK-5 takes.
WRITTEN_BYTES_S: Final = 3.2e9
SPOILED_SHARE: Final = 1 / 8
# From here on the link is slow, and copies cost nothing.
GAP_MAX_S: Final = 0.02
# Nothing is known of the link before so much has passed: several times what the kernel holds, which leaves at
# no rate at all. Guests as small as that are copied from the start.
UNMEASURED_BYTES: Final = 16 << 20
REJECTED_SHARE: Final = 0.01
# Chunks of a batch that are looked at once more: a hundredth of the copy's cost each.
SAMPLES: Final = 4
# After one that had changed so many batches have to stay as they are before one goes uncopied again.
CALM_BATCHES: Final = 32
_GOLDEN: Final = 0.618  # turns of it never come to the same places


class SteadyPages:
    """A `PageSource` over a guest's memory; see the module's text."""

    def __init__(self, pages: RegionPages, clock: Callable[[], float], connections: int = 1) -> None:
        """`connections`: on which batches are under way at the same time."""
        self._pages: RegionPages | None = pages
        self._clock = clock
        self._connections = connections
        self._table = pages.table
        self._bearable_bytes = pages.table.size_bytes * SPOILED_SHARE
        self._gap_s = tolerable_gap_s(pages.table.size_bytes) / connections
        self._under_way: deque[list[tuple[memoryview, int]]] = deque()
        self._turn = 0
        self._restless = 0  # batches that have to be calm before one goes as it is
        self._unmeasured_bytes = UNMEASURED_BYTES
        self._encoded_at: float | None = None
        self._rejected = False
        self._paused = False
        self._read_ahead: ReadAhead | None = None

    def on_event(self, event: Event) -> None:
        """Learn how many pages of a round were rejected, and when nothing writes any more."""
        match event:
            case RoundFinished(stats):
                self._rejected = stats.rejected_pages > stats.pages * REJECTED_SHARE
            case RoundStarted(round=number, last=last):
                self._paused = last  # a lost link sets the guest running again, and then comes such a round
                if number == 1 and not last and self._read_ahead is not None:
                    self._read_ahead.start()
            case _:
                pass

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
        """See `PageSource.encode`."""
        assert self._pages is not None
        if not hashed:  # nothing can be rejected
            return self._pages.encode(region, starts, counts, zeros=zeros, whole=whole, hashed=False)
        slow = self._encoded_at is None or self._clock() - self._encoded_at > self._gap_s
        slow = not self._paused and (slow or self._unmeasured_bytes > 0)
        calm = slow and self._is_calm(region, counts)
        copies = not self._paused and (self._rejected or (slow and not calm))
        batch = self._pages.encode(region, starts, counts, zeros=zeros, whole=whole, hashed=not copies)
        if slow and batch.bulk_bytes:
            self._under_way.append(_samples(batch, self._turn))
            self._turn += 1
        if copies and batch.bulk_bytes:
            batch = _copied(batch)
        self._unmeasured_bytes -= batch.bulk_bytes
        self._encoded_at = self._clock()
        return batch

    def _is_calm(self, region: int, counts: npt.ArrayLike) -> bool:
        """Whether batches that have left were not written to, and the guest bears that the next ones are."""
        while len(self._under_way) >= self._connections:
            changed = any(xxh3_64_intdigest(chunk) != was for chunk, was in self._under_way.popleft())
            self._restless = CALM_BATCHES if changed else max(self._restless - 1, 0)
        size = int(np.sum(counts)) << self._table[region].granule_log2
        return not self._restless and (self._connections + 1) * size <= self._bearable_bytes

    def reads_next(self, unwritten: object) -> None:
        """The first round may come next; its guest has told this of pages that were never written."""
        assert self._pages is not None
        self._read_ahead = ReadAhead(self._pages, unwritten)

    def close(self) -> None:
        """Let go of the memory, so that its owner can free it. Nothing can be encoded any more."""
        self._pages = None
        self._under_way.clear()
        if self._read_ahead is not None:
            self._read_ahead.close()


def tolerable_gap_s(guest_bytes: int) -> float:
    """How long a guest of this size may write between a page's hash and its departure."""
    return min(guest_bytes * SPOILED_SHARE / WRITTEN_BYTES_S, GAP_MAX_S)


def _samples(batch: EncodedBatch, turn: int) -> list[tuple[memoryview, int]]:
    """Some chunks of guest memory, and what they are now. Every turn takes others."""
    ends = list(accumulate(buffer.nbytes for buffer in batch.buffers))
    found: list[tuple[memoryview, int]] = []
    for number in range(SAMPLES):
        at = int(ends[-1] * ((number + turn * _GOLDEN % 1) / SAMPLES))
        which = bisect_right(ends, at)
        buffer = batch.buffers[which]
        begin = (at - ends[which] + buffer.nbytes) // CHUNK_BYTES * CHUNK_BYTES
        chunk = buffer[begin : begin + CHUNK_BYTES]
        found.append((chunk, xxh3_64_intdigest(chunk)))
    return found


def _copied(batch: EncodedBatch) -> EncodedBatch:
    """The batch with bytes that nobody changes any more, and their hashes.

    Into memory of its own: the batch before may still be waiting to be sent.
    """
    bulk = np.concatenate([np.frombuffer(buffer, np.uint8) for buffer in batch.buffers]).data
    sizes = [buffer.nbytes for buffer in batch.buffers]
    offsets = np.cumsum([0, *sizes[:-1]]).tolist()
    hashes = np.array(hash_chunks(bulk, offsets, sizes), dtype=np.uint64)
    return replace(batch, hashes=hashes, buffers=(bulk,))
