"""A round under way, as either side sees it [8.4]: what it consists of, and whether both sides agree on it.

The source works off a set of pages that nobody changes meanwhile; the destination knows no such set, it
counts what comes. ROUND_END lets the destination compare the counts, ROUND_ACK the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

import numpy as np

from sterna import limits as bounds
from sterna.core.conduct import wrong
from sterna.core.policy import RoundStats
from sterna.core.shares import around
from sterna.core.words import count_text
from sterna.limits import Limits
from sterna.memory.bitmap import Positions
from sterna.memory.pages import EncodedBatch
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import ErrorCode
from sterna.wire.records import PageRange, Pages, Record, Round, RoundAck, RoundEnd

# Body of a page table: its head, and a row with one hash for each page at the worst.
_TABLE_HEAD, _ROW_BYTES = 24, 32
# Body of ROUND_ACK: its head, and a rejected range.
_ACK_HEAD, _RANGE_BYTES = 32, 24

_BATCH_S: Final = 0.05  # what is behind a batch, heartbeats and ABORT among it, waits for so long
SMALL_BATCH_BYTES: Final = 256 * 1024  # below that, what a batch costs beside its bytes begins to show
# A guest's memory is so many batches at least: one is hashed while another travels, and what is held for each
# of many small guests is small beside them.
ROUND_BATCHES: Final = 16
# Batches beyond the usual size: on a link that takes them in so short a time, since what the guest writes
# meanwhile is rejected, and of a guest of so many at least.
_LARGE_BATCH_S: Final = 0.02
_LARGE_BATCHES: Final = 32
# A rate is measured over what has left beyond this: several times what the hosts' buffers hold.
_UNMEASURED_BYTES: Final = 16 << 20
_CLOCK_S: Final = 1e-6  # a shorter round tells nothing about the rate
_U64_MAX: Final = (1 << 64) - 1


def batch_bounds(
    regions: RegionTable, peer: Limits, batch_bytes: int, rate_bytes_s: float, connections: int = 1
) -> tuple[int, int]:
    """Bytes and runs of a batch: within the peer's limits, and soon through a link of this rate.

    Args:
        regions: the guest's.
        peer: what the receiver announced.
        batch_bytes: the most that this side wants to send at once.
        rate_bytes_s: what the link has carried so far.
        connections: that have a batch under way at the same time.
    """
    runs = min(peer.batch_runs, (peer.control_bytes - _TABLE_HEAD) // _ROW_BYTES)
    # A batch may turn out to alternate between zero and other pages: as many runs as pages.
    granule_log2 = min((region.granule_log2 for region in regions.copied), default=0)
    guest_bytes = regions.size_bytes
    usual = min(int(rate_bytes_s * _BATCH_S), guest_bytes // ROUND_BATCHES, bounds.BATCH_BYTES)
    large = min(int(rate_bytes_s * _LARGE_BATCH_S) // connections, guest_bytes // _LARGE_BATCHES)
    size = max(usual, large, SMALL_BATCH_BYTES)
    return min(batch_bytes, size, peer.bulk_bytes, runs << granule_log2), runs


class _Share:
    """What of a round travels on one stream.

    Attributes:
        is_given_out: whether its last batch has been asked for, and there was none.
    """

    def __init__(
        self, pages: PageSets, batch: tuple[int, int], blank: PageSets | None, blank_bytes: int
    ) -> None:
        self.is_given_out = False
        self._is_dry = False  # there is nothing left but blanks
        self._may_be_blank = False  # others have been asked for since the last blanks
        # Sets of a large guest are memory to be touched: there are no more of them than there is need for.
        self._left = pages.copy() if pages.any() else pages
        self._blank_left = blank
        self._later: PageSets | None = None  # whose turn comes behind the others'
        if blank is not None:
            self._left -= blank
        self._batch = batch
        self._blank_bytes: Final = blank_bytes
        self._look()

    def _look(self) -> None:
        """At what is left."""
        blank = self._blank_left
        self._blanks = iter(()) if blank is None else _batches(blank, self._blank_bytes, self._batch[1])
        if self._later is None:
            self._batches = _batches(self._left, *self._batch)
            return
        sooner, later = self._left.copy(), self._left.copy()
        sooner -= self._later
        later &= self._later
        self._batches = chain(sooner.batches(*self._batch), later.batches(*self._batch))

    def next_blanks(self) -> tuple[int, Positions, Positions] | None:
        """The next batch of pages that are known to be zero, as `next_runs`; None if it is others' turn.

        One of these is a frame of some bytes, and work for the receiver. With many of them in a row the
        sockets would hold seconds of it, and what is behind them, such as PING, would wait: others between
        them take room. Those begin, for before them the link would stand idle, and its window stay small.
        (Where others are encoded outside they wait to be sent as a rule, and most blanks come behind all.)
        """
        if self._blank_left is None or not (self._may_be_blank or self._is_dry):
            return None
        self._may_be_blank = False
        return _given_out(self._blank_left, next(self._blanks, None))

    def next_runs(self) -> tuple[int, Positions, Positions] | None:
        """Region, starts and counts of the next batch of others; None when there are no more of these."""
        runs = next(self._batches, None)
        self._may_be_blank, self._is_dry = True, runs is None
        self.is_given_out = runs is None and (self._blank_left is None or not self._blank_left.any())
        return _given_out(self._left, runs)

    def skip(self, pages: PageSets, later: PageSets | None = None) -> int:
        """Leave these out as far as they have not been given out; how many that were. See `OutgoingRound`."""
        if later is not None:
            self._later = later.copy() if self._later is None else self._later.__ior__(later)
        skipped = 0
        for left in (self._left, self._blank_left):
            if left is not None:
                skipped += left.count()
                left -= pages  # noqa: PLW2901 - in place
                skipped -= left.count()
        self._look()
        return skipped

    def leave(self) -> PageSets:
        """Leave out all that has not been given out; what that was."""
        left = self._left.copy()
        if self._blank_left is not None:
            left |= self._blank_left
        self.skip(left)
        return left

    def enlarge(self, batch: tuple[int, int]) -> None:
        """From here on: the most bytes and runs of a batch, if that is more."""
        if batch[0] > self._batch[0]:
            self._batch = batch
            self._look()

    def comes_later(self, region: int, page: int) -> bool:
        """Whether its turn comes behind the others'."""
        return self._later is not None and bool(self._later[region].has(np.array([page]))[0])

    @property
    def has_more(self) -> bool:
        """Whether `next_runs` will give out more."""
        return not self._is_dry and self._left.any()

    @property
    def bytes_left(self) -> int:
        """What `next_runs` will still give out."""
        return self._left.size_bytes()


