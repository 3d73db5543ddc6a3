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
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.core.events import Event, RoundFinished, RoundStarted
from sterna.memory.pages import EncodedBatch, RegionPages, hash_chunks

# What a core writes that does nothing else, and what it may spoil of a guest: half of what RAK-5 takes.
WRITTEN_BYTES_S: Final = 3.2e9
SPOILED_SHARE: Final = 1 / 8
# From here on the link is slow, and copies cost nothing.
GAP_MAX_S: Final = 0.02
# Nothing is known of the link before so much has passed: several times what the kernel holds, which leaves at
# no rate at all. Guests as small as that are copied from the start.
UNMEASURED_BYTES: Final = 16 << 20
REJECTED_SHARE: Final = 0.01


class SteadyPages:
    """A `PageSource` over a guest's memory; see the module's text."""

    def __init__(self, pages: RegionPages, clock: Callable[[], float], connections: int = 1) -> None:
        """`connections`: on which batches are under way at the same time."""
        self._pages: RegionPages | None = pages
        self._clock = clock
        self._gap_s = tolerable_gap_s(pages.table.size_bytes) / connections
        self._unmeasured_bytes = UNMEASURED_BYTES
        self._encoded_at: float | None = None
        self._rejected = False
        self._paused = False

    def on_event(self, event: Event) -> None:
        """Learn how many pages of a round were rejected, and when nothing writes any more."""
        match event:
            case RoundFinished(stats):
                self._rejected = stats.rejected_pages > stats.pages * REJECTED_SHARE
            case RoundStarted(last=last):
                self._paused = last  # a lost link sets the guest running again, and then comes such a round
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
    ) -> EncodedBatch:
        """See `PageSource.encode`."""
        assert self._pages is not None
        slow = self._encoded_at is None or self._clock() - self._encoded_at > self._gap_s
        copies = not self._paused and (slow or self._rejected or self._unmeasured_bytes > 0)
        batch = self._pages.encode(region, starts, counts, zeros=zeros, whole=whole, hashed=not copies)
        if copies and batch.bulk_bytes:
            batch = _copied(batch)
        self._unmeasured_bytes -= batch.bulk_bytes
        self._encoded_at = self._clock()
        return batch

    def close(self) -> None:
        """Let go of the memory, so that its owner can free it. Nothing can be encoded any more."""
        self._pages = None


def tolerable_gap_s(guest_bytes: int) -> float:
    """How long a guest of this size may write between a page's hash and its departure."""
    return min(guest_bytes * SPOILED_SHARE / WRITTEN_BYTES_S, GAP_MAX_S)


def _copied(batch: EncodedBatch) -> EncodedBatch:
    """The batch with bytes that nobody changes any more, and their hashes.

    Into memory of its own: the batch before may still be waiting to be sent.
    """
    bulk = np.concatenate([np.frombuffer(buffer, np.uint8) for buffer in batch.buffers]).data
    sizes = [buffer.nbytes for buffer in batch.buffers]
    offsets = np.cumsum([0, *sizes[:-1]]).tolist()
    hashes = np.array(hash_chunks(bulk, offsets, sizes), dtype=np.uint64)
    return replace(batch, hashes=hashes, buffers=(bulk,))
