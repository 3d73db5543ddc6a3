"""What scripted peers do where pages follow the guest, and come early (chapter 13).

Both conversations are of post-copy: no page travels before the guest does. The source opens the demand
connection and answers what is asked for there; groups it pushes when nobody has asked for a while, so that
the guest gets on by early pages as long as it is served so. The destination asks for some pages there, and
takes groups as they come. Neither lets the session depend on that connection, and nor may the endpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import trio

from sterna.errors import TransportError
from sterna.limits import CHUNK_BYTES
from sterna.registry import BitmapEncoding, Encoding, Feature, FrameType, Style
from sterna.wire import (
    Accept,
    Attach,
    Attached,
    Complete,
    DirtyBitmap,
    PageRequest,
    Pages,
    Record,
    State,
    page_hash,
)
from sterna_interop.peer import Frame, Peer
from sterna_interop.peer_destination import DestinationPlan
from sterna_interop.peer_image import LastSequences, PageName
from sterna_interop.peer_lanes import ENDS, LanePlan, StreamDestination, heard_attach
from sterna_interop.peer_source import Source, SourcePlan
from sterna_interop.peer_steps import Act, Breach, Over, Place

_PUSH_AFTER_S: Final = 0.1  # so long nobody has asked for anything,
_FIRST_WITHIN_S: Final = 2.0  # or ever
_OPEN_WITHIN_S: Final = 2.0  # the source's demand connection
_END_WITHIN_S: Final = 4.0
_GONE: Final = (Over, TransportError, trio.ClosedResourceError)
_FROM_DESTINATION: Final = {FrameType.ATTACHED.name, FrameType.PAGE_REQUEST.name}
_FROM_SOURCE: Final = {FrameType.ATTACH.name, FrameType.PAGES.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyPlan:
    """What a peer does with the demand connection; the defaults are legal.

    Attributes:
        place, act: how it misbehaves there.
        ends: the endpoint has to end that connection then, and goes on with the session.
        opens: as a source: whether it is opened.
        answers: as a source: whether requests are answered.
        differs: as a source: the first group with early pages has other bytes for them [PCY-35].
        asks: as a destination: what is asked for there.
    """

    place: Place | None = None
    act: Act | None = None
    ends: bool = False
    opens: bool = True
    answers: bool = True
    differs: bool = False
    asks: tuple[PageRequest, ...] = (
        PageRequest(1, 37, 1),
        PageRequest(1, 32, 5),
        PageRequest(2, 0, 16),
        PageRequest(1, 37, 1),
    )


async def _see_the_end(lane: Peer, plan: EarlyPlan) -> None:
    """What was wrong on the demand connection ends it."""
    if plan.ends and lane.account.acted and not await lane.heard_out(_END_WITHIN_S):
        raise Breach("the demand connection goes on after what was wrong on it [PCY-27] [PCY-28]")


def _check_words(lane: Peer, legal: Collection[str]) -> None:
    """Nothing else was said there, and no unknown frame either."""
    if lane.account.breach:
        raise Breach(lane.account.breach)
    said = {name for name in lane.account.heard if name not in {FrameType.ABORT.name, *legal}}
    if said:
        raise Breach(f"{', '.join(sorted(said))} on the demand connection [PCY-27]")


class EarlySource(Source):
    """A source whose pages follow the guest, if the destination takes them so."""

    def __init__(self, plan: SourcePlan, early: EarlyPlan) -> None:
        super().__init__(replace(plan, rounds=0))  # [PCY-4]
        self._early: Final = early
        self._lane: Peer | None = None
        self._groups: list[list[PageName]] = []
        self._group_of: dict[PageName, int] = {}
        self._sent: set[int] = set()  # groups
        self._answered: set[PageName] = set()
        self._asked: list[int] = []  # groups of which pages were asked for early, in order
        self._heard_at = 0.0
        self._heard = trio.Event()
        self._may_send = trio.Event()  # what is asked for on the control connection
        self._unanswered = 0

    async def _accepted(self, peer: Peer, accept: Accept) -> None:
        await super()._accepted(peer, accept)
        if Feature.POST_COPY in peer.account.features:
            self._style = Style.POST_COPY
        if Feature.EARLY_PAGES in peer.account.features and self._early.opens:
            await self._open(peer)

    async def _open(self, peer: Peer) -> None:
        """Open the demand connection; the destination may do without it."""
        assert peer.welcome is not None
        assert peer.nursery is not None
        lane = Peer(await peer.another(), peer.manner, self._early.place, self._early.act, stream=1)
        peer.lanes.append(lane)
        peer.nursery.start_soon(lane.listen)
        try:
            await lane.open()
            await lane.say(Attach(peer.welcome.session, peer.welcome.token, 0, 0))
            attached = await lane.hear(Attached)
        except _GONE:
            peer.account.untried = "the destination does not take the demand connection"
            return
        if attached != Attached(0, 0, 0):
            raise Breach(f"{attached} on the demand connection [PCY-26] [ATT-6]")
        lane.go_on_from(1)
        self._lane = lane
        peer.nursery.start_soon(self._answer_all, peer, lane)

    async def _blackout(self, peer: Peer) -> None:
        if self._style is Style.POST_COPY:
            while self._entries < len(self._plan.guest.writes):
                self._write()
            for name in sorted(self._waiting):
                self._add_stale(name)
            self._waiting.clear()
        await super()._blackout(peer)

    def _add_stale(self, name: PageName) -> None:
        """To the group of the page before it, or to one of its own [PCY-7]."""
        region, page = name
        step = CHUNK_BYTES >> self._image.regions[region].granule_log2
        if not page % step or self._group_of.get((region, page - 1)) is None:
            self._groups.append([])
        self._groups[-1].append(name)
        self._group_of[name] = len(self._groups) - 1

    async def _pages(self, peer: Peer) -> LastSequences:
        last = await super()._pages(peer)
        stale = sorted(self._group_of)
        for region in sorted({region for region, _ in stale}):
            bits = sum(1 << page for number, page in stale if number == region)
            pages = self._image.regions[region].pages
            data = bits.to_bytes(-(-pages // 8), "little")
            await peer.say(DirtyBitmap(self._attempt, region, 0, pages, BitmapEncoding.PLAIN, data))
        return last

    # ---- after RUNNING ----

    @property
    def _position(self) -> tuple[int, int]:
        return self._attempt, self._round + 1  # [PCY-8]

    async def _completed(self, peer: Peer) -> Complete:
        assert peer.nursery is not None
        if not self._early.differs:
            self._may_send.set()
        peer.nursery.start_soon(self._push, peer)
        while isinstance(record := (await peer.hear_frame(PageRequest, Complete)).record, PageRequest):
            self._was_asked()
            await self._may_send.wait()
            names = [(record.region, page) for page in range(record.first, record.first + record.count)]
            for group in sorted({self._group_of[name] for name in names if name in self._group_of}):
                await self._send(peer, group)
        assert isinstance(record, Complete)
        if self._lane is not None:
            _check_words(self._lane, _FROM_DESTINATION)
            if not self._asked:
                peer.account.untried = "the destination asks for no page on the demand connection"
        return record

    async def _push(self, peer: Peer) -> None:
        """Every group, when nobody asks for any."""
        try:
            await self._quiet()
            if self._early.differs:
                await self._send_other_bytes(peer)
                self._may_send.set()
            if self._lane is not None:
                await _see_the_end(self._lane, self._early)
            for group in range(len(self._groups)):
                if group not in self._sent:
                    await self._send(peer, group)
        except ENDS as end:
            _note(peer, end)

    def _was_asked(self) -> None:
        self._heard_at = trio.current_time()
        self._heard.set()

    async def _quiet(self) -> None:
        """Wait until nobody has asked for anything for a while."""
        with trio.move_on_after(_FIRST_WITHIN_S):
            await self._heard.wait()
        due = 0.0
        while due < self._heard_at + _PUSH_AFTER_S:
            due = self._heard_at + _PUSH_AFTER_S
            await trio.sleep_until(due)

    async def _send(self, peer: Peer, group: int) -> None:
        self._sent.add(group)
        batch = self._image.whole(*self._position, self._groups[group])
        self._image.note(batch.table)
        await peer.say(batch.table, batch.bulk)

    async def _send_other_bytes(self, peer: Peer) -> None:
        """A group that is wrong by what came early alone; it is sent as it is when it is asked for again.

        The guest reads on only when it has what it waits for: what it has asked for before its newest group
        is early for certain.
        """
        for group in self._asked[:-1]:
            if group not in self._sent and self._answered.issuperset(self._groups[group]):
                break
        else:
            peer.account.untried = "the destination has no page early"
            return
        self._sent.add(group)
        right = self._image.whole(*self._position, self._groups[group])
        bulk = bytes(byte ^ 0xFF for byte in right.bulk)
        table = replace(right.table, hashes=np.array([page_hash(bulk)], "<u8"))
        await peer.say(table, bulk)

    # ---- the demand connection ----

    async def _answer_all(self, peer: Peer, lane: Peer) -> None:
        try:
            while True:
                request = await lane.hear(PageRequest)
                self._check_request(peer, request)
                self._was_asked()
                if (group := self._group_of[request.region, request.first]) not in self._asked:
                    self._asked.append(group)
                if self._early.answers:
                    await self._answer(lane, request)
                else:
                    self._check_unanswered(peer, request)
        except ENDS as end:
            _note(peer, end, lane)

    async def _answer(self, lane: Peer, request: PageRequest) -> None:
        for page in range(request.first, request.first + request.count):
            batch = self._image.whole(*self._position, [(request.region, page)])
            await lane.say(batch.table, batch.bulk)
            self._answered.add((request.region, page))

    def _check_request(self, peer: Peer, request: PageRequest) -> None:
        names = [(request.region, page) for page in range(request.first, request.first + request.count)]
        if FrameType.HANDOVER.name not in peer.account.said:
            raise Breach(f"{request} before the guest runs [PCY-28]")
        if not request.urgent or not names or not self._group_of.keys() >= set(names):
            raise Breach(f"{request} on the demand connection, of pages that are not stale [PCY-27] [PCY-28]")
        if self._group_of[names[0]] != self._group_of[names[-1]]:
            raise Breach(f"{request} on the demand connection goes beyond a block [PCY-27]")

    def _check_unanswered(self, peer: Peer, request: PageRequest) -> None:
        self._unanswered += request.count
        most = peer.manner.limits.page_requests
        if self._unanswered > most:
            raise Breach(f"{self._unanswered} pages asked for early and not answered, of {most} [PCY-29]")


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
            _note(peer, end)
        self._opened.set()

    def _styles(self, peer: Peer) -> Collection[int]:
        more = {Style.POST_COPY} if Feature.POST_COPY in peer.account.features and not self._round else set()
        return {*super()._styles(peer), *more}

    @property
    def _sealed(self) -> tuple[type[Record], ...]:
        return (State, DirtyBitmap) if self._style is Style.POST_COPY else (State,)

    def _take_in(self, record: Record) -> None:
        if not isinstance(record, DirtyBitmap):
            super()._take_in(record)
            return
        named = {(record.region, record.first + page) for page in _listed(record)}
        if record.attempt != self._attempt or named & self._stale:
            raise Breach("DIRTY_BITMAP of another attempt, or of pages that were named [PCY-2] [BMP-8]")
        self._stale |= named

    # ---- after RUNNING ----

    async def _wait_for_rest(self, peer: Peer) -> None:
        if not self._stale:
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
                await lane.say(request)
                for page in range(request.first, request.first + request.count):
                    self._check_page(await lane.hear_frame(Pages), (request.region, page))
        except _GONE:
            if not lane.account.acted:
                peer.account.untried = "the source does without the demand connection"
        await _see_the_end(lane, self._early)
        _check_words(lane, _FROM_SOURCE)

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


def _note(peer: Peer, end: BaseException, lane: Peer | None = None) -> None:
    """What has ended a task beside the conversation, if it was the endpoint's fault."""
    problem = "" if lane is None else lane.account.breach
    peer.account.breach = peer.account.breach or problem or (str(end) if isinstance(end, Breach) else "")
