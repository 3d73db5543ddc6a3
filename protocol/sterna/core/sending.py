"""The source's memory on its way: what the destination lacks, what it has been sent, and the round under way.

Of the pages there are three sets: `pending` is what the destination does not have in its newest version, the
round under way works off a snapshot of it, and the digest's entries tell what it holds. Pages are encoded
when the connection asks for more, not before, so a page that is written while it waits is sent once, in its
newest version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sterna.core.policy import RoundStats
from sterna.core.rounds import OutgoingRound, batch_bounds
from sterna.limits import Limits
from sterna.memory.bitmap import PageBitmap
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import PageSource
from sterna.memory.regions import PageSets, RegionTable
from sterna.wire.records import Pages, Round, RoundAck, RoundEnd


class Sending:
    """All copied regions of a guest. At first everything is pending.

    Attributes:
        regions: the guest's.
        bulk_bytes: page bytes queued so far, in all rounds.
    """

    def __init__(self, regions: RegionTable, pages: PageSource) -> None:
        self.regions: Final = regions
        self.bulk_bytes = 0
        self._pages: Final = pages
        self._digest: Final = MemoryDigest(regions)
        self._pending = PageSets.full(regions)
        self._round = OutgoingRound(0, 0, PageSets(regions), (1, 1), 0.0, last=False)

    @property
    def round(self) -> int:
        """Number of the newest round, 0 before the first [CON-20]."""
        return self._round.number

    @property
    def pending_bytes(self) -> int:
        """Bytes of the pages that are pending."""
        return self._pending.size_bytes()

    @property
    def pages_missing(self) -> int:
        """Pages that the destination is known to lack."""
        return self._pending.count() + self._round.pages_left

    @property
    def last_sequences(self) -> tuple[tuple[int, int], ...]:
        """As SEAL repeats them from the newest round [STR-8]."""
        return self._round.last_sequences

    def written(self, answer: Mapping[int, PageBitmap]) -> None:
        """The guest has written these pages since they were last collected [CON-34].

        Raises:
            GuestError: the answer does not fit the regions.
        """
        self._lacks(PageSets.collected(self.regions, answer))

    def acknowledged(self, ack: RoundAck) -> None:
        """The destination has the newest round, but for what it rejects [MEM-9].

        Raises:
            RemoteProtocolError: the acknowledgement does not fit the round.
        """
        self._lacks(self._round.rejected(ack))

    def begin(
        self, attempt: int, peer: Limits, batch_bytes: int, rate_bytes_s: float, now: float, *, last: bool
    ) -> Round:
        """Begin a round of all that is pending; the frame that says so. See `batch_bounds`."""
        batch = batch_bounds(self.regions, peer, batch_bytes, rate_bytes_s)
        self._round = OutgoingRound(self.round + 1, attempt, self._pending, batch, now, last=last)
        self._pending = PageSets(self.regions)
        return self._round.opening()

    def next_batch(self, sequence: int, *, zeros: bool) -> tuple[Pages, tuple[memoryview, ...]] | None:
        """Encode the next batch, to be queued as the frame of this number; None if the round has no more."""
        runs = self._round.next_runs()
        if runs is None:
            return None
        batch = self._pages.encode(*runs, zeros=zeros)
        table = self._round.sent(batch, sequence)
        self._digest.record(table)
        self.bulk_bytes += batch.bulk_bytes
        return table, batch.buffers

    def ending(self) -> RoundEnd:
        """The frame that ends the round."""
        return self._round.ending()

    def stats(self, now: float, throttle: float, ack: RoundAck | None) -> RoundStats:
        """What the round measured; `ack` is None for the one of the blackout."""
        return self._round.stats(now, throttle, self._pending, ack)

    def seal(self) -> bytes:
        """The digest of the pause image; every page has been sent by now."""
        assert not self._digest.stale_pages
        return self._digest.value()

    def _lacks(self, pages: PageSets) -> None:
        self._pending |= pages
        self._digest.mark_sets_stale(pages)
