"""A scripted peer: one honest, minimal conversation, into which a case puts one misbehaviour.

The idea is BoGo's: there is no script for every mistake, but one conversation of each role (`peer_source`,
`peer_destination`) that is right, and a hook through which all that it says goes. A misbehaviour names a
*place* in the conversation, the nth frame of a type that is about to be said or was just heard, and an *act*,
which turns the honest frame into other *steps*. What follows is again the honest conversation: an endpoint
that overlooks the mistake migrates its guest, and the case has caught it.

The peer stands on `sterna.wire` and `sterna.wire.unchecked` only. It judges on the way what the endpoint
sends: whatever breaks the specification is a `Breach`.

Three tasks share a connection: the conversation, a listener that answers PING, and one that says PING when
nothing else was said for a while [CON-76].
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import trio

from sterna.errors import RemoteProtocolError, TransportError
from sterna.registry import GREASE_FIRST, Encoding, ErrorCode
from sterna.wire import (
    Abort,
    Attach,
    Bye,
    Complete,
    FrameReader,
    FrameReceived,
    Guest,
    Hello,
    Pages,
    PagesAnnounced,
    PagesReceived,
    Ping,
    Pong,
    Progress,
    Record,
    Refuse,
    Release,
    UnknownFrame,
    Welcome,
    unchecked,
)
from sterna_interop.case import Line, Wire
from sterna_interop.peer_steps import (
    Account,
    Act,
    Breach,
    Call,
    Ear,
    End,
    Manner,
    Moment,
    Over,
    Place,
    Raw,
    Say,
    Step,
    Wait,
)

AGENT: Final = "sterna scripted peer"
_TALK_NAMES: Final = {"PING", "PONG", "PROGRESS"}  # legal at any moment, and no step of a conversation
_INBOX_FRAMES: Final = 64  # heard and not yet looked at; the endpoint waits then
_OWED_MAX: Final = 1000  # answers to PING; an endpoint of 5 heartbeats a second has no reason for more
_CODES: Final = frozenset(map(int, ErrorCode))
_GREASE_BODY: Final = b"skip me"

R = TypeVar("R")


Conversation: TypeAlias = Callable[["Peer"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that was heard, and its bulk part."""

    record: Record
    sequence: int
    bulk: bytes = b""


