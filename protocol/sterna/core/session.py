"""What both machines are made of: frames in and out, the three clocks, and one way to fail.

How to drive a machine, from one task at a time (quinn's contract). After any call that goes in,

1. take `poll_request()` and `poll_event()` until they give None,
2. take `poll_transmit(now)` whenever the connection can send, until it gives nothing,
3. sleep until `poll_timeout()` and then call `handle_timeout(now)`.

Bytes come in by `receive_data(data, now)`, or without a copy by reading into `get_buffer()` and calling
`buffer_updated(n, now)`; the end of the connection by `connection_lost(error, now)`. Bytes go out as lists of
buffers, among them the guest's own memory; `transmitted(n, now)` tells what the connection has taken.
`now` is any clock in seconds that never runs backwards. Nothing here raises for what a peer does: its
mistakes become an ABORT, a roll-back and a `Finished` event. What is raised is this side's misuse.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from sterna.core.deadlines import WAITS, Deadlines
from sterna.core.events import Event, Finished, Outcome, PeerProgress, PhaseEntered, Request, Result
from sterna.core.negotiate import Selection
from sterna.core.policy import RoundStats
from sterna.core.tables import DEAF, PHASES, TERMINAL, Input, State, Table
from sterna.errors import (
    LocalProtocolError,
    PeerAborted,
    PeerMisbehaved,
    ProtocolError,
    RemoteProtocolError,
    SternaError,
    TransportError,
    remote_error,
)
from sterna.limits import Limits
from sterna.registry import ERRORS, FRAMES, Encoding, ErrorCode, Feature, FrameType, Phase, Sender
from sterna.wire import (
    Buffer,
    FrameReader,
    FrameReceived,
    FrameWriter,
    Header,
    PagesAnnounced,
    PagesReceived,
)
from sterna.wire.records import Abort, Bye, Ping, Pong, Progress, Record, Region

_Timer: TypeAlias = Callable[[float], None]

# Answers owed to PINGs. A peer that pings and does not read would make us store them without end.
PONGS_OWED_MAX: Final = 16

_SCRATCH_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Grease:
    """A frame of a reserved type, to be sent after so many others [FRM-9]. The driver throws the dice."""

    after_frames: int
    type: int
    payload: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What both roles need to know."""

    agent: str = "sterna"
    limits: Limits = field(default_factory=Limits)
    deadlines: Deadlines = field(default_factory=Deadlines)
    grease: tuple[Grease, ...] = ()


