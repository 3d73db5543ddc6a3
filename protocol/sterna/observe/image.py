"""What the frames of a session say about the guest's image, checked as its two sides check it.

An observer has no memory of the guest, and needs none: every page is hashed as it passes, and what both sides
compare at the end is made of those hashes [MEM-13]. So it can do what the destination does (counts, hashes,
digests) and, knowing every page that was sent, some more: that no page went twice in a round [CON-27], and
that ROUND_ACK rejects exactly what was damaged [CON-35].
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np

from sterna.core.conduct import wrong
from sterna.core.following import Following, Sealed
from sterna.core.rounds import IncomingRound, rejected_pages
from sterna.core.seal import check_seal
from sterna.core.state import StateAssembler
from sterna.core.words import count_text
from sterna.limits import Limits
from sterna.memory.digest import MemoryDigest
from sterna.memory.regions import PageSets, RegionTable
from sterna.observe.budget import Share
from sterna.observe.direction import Frame
from sterna.registry import Encoding, ErrorCode, Style
from sterna.wire import carries_bytes
from sterna.wire.records import (
    DirtyBitmap,
    Guest,
    PageRange,
    PageRequest,
    Pages,
    Round,
    RoundAck,
    RoundEnd,
    Seal,
    State,
    Switchover,
)

# What is kept of each page: its entry, and its bits in three sets.
PAGE_KEPT_BYTES: Final = 10
# What is kept of a fragment of state besides its bytes, if it is a section of its own.
FRAGMENT_KEPT_BYTES: Final = 1024
# What is kept of a page that follows the guest, at the worst a group of its own.
STALE_KEPT_BYTES: Final = 24


class Image:
    """The image of one guest on its way.

    Attributes:
        digest: memory digest that both sides mean: empty before SEAL, and of the whole image when the last
            page has followed.
        round: the newest round.
        rejected: pages of it that were damaged on their way.
        pages: pages seen in all rounds.
        state_bytes: bytes of state seen.
    """

    def __init__(self, guest: Guest, limits: Limits, share: Share, *, hashed: bool = True) -> None:
        """Of a guest that the destination, with these limits, has accepted.

        Raises:
            TooMuchError: it has more pages than can be followed.
        """
        table = RegionTable(guest.regions)
        share.take(table.pages * PAGE_KEPT_BYTES, f"a guest of {table.pages} pages")
        self.table: Final = table
        self._no_state: Final = partial(
            StateAssembler,
            min(limits.state_bytes, guest.state_bytes),
            limits.state_sections,
            guest.vcpus,
        )
        self.digest = b""
        self.round = IncomingRound(0, table, 0.0, last=False)
        self.rejected: tuple[PageRange, ...] = ()
        self.pages = 0
        self._share = share
        self._memory = MemoryDigest(table, hashed=hashed)
        self._sent = PageSets(table)
        self._changed = PageSets(
            table
        )  # sent as changes of what the destination holds, which is not known here
        self._states = self._no_state()
        self._follows = Following(table)
        self._sink = _Passing()

    @property
    def state_bytes(self) -> int:
        """Bytes of the state sections that were begun."""
        return self._states.bytes

    def begin(self, record: Round, *, last: bool) -> None:
        """ROUND.

        Raises:
            RemoteProtocolError: BAD_ROUND.
        """
        if record.round != self.round.number + 1:
            detail = f"round {record.round} after {self.round.number}"
            raise wrong(ErrorCode.BAD_ROUND, detail, "CON-20", record)
        self.round = IncomingRound(record.round, self.table, 0.0, last=last)
        self.rejected = ()
        self._sent.clear_all()
        self._changed.clear_all()

    def take_back(self) -> None:
        """The attempt is void: its state is dropped, and the pages stay [CON-59] [CON-60]."""
        self._states = self._no_state()
        self._follows = Following(self.table)
        self.digest = b""

    def take(self, record: Pages, frame: Frame) -> None:
        """PAGES, whose bulk part has passed.

        Raises:
            RemoteProtocolError: BAD_ROUND, COUNT_MISMATCH, or PAGE_HASH in the blackout.
        """
        self.round.announce(record, frame.header.stream)
        sent = self._sent[record.region]
        first, count = record.runs["first"], record.runs["count"]
        before = sent.count()
        sent.set_runs(first, count)
        if sent.count() < before + record.page_count:
            raise wrong(ErrorCode.COUNT_MISMATCH, "a page twice in one round", "CON-27", record)
        changes = record.runs["encoding"] == Encoding.DELTA
        if changes.any():
            self._changed[record.region].set_runs(first[changes], count[changes])
        self.pages += record.page_count
        self._memory.mark_stale(record.region, first, count)
        self.round.take(record, frame.damaged, frame.header.sequence, frame.header.stream)
        self._memory.record(record, frame.damaged)

    def end(self, record: RoundEnd, source: Limits) -> None:
        """ROUND_END; `source` is what the source announced, which bounds its ROUND_ACK.

        Raises:
            RemoteProtocolError: BAD_ROUND, COUNT_MISMATCH or TOO_MANY_REJECTED.
        """
        self.round.check_end(record)
        self.rejected = self.round.rejected(source, record)

    def acknowledge(self, record: RoundAck) -> None:
        """ROUND_ACK.

        Raises:
            RemoteProtocolError: it is not this round's, its counts are wrong, or it rejects other pages than
                those that were damaged, and than those that may have been changes of something else [PGS-20].
        """
        rejected = rejected_pages(record, self.round.number, self.round.page_count, self._sent)
        damaged = PageSets(self.table)
        damaged.add_ranges(self.rejected)
        baseless = rejected.copy()
        baseless -= damaged
        known = rejected.copy()
        known -= baseless
        stray = baseless.copy()
        stray -= self._changed
        if known != damaged or stray.any():
            detail = f"{count_text(rejected.count(), 'page')} rejected, {damaged.count()} damaged"
            raise wrong(ErrorCode.COUNT_MISMATCH, detail, "CON-35", record)
        self._memory.mark_sets_stale(baseless)

    def state(self, record: State) -> None:
        """STATE.

        Raises:
            RemoteProtocolError: BAD_FRAGMENT, LIMIT_STATE or BAD_VALUE.
            TooMuchError: it cannot be put together here.
        """
        self._share.take(len(record.data) + FRAGMENT_KEPT_BYTES, "execution state")
        self._states.add(record)

    def seal(self, record: Seal) -> None:
        """SEAL.

        Raises:
            RemoteProtocolError: COUNT_MISMATCH or DIGEST_MISMATCH.
        """
        stale = self._follows.stale.count()
        self.digest = check_seal(record, self.round, self._states, self._memory, stale)
        self._share.take(stale * STALE_KEPT_BYTES, "pages that follow the guest")
        image = Sealed(record.attempt, self.round.number, record.digest)
        self._follows.seal(self._sink, self._memory, image, 0)

    # ---- pages that follow the guest ----

    def switch(self, record: Switchover, styles: frozenset[Style]) -> None:
        """SWITCHOVER, where these styles were selected besides stop-and-copy.

        Raises:
            RemoteProtocolError: NOT_SELECTED or BAD_ROUND.
        """
        self._follows.switch(record, styles, self.round.number)

    def declare(self, record: DirtyBitmap) -> None:
        """DIRTY_BITMAP.

        Raises:
            RemoteProtocolError: UNEXPECTED_FRAME, OUTSIDE_REGION or OVERLAPPING_RUNS.
        """
        self._memory.mark_sets_stale(self._follows.declare(record, self._states))

    @property
    def pages_missing(self) -> bool:
        """Whether pages have still to follow the guest."""
        fetching = self._follows.fetching
        return fetching is not None and not fetching.is_complete

    def follow(self, record: Pages, frame: Frame) -> None:
        """PAGES after RUNNING.

        Raises:
            RemoteProtocolError: UNEXPECTED_FRAME, BAD_ROUND, BAD_VALUE, or PAGE_HASH.
        """
        fetching = self._follows.expected(record)
        self._sink.damaged = frame.damaged
        fetching.announce(record)
        for pages in fetching.take():
            fetching.installed(pages)
        self.pages += record.page_count
        if fetching.is_complete:
            self.digest = self._memory.value()

    def request(self, record: PageRequest) -> None:
        """PAGE_REQUEST.

        Raises:
            RemoteProtocolError: UNEXPECTED_FRAME or OUTSIDE_REGION.
        """
        self._follows.expected(record)
        if record.region not in self.table:
            raise wrong(ErrorCode.OUTSIDE_REGION, f"region {record.region}", "PCY-19", record)


class _Passing:
    """Bytes that were looked at as they passed: a `PageSink` that keeps none."""

    def __init__(self) -> None:
        self.damaged: tuple[PageRange, ...] = ()

    def targets(self, table: Pages) -> list[memoryview]:
        """A place for each run with bytes, of no size: they have gone by."""
        return [memoryview(b"")] * int(carries_bytes(table.runs).sum())

    @property
    def early_pages(self) -> int:
        """None: there is no demand connection in a recording."""
        return 0

    def came(self, table: Pages, size_bytes: int) -> None:
        """See `sterna.memory.pages.PageSink`: none is in a place."""

    def commit(self, table: Pages, *, hashed: bool = True) -> list[PageRange]:
        """What was damaged, of the pages of this table."""
        del hashed  # what has none is never damaged
        first = table.runs["first"].astype(np.int64)
        end = first + table.runs["count"]
        found = []
        for pages in self.damaged:
            low = np.maximum(first, pages.first)
            high = np.minimum(end, pages.first + pages.count)
            for start, stop in zip(low[low < high].tolist(), high[low < high].tolist(), strict=True):
                found.append(PageRange(table.region, start, stop - start))
        return found
