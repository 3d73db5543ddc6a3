"""A session's connections, and what passes on them: from bytes to frames that a role can act on, and back.

What a frame means is for the roles; here is where it goes. Heartbeats and ABORT are dealt with at once on
their way, and what has to wait for another connection is held (sterna.core.lanes).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sterna.core.account import Account
from sterna.core.conduct import check_sender, wrong
from sterna.core.deadlines import Deadlines, Watch
from sterna.core.heartbeat import Heartbeat
from sterna.core.lanes import Lane, Lanes
from sterna.core.negotiate import Selection
from sterna.core.outbox import Grease, Outbox
from sterna.errors import PeerAborted, RemoteProtocolError, SternaError, TransportError
from sterna.limits import Limits
from sterna.registry import ErrorCode, FrameType, Sender
from sterna.wire import (
    Buffer,
    FrameReader,
    FrameReceived,
    Header,
    PagesAnnounced,
    PagesReceived,
    UnknownFrame,
)
from sterna.wire.framing import Event as WireEvent
from sterna.wire.records import Abort, Pages, Ping, Pong, Progress, Record, Region

_SCRATCH_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What both roles need to know."""

    agent: str = "sterna"
    limits: Limits = field(default_factory=Limits)
    deadlines: Deadlines = field(default_factory=Deadlines)
    grease: tuple[Grease, ...] = ()