class Peer:
    """One side of one connection.

    Args:
        line: the connection.
        manner: how to speak.
        place: where the act sets in.
        act: what happens there instead of, or after, what is honest.
        stream: number of the connection; None where the endpoint's first frame tells.

    Attributes:
        line: the connection.
        nursery: for what goes on beside a conversation.
        welcome: what the endpoint has answered to HELLO.
        lanes: data connections of the session.
    """

    def __init__(
        self,
        line: Line,
        manner: Manner,
        place: Place | None = None,
        act: Act | None = None,
        *,
        stream: int | None = 0,
    ) -> None:
        self.line: Final = line
        self.manner: Final = manner
        self.stream = stream or 0
        self.nursery: trio.Nursery | None = None
        self.welcome: Welcome | None = None
        self.lanes: list[Peer] = []
        self.account: Final = Account()
        self.greeted = False  # WELCOME has gone over
        self._welcomed = False  # or is about to
        self.reports = False  # PROGRESS was selected
        self._place = place
        self._act = act
        self._passed: dict[Place, int] = {}
        self._sequence = 0
        self._sending = trio.Lock()
        self._said_at = trio.current_time()
        self._quiet = False  # an End has been reached
        self._last = False  # nothing may follow what has been said [PNG-3] [ABT-1]
        self._reader = FrameReader(stream=stream)
        self._terms: list[Callable[[FrameReader], None]] = []
        self._heard_all = trio.Event()
        self._gone = trio.Event()  # the connection takes no more, or all has been heard
        self._deaf = False
        self._acting = False  # what is said now is the act's
        self._inbox_in, self._inbox = trio.open_memory_channel[Frame](_INBOX_FRAMES)
        self._owed: list[Pong] = []
        self._owes = trio.Event()
        self._pings = 0
        self._pinged: set[int] = set()
        self._due: set[int] = set()
        self._progress: Progress | None = None

    async def converse(self, conversation: Conversation, patience_s: float) -> Account:
        """Have a conversation, and hear the endpoint out; `patience_s` bounds each of the two.

        The line is left open, unless the act or the endpoint has ended it.
        """
        async with trio.open_nursery() as self.nursery:
            nursery = self.nursery
            nursery.start_soon(self._keep_alive)
            nursery.start_soon(self.listen)
            with trio.move_on_after(patience_s) as talking:
                await self._talk(conversation)
            if talking.cancelled_caught and not self._quiet:
                self.account.breach = self.account.breach or f"no answer after {self._last_said()}"
            if not self.account.breach and not self._deaf:
                with trio.move_on_after(patience_s):
                    await self._heard_all.wait()
            nursery.cancel_scope.cancel()
        return self.account

    async def _talk(self, conversation: Conversation) -> None:
        try:
            await self.open()
            await conversation(self)
        except Breach as breach:
            self.account.breach = self.account.breach or str(breach)
        except (Over, TransportError, trio.ClosedResourceError):
            pass
        else:
            self.account.completed = True
            if self._due & self._pinged:
                self.account.breach = "a PING without PONG [PNG-1]"
        self._last = True

    def _last_said(self) -> str:
        return next((name for name in reversed(self.account.said) if name not in _TALK_NAMES), "the preface")

    # ---- saying ----

    @property
    def sequence(self) -> int:
        """Number of the next frame."""
        return self._sequence

    async def say(self, record: Record, bulk: bytes = b"") -> int:
        """Say a frame, or what the act makes of it; the number of the last frame of that."""
        if self.greeted and self.manner.grease:
            await self.step(Raw(lambda number: unchecked.frame(GREASE_FIRST, _GREASE_BODY, sequence=number)))
        if self.greeted and self.manner.pings:
            await self.ping()
        if isinstance(record, Welcome):
            self._welcomed = True
        if isinstance(record, Release | Complete):
            self._due = set(self._pinged)  # the endpoint has had these when it says its last
        number = await self._send(Say(record, bulk, self.stream), record)
        if isinstance(record, Bye | Refuse | Abort):
            self._last = True
        return number

    async def open(self) -> None:
        """Say the preface."""
        await self._send(Raw(lambda _: unchecked.preface(), 0), None)

    def misbehave(self, place: Place | None, act: Act | None) -> None:
        """From now on, where the endpoint's first frame has to tell which connection it is."""
        self._place, self._act = place, act

    def go_on_from(self, number: int) -> None:
        """Number of the next frame, where an earlier connection of this stream has said some [ATT-5]."""
        self._sequence = number

    async def another(self, wire: Wire | None = None) -> Line:
        """A further connection.

        Raises:
            Over: the endpoint has ended the session before it was there.
            TransportError: it could not be made.
        """
        made: list[Line | TransportError] = []

        async def make() -> None:
            try:
                made.append(await self.line.another(wire))
            except TransportError as error:
                made.append(error)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            await self._gone.wait()
            nursery.cancel_scope.cancel()
        if not made:
            raise Over
        if isinstance(made[0], TransportError):
            raise made[0]
        return made[0]

    async def heard_out(self, within_s: float) -> bool:
        """Wait until the endpoint has ended this connection; false if it does not in time."""
        with trio.move_on_after(within_s) as waiting:
            await self._heard_all.wait()
        return not waiting.cancelled_caught

    async def ping(self) -> None:
        """Say PING, which is to be answered."""
        self._pings += 1
        await self.step(Say(Ping(self._pings)))

    async def _send(self, honest: Step, record: Record | None) -> int:
        place = None if record is None else record.type
        number = self._sequence
        for step in self._steps(Place(place), (honest,), record):
            number = await self.step(step)
            if self._acting:
                self.account.last_act = number
        return number

    def _steps(self, place: Place, honest: tuple[Step, ...], record: Record | None) -> Iterable[Step]:
        """What is done here: what is honest, unless this is the act's place."""
        self._passed[place] = self._passed.get(place, 0) + 1
        nth = self._passed[place]
        self._acting = False
        here = {Place(place.frame, nth, place.heard), Place(place.frame, 0, place.heard)}
        if self._act is None or self._place not in here:
            return honest
        self.account.acted = self._acting = True
        return self._act(Moment(honest, record, self))

    async def step(self, step: Step) -> int:
        """Do it; the number of its last frame."""
        if self._quiet and not isinstance(step, End):
            raise Over
        match step:
            case Wait(seconds):
                with trio.move_on_after(seconds):
                    await self._gone.wait()
                    raise Over
            case Ear():
                self._deaf = True
            case Call(run):
                await run(self)
            case End():
                await self._end(step)
                raise Over
            case _:
                async with self._sending:
                    if self._quiet:  # since we wait for our turn
                        raise Over
                    number = await self._pass_on(step)
                    self._quiet = isinstance(step, Raw) and step.is_last
                return number
        return self._sequence - 1

    async def _pass_on(self, step: Say | Raw) -> int:
        data = step.encode(self._sequence)
        self.account.said.append(step.record.type.name if isinstance(step, Say) else "raw")
        if isinstance(step, Say):
            self._sequence += 1
            if isinstance(step.record, Ping):
                self._pinged.add(step.record.id)
        else:
            self._sequence += step.frames
        last = self._sequence - 1
        if isinstance(step, Raw) and step.interval_s is not None:
            await self._drip(data, step.interval_s)
        else:
            size = self.manner.piece_bytes or max(len(data), 1)
            for at in range(0, len(data), size):
                await self.line.send(data[at : at + size])
        self._said_at = trio.current_time()
        return last

    async def _drip(self, data: bytes, interval_s: float) -> None:
        for at in range(len(data)):
            with trio.move_on_after(interval_s):
                await self._gone.wait()
                raise Over
            await self.line.send(data[at : at + 1])

    async def _end(self, how: End) -> None:
        self._quiet = True
        async with self._sending:
            if how is End.PROPER:
                await self.line.end()
            elif how is End.RESET:
                self.line.cut()

    @property
    def _done_talking(self) -> bool:
        return self._quiet or self._last

    async def _keep_alive(self) -> None:
        """Answer PING [PNG-1], and say something when nothing else is said [CON-76]."""
        while not self._done_talking:
            due = self._said_at + self.manner.heartbeat_s
            with trio.move_on_at(due):
                await self._owes.wait()
            self._owes = trio.Event()
            try:
                while self._owed:
                    await self.step(Say(self._owed.pop(0)))
                if self.greeted and trio.current_time() >= due and not self._done_talking:
                    await self.ping()
            except (TransportError, trio.ClosedResourceError, Over):
                self._gone.set()
            if trio.current_time() >= due:
                self._said_at = trio.current_time()

    # ---- hearing ----

    async def hear(self, kind: type[R]) -> R:
        """The next frame, which has to be of this kind; what is said at any moment is not counted."""
        record = (await self.hear_frame(kind)).record
        assert isinstance(record, kind)
        return record

    async def hear_frame(self, *kinds: type[object]) -> Frame:
        """As `hear`, of one kind of several, with the frame's number and bulk part."""
        try:
            heard = await self._inbox.receive()
        except trio.EndOfChannel:
            raise Over from None
        if not isinstance(heard.record, kinds):
            due = " or ".join(kind.__name__ for kind in kinds)
            raise Breach(f"{type(heard.record).__name__} where {due} is due [CON-3]")
        for step in self._steps(Place(heard.record.type, heard=True), (), heard.record):
            await self.step(step)
        return heard

    @property
    def heard_on(self) -> int:
        """The stream that stands in the endpoint's frames."""
        return self._reader.stream or 0

    def announced(self) -> None:
        """The peer's own limits have been announced: the endpoint is held to them [LIM-1]."""
        self._agreed(lambda reader: reader.set_limits(self.manner.limits))

    def selected(self, encodings: frozenset[Encoding], *, hashed: bool = True) -> None:
        """The page encodings that the endpoint may use [PGS-9], and whether pages have hashes [PGS-25]."""
        self._agreed(lambda reader: reader.set_encodings(encodings, hashed=hashed))

    def described(self, guest: Guest) -> None:
        """The regions of the session [PGS-2]."""
        regions = {region.id: region for region in guest.regions}
        self._agreed(lambda reader: reader.set_regions(regions))

    def lend(self, lane: Peer) -> None:
        """What was announced, selected and described here holds on a data connection, too."""
        for term in self._terms:
            lane._agreed(term)

    def _agreed(self, term: Callable[[FrameReader], None]) -> None:
        self._terms.append(term)
        term(self._reader)

    async def listen(self) -> None:
        """Hear the endpoint, to its end."""
        bulk = bytearray()
        async with self._inbox_in:
            try:
                while data := await self.line.receive():
                    if self._deaf:
                        await trio.sleep_forever()
                    self._reader.receive_data(data)
                    while await self._take_event(bulk):
                        pass
                self._reader.receive_eof()
                self.account.end = "proper"
            except RemoteProtocolError as error:
                self.account.breach = self.account.breach or f"its bytes: {error}"
            except Breach as breach:
                self.account.breach = self.account.breach or str(breach)
            except TransportError:
                self.account.end = "reset"
            except trio.ClosedResourceError:
                self.account.end = "ours"
        self._heard_all.set()
        self._gone.set()

    async def _take_event(self, bulk: bytearray) -> bool:
        event = self._reader.next_event()
        match event:
            case PagesAnnounced(header=header):
                bulk[:] = bytes(header.bulk_bytes)
                if bulk:
                    self._reader.supply_bulk([memoryview(bulk)])
            case PagesReceived(header=header, record=table):
                copy = Pages(table.attempt, table.round, table.region, table.runs.copy(), table.hashes.copy())
                await self._heard(Frame(copy, header.sequence, bytes(bulk)))
            case FrameReceived(header=header, record=record):
                await self._heard(Frame(record, header.sequence))
            case UnknownFrame():
                self.account.heard.append("skipped")
            case _:
                pass
        return event is not None

    async def _heard(self, frame: Frame) -> None:
        record = frame.record
        if self.account.answer is not None:
            raise Breach(f"{record.type.name} after {self.account.answer.type.name} [ABT-1]")
        self._check_moment(record)
        self.account.heard.append(record.type.name)
        match record:
            case Ping() if len(self._owed) >= _OWED_MAX:
                raise Breach(f"more than {_OWED_MAX} PINGs that wait for an answer")
            case Ping(id=number):
                self._owed.append(Pong(number))
                self._owes.set()
            case Pong(id=number) if number not in self._pinged:
                raise Breach(f"PONG {number} without a PING [PNG-2]")
            case Pong(id=number):
                self._pinged.discard(number)
            case Abort() | Refuse():
                self.account.answer = record
                self._inbox_in.close()
            case Progress():
                self._check_progress(record)
            case _:
                await self._inbox_in.send(frame)

    def _check_moment(self, record: Record) -> None:
        """What may not come yet, whatever the conversation."""
        spoken = any(name.isupper() for name in self.account.said)
        if not spoken and not isinstance(record, Hello | Attach | Abort | Refuse):
            raise Breach(f"{record.type.name} before anything was said [CON-7] [CON-8]")
        if isinstance(record, Welcome):
            self._welcomed = True
        if isinstance(record, Ping | Pong | Progress) and not self._welcomed:
            raise Breach(f"{record.type.name} before WELCOME [CON-2]")
        if isinstance(record, Abort | Refuse) and record.code not in _CODES:
            raise Breach(f"{record.type.name} with a code that is not registered [FRM-14]")

    def _check_progress(self, progress: Progress) -> None:
        before, self._progress = self._progress, progress
        if not self.reports:
            raise Breach("PROGRESS, which was not selected [PRG-1]")
        if before is not None and (progress.round < before.round or progress.bulk_bytes < before.bulk_bytes):
            raise Breach(f"{progress} after {before} [CON-80]")