def _batches(left: PageSets, size: int, runs: int) -> Iterator[tuple[int, Positions, Positions]]:
    """This set loses only what has been given out. Where there is nothing in it, none of it is read."""
    return left.batches(size, runs) if left.any() else iter(())


class OutgoingRound:
    """A round that is being sent.

    Attributes:
        number: of the round.
        pages: the pages that it was to carry when it began, fixed.
        last: whether it is the one of the blackout.
        page_count: pages sent so far.
        bulk_bytes: their bytes on the wire.
        batch_bytes: the most bytes of a batch, of one that is longer than a page.
    """

    def __init__(
        self,
        number: int,
        attempt: int,
        pages: PageSets,
        batch: tuple[int, int],
        now: float,
        *,
        last: bool,
        blank: PageSets | None = None,
        blank_bytes: int = 0,
        shares: Mapping[int, PageSets] | None = None,
    ) -> None:
        """Begin.

        Args:
            number: of the round.
            attempt: of the session.
            pages: what it is to carry.
            batch: the most bytes and runs of a batch.
            now: the time.
            last: whether it is the one of the blackout.
            blank: which of the pages are known to be zero: they go between the others, unread.
            blank_bytes: the most bytes of a batch of these.
            shares: the pages of each stream; by default all of them travel on stream 0 [STR-7].
        """
        self.number: Final = number
        self.pages: Final = pages
        self.last: Final = last
        self.page_count = 0
        self.bulk_bytes = 0
        self.batch_bytes = batch[0]
        self._unpacked_bytes = 0
        self._versions_asked = self._versions_found = 0
        self._last_sequences: dict[int, int] = {}
        self._attempt: Final = attempt
        self._started: Final = now
        self._intended = pages.count()
        self._jobs = 0  # batches that were given out and are being encoded
        self._shares: Final = {
            stream: _Share(share, batch, _both(blank, share, pages), blank_bytes)
            for stream, share in ({0: pages} if shares is None else shares).items()
        }

    def opening(self) -> Round:
        """The frame that begins it."""
        return Round(self._attempt, self.number, self._intended)

    @property
    def is_given_out(self) -> bool:
        """Whether every stream has asked for more in vain, and nothing is being encoded."""
        return not self._jobs and all(share.is_given_out for share in self._shares.values())

    def next_blanks(self, stream: int = 0) -> tuple[int, Positions, Positions] | None:
        """The next batch of a stream's pages that are known to be zero, as `next_runs`."""
        return self._shares[stream].next_blanks() if stream in self._shares else None

    def next_runs(self, stream: int = 0) -> tuple[int, Positions, Positions] | None:
        """Region, starts and counts of a stream's next batch of others; None if it has no more."""
        return self._shares[stream].next_runs() if stream in self._shares else None

    def has_more(self, stream: int) -> bool:
        """Whether `next_runs` will give out more."""
        return stream in self._shares and self._shares[stream].has_more

    def comes_later(self, stream: int, region: int, page: int) -> bool:
        """Whether the turn of this page came behind the others', for it is where the guest writes."""
        return self._shares[stream].comes_later(region, page)

    def next_job(self, stream: int) -> tuple[int, Positions, Positions] | None:
        """As `next_runs`, for somebody who comes back with `job_done`."""
        runs = self.next_runs(stream)
        self._jobs += runs is not None
        return runs

    def job_done(self) -> None:
        """A batch given out as a job is about to be sent."""
        self._jobs -= 1

    def sent(self, batch: EncodedBatch, sequence: int, stream: int = 0) -> Pages:
        """A batch goes out on a stream as the frame of this number; its table."""
        self.page_count += batch.page_count
        self.bulk_bytes += batch.bulk_bytes
        self._unpacked_bytes += batch.unpacked_bytes or batch.bulk_bytes
        self._versions_asked += batch.versions_asked
        self._versions_found += batch.versions_found
        self._last_sequences[stream] = sequence
        return batch.table(self._attempt, self.number)

    def skip(self, pages: PageSets) -> None:
        """Do not send these any more where they have not been sent: they will be in the next round, too.

        What lies around them will be written as well, as guests are: its turn comes when the rest has been
        sent, and much of it need not be sent then, either.
        """
        later = around(pages)
        self._intended -= sum(share.skip(pages, later) for share in self._shares.values())

    def enlarge(self, batch: tuple[int, int]) -> None:
        """From here on: the most bytes and runs of a batch, if that is more.

        Where it is less, others may have the machine, and small batches would cost it more.
        """
        self.batch_bytes = max(self.batch_bytes, batch[0])
        for share in self._shares.values():
            share.enlarge(batch)

    def rate_bytes_s(self, now: float) -> float:
        """Bytes of pages that have passed in a second so far, packed or not; 0 if that is not known yet."""
        return max(0, self._unpacked_bytes - _UNMEASURED_BYTES) / max(now - self._started, _CLOCK_S)

    def leave_out(self, stream: int) -> PageSets:
        """As `skip`, with all that has not been sent on a stream; what that was."""
        left = self._shares[stream].leave()
        self._intended -= left.count()
        return left

    @property
    def bytes_left(self) -> int:
        """Bytes of the pages that are still to be read and sent."""
        return sum(share.bytes_left for share in self._shares.values())

    def ending(self) -> RoundEnd:
        """The frame that ends it."""
        return RoundEnd(self._attempt, self.number, self.page_count, self.bulk_bytes, self.last_sequences)

    @property
    def last_sequences(self) -> tuple[tuple[int, int], ...]:
        """(stream, sequence) of the newest PAGES, as ROUND_END and SEAL state them [STR-8]."""
        return tuple(sorted(self._last_sequences.items()))

    @property
    def pages_left(self) -> int:
        """Pages that are still to be sent."""
        return self._intended - self.page_count

    def rejected(self, ack: RoundAck) -> PageSets:
        """The pages that an acknowledgement rejects.

        Raises:
            RemoteProtocolError: it is not this round's, its counts are wrong, or it lists other pages.
        """
        return rejected_pages(ack, self.number, self.page_count, self.pages)

    def stats(self, now: float, throttle: float, dirty: PageSets, ack: RoundAck | None = None) -> RoundStats:
        """What it measured. `dirty`: what is to be sent again; `ack`: None for the blackout's round."""
        return RoundStats(
            round=self.number,
            pages=self.page_count,
            bulk_bytes=self.bulk_bytes,
            seconds=now - self._started,
            dirty_pages=dirty.count(),
            dirty_bytes=dirty.size_bytes(),
            rejected_pages=0 if ack is None else sum(pages.count for pages in ack.rejected),
            receive_rate_bytes_s=0 if ack is None else ack.receive_rate_bytes_s,
            throttle=throttle,
            unpacked_bytes=self._unpacked_bytes,
            versions_asked=self._versions_asked,
            versions_found=self._versions_found,
        )