class Connected(ABC):
    """The part of a machine that has the connections."""

    def __init__(self, config: Config, now: float, *, role: Sender) -> None:
        self._config = config
        self._role = role
        # Who is called learns from the first frame what the connection is for [HDR-5].
        reader = FrameReader(stream=0 if role is Sender.SOURCE else None)
        self._outbox: Final = Outbox(config.grease)  # of the control connection
        self._lanes = Lanes(Lane(0, now, reader=reader, outbox=self._outbox))
        self._reading = self._lanes.control  # the lane whose frame is being looked at
        self._regions_told: Sequence[Region] = ()
        self._watch = Watch(config.deadlines, now)
        self._heartbeat = Heartbeat()
        self._selection: Selection | None = None
        self._account = Account(now)
        self._over = False  # the session is lost; what the peer still sends does not matter
        self._news = False  # more than pages has been acted on since bytes came

    @property
    def has_unsent(self) -> bool:
        """Whether something queued, or taken by the driver, has not left yet."""
        return self._lanes.has_unsent

    # ---- out ----

    def poll_transmit(self, now: float, stream: int = 0) -> list[Buffer]:
        """Buffers to be sent in this order, as one unit; empty when there is nothing to say.

        Buffers of guest memory are live: they must be sent, or dropped with the connection, not kept.
        """
        lane = self._lanes.get(stream)
        if lane is None:
            return []
        # Pages and state are queued when nothing else waits, and else every other time: a peer that pings as
        # often as it is answered must not hold them up, but come to owe more than it may [CON-79].
        lane.waited = bool(lane.outbox) and not lane.waited
        if self._can_speak and not lane.waited:
            try:
                self._more(lane, now)
            except SternaError as error:  # the guest's memory or state, not the driver's doing
                self._fail(error, now)
        if not lane.outbox.in_flight_bytes:
            lane.left = now
        buffers = lane.outbox.take()
        if buffers:
            self._watch.said = now
        return buffers

    def may_transmit(self, stream: int = 0) -> bool:
        """Whether `poll_transmit` may have anything there: who sends need not be woken for nothing."""
        lane = self._lanes.get(stream)
        return lane is not None and bool(lane.outbox)

    def transmitted(self, count: int, now: float, stream: int = 0) -> None:
        """So many bytes of what `poll_transmit` gave have left this process.

        Raises:
            LocalProtocolError: it gave fewer.
        """
        lane = self._lanes.get(stream)
        if lane is None:
            return
        lane.outbox.left(count)
        lane.left = now
        if not stream:
            self._heartbeat.left(lane.outbox.sent_bytes)

    # ---- in ----

    def is_held(self, stream: int = 0) -> bool:
        """Whether what comes next there has to wait: nothing is to be read from that connection for now."""
        lane = self._lanes.get(stream)
        return lane is not None and (lane.held is not None or not self._reads_on)

    def get_buffer(self, stream: int = 0) -> memoryview:
        """Where the next received bytes belong: a read buffer, or the guest's memory itself."""
        lane = self._lanes.get(stream)
        if self._is_deaf or lane is None:
            return memoryview(bytearray(_SCRATCH_BYTES))
        return lane.reader.get_buffer()

    def get_buffers(self, stream: int = 0) -> list[memoryview]:
        """As `get_buffer`, for who fills several in one call: those of pages that do not lie together."""
        lane = self._lanes.get(stream)
        if self._is_deaf or lane is None:
            return [self.get_buffer(stream)]
        return lane.reader.get_buffers()

    def owed_bytes(self, stream: int = 0) -> int:
        """How much surely comes there before anything else: what is left of pages that were announced."""
        lane = self._lanes.get(stream)
        return 0 if lane is None else lane.reader.owed_bytes

    def buffer_updated(self, count: int, now: float, stream: int = 0) -> bool:
        """So many bytes were read into what `get_buffer` or `get_buffers` gave last for that connection.

        Returns:
            Whether there may be anything new to be asked of this machine: seldom while pages come.
        """
        lane = self._heard(count, now, stream)
        if lane is None:
            return True
        lane.reader.buffer_updated(count)
        if lane.reader.is_filling:
            if (coming := lane.reader.coming) is not None:
                self._pages_coming(*coming)
            return False
        self._news = False
        self._read(lane, now)
        return self._news or self._has_words

    def receive_data(self, data: bytes | memoryview, now: float, stream: int = 0) -> None:
        """The other door: bytes that were received elsewhere."""
        lane = self._heard(len(data), now, stream)
        if lane is not None:
            lane.reader.receive_data(data)
            self._read(lane, now)

    def _heard(self, count: int, now: float, stream: int) -> Lane | None:
        """Bytes have come; the lane that they are for, if they matter."""
        self._account.bytes_received += count
        self._watch.heard = now
        lane = self._lanes.get(stream)
        if lane is not None:
            lane.received_bytes += count
        return None if self._is_deaf else lane

    # ---- for the roles ----

    @abstractmethod
    def _frame(self, header: Header, record: Record, now: float) -> None:
        """A frame of the control connection for this role, its direction checked."""

    @abstractmethod
    def _fail(
        self,
        error: SternaError,
        now: float,
        *,
        words: Record | None = None,
        tell: bool = True,
        cut: bool = False,
    ) -> None:
        """The session is lost."""

    @abstractmethod
    def _on_ping(self, number: int) -> None:
        """The peer wants an answer."""

    @abstractmethod
    def _on_progress(self, record: Progress, now: float) -> None:
        """The peer tells how far it is."""

    @property
    @abstractmethod
    def _has_words(self) -> bool:
        """Whether an event, a request or a frame waits to be polled."""

    @property
    @abstractmethod
    def _is_deaf(self) -> bool:
        """Whether nothing matters any more of what is received."""

    # What only one of the roles does. The other has nothing more to say, and is sent no pages [CON-4].

    def _more(self, lane: Lane, now: float) -> None:  # noqa: B027
        """Queue more to send on this connection, if there is."""

    def _pages_announced(self, event: PagesAnnounced, lane: Lane) -> Sequence[memoryview] | None:  # noqa: B027
        """Where the bulk part goes; None for nowhere."""

    def _pages_coming(self, table: Pages, size_bytes: int) -> None:  # noqa: B027
        """So many bytes of a bulk part are where they belong."""

    def _pages_received(self, event: PagesReceived, lane: Lane, now: float) -> None:  # noqa: B027
        """The bulk part is where it belongs."""

    @property
    def _reads_on(self) -> bool:
        """Whether what follows is for this machine."""
        return True

    def _must_wait(self, event: WireEvent, lane: Lane) -> bool:
        """Whether something has to come on another connection before this one's time has come."""
        del event, lane
        return False

    def _data_frame(self, record: Record, lane: Lane, now: float) -> None:
        """A frame of a data connection that is none of PAGES and ABORT."""
        del lane, now
        raise wrong(ErrorCode.UNEXPECTED_FRAME, "on a data connection", "STR-3", record)

    @property
    def _can_speak(self) -> bool:
        return self._outbox.takes and not self._over

    # ---- inside ----

    def _attached(self, lane: Lane) -> None:
        """Pages may travel there."""
        lane.attached = True
        self._account.streams = max(self._account.streams, len(self._lanes.data))

    def _equip(self, lane: Lane) -> None:
        """What was agreed on the control connection holds on a data connection, too."""
        assert self._selection is not None
        lane.equip(self._config.limits, self._selection)
        lane.describe(self._regions_told)

    def _read(self, lane: Lane, now: float) -> None:
        """Act on what has come, and then on what had to wait for it."""
        self._read_on(lane, now)
        self._go_on_reading(now)

    def _go_on_reading(self, now: float) -> None:
        """Act on what was held, as far as its time has come."""
        while not self._is_deaf:
            for lane in self._lanes:
                if lane.held is not None and not self._must_wait(lane.held, lane):
                    break
            else:
                return
            self._read_on(lane, now)

    def _read_on(self, lane: Lane, now: float) -> None:
        self._reading = lane
        try:
            while (
                self._reads_on
                and not self._is_deaf
                and (event := lane.held or lane.reader.next_event()) is not None
            ):
                lane.held = event if self._must_wait(event, lane) else None
                if lane.held is not None:
                    return
                self._act_on(event, lane, now)
        except SternaError as error:
            self._news = True
            self._fail(error, now)

    def _act_on(self, event: WireEvent, lane: Lane, now: float) -> None:
        match event:
            case FrameReceived(header, record):
                self._news = True
                self._dispatch(header, record, lane, now)
            case PagesAnnounced():
                check_sender(FrameType.PAGES, self._role)
                targets = self._pages_announced(event, lane)
                if targets is not None:
                    lane.reader.supply_bulk(targets)
                elif event.header.bulk_bytes:
                    lane.reader.discard_bulk()
            case PagesReceived():
                lane.sequence = event.header.sequence
                self._pages_received(event, lane, now)
            case UnknownFrame():
                lane.sequence = event.header.sequence
            case _:
                pass  # prefaces change nothing

    def _dispatch(self, header: Header, record: Record, lane: Lane, now: float) -> None:
        check_sender(FrameType(header.type), self._role)
        match record:
            case Abort(code=code, text=text):
                # One on a data connection has ended that one alone; the session's end is told here.
                self._fail(PeerAborted(code, text), now, tell=bool(lane.stream))
            case _ if lane.stream:
                self._data_frame(record, lane, now)
            case Ping(id=number):
                self._on_ping(number)
            case Pong(id=number):
                self._heartbeat.answered(number, now)
            case Progress():
                self._on_progress(record, now)
            case _:
                self._frame(header, record, now)


def why_lost(lane: Lane) -> SternaError:
    """What the proper end of a connection means that was not to end."""
    if lane.held is None:
        try:
            lane.reader.receive_eof()
        except RemoteProtocolError as truncated:
            return truncated
    return TransportError(ErrorCode.CONNECTION_LOST, "the peer closed the connection")