class Session(ABC):
    """A machine without its role. See the module's text for the way to drive it."""

    def __init__(
        self, config: Config, now: float, *, role: Sender, table: Table, idle: State, lost: Input
    ) -> None:
        self._config = config
        self._role = role
        self._table = table
        self._state = idle
        self._lost = lost
        self._reader = FrameReader()
        self._writer = FrameWriter()
        self._selection: Selection | None = None
        self._requests: deque[Request] = deque()
        self._outstanding: list[Request] = []
        self._events: deque[Event] = deque()
        self._out: deque[list[Buffer]] = deque([[self._writer.preface()]])
        self._grease = deque(sorted(config.grease, key=lambda grease: grease.after_frames))
        self._connected = True  # bytes can still leave
        self._over = False  # the session is lost; what the peer still sends does not matter
        self._greeted = False  # WELCOME has gone over; before that only the handshake's deadline runs [CON-2]
        self._attempt = 1
        self._pongs_owed = 0
        self._pings: dict[int, float] = {}
        self._ping_id = 0
        self._rtt_s: float | None = None
        self._started = self._entered = self._heard = self._said = now
        self._suspect: float | None = None
        self._in_flight_bytes = 0
        self._left = now
        self._bytes_sent = 0
        self._bytes_received = 0
        self._rounds: list[RoundStats] = []
        self._failure: SternaError | None = None
        self._failed_in = Phase.ANY
        self._blackout_from: float | None = None
        self._blackout_s: float | None = None
        self._result: Result | None = None

    # ---- what can be looked at ----

    @property
    def state(self) -> State:
        """Where the machine stands."""
        return self._state

    @property
    def phase(self) -> Phase:
        """The phase of the state; ANY when all is over."""
        return PHASES.get(self._state, Phase.ANY)

    @property
    def result(self) -> Result | None:
        """How it ended, None until then."""
        return self._result

    @property
    def rtt_s(self) -> float | None:
        """The shortest round trip seen so far."""
        return self._rtt_s

    @property
    def has_unsent(self) -> bool:
        """Whether something queued, or taken by the driver, has not left yet."""
        return self._connected and bool(self._out or self._in_flight_bytes)

    # ---- out ----

    def poll_request(self) -> Request | None:
        """The next request that the driver has to carry out."""
        if not self._requests:
            return None
        request = self._requests.popleft()
        self._outstanding.append(request)
        return request

    def poll_event(self) -> Event | None:
        """The next event."""
        return self._events.popleft() if self._events else None

    def poll_transmit(self, now: float) -> list[Buffer]:
        """Buffers to be sent in this order, as one unit; empty when there is nothing to say.

        Buffers of guest memory are live: they must be sent, or dropped with the connection, not kept.
        """
        if not self._connected:
            return []
        if not self._out:
            self._more(now)
        if not self._out:
            return []
        buffers = self._out.popleft()
        size = sum(len(buffer) for buffer in buffers)
        if not self._in_flight_bytes:
            self._left = now
        self._in_flight_bytes += size
        self._said = now
        return buffers

    def transmitted(self, count: int, now: float) -> None:
        """So many bytes of what `poll_transmit` gave have left this process."""
        self._in_flight_bytes -= count
        self._bytes_sent += count
        self._left = now
        self._pongs_owed = 0 if not self._in_flight_bytes and not self._out else self._pongs_owed

    def poll_timeout(self) -> float | None:
        """When `handle_timeout` has to be called next, None when all is over."""
        return min((at for at, _ in self._timers()), default=None)

    # ---- in ----

    def get_buffer(self) -> memoryview:
        """Where the next received bytes belong: a read buffer, or the guest's memory itself."""
        return memoryview(bytearray(_SCRATCH_BYTES)) if self._is_deaf else self._reader.get_buffer()

    def buffer_updated(self, count: int, now: float) -> None:
        """So many bytes were read into the buffer that `get_buffer` gave last."""
        self._bytes_received += count
        self._heard, self._suspect = now, None
        if not self._is_deaf:
            self._reader.buffer_updated(count)
            self._read(now)

    def receive_data(self, data: bytes | memoryview, now: float) -> None:
        """The other door: bytes that were received elsewhere."""
        self._bytes_received += len(data)
        self._heard, self._suspect = now, None
        if not self._is_deaf:
            self._reader.receive_data(data)
            self._read(now)

    def connection_lost(self, error: TransportError | None, now: float) -> None:
        """The connection has ended: None says with its proper closing exchange. Never success [CON-69]."""
        if not self._connected:
            return
        self._connected = False
        self._out.clear()
        self._in_flight_bytes = 0
        if self._is_deaf:
            return
        problem: SternaError
        try:
            self._reader.receive_eof()
        except RemoteProtocolError as truncated:
            problem = error or truncated
        else:
            problem = error or TransportError(ErrorCode.CONNECTION_LOST, "the peer closed the connection")
        self._fail(problem, now, tell=False)

    def handle_timeout(self, now: float) -> None:
        """Act on every timer that has run out. Calling it early is harmless."""
        for at, act in list(self._timers()):
            if at <= now and self._state not in TERMINAL:
                act(now)

    def cancel(self, now: float, reason: str = "") -> None:
        """End the session. The guest stays with the source.

        Raises:
            LocalProtocolError: TOO_LATE, once permission to run may have been given.
        """
        if self._lost_changes_nothing:
            raise LocalProtocolError(ErrorCode.TOO_LATE, clause="CON-72")
        if not self._is_deaf:
            self._fail(LocalProtocolError(ErrorCode.CANCELLED, reason, clause="CON-71"), now)

    def complete(self, request: Request, answer: object, now: float) -> None:
        """A request was carried out; `answer` is what its class asks for.

        Raises:
            LocalProtocolError: the request is not outstanding, or the answer is of the wrong type.
        """
        self._settle(request)
        if isinstance(answer, BaseException):
            raise LocalProtocolError(ErrorCode.INTERNAL, "an exception is an answer for fail()")
        self._completed(request, answer, now)

    def fail(self, request: Request, error: SternaError, now: float) -> None:
        """A request could not be carried out."""
        self._settle(request)
        self._request_failed(request, error, now)

    # ---- for the roles ----

    @abstractmethod
    def _frame(self, header: Header, record: Record, now: float) -> None:
        """A frame for this role, its direction checked."""

    @abstractmethod
    def _completed(self, request: Request, answer: object, now: float) -> None:
        """A request of this role was carried out."""

    @abstractmethod
    def _request_failed(self, request: Request, error: SternaError, now: float) -> None:
        """A request of this role failed."""

    @abstractmethod
    def _after_loss(self, now: float) -> None:
        """The session is lost and the table has said what that means; see to it."""

    @property
    @abstractmethod
    def _lost_changes_nothing(self) -> bool:
        """Whether this side's word no longer decides where the guest runs."""

    def _more(self, now: float) -> None:  # noqa: B027  # most states have nothing more to say
        """Queue more to send, if there is; called when everything queued has been taken."""

    def _pages_announced(self, event: PagesAnnounced) -> Sequence[memoryview] | None:
        """Where the bulk part goes; None for nowhere."""
        raise self._unexpected(event.header.type)

    def _pages_received(self, event: PagesReceived, now: float) -> None:
        raise self._unexpected(event.header.type)

    def _progress(self) -> Progress | None:
        """What to say of this side's progress, None for a plain PING."""
        return None

    def _step(self, what: Input, now: float) -> None:
        """The only place where the state changes.

        Raises:
            RemoteProtocolError: a frame that the state does not allow, or a reserved transition.
            LocalProtocolError: a call that the state does not allow.
        """
        row = self._table.get((self._state, what))
        if row is None:
            if isinstance(what, FrameType):
                raise self._unexpected(what)
            detail = f"{what.value} while {self._state.value}"
            raise LocalProtocolError(ErrorCode.INTERNAL, detail)
        if row.reserved:
            detail = f"{what.name} while {self._state.value}"
            frame = what if isinstance(what, FrameType) else None
            raise remote_error(ErrorCode.UNSUPPORTED, detail, clause=row.clause, frame=frame)
        before = self.phase
        self._state = row.next
        self._entered = now
        if self.phase is not before and self.phase is not Phase.ANY:
            self._events.append(PhaseEntered(self.phase))

    def _send(self, record: Record, buffers: Sequence[memoryview] = ()) -> None:
        if self._over or not self._connected:
            return
        self._out.append(self._writer.frame(record, buffers))
        while self._greeted and self._grease and self._grease[0].after_frames <= self._writer.next_sequence:
            grease = self._grease.popleft()
            self._out.append([self._writer.grease(grease.type, grease.payload)])

    def _ask(self, request: Request) -> None:
        self._requests.append(request)

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    def _fail(self, error: SternaError, now: float, *, tell: bool = True) -> None:
        """The one way to lose a session: remember why, tell the peer, let the table say what follows."""
        if self._over or self._state in DEAF:
            return
        self._failure, self._failed_in = error, self.phase
        if tell:
            self._send(self._last_words(error))
        self._over = True
        self._step(self._lost, now)
        self._after_loss(now)

    def _finish(self, outcome: Outcome, now: float, *, epoch: int, digest: bytes = b"") -> None:
        error = self._failure if outcome is not Outcome.COMPLETED else None
        code = None if error is None else error.code
        self._result = Result(
            outcome,
            code,
            by_peer=isinstance(error, PeerAborted),
            error=self._failure,
            phase=self._failed_in,
            epoch=epoch,
            rounds=tuple(self._rounds),
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            seconds=now - self._started,
            blackout_s=self._blackout_s,
            digest=digest,
        )
        if isinstance(error, PeerAborted):
            items, retry = error.items, error.retry_after_ms
            self._result = replace(self._result, retry_after_ms=retry, items=items)
        self._emit(Finished(self._result))

    # ---- inside ----

    @property
    def _is_deaf(self) -> bool:
        return self._over or self._state in DEAF

    def _is_of_old_attempt(self, record: Record) -> bool:
        """Whether a frame belongs to an attempt that is over and must be ignored [CON-24] [CON-25].

        Raises:
            RemoteProtocolError: BAD_ATTEMPT for an attempt that never was.
        """
        attempt = getattr(record, "attempt", self._attempt)
        if attempt > self._attempt:
            detail = f"attempt {attempt}, the current one is {self._attempt}"
            raise remote_error(ErrorCode.BAD_ATTEMPT, detail, clause="CON-23", frame=record.type)
        return bool(attempt < self._attempt)

    def _welcomed(self, selection: Selection) -> None:
        """WELCOME has gone over: limits, heartbeats and GREASE are on."""
        self._selection = selection
        self._greeted = True
        encodings = frozenset(
            {Encoding.RAW, Encoding.ZERO} if selection.has(Feature.ENCODING_ZERO) else {Encoding.RAW}
        )
        self._reader.set_limits(self._config.limits)
        self._reader.set_encodings(encodings)
        self._writer.set_limits(selection.limits)
        self._writer.set_encodings(encodings)

    def _described(self, regions: Sequence[Region]) -> None:
        """GUEST has gone over: from now on page tables are held to its regions."""
        by_id = {region.id: region for region in regions}
        self._reader.set_regions(by_id)
        self._writer.set_regions(by_id)

    def _settle(self, request: Request) -> None:
        if request not in self._outstanding:
            raise LocalProtocolError(ErrorCode.INTERNAL, f"{type(request).__name__} is not outstanding")
        self._outstanding.remove(request)

    def _unexpected(self, frame: int) -> PeerMisbehaved:
        detail = f"{FrameType(frame).name} while {self._state.value}"
        return PeerMisbehaved(ErrorCode.UNEXPECTED_FRAME, detail, clause="CON-3", frame=frame)

    def _read(self, now: float) -> None:
        try:
            while not self._is_deaf and (event := self._reader.next_event()) is not None:
                match event:
                    case FrameReceived(header, record):
                        self._dispatch(header, record, now)
                    case PagesAnnounced():
                        self._check_sender(event.header.type)
                        targets = self._pages_announced(event)
                        if targets is not None:
                            self._reader.supply_bulk(targets)
                        elif event.header.bulk_bytes:
                            self._reader.discard_bulk()
                    case PagesReceived():
                        self._pages_received(event, now)
                    case _:
                        pass  # prefaces and skipped frames change nothing
        except SternaError as error:
            self._fail(error, now)

    def _check_sender(self, frame: int) -> None:
        sender = FRAMES[FrameType(frame)].sender
        if sender is self._role:
            detail = f"{FrameType(frame).name} is for this side to send"
            raise PeerMisbehaved(ErrorCode.WRONG_DIRECTION, detail, clause="CON-4", frame=frame)

    def _dispatch(self, header: Header, record: Record, now: float) -> None:
        self._check_sender(header.type)
        match record:
            case Ping(id=number):
                self._pongs_owed += 1
                if self._pongs_owed > PONGS_OWED_MAX:
                    detail = f"more than {PONGS_OWED_MAX} PINGs while it reads nothing"
                    raise remote_error(ErrorCode.LIMIT_RATE, detail, clause="CON-79", frame=header.type)
                self._send(Pong(number))
            case Pong(id=number):
                if number not in self._pings:
                    raise remote_error(
                        ErrorCode.UNSOLICITED, "PONG without PING", clause="PNG-2", frame=header.type
                    )
                rtt_s = now - self._pings.pop(number)
                self._rtt_s = rtt_s if self._rtt_s is None else min(self._rtt_s, rtt_s)
            case Progress():
                if self._selection is None or not self._selection.has(Feature.PROGRESS):
                    raise remote_error(ErrorCode.NOT_SELECTED, "PROGRESS", clause="PRG-1", frame=header.type)
                self._emit(PeerProgress(record))
            case Abort(code=code, text=text):
                self._fail(PeerAborted(code, text), now, tell=False)
            case _:
                self._frame(header, record, now)

    def _last_words(self, error: SternaError) -> Record:
        """What the peer is told of a failure: code, place and the registry's sentence, nothing else."""
        frame = sequence = offset = 0
        if isinstance(error, ProtocolError):
            frame, offset = error.frame or 0, error.offset or 0
            sequence = self._reader.next_sequence - 1 if error.frame is not None else 0
        return Abort(error.code, self.phase, frame, sequence, offset, ERRORS[error.code].text)

    def _bye(self) -> None:
        self._send(Bye())

    def ping(self, now: float) -> None:
        """Measure the round trip."""
        self._ping_id += 1
        # Unanswered pings are few: silence ends the session long before this grows.
        self._pings[self._ping_id] = now
        self._send(Ping(self._ping_id))

    # ---- the clocks ----

    def _timers(self) -> list[tuple[float, _Timer]]:
        if self._state in TERMINAL or not self._connected:
            return []
        deadlines = self._config.deadlines
        timers: list[tuple[float, _Timer]] = []
        if self._greeted and not self._is_deaf:
            heard = self._heard if self._suspect is None else self._suspect
            grace = deadlines.silence_s if self._suspect is None else deadlines.heartbeat_s
            timers.append((heard + grace, self._on_silence))
            timers.append((self._said + deadlines.heartbeat_s, self._on_heartbeat))
        wait = WAITS.get(self._state)
        if wait is not None and not self._is_deaf:
            timers.append((self._entered + getattr(deadlines, wait), self._on_deadline))
        if self._in_flight_bytes:
            timers.append((self._left + deadlines.stall_s, self._on_stall))
        return timers

    def _on_heartbeat(self, now: float) -> None:
        self._said = now
        if self._in_flight_bytes or self._out:
            return  # something is on its way already
        progress = self._progress() if self._selection and self._selection.has(Feature.PROGRESS) else None
        if progress is None:
            self.ping(now)
        else:
            self._send(progress)

    def _on_silence(self, now: float) -> None:
        if self._suspect is None:
            # This process may have slept, with the peer's bytes waiting in the socket: look once more.
            self._suspect = now
            return
        detail = f"nothing heard for {now - self._heard:.1f} s"
        self._fail(TransportError(ErrorCode.PEER_SILENT, detail), now)

    def _on_deadline(self, now: float) -> None:
        detail = f"{self._state.value} for {now - self._entered:.1f} s"
        self._fail(TransportError(ErrorCode.PHASE_DEADLINE, detail), now)

    def _on_stall(self, now: float) -> None:
        detail = f"no byte left for {now - self._left:.1f} s"
        self.connection_lost(TransportError(ErrorCode.PEER_STALLED, detail), now)