def _given_out(
    left: PageSets, batch: tuple[int, Positions, Positions] | None
) -> tuple[int, Positions, Positions] | None:
    """The batch, which is not left any more."""
    if batch is not None:
        region, starts, counts = batch
        left[region].clear_runs(starts, counts)
    return batch


def _both(blank: PageSets | None, share: PageSets, pages: PageSets) -> PageSets | None:
    """What of a share is blank."""
    return blank if blank is None or share is pages else blank.copy().__iand__(share)


def rejected_pages(ack: RoundAck, number: int, page_count: int, pages: PageSets) -> PageSets:
    """The pages that an acknowledgement rejects.

    Args:
        ack: the acknowledgement.
        number: of the round.
        page_count: pages sent in it.
        pages: what it was to carry.

    Raises:
        RemoteProtocolError: BAD_ROUND, COUNT_MISMATCH, OUTSIDE_REGION or TOO_MANY_REJECTED.
    """
    if ack.round != number:
        raise wrong(ErrorCode.BAD_ROUND, f"round {ack.round} of {number}", "CON-30", ack)
    count = sum(each.count for each in ack.rejected)
    if ack.pages + count != page_count:
        detail = f"{count_text(ack.pages, 'page')} acknowledged, {count} rejected, {page_count} sent"
        raise wrong(ErrorCode.COUNT_MISMATCH, detail, "CON-32", ack)
    pages.table.check_ranges(ack.rejected)
    rejected = PageSets(pages.table)
    rejected.add_ranges(ack.rejected)
    stray = rejected.copy()
    stray -= pages
    if stray.any():
        raise wrong(ErrorCode.COUNT_MISMATCH, "pages that were not sent", "CON-33", ack)
    if count > most_rejected(page_count):
        raise wrong(ErrorCode.TOO_MANY_REJECTED, count_text(count, "page"), "RAK-5", ack)
    return rejected


