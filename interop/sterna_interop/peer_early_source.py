"""A scripted source whose pages follow the guest (chapter 13), and come early.

It opens the demand connection and answers what is asked for there. Groups it pushes when nobody has asked for
a while, so that the guest gets on by early pages as long as it is served so. By post-copy no page travels
before the guest does; by bitmap what the rounds have left follows it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import trio

from sterna.limits import CHUNK_BYTES
from sterna.registry import BitmapEncoding, Feature, FrameType, Style
from sterna.wire import Accept, Attach, Attached, Complete, DirtyBitmap, PageRange, PageRequest, page_hash
from sterna_interop.peer import Peer
from sterna_interop.peer_early import GONE, EarlyPlan, check_words, note_end, see_the_end, style_of
from sterna_interop.peer_image import LastSequences, PageName
from sterna_interop.peer_lanes import ENDS
from sterna_interop.peer_source import Source, SourcePlan
from sterna_interop.peer_steps import Breach

_PUSH_AFTER_S: Final = 0.1  # so long nobody has asked for anything,
_FIRST_WITHIN_S: Final = 2.0  # or ever
_FROM_DESTINATION: Final = {FrameType.ATTACHED.name, FrameType.PAGE_REQUEST.name}


class EarlySource(Source):
    """A source whose pages follow the guest, if the destination takes them so."""

    def __init__(self, plan: SourcePlan, early: EarlyPlan) -> None:
        follows = style_of({each.id for each in plan.features})
        super().__init__(replace(plan, rounds=0) if follows is Style.POST_COPY else plan)  # [PCY-4]
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
        self._style = style_of(peer.account.features)
        if Feature.EARLY_PAGES not in peer.account.features:
            offered = Feature.EARLY_PAGES in {each.id for each in self._plan.features}
            if offered and self._style is not Style.STOP_AND_COPY:
                peer.account.untried = "the destination does without early_pages"
        elif self._early.opens:
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
        except GONE:
            peer.account.untried = "the destination does not take the demand connection"
            return
        if attached != Attached(0, 0, 0):
            raise Breach(f"{attached} on the demand connection [PCY-26] [ATT-6]")
        lane.go_on_from(1)
        self._lane = lane
        peer.nursery.start_soon(self._answer_all, peer, lane)

    async def _blackout(self, peer: Peer) -> None:
        if self._style is not Style.STOP_AND_COPY:
            while self._entries < len(self._plan.guest.writes):
                self._write()
            for name in sorted(self._waiting):
                self._add_stale(name)
            self._image.forget(PageRange(*name, 1) for name in self._waiting)  # [PCY-3]
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
            check_words(self._lane, _FROM_DESTINATION)
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
                await see_the_end(self._lane, self._early)
            for group in range(len(self._groups)):
                if group not in self._sent:
                    await self._send(peer, group)
        except ENDS as end:
            note_end(peer, end)

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
        self._image.note(right.table)  # without hashes nobody asks for it again
        bulk = bytes(byte ^ 0xFF for byte in right.bulk)
        hashes = [page_hash(bulk) if self._image.hashed else 0]
        table = replace(right.table, hashes=np.array(hashes, "<u8"))
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
            note_end(peer, end, lane)

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
