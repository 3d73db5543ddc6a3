"""Data connections of a scripted peer (chapter 9): what they add to both conversations.

A *lane* is one of them: a `Peer` of its own, with its own numbers, on a line of its own. The source sends on
all of them at once, so that one that stands still holds up none of the others. The destination takes what
comes on each as it comes, and looks at it when ROUND_END has told how much there is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import trio

from sterna.errors import TransportError
from sterna.registry import ErrorCode
from sterna.wire import Accept, Attach, Attached, Pages, Round, RoundEnd
from sterna_interop.case import Line, Wire
from sterna_interop.peer import Frame, Peer
from sterna_interop.peer_destination import SESSION as SCRIPTED
from sterna_interop.peer_destination import TOKEN, Destination, DestinationPlan
from sterna_interop.peer_image import Batch, LastSequences, PageName
from sterna_interop.peer_source import Source, SourcePlan
from sterna_interop.peer_steps import Act, Breach, Call, Over, Place, code_of

_BLOCK_PAGES: Final = 16  # so many pages travel on one lane, the next ones on the next
_AHEAD_S: Final = 0.2  # so long pages are under way before their ROUND
ENDS: Final = (Breach, Over, TransportError, trio.ClosedResourceError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePlan:
    """What a peer does with its data connections; the defaults are legal.

    Attributes:
        count: how many there are.
        granted: as a destination: how many are granted.
        lane: the one that misbehaves; a destination counts them as they come.
        place, act: how.
        ends_first: as a source: ROUND_END is said before the pages.
        pages_first: as a source: pages are on their way before their ROUND.
        turns: as a source: pages change lanes at each barrier [STR-7].
        replaced: as a source: the first lane is replaced at the barrier before this round [STR-12].
    """

    count: int = 2
    granted: int | None = None
    lane: int = 1
    place: Place | None = None
    act: Act | None = None
    ends_first: bool = False
    pages_first: bool = False
    turns: bool = False
    replaced: int = 0


def attempt(
    *codes: ErrorCode,
    index: int = 0,
    generation: int = 0,
    stream: int | None = None,
    wire: Wire | None = None,
    session: bytes | None = None,
    token: bytes | None = None,
) -> Call:
    """One connection more, whose ATTACH has to be refused with one of these codes; it alone ends [STR-4].

    Args:
        codes: none: the endpoint need not say a word, since TLS has refused it.
        index: of ATTACH, as are `generation`, `session` and `token`; what is not given is right.
        generation: see there.
        session: see there.
        token: see there.
        stream: in the header; the right one if it is not given.
        wire: who calls.
    """

    async def run(peer: Peer) -> None:
        assert peer.welcome is not None
        assert peer.nursery is not None
        try:
            line = await peer.another(wire)
        except TransportError:
            if codes:
                raise
            return
        lane = Peer(line, peer.manner, stream=index + 1 if stream is None else stream)
        peer.nursery.start_soon(lane.listen)
        attach = Attach(session or peer.welcome.session, token or peer.welcome.token, index, generation)
        try:
            await lane.open()
            await lane.say(attach)
            await lane.hear(Attached)
        except (Over, TransportError, trio.ClosedResourceError):
            pass
        else:
            raise Breach("ATTACHED to an ATTACH that has to be refused [STR-4]")
        finally:
            line.cut()
        if not codes:
            return  # what is said to somebody unknown is nobody's business
        if lane.account.breach:
            raise Breach(lane.account.breach)
        if code_of(lane.account.answer) not in codes:
            said = "nothing" if lane.account.answer is None else code_of(lane.account.answer)
            raise Breach(f"{said!r} on a connection whose ATTACH has to be refused [STR-4]")

    return Call(run)


async def _hang_up(peer: Peer) -> None:
    assert peer.nursery is not None
    peer.nursery.start_soon(peer.lanes[-1].line.end)


HANG_UP: Final = Call(_hang_up)  # end the newest data connection properly


class StreamSource(Source):
    """A source that sends its pages on data connections."""

    def __init__(self, plan: SourcePlan, lanes: LanePlan) -> None:
        super().__init__(plan)
        self._lane_plan: Final = lanes
        self._lanes: dict[int, Peer] = {}
        self._said: dict[int, int] = {}  # by stream, number of the last PAGES

    async def _accepted(self, peer: Peer, accept: Accept) -> None:
        most = self._lane_plan.count
        if not 1 <= accept.data_streams <= most:
            raise Breach(f"ACCEPT asks for {accept.data_streams} data connections, it may for {most} [ACC-3]")
        for stream in range(1, accept.data_streams + 1):
            await self._attach(peer, stream, 0)

    async def _attach(self, peer: Peer, stream: int, generation: int) -> None:
        """Open a data connection, in the place of an earlier one if there is one."""
        assert peer.welcome is not None
        assert peer.nursery is not None
        older = self._lanes.get(stream)
        lane = self._lanes[stream] = _lane(peer, self._lane_plan, await peer.another(), stream, stream)
        peer.nursery.start_soon(lane.listen)
        await lane.open()
        await lane.say(Attach(peer.welcome.session, peer.welcome.token, stream - 1, generation))
        attached = await lane.hear(Attached)
        applied = 0 if older is None else older.sequence - 1
        due = Attached(stream - 1, generation, applied)
        if attached != due:
            raise Breach(f"{attached}, due is {due} [ATT-4] [ATT-6]")
        lane.go_on_from(applied + 1)

    async def _pages(self, peer: Peer) -> LastSequences:
        self._round += 1
        if self._round == self._lane_plan.replaced:
            await self._attach(peer, 1, 1)
        where, count = (self._attempt, self._round), len(self._waiting)
        batches = {
            stream: list(self._image.batches(*where, self._share(stream), self._limits))
            for stream in self._lanes
        }
        self._waiting.clear()
        last = tuple(
            (stream, self._lanes[stream].sequence + len(each) - 1) for stream, each in batches.items() if each
        )
        bulk_bytes = sum(len(batch.bulk) for each in batches.values() for batch in each)
        begin, end = Round(*where, count), RoundEnd(*where, count, bulk_bytes, last)
        pages = [partial(self._send, stream, each) for stream, each in batches.items()]
        if self._lane_plan.pages_first:
            await _together(*pages, partial(_later, _AHEAD_S, partial(peer.say, begin)))
            await peer.say(end)
        elif self._lane_plan.ends_first:
            await peer.say(begin)
            await peer.say(end)
            await _together(*pages)
        else:
            await peer.say(begin)
            await _together(*pages)
            last = tuple((stream, self._said[stream]) for stream, _ in last)
            await peer.say(replace(end, last_sequences=last))
        return last

    def _share(self, stream: int) -> list[PageName]:
        """What waits of the pages that are bound to this lane."""
        turn = self._round if self._lane_plan.turns else 0
        count = len(self._lanes)
        return [name for name in self._waiting if (name[1] // _BLOCK_PAGES + turn) % count == stream - 1]

    async def _send(self, stream: int, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self._said[stream] = await self._lanes[stream].say(batch.table, batch.bulk)


@dataclass(slots=True)
class _Came:
    """What has come on a lane and was not looked at."""

    frames: list[Frame] = field(default_factory=list)
    ended: bool = False


class StreamDestination(Destination):
    """A destination that takes pages on data connections."""

    def __init__(self, plan: DestinationPlan, lanes: LanePlan) -> None:
        super().__init__(plan)
        self._lane_plan: Final = lanes
        self._came: dict[int, _Came] = {}
        self._changed = trio.Event()

    async def _accept(self, peer: Peer) -> None:
        plan = self._lane_plan
        granted = plan.count if plan.granted is None else plan.granted
        await peer.say(Accept(self._image.size_bytes, granted))
        await _together(*(partial(self._attach, peer, nth) for nth in range(1, granted + 1)))
        if sorted(self._came) != list(range(1, granted + 1)):
            raise Breach(f"data connections of the numbers {sorted(self._came)}, due are {granted} [STR-2]")

    async def _attach(self, peer: Peer, nth: int) -> None:
        assert peer.nursery is not None
        lane = _lane(peer, self._lane_plan, await peer.another(), None, nth)
        await heard_attach(peer, lane)
        await self._begin(peer, lane)

    async def _begin(self, peer: Peer, lane: Peer) -> None:
        """Answer ATTACH, and take what comes."""
        assert peer.nursery is not None
        self._came[lane.stream] = _Came()
        await lane.say(Attached(lane.stream - 1, 0, 0))
        peer.nursery.start_soon(self._collect, peer, lane)

    async def _collect(self, peer: Peer, lane: Peer) -> None:
        """Take whatever comes on a lane."""
        came = self._came[lane.stream]
        try:
            while True:
                frame = await lane.hear_frame(Pages)
                came.frames.append(frame)
                self._change()
        except ENDS as end:
            problem = lane.account.breach or (str(end) if isinstance(end, Breach) else "")
            peer.account.breach = peer.account.breach or problem
        came.ended = True
        self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _frames(self, peer: Peer) -> AsyncGenerator[tuple[int, Frame], None]:
        if not self._came:
            async with aclosing(super()._frames(peer)) as frames:
                async for each in frames:
                    yield each
            return
        end = await peer.hear_frame(RoundEnd)
        assert isinstance(end.record, RoundEnd)
        for stream, sequence in end.record.last_sequences:
            if stream not in self._came:
                raise Breach(f"ROUND_END states stream {stream} [STR-8]")
            came = self._came[stream]
            while not came.frames or came.frames[-1].sequence < sequence:
                if came.ended:
                    raise Over
                await self._changed.wait()
        for stream, came in self._came.items():
            heard, came.frames = came.frames, []
            for frame in heard:
                yield stream, frame
        yield 0, end


async def heard_attach(peer: Peer, lane: Peer) -> Attach:
    """What a new connection begins with at a destination, if it is right."""
    assert peer.nursery is not None
    peer.lend(lane)
    peer.nursery.start_soon(lane.listen)
    await lane.open()
    heard = await lane.hear(Attach)
    if (heard.session, heard.token, heard.generation) != (SCRIPTED, TOKEN, 0):
        raise Breach(f"{heard} on a new data connection [ATT-3] [STR-5]")
    lane.stream = heard.index + 1
    if lane.heard_on != lane.stream:
        raise Breach(f"ATTACH of index {heard.index} on stream {lane.heard_on} [HDR-5]")
    return heard


def _lane(peer: Peer, plan: LanePlan, line: Line, stream: int | None, nth: int) -> Peer:
    """The connection, with the act if it is the one that misbehaves."""
    act = (plan.place, plan.act) if nth == plan.lane else (None, None)
    peer.lanes.append(Peer(line, peer.manner, *act, stream=stream))
    return peer.lanes[-1]


async def _later(seconds: float, job: Callable[[], Awaitable[object]]) -> None:
    await trio.sleep(seconds)
    await job()


async def _together(*jobs: Callable[[], Awaitable[object]]) -> None:
    """Do all of it at once; what ended one of them is raised when all are done.

    Raises:
        Breach, Over, TransportError, trio.ClosedResourceError: see there.
    """
    ends: list[Exception] = []

    async def run(job: Callable[[], Awaitable[object]]) -> None:
        try:
            await job()
        except ENDS as end:
            ends.append(end)

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(run, job)
    if ends:
        raise ends[0]