def most_rejected(pages: int) -> int:
    """Rejected pages that a running guest explains in a round of so many [RAK-5]."""
    return max(bounds.REJECTED_FLOOR_PAGES, int(pages * bounds.REJECTED_SHARE_MAX))


class IncomingRound:
    """A round that is being received.

    Attributes:
        number: of the round.
        last: whether it is the one of the blackout.
        page_count: pages received so far, rejected ones included.
        bulk_bytes: their bytes on the wire.
    """

    def __init__(self, number: int, table: RegionTable, now: float, *, last: bool) -> None:
        self.number: Final = number
        self.last: Final = last
        self.page_count = 0
        self.bulk_bytes = 0
        self._table: Final = table
        # Made with the first rejection: its size is the guest's, and a round may be empty, and the next too.
        self._rejected: PageSets | None = None
        self._announced_pages = 0
        self._coming: set[int] = set()  # streams on which a batch has begun to come
        self._last_sequences: dict[int, int] = {}
        self._started: Final = now

    def announce(self, table: Pages, stream: int = 0) -> None:
        """Check a page table before any of its bytes is taken.

        Raises:
            RemoteProtocolError: BAD_ROUND, or COUNT_MISMATCH for more pages than the guest has.
        """
        if table.round != self.number:
            detail = f"pages of round {table.round} in round {self.number}"
            raise wrong(ErrorCode.BAD_ROUND, detail, "CON-21", table)
        count = self._announced_pages + table.page_count
        if count > self._table.pages:
            detail = f"{count_text(count, 'page')} in a round, the guest has {self._table.pages}"
            raise wrong(ErrorCode.COUNT_MISMATCH, detail, "CON-27", table)
        self._announced_pages = count
        self._coming.add(stream)

    def take(self, table: Pages, rejected: Sequence[PageRange], sequence: int, stream: int = 0) -> None:
        """The pages of a table have come; `rejected` did not match their hash.

        Raises:
            RemoteProtocolError: PAGE_HASH in the blackout's round.
        """
        self.page_count += table.page_count
        self.bulk_bytes += table.bulk_bytes
        self._last_sequences[stream] = sequence
        self._coming.discard(stream)
        if rejected and self.last:
            detail = f"{count_text(sum(pages.count for pages in rejected), 'page')} with a wrong hash"
            raise wrong(ErrorCode.PAGE_HASH, detail, "CON-47", table)
        if self._rejected is not None:
            self._rejected[table.region].clear_runs(table.runs["first"], table.runs["count"])
        elif rejected:
            self._rejected = PageSets(self._table)
        if self._rejected is not None:
            self._rejected.add_ranges(rejected)

    def check_end(self, record: RoundEnd) -> None:
        """Compare what ROUND_END says with what has come.

        Raises:
            RemoteProtocolError: BAD_ROUND or COUNT_MISMATCH.
        """
        if record.round != self.number:
            detail = f"end of round {record.round} in round {self.number}"
            raise wrong(ErrorCode.BAD_ROUND, detail, "CON-21", record)
        if (record.pages, record.bulk_bytes) != (self.page_count, self.bulk_bytes):
            detail = (
                f"{count_text(record.pages, 'page')} and {count_text(record.bulk_bytes, 'byte')} stated, "
                f"{self.page_count} and {self.bulk_bytes} arrived"
            )
            raise wrong(ErrorCode.COUNT_MISMATCH, detail, "RND-3", record)
        self.check_sequences(record.last_sequences, record)

    def check_sequences(self, stated: tuple[tuple[int, int], ...], record: Record) -> None:
        """Everything that is stated has been applied; that must be all, and nothing else be on its way.

        Raises:
            RemoteProtocolError: COUNT_MISMATCH.
        """
        arrived = tuple(sorted(self._last_sequences.items()))
        if stated != arrived or self._coming:
            detail = f"last sequences {stated} stated, {arrived} arrived"
            raise wrong(ErrorCode.COUNT_MISMATCH, detail, "RND-4", record)

    def rejected(self, peer: Limits, record: RoundEnd) -> tuple[PageRange, ...]:
        """The pages that ROUND_ACK has to list.

        Raises:
            RemoteProtocolError: TOO_MANY_REJECTED for more than a running guest explains, or than a
                ROUND_ACK within the peer's limits can list.
        """
        if self._rejected is None:
            return ()
        ranges = tuple(
            PageRange(region, int(start), int(length))
            for region, (starts, lengths) in self._rejected.runs()
            for start, length in zip(starts, lengths, strict=True)
        )
        count = self._rejected.count()
        room = min(peer.rejected_runs, (peer.control_bytes - _ACK_HEAD) // _RANGE_BYTES)
        if count > most_rejected(self.page_count) or len(ranges) > room:
            detail = f"{count_text(count, 'page')} in {count_text(len(ranges), 'range')}"
            raise wrong(ErrorCode.TOO_MANY_REJECTED, detail, "RAK-5", record)
        return ranges

    def acknowledgement(self, attempt: int, stats: RoundStats, rejected: tuple[PageRange, ...]) -> RoundAck:
        """The answer to ROUND_END."""
        pages = stats.pages - stats.rejected_pages
        return RoundAck(attempt, self.number, pages, int(stats.receive_rate_bytes_s), rejected)

    def stats(self, now: float) -> RoundStats:
        """What it measured; what the guest has written meanwhile only the source knows."""
        seconds = now - self._started
        rate_bytes_s = min(int(self.bulk_bytes / seconds), _U64_MAX) if seconds > _CLOCK_S else 0
        return RoundStats(
            round=self.number,
            pages=self.page_count,
            bulk_bytes=self.bulk_bytes,
            seconds=seconds,
            dirty_pages=0,
            dirty_bytes=0,
            rejected_pages=0 if self._rejected is None else self._rejected.count(),
            receive_rate_bytes_s=rate_bytes_s,
        )
