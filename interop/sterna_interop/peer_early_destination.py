"""A scripted destination whose guest runs before its pages are there (chapter 13), and gets some early.

It asks for some pages on the demand connection, and takes groups as they come.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import trio

from sterna.limits import CHUNK_BYTES
from sterna.registry import BitmapEncoding, Encoding, Feature, FrameType, Style
from sterna.wire import Accept, Attached, DirtyBitmap, PageRange, Pages, Record, State, page_hash
from sterna_interop.peer import Frame, Peer
from sterna_interop.peer_destination import DestinationPlan
from sterna_interop.peer_early import GONE, EarlyPlan, check_words, note_end, see_the_end, style_of
from sterna_interop.peer_image import PageName, pages_of
from sterna_interop.peer_lanes import ENDS, LanePlan, StreamDestination, heard_attach
from sterna_interop.peer_steps import Breach, Over

_OPEN_WITHIN_S: Final = 2.0  # the source's demand connection
_FROM_SOURCE: Final = {FrameType.ATTACH.name, FrameType.PAGES.name}


class EarlyDestination(StreamDestination):
    """A destination whose guest runs before its pages are there, if the source sends it so."""

    def __init__(self, plan: DestinationPlan, lanes: LanePlan, early: EarlyPlan) -> None:
        super().__init__(plan, lanes)
        self._early: Final = early
        self._granted: Final = lanes.count
        self._lane: Peer | None = None
        self._opened = trio.Event()

    async def _accept(self, peer: Peer) -> None:
        assert peer.nursery is not None
        granted = self._granted if Feature.DATA_STREAMS in peer.account.features else 0
        await peer.say(Accept(self._image.size_bytes, granted))
        while len(self._came) < granted:
            await self._arrive(peer, granted)
        if Feature.EARLY_PAGES in peer.account.features and self._lane is None:
            peer.nursery.start_soon(self._arrive_later, peer, granted)

    async def _arrive(self, peer: Peer, granted: int) -> None:
        """A connection more, which is the demand connection or another."""
        lane = Peer(await peer.another(), peer.manner, stream=None)
        peer.lanes.append(lane)
        attach = await heard_attach(peer, lane)
        if attach.index == granted and self._lane is None:
            lane.misbehave(self._early.place, self._early.act)
            self._lane = lane
            await lane.say(Attached(attach.index, 0, 0))
            self._opened.set()
        elif attach.index < granted and lane.stream not in self._came:
            await self._begin(peer, lane)
        else:
            raise Breach(f"{attach}, where {granted} data connections were granted [ATT-2] [PCY-26]")

    async def _arrive_later(self, peer: Peer, granted: int) -> None:
        try:
            await self._arrive(peer, granted)
        except ENDS as end:
            note_end(peer, end)
        self._opened.set()

    def _styles(self, peer: Peer) -> Collection[int]:
        style = style_of(peer.account.features)
        too_late = style is Style.POST_COPY and self._round  # [PCY-4]
        return super()._styles(peer) if too_late else {*super()._styles(peer), style}

    @property
    def _sealed(self) -> tuple[type[Record], ...]:
        return (State, DirtyBitmap) if self._style is not Style.STOP_AND_COPY else (State,)

    def _take_in(self, record: Record) -> None:
        if not isinstance(record, DirtyBitmap):
            super()._take_in(record)
            return
        named = {(record.region, record.first + page) for page in _listed(record)}
        if record.attempt != self._attempt or named & self._stale:
            raise Breach("DIRTY_BITMAP of another attempt, or of pages that were named [PCY-2] [BMP-8]")
        self._stale |= named
        self._image.forget(PageRange(*name, 1) for name in named)  # [PCY-3]

    # ---- after RUNNING ----

    async def _wait_for_rest(self, peer: Peer) -> None:
        if not self._stale:
            peer.account.untried = "no page follows the guest"
            return
        if Feature.EARLY_PAGES in peer.account.features:
            await self._ask(peer)
        while self._image.missing():
            for frame in await self._came_behind(peer):
                table = frame.record
                assert isinstance(table, Pages)
                self._check_groups(table)
                if wrong := self._image.take(table, frame.bulk):
                    raise Breach(f"pages {wrong} differ from their hashes [PGS-13]")
        self._check_memory()

    async def _came_behind(self, peer: Peer) -> list[Frame]:
        """What has come on the data connections, or comes on the control connection if there is none."""
        if not self._came:
            return [await peer.hear_frame(Pages)]
        while not any(came.frames for came in self._came.values()):
            if all(came.ended for came in self._came.values()):
                raise Over
            await self._changed.wait()
        found = [frame for came in self._came.values() for frame in came.frames]
        for came in self._came.values():
            came.frames.clear()
        return found

    def _check_groups(self, table: Pages) -> None:
        if (table.attempt, table.round) != self._position:
            raise Breach(f"PAGES after RUNNING of {table.attempt}, {table.round} [PCY-8]")
        step = CHUNK_BYTES >> self._image.regions[table.region].granule_log2
        for first, count in zip(table.runs["first"].tolist(), table.runs["count"].tolist(), strict=True):
            names = {(table.region, page) for page in range(first, first + count)}
            beside = {
                (table.region, page) for page in (first - 1, first + count) if page // step == first // step
            }
            if (
                not names <= self._stale
                or beside & self._stale
                or first // step != (first + count - 1) // step
            ):
                raise Breach(f"pages {first}+{count} of region {table.region} are no whole group [PCY-7]")

    @property
    def _position(self) -> tuple[int, int]:
        return self._attempt, self._round + 1

    # ---- the demand connection ----

    async def _ask(self, peer: Peer) -> None:
        with trio.move_on_after(_OPEN_WITHIN_S):
            await self._opened.wait()
        lane = self._lane
        if lane is None:
            peer.account.untried = "the source opens no demand connection"
            return
        if not self._opened.is_set():  # ATTACHED is what the act holds back
            return
        try:
            for request in self._early.asks:
                names = pages_of(PageRange(request.region, request.first, request.count))
                if not self._stale.issuperset(names):
                    continue
                await lane.say(request)
                for name in names:
                    self._check_page(await lane.hear_frame(Pages), name)
        except GONE:
            if not lane.account.acted:
                peer.account.untried = "the source does without the demand connection"
        await see_the_end(lane, self._early)
        check_words(lane, _FROM_SOURCE)

    def _check_page(self, frame: Frame, due: PageName) -> None:
        """It is what was asked for, as it has to be sent, and the guest's."""
        table, (region, page) = frame.record, due
        assert isinstance(table, Pages)
        size = 1 << self._image.regions[region].granule_log2
        rows = [tuple(row) for row in table.runs[["first", "count", "size_bytes", "encoding"]].tolist()]
        where = table.attempt, table.round, table.region, rows
        if where != (*self._position, region, [(page, 1, size, Encoding.RAW)]):
            raise Breach(f"{where} on the demand connection, where page {due} is due [PCY-27] [PCY-28]")
        hashes = [page_hash(frame.bulk) if self._image.hashed else 0]
        if table.hashes.tolist() != hashes:
            raise Breach(f"page {due} differs from its hash [PGS-13]")
        if frame.bulk != self._plan.guest.image()[region][page * size : (page + 1) * size]:
            raise Breach(f"page {due} is not that of the paused guest [PCY-28]")


def _listed(frame: DirtyBitmap) -> Sequence[int]:
    """The pages of a bitmap, counted from its first one."""
    if frame.encoding == BitmapEncoding.PLAIN:
        return [page for page in range(frame.bits) if frame.data[page >> 3] >> (page & 7) & 1]
    rows = np.frombuffer(frame.data, "<u8").reshape(-1, 2).tolist()
    return [page for first, count in rows for page in range(first, first + count)]
