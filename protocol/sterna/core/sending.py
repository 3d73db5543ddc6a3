"""The source's memory on its way: what the destination lacks, what it has been sent, and the round under way.

Of the pages there are three sets: `pending` is what the destination does not have in its newest version, the
round under way works off a snapshot of it, and the digest's entries tell what it holds. Pages are encoded
when the connection asks for more, not before, so a page that is written while it waits is sent once, in its
newest version.

For a session that is lost, rounds of which no acknowledgement has come are remembered: which pages each was
to carry, and none of a later one. In a session without a loss that is the round under way and costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from sterna import limits as bounds
from sterna.core.image_notes import ImageNotes
from sterna.core.policy import RoundStats
from sterna.core.resuming import HeldReport, dirty_after_resume
from sterna.core.rounds import OutgoingRound, batch_bounds
from sterna.core.serving import Serving
from sterna.core.shares import page_shares
from sterna.limits import Limits
from sterna.memory.bitmap import PageBitmap, Positions, expand_runs
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import EncodedBatch, PageSource, zero_batch
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import Style
from sterna.wire.records import Pages, Round, RoundAck, RoundEnd, Welcome

# Between two looks at what the guest has written meanwhile lie so many bytes, and at least this share of what
# is left of the round: a look costs about as much as sending a mebibyte or two.
LOOK_BYTES: Final = 32 << 20
LOOK_SHARE: Final = 1 / 8
# The first one of a round comes sooner, and what lies between two doubles from there: where the guest writes
# is best known before much of that place has been sent.
FIRST_LOOK_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A batch that is encoded outside.

    Attributes:
        round: what it is of.
        stream: the connection that it will travel on.
        region, starts, counts, zeros: as `PageSource.encode` takes them.
        hot: the guest has written nearby in this round.
    """

    round: OutgoingRound
    stream: int
    region: int
    starts: Positions
    counts: Positions
    zeros: bool
    hot: bool = False


