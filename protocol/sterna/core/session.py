"""What both machines are made of: frames in and out, the three clocks, and one way to fail.

How to drive a machine, from one task at a time (quinn's contract). After any call that goes in,

1. take `poll_request()` and `poll_event()` until they give None,
2. take `poll_transmit(now)` whenever the connection can send, until it gives nothing,
3. sleep until `poll_timeout()` and then call `handle_timeout(now)`.

Bytes come in by `receive_data(data, now)`, or without a copy by reading into `get_buffer()` and calling
`buffer_updated(n, now)`; the end of the connection by `connection_lost(error, now)`. Bytes go out as lists of
buffers, among them the guest's own memory; `transmitted(n, now)` tells what the connection has taken.
All of these take the number of the connection, 0 (the control connection) unless it is given, see
sterna.core.lanes; and a connection for which `is_held` is true is not read from until it is not any more.
`now` is any clock in seconds that never runs backwards. Nothing here raises for what a peer does: its
mistakes become an ABORT, a roll-back and a `Finished` event. What is raised is this side's misuse.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence

from sterna.core.conduct import check_selected, is_of_old_attempt, row_of
from sterna.core.connected import Config, Connected, why_lost
from sterna.core.events import (
    Event,
    Finished,
    Outcome,
    PeerProgress,
    PhaseEntered,
    Request,
    Result,
    Suspended,
    check_answer,
)
from sterna.core.heartbeat import PONGS_OWED_MAX
from sterna.core.negotiate import Selection
from sterna.core.outbox import Grease
from sterna.core.requests import RequestQueue
from sterna.core.tables import COMMITTED, DEAF, PHASES, STANDING, TERMINAL, Input, Row, State, Table
from sterna.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    SternaError,
    TransportError,
)
from sterna.registry import ERRORS, ErrorCode, Feature, FrameType, Phase, Sender
from sterna.wire.records import Abort, Bye, Pong, Progress, Record, Region

__all__ = ["PONGS_OWED_MAX", "Config", "Grease", "Session"]


class Session(Connected):
    """A machine without its role. See the module's text for the way to drive it."""

    def __init__(
        self, config: Config, now: float, *, role: Sender, table: Table, idle: State, lost: Input, cut: Input
    ) -> None:
        super().__init__(config, now, role=role)
        self._table = table
        self._state = idle
        self._lost = lost
        self._cut = cut
        self._requests = RequestQueue()
        self._events: deque[Event] = deque()
        self._greeted = False  # WELCOME has gone over; before that only the handshake's deadline runs [CON-2]
        self._attempt = 1
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
    def guest_stands(self) -> bool:
        """Whether the guest stands still for a switchover, as far as this side knows."""
        return self.phase in STANDING

    @property
    def rtt_s(self) -> float | None:
        """The shortest round trip seen so far."""
        return self._heartbeat.rtt_s

    # ---- out ----

    def poll_request(self) -> Request | None:
        """The next request that the driver has to carry out."""
        return self._requests.take()

    @property
    @abstractmethod
    def guest_waits(self) -> bool:
        """Whether the guest waits for pages that were asked for, and that are this side's to see to."""

    @property
    def prompt_request(self) -> Request | None:
        """What `poll_request` gives next, if nothing that it gave is unanswered."""
        return self._requests.prompt

    def poll_event(self) -> Event | None:
        """The next event."""
        return self._events.popleft() if self._events else None

    def poll_timeout(self) -> float | None:
        """When `handle_timeout` has to be called next, None when nothing waits for its time."""
        watch = self._watch
        first = watch.said + watch.deadlines.heartbeat_s if self._beats else math.inf
        for code, at in self._alarms():
            if at < first:
                first = min(first, watch.next_look(code, at))  # that is never before `at`
        return None if first == math.inf else first

    # ---- in ----

    def connection_lost(self, error: TransportError | None, now: float, stream: int = 0) -> None:
        """A connection has ended: None says with its proper closing exchange. Never success [CON-69]."""
        lane = self._lanes.get(stream)
        if lane is None:
            return
        if not stream:
            for each in self._lanes:
                each.outbox.disconnect()
        lane.outbox.disconnect()
        if self._is_deaf:
            return
        problem = error or why_lost(lane)
        cut = problem.code is not ErrorCode.INTERNAL
        if stream and not self._needs_data_lanes:
            self._lanes.remove(stream)  # nothing more can come there [STR-14]
            return
        # The end of one is the end of all: who cannot go on says so where that is still heard.
        tell = bool(stream) and not (cut and self._can_resume)
        self._fail(problem, now, tell=tell, cut=cut)

    def handle_timeout(self, now: float) -> None:
        """Act on every timer that has run out. Calling it early is harmless."""
        for code, at in self._alarms():
            if self._watch.confirms(code, at, now):
                error = self._watch.error(code, self._state, now)
                # Who does not take a session up in time may do so on another connection.
                passes = code is ErrorCode.PEER_SILENT or self.phase is Phase.RESUME
                if code is ErrorCode.PEER_STALLED or (passes and self._can_resume):
                    self.connection_lost(error, now)
                else:
                    self._fail(error, now)
                return
        if self._beats and self._watch.said + self._watch.deadlines.heartbeat_s <= now:
            self._on_heartbeat(now)

    def cancel(self, now: float, reason: str = "") -> None:
        """End the session. The guest stays with the source.

        Raises:
            LocalProtocolError: TOO_LATE, once permission to run may have been given.
        """
        if self._state in COMMITTED:
            raise LocalProtocolError(ErrorCode.TOO_LATE, clause="CON-72")
        self._fail(LocalProtocolError(ErrorCode.CANCELLED, reason, clause="CON-71"), now)

    def abandon(self, error: SternaError, now: float) -> None:
        """End the session for a reason of the driver's, and tell the peer.

        Nothing happens once permission to run may have been given: what is then left to say must be said.
        """
        if self._state not in COMMITTED:
            self._fail(error, now)

    def wears(self, stream: int = 0) -> None:
        """A connection will be used up before long: have it replaced where nothing hangs on it [STR-12]."""

    def wear_out(self, error: SternaError, now: float, stream: int = 0) -> None:
        """A connection is all but used up, and cannot be renewed: go on with new ones, or end [TLS-18].

        A session that can be resumed is taken up again, with new keys on all of its connections.
        """
        if self._can_resume:
            self.connection_lost(TransportError(error.code, str(error)), now)
        else:
            self.abandon(error, now)

    def complete(self, request: Request, answer: object, now: float) -> None:
        """A request was carried out; `answer` is what its class asks for.

        Raises:
            LocalProtocolError: the request is not the next one to be answered, or the answer is of the wrong
                type. Nothing has changed.
        """
        self._requests.check_turn(request)
        check_answer(request, answer)
        self._requests.answered(request)
        try:
            self._completed(request, answer, now)
        except SternaError as error:  # an answer that is well-formed and makes no sense: the guest's failure
            self._fail(error, now)
        self._go_on_reading(now)

    def fail(self, request: Request, error: SternaError, now: float) -> None:
        """A request could not be carried out.

        Raises:
            LocalProtocolError: the request is not the next one to be answered. Nothing has changed.
        """
        self._requests.answered(request)
        self._request_failed(request, error, now)

    # ---- for the roles ----

    @abstractmethod
    def _completed(self, request: Request, answer: object, now: float) -> None:
        """A request of this role was carried out."""

    @abstractmethod
    def _request_failed(self, request: Request, error: SternaError, now: float) -> None:
        """A request of this role failed."""

    @abstractmethod
    def _after_loss(self, now: float) -> None:
        """The session is lost and the table has said what that means; see to it."""

    @abstractmethod
    def _progress(self) -> Progress | None:
        """What to say of this side's progress, None for a plain PING."""

    @property
    @abstractmethod
    def _needs_data_lanes(self) -> bool:
        """Whether pages may still have to travel, so that the end of a data connection is a loss [STR-14]."""

    def _require(self, what: Input, frame: FrameType | None = None) -> Row:
        """The row of an input in the present state. Check with it before anything is changed.

        Raises what `row_of` and `check_selected` raise.
        """
        row = row_of(self._table, self._state, what, frame)
        if isinstance(what, FrameType) and self._selection is not None:
            check_selected(what, self._selection.features)
        return row

    def _step(self, what: Input, now: float) -> None:
        """The only place where the state changes. Raises what `_require` raises."""
        row = self._require(what)
        before = self.phase
        self._state = row.next
        self._watch.entered = now
        self._account.entered(row.next.name, now)
        if self.phase is not before and self.phase is not Phase.ANY:
            self._events.append(PhaseEntered(self.phase))

    def _send(self, record: Record, buffers: Sequence[memoryview] = ()) -> None:
        """Queue a frame, unless nothing can be said any more.

        Raises:
            LocalProtocolError: the record breaks a rule, or is more than the peer takes; nothing is queued.
        """
        if self._can_speak:
            self._outbox.send(record, buffers)

    def _ask(self, request: Request) -> None:
        self._requests.ask(request)

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    def _fail(
        self,
        error: SternaError,
        now: float,
        *,
        words: Record | None = None,
        tell: bool = True,
        cut: bool = False,
    ) -> None:
        """The one way to lose a session: remember why, tell the peer, let the table say what follows.

        Args:
            error: why.
            now: the time.
            words: what the peer is told, if not an ABORT.
            tell: whether it is told anything.
            cut: whether it is the link alone that is lost, which ends no session that can be resumed.
        """
        if self._is_deaf:
            return
        self._account.failed(error, self.phase)
        if tell:
            self._send(words or self._last_words(error))
        self._over = True
        for lane in self._lanes:  # they may hold places in guest memory that is freed next
            lane.forget()
        self._step(self._cut if cut and self._can_resume else self._lost, now)
        self._after_loss(now)

    @property
    def _can_resume(self) -> bool:
        """Whether the session outlives this connection, if it is lost now."""
        selected = self._selection is not None and self._selection.has(Feature.RESUME)
        return selected and (self._state, self._cut) in self._table

    def _suspend(self) -> None:
        """This machine is done; its carry seeds another."""
        error = self._account.error
        assert error is not None
        self._account.suspended(self._lanes.sent_bytes)
        self._result = Result(Outcome.SUSPENDED, error.code, error=error)
        self._emit(Suspended(error, self._account.losses))

    def _finish(self, outcome: Outcome, now: float, *, epoch: int, digest: bytes = b"") -> None:
        sent = self._lanes.sent_bytes
        self._result = self._account.close(outcome, now, epoch=epoch, digest=digest, bytes_sent=sent)
        self._emit(Finished(self._result))

    # ---- inside ----

    @property
    def _has_words(self) -> bool:
        return bool(self._events or self._outbox or self._requests)

    @property
    def _is_deaf(self) -> bool:
        return self._over or self._state in DEAF

    def _is_of_old_attempt(self, record: Record) -> bool:
        return is_of_old_attempt(record, self._attempt)

    def _welcomed(self, selection: Selection, now: float) -> None:
        """WELCOME has gone over: limits, heartbeats and GREASE are on."""
        self._selection = selection
        self._account.resumable, self._account.verified = selection.has(Feature.RESUME), selection.hashed
        self._greeted = True
        # The peer owed nothing while it waited for WELCOME: its silence begins now.
        self._watch.heard = self._watch.said = now
        self._heartbeat.select(selection.features, now)
        self._lanes.control.equip(self._config.limits, selection)
        self._outbox.greases = True

    def _described(self, regions: Sequence[Region]) -> None:
        """GUEST has gone over: from now on page tables are held to its regions."""
        self._regions_told = regions
        self._lanes.control.describe(regions)

    def _on_ping(self, number: int) -> None:
        if not self._greeted:
            return  # it came too early [CON-2], and so would the answer
        self._heartbeat.check_owed()
        self._send(Pong(number))
        self._heartbeat.owe(self._outbox.queued_bytes)

    def _on_progress(self, record: Progress, now: float) -> None:
        self._heartbeat.heard_progress(now)
        self._emit(PeerProgress(record))

    def _last_words(self, error: SternaError) -> Record:
        """What the peer is told of a failure: code, place and the registry's sentence, nothing else."""
        frame = sequence = offset = 0
        if isinstance(error, RemoteProtocolError):
            frame, offset, sequence = error.frame or 0, error.offset or 0, self._reading.reader.last_sequence
        return Abort(error.code, self.phase, frame, sequence, offset, ERRORS[error.code].text)

    def _bye(self) -> None:
        self._send(Bye())

    def ping(self, now: float) -> None:
        """Measure the round trip. Does nothing before WELCOME, and when nothing can be said any more."""
        if self._greeted and self._can_speak:
            self._send(self._heartbeat.ask(now))

    # ---- the clocks ----

    def _alarms(self) -> list[tuple[ErrorCode, float]]:
        if self._state in TERMINAL or not self._outbox.connected:
            return []
        stalled_since = self._lanes.stalled_since
        if stalled_since is not None:
            self._watch.left = stalled_since
        return self._watch.alarms(
            self._state,
            greeted=self._greeted,
            listening=not self._is_deaf,
            in_flight=stalled_since is not None,
        )

    @property
    def _beats(self) -> bool:
        """Whether this side has to show that it lives."""
        return self._greeted and self._can_speak and self._state not in DEAF

    def _on_heartbeat(self, now: float) -> None:
        self._watch.said = now
        if self._outbox.has_unsent:
            return  # something is on its way already; what a data connection does not take is no sign of life
        progress = self._progress() if self._heartbeat.may_tell(now) else None
        if progress is not None:
            self._heartbeat.tell(now)
            self._send(progress)
        elif self._heartbeat.unanswered >= PONGS_OWED_MAX:
            # One more would oblige a peer that answers late to end the session [CON-79].
            detail = f"{PONGS_OWED_MAX} PINGs without an answer"
            self._fail(TransportError(ErrorCode.PEER_SILENT, detail), now)
        else:
            self.ping(now)