class Sending:
    """All copied regions of a guest. At first everything is pending.

    Attributes:
        regions: the guest's.
        bulk_bytes: page bytes queued so far, in all rounds.
    """

    def __init__(self, regions: RegionTable, pages: PageSource) -> None:
        self._shares: Mapping[int, PageSets] | None = None  # the pages of each stream, with data connections
        self.regions: Final = regions
        self.bulk_bytes = 0
        self._pages: Final = pages
        self._digest = MemoryDigest(regions)
        self._pending = PageSets.full(regions)
        self._blank: PageSets | None = None  # read as zeros, without a look
        self._confirmed = 0  # the last round that the destination is known to have had complete
        self._planned: dict[int, PageSets] = {}  # by round after that one
        # Of the newest round: pending, but not since they were written.
        self._left_out: PageSets | None = None
        self._declares = False  # what is pending in the blackout is declared stale
        self._round = self._no_round(0)
        self._look_at = self._look_step = 0
        self._looking = False
        self._peer, self._batch_bytes = Limits(), 0  # what bounds the batches of the newest round

    @classmethod
    def sealed(cls, image: ImageNotes, pages: PageSource) -> Self:
        """What another process has sealed, and handed over; its entries stay where they are kept [RES-19]."""
        sending = cls(image.digest.table, pages)
        sending._digest, sending._pending = image.digest, image.stale.copy()
        sending._declares = True
        sending._round = sending._no_round(image.round)
        return sending

    def agreed(self, *, hashed: bool) -> None:
        """Before anything is sent: whether chunks have hashes [MEM-20]."""
        self._digest.hashed = hashed

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

    def unwritten(self, answer: Mapping[int, PageBitmap]) -> None:
        """These pages read as zeros, unless `written` tells of them.

        Raises:
            GuestError: the answer does not fit the regions.
        """
        self._blank = PageSets.collected(self.regions, answer)

    def share_out(self, streams: int) -> None:
        """Bind every page to one of so many data connections, for the whole session [STR-7]."""
        if self._shares is None:
            self._shares = page_shares(self.regions, streams)

    @property
    def is_given_out(self) -> bool:
        """Whether everything of the round under way has been queued."""
        return self._round.is_given_out

    def written(self, answer: Mapping[int, PageBitmap]) -> None:
        """The guest has written these pages since they were last collected [CON-34].

        Raises:
            GuestError: the answer does not fit the regions.
        """
        self._note_written(answer)

    def _note_written(self, answer: Mapping[int, PageBitmap]) -> bool:
        """Whether any page was."""
        dirty = PageSets.collected(self.regions, answer)
        if not dirty.any():
            return False
        if self._blank is not None:
            self._blank -= dirty
        self._lacks(dirty)
        return True

    @property
    def wants_look(self) -> bool:
        """Whether a look at what the guest has written since may spare enough of the round under way.

        Once it is, `written_early` is to follow.
        """
        if self._round.last or self._looking or self.bulk_bytes < self._look_at:
            return False
        self._plan_look()
        self._looking = self._round.bytes_left >= LOOK_BYTES
        return self._looking

    def written_early(self, answer: Mapping[int, PageBitmap], now: float) -> None:
        """`written`, while a round is under way, which then need not send them.

        Raises:
            GuestError: the answer does not fit the regions.
        """
        some = self._note_written(answer)
        self._looking = False
        if self._round.last:
            return
        if rate_bytes_s := self._round.rate_bytes_s(now):
            self._round.enlarge(self._batch_bounds(rate_bytes_s))
        if some:
            self._round.skip(self._pending)

    def leave_out(self, stream: int) -> None:
        """What of the round under way has not been sent on this stream waits for the next round."""
        left = self._round.leave_out(stream)
        self._pending |= left
        self._left_out = left if self._left_out is None else self._left_out.__ior__(left)

    def acknowledged(self, ack: RoundAck) -> None:
        """The destination has the newest round, but for what it rejects [MEM-9].

        Raises:
            RemoteProtocolError: the acknowledgement does not fit the round.
        """
        self._lacks(self._round.rejected(ack))
        self._confirmed = self.round
        self._planned.clear()

    def report(self, welcome: Welcome) -> HeldReport:
        """What the destination is about to say of the pages that it holds.

        Raises:
            RemoteProtocolError: BAD_ROUND for a round that was never begun [RES-5].
        """
        return HeldReport(welcome, self.regions, self.round, frozenset(self._planned))

    def resume(self, report: HeldReport) -> None:
        """Go on after a loss: what the destination may lack is pending, an open round abandoned [RES-9].

        The entries of these pages are dropped [RES-10].
        """
        dirty = dirty_after_resume(self._pending, self._planned, self._confirmed, report)
        self._lacks(dirty)
        self._confirmed = report.complete
        self._forget_planned(dirty, after=report.complete)
        self._round = self._no_round(self.round)
        self._looking = False

    def begin(
        self, attempt: int, peer: Limits, batch_bytes: int, rate_bytes_s: float, now: float, *, last: bool
    ) -> Round:
        """Begin a round of all that is pending; the frame that says so. See `batch_bounds`."""
        if len(self._planned) >= bounds.ROUNDS_APART:
            self._lacks(self._planned.pop(min(self._planned)))
        self._forget_planned(self._pending)
        self._peer, self._batch_bytes = peer, batch_bytes
        batch = self._batch_bounds(rate_bytes_s)
        blank = None if self._blank is None else self._blank.copy().__iand__(self._pending)
        shares = None if self._shares is None else _parts(self._shares, self._pending)
        self._round = OutgoingRound(
            self.round + 1,
            attempt,
            self._pending,
            batch,
            now,
            last=last,
            blank=blank,
            blank_bytes=peer.bulk_bytes * bounds.BLANK_FACTOR,
            shares=shares,
        )
        self._planned[self.round] = self._round.pages
        self._pending, self._left_out = PageSets(self.regions), None
        self._look_step = FIRST_LOOK_BYTES
        self._plan_look()
        self._declares = False
        return self._round.opening()

    def begin_empty(self, attempt: int, now: float) -> Round:
        """The blackout's round if what is pending is declared stale, and follows later [PCY-1] [PCY-2]."""
        self._round = OutgoingRound(self.round + 1, attempt, PageSets(self.regions), (1, 1), now, last=True)
        self._declares = True
        return self._round.opening()

    def next_batch(
        self, sequence: int, stream: int = 0, *, zeros: bool, aside: bool = False
    ) -> tuple[Pages, tuple[memoryview, ...]] | None:
        """Encode a stream's next batch, to be queued as the frame of this number; None if it has no more.

        `aside`: what is to be read is left to `next_job`.
        """
        current = self._round
        if (blanks := current.next_blanks(stream)) is not None:
            batch = zero_batch(*blanks)
        elif aside and current.has_more(stream):
            return None
        elif (runs := current.next_runs(stream)) is not None:
            batch = self._pages.encode(*runs, zeros=zeros, hashed=self._digest.hashed)
        elif (blanks := current.next_blanks(stream)) is not None:
            batch = zero_batch(*blanks)
        else:
            return None
        return self._sent(batch, sequence, stream)

    def next_job(self, stream: int = 0, *, zeros: bool) -> Job | None:
        """The next batch of a stream that is to be read, for another to encode; None if it has no more."""
        if (runs := self._round.next_job(stream)) is None:
            return None
        region, starts, _ = runs
        hot = self._round.comes_later(stream, region, int(starts[0]))
        return Job(self._round, stream, *runs, zeros, hot)

    @property
    def job_bytes(self) -> int:
        """Bytes of the pages of a job at most: one page is no larger than a chunk."""
        return max(self._round.batch_bytes, bounds.CHUNK_BYTES)

    def wants(self, job: Job) -> bool:
        """Whether it is of the round under way."""
        return job.round is self._round

    def job_done(self, job: Job, batch: EncodedBatch, sequence: int) -> tuple[Pages, tuple[memoryview, ...]]:
        """As `next_batch`, for a job that was done meanwhile."""
        job.round.job_done()
        sent = self._sent(batch, sequence, job.stream)
        # What was found to be written since it was read is not what the digest is about.
        pages = expand_runs(job.starts, job.counts)
        late = pages[self._pending[job.region].has(pages)]
        self._digest.mark_stale(job.region, late, np.ones_like(late))
        return sent

    def _sent(self, batch: EncodedBatch, sequence: int, stream: int) -> tuple[Pages, tuple[memoryview, ...]]:
        table = self._round.sent(batch, sequence, stream)
        self._digest.record(table)
        self.bulk_bytes += batch.bulk_bytes
        return table, batch.buffers

    def ending(self) -> RoundEnd:
        """The frame that ends the round."""
        return self._round.ending()

    def stats(self, now: float, throttle: float, ack: RoundAck | None) -> RoundStats:
        """What the round measured; `ack` is None for the one of the blackout."""
        dirty = self._pending.copy()
        if self._left_out is not None:
            dirty -= self._left_out
        return self._round.stats(now, throttle, dirty, ack)

    @property
    def stale(self) -> PageSets:
        """In the blackout: the pages that follow later, none in stop-and-copy."""
        return self._pending if self._declares else PageSets(self.regions)

    def seal(self) -> bytes:
        """The digest of the pause image; what is not declared stale has been sent by now [MEM-10]."""
        assert self._digest.stale_pages == self.stale.count()
        return self._digest.value()

    def notes(self, attempt: int, style: Style, sealed: bytes) -> ImageNotes:
        """What is to be kept of the image, once it is sealed; before that its size is the same."""
        return ImageNotes(self._digest, self.stale, attempt, self.round, style, sealed)

    def serving(self, attempt: int, *, peer: Limits, own: Limits) -> Serving:
        """What follows after RUNNING, with the limits that the peer and this side have announced."""
        position = attempt, self.round + 1  # [PCY-8]
        return Serving(self._pending, self._pages, self._digest, position, peer=peer, own=own)

    def complete(self) -> bytes:
        """The digest of the pause image when everything has been sent [MEM-16]."""
        return self._digest.value()

    def _lacks(self, pages: PageSets) -> None:
        self._pending |= pages
        self._digest.mark_sets_stale(pages)

    def _batch_bounds(self, rate_bytes_s: float) -> tuple[int, int]:
        connections = 1 if self._shares is None else len(self._shares)
        return batch_bounds(self.regions, self._peer, self._batch_bytes, rate_bytes_s, connections)

    def _plan_look(self) -> None:
        most = max(LOOK_BYTES, int(self._round.bytes_left * LOOK_SHARE))
        self._look_at = self.bulk_bytes + min(self._look_step, most)
        self._look_step *= 2

    def _forget_planned(self, pages: PageSets, after: int = 0) -> None:
        """These pages will be sent in a later round, and rounds up to `after` are of no interest."""
        left = {number: planned for number, planned in self._planned.items() if number > after}
        for planned in left.values():
            planned.__isub__(pages)
        self._planned = {number: planned for number, planned in left.items() if planned.any()}

    def _no_round(self, number: int) -> OutgoingRound:
        """A round of nothing."""
        return OutgoingRound(number, 0, PageSets(self.regions), (1, 1), 0.0, last=False)


def _parts(shares: Mapping[int, PageSets], pages: PageSets) -> dict[int, PageSets]:
    """Of each share what is among these pages."""
    return {stream: share.copy().__iand__(pages) for stream, share in shares.items()}
