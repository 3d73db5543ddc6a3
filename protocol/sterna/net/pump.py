"""Drives a machine over a transport: the only place where the core meets trio.

A few small tasks share one machine, which is touched between checkpoints only and so needs no lock:

- each connection has a receiver and a sender (sterna.net.line);
- the performer carries out requests, one after another (sterna.core.events says why in order);
- the caller's task keeps the time: it sleeps until the machine's next timer. At the end it flushes what is
  left (an ABORT that nobody hears helps nobody) and closes.

No task is there for what a session may never need: 32 sessions at once are 32 times as many.

Outcomes are results, not exceptions: whatever peer, network, guest or host do, `drive` returns a `Result`. An
exception where none belongs (a bug, here or in an embedder's guest) counts as a lost connection of code
`INTERNAL` and goes to the log. Only cancellation from outside passes through; then the connection is aborted,
the machine's rights are those of a lost connection, and what follows from that is done first: before
HANDOVER the roll-back, after it what the destination owes to a permission [ONE-30].

Requests are shielded from all cancellation, because a guest that was left half-way between running and paused
helps nobody either. A request ends early only where something is waiting that matters more, and then gets
some time to end by itself: `OVERTAKEN_S` if a roll-back or discarding has to follow it. These in turn get
`UNDO_S`, and so does a request that a permission obliges to when the endpoint is cancelled. Everything else
takes the time that it takes: the peer's deadlines run meanwhile, and end the session.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol, TypeAlias

import trio

from sterna.core.events import (
    Discard,
    Event,
    OpenStreams,
    Outcome,
    PagesFollow,
    Request,
    Result,
    RollBack,
    RunOn,
    StreamAttached,
)
from sterna.core.session import Session
from sterna.core.tables import DEAF, TERMINAL, SourceState
from sterna.errors import GuestError, LocalProtocolError, SternaError, TransportError
from sterna.net.line import Line, Signal
from sterna.net.rate import RateLimiter
from sterna.net.transport import SOON_BYTES, Transport
from sterna.registry import ErrorCode

Perform: TypeAlias = Callable[[Request], Awaitable[object]]
OnEvent: TypeAlias = Callable[[Event], None]
Clock: TypeAlias = Callable[[], float]
Task: TypeAlias = Callable[[], Awaitable[None]]

# How long the last frames may take to leave once all is decided, and how long nothing of them may leave.
FLUSH_S: Final = 10.0
FLUSH_STALL_S: Final = 2.0
# How long a request may go on that an undo waits for.
OVERTAKEN_S: Final = 5.0
# How long setting the guest running again, or freeing it, may take. Holders answer in milliseconds; who gives
# up here leaves a paused guest to an operator.
UNDO_S: Final = 30.0
# How long data connections stand back once a guest waits for a page, which travels on the control connection:
# on a near link it is there by then, and on a far one that is little beside the time that it takes.
MAKE_WAY_S: Final = 0.002

# The same at the source, once it has sent the page: until that is there, which needs the processors too. At
# most half of the time, so that a guest that waits again and again does not hold up the push.
ANSWERED_S: Final = 0.0005

# Seconds of CLOCK_BOOTTIME: it goes on while a host sleeps, as the peer's patience does.
boottime: Final[Clock] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)

_UNDOING: Final = DEAF - TERMINAL

_log = logging.getLogger(__name__)


class Attended(Protocol):
    """A guest that may wait for pages, as its pump has it."""

    def tell(self) -> bool:
        """Tell the machine what it waits for, in the midst of a batch too; whether that is anything new."""

    def see_to(self) -> None:
        """Let it go on with what has come: answer requests of the machine that nobody has taken."""


class Shown:
    """An `on_event` that is not called any more once it has raised, which is logged.

    What shows a migration must not end it.
    """

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event: OnEvent | None = on_event

    def __call__(self, event: Event) -> None:
        """Tell it."""
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001  # an embedder's
            _log.exception("on_event failed; it is not called any more")
            self._on_event = None


class Pump:
    """One machine on one transport. `perform` carries out requests, `on_event` sees every event, see `Shown`.

    Attributes:
        to_pack: wakes who encodes batches, for a connection may want one.
    """

    def __init__(
        self,
        machine: Session,
        transport: Transport,
        perform: Perform,
        *,
        on_event: OnEvent = lambda _: None,
        limiter: RateLimiter | None = None,
        clock: Clock = boottime,
        beside: Sequence[Task] = (),
    ) -> None:
        """`beside`: more tasks from the beginning, see `start`."""
        self.machine = machine
        self.clock = clock
        self.limiter = limiter
        self._perform = perform
        self._tell: Final = Shown(on_event)
        self._beside = beside
        self._lines = {0: Line(self, 0, transport)}
        self._replaced: list[Line] = []
        self._nursery: trio.Nursery | None = None
        self.to_pack: Final = Signal()
        self._to_perform = Signal()
        self._to_time = Signal()
        self._wakes_at = -math.inf  # when who keeps the time does by itself
        self._left = Signal()  # bytes have left, or never will
        self._ended = trio.Event()
        self._carrying: trio.CancelScope | None = None
        self._given_up = False
        self._guest_waited = False
        self._stands = self._ends_blackout = False
        self._untold: Final[deque[Event]] = deque()
        self._way_until = -math.inf
        self._rested_until = -math.inf
        self._guest: Attended | None = None

    async def drive(self) -> Result:
        """Run until the machine has a result, and close the connections, unless they are another's then."""
        try:
            async with trio.open_nursery() as self._nursery:
                for task in (*self._lines[0].tasks, self._carry_out, *self._beside):
                    self.start(task)
                try:
                    self.kick()
                    await self._run(self._keep_time)
                    await self._ended.wait()  # it has, unless something was broken
                    await self._flush()
                finally:
                    self._give_up()
                    self._nursery.cancel_scope.cancel()
            await self._close()
        finally:
            self._nursery = None
            if not self._is_handed_on:
                for line in self._lines.values():
                    line.transport.abort()
            self._close_replaced()
            # Not before: whoever brought a data connection closes it then. Its end could be there ahead of
            # what was said last on the control connection, and pass for a loss.
            for line in (*self._lines.values(), *self._replaced):
                line.ended.set()
            await self._carry_out_rest()
        result = self.machine.result
        assert result is not None
        return result

    async def _close(self) -> None:
        """The control connection first: then the peer knows what the ends of the others mean."""
        if self._is_handed_on:
            return
        control, *others = self._lines.values()
        await control.transport.close()
        if not others:
            return
        async with trio.open_nursery() as nursery:
            for line in others:
                nursery.start_soon(line.transport.close)

    @property
    def passed(self) -> tuple[int, int]:
        """Bytes that were sent and received, on all connections."""
        transports = [line.transport for line in (*self._lines.values(), *self._replaced)]
        return sum(each.bytes_sent for each in transports), sum(each.bytes_received for each in transports)

    @property
    def _is_handed_on(self) -> bool:
        result = self.machine.result
        return result is not None and result.outcome is Outcome.JOINED

    def attach(self, stream: int, transport: Transport) -> trio.Event:
        """A data connection has come; one that had the number before is closed [STR-6].

        Returns:
            Set when this pump has done with it.
        """
        if (older := self._lines.get(stream)) is not None:
            older.close()
        return self._put(stream, transport)

    def _put(self, stream: int, transport: Transport) -> trio.Event:
        if (older := self._lines.get(stream)) is not None:
            self._replaced.append(older)
        line = self._lines[stream] = Line(self, stream, transport)
        assert self._nursery is not None
        for task in line.tasks:
            self.start(task)
        return line.ended

    def start(self, task: Task) -> None:
        """One task more, which is cancelled when the session is over; none if it is over already."""
        if self._nursery is not None:
            self._nursery.start_soon(self._run, task)

    def cancel(self, reason: str = "") -> None:
        """Ask the machine for the end.

        Raises:
            LocalProtocolError: TOO_LATE.
        """
        self.machine.cancel(self.clock(), reason)
        self.kick()

    def lose(self, error: TransportError) -> None:
        """Give the connections up, as if they had been lost."""
        self._lose(error)

    def attend(self, guest: Attended) -> None:
        """From now on see to a guest that may wait for pages, whenever the machine is looked at."""
        self._guest = guest

    @property
    def is_urgent(self) -> bool:
        """See `Driver`. What ends a blackout is as urgent as what is said in it."""
        return self._ends_blackout or self.machine.guest_stands or self.machine.guest_waits

    def kick(self, stream: int = 0) -> None:
        """Look at the machine again: call this after a command was given to it from outside.

        `stream`: where something has come, if it was not a command. Pages that have come are answered, if at
        all, on the control connection.
        """
        if self._guest is not None:
            self._hear_guest()  # before it is let go on with what has come, which takes longer
            self._guest.see_to()
        self._look_at_guest()
        while (event := self.machine.poll_event()) is not None:
            self._untold.append(event)
            if isinstance(event, PagesFollow):
                self._lines[0].is_prompt = True
                for line in self._lines.values():
                    if line.stream or len(self._lines) == 1:  # where bulk travels
                        line.transport.yield_bytes = SOON_BYTES
                    if line.stream:
                        line.transport.between = self._glance
            if isinstance(event, StreamAttached):
                self._close_replaced()
        stood, self._stands = self._stands, self.machine.guest_stands
        if self._guest_waited or stood or self._stands:
            self._ends_blackout = stood
            self._lines[0].hurry()
            self._ends_blackout = False
        while self._untold:  # whoever is told may kick
            self._tell(self._untold.popleft())
        if self.machine.result is not None:
            self._ended.set()
            self._to_time.set()
        deaf = self.machine.state in DEAF
        for line in self._lines.values():
            if deaf:
                line.hush()
            line.to_receive.set()
            if not line.stream:
                line.look()
            elif (line.stream == stream or not stream) and self.machine.may_transmit(line.stream):
                line.to_send.set()
        self._hurry()
        if self.machine.prompt_request is not None:  # behind one that was taken it is taken anyway
            self._to_perform.set()
        self.to_pack.set()
        self._look_at_time()

    def ask(self) -> None:
        """The guest waits for more: ask for that, and then look at the machine again."""
        self._look_at_guest()
        self._lines[0].hurry()
        self.kick()

    def _glance(self) -> None:
        """In the midst of a batch: what the guest waits for, and what the peer says of that, does not."""
        if not self._lines[0].take_now():
            self._hear_guest()

    def _hear_guest(self) -> None:
        """Ask for what the guest waits for, if it waits for more."""
        if self._guest is not None and self._guest.tell():
            self._look_at_guest()
            self._lines[0].hurry()

    # ---- what the connections tell ----

    def took(self) -> None:
        """See `Driver`."""
        self.to_pack.set()
        if self._guest_waited and self._look_at_guest():
            for line in self._lines.values():
                line.to_send.set()
        if self.machine.prompt_request is not None:
            self._to_perform.set()  # a round under way wants to know what the guest has written since
        self._look_at_time()

    def left(self) -> None:
        """See `Driver`."""
        self._left.set()

    def idle(self, stream: int) -> None:
        """See `Driver`. What follows the last page is said on the control connection."""
        self.to_pack.set()  # what has left may have been in the way of a batch
        if stream:
            self._lines[0].to_send.set()

    def lost(self, line: Line, error: TransportError | trio.ClosedResourceError | None) -> None:
        """See `Driver`."""
        line.is_lost = error is not None
        if self._lines[line.stream] is line:
            self._lose(error, line.stream)

    async def make_way(self, until: Signal) -> None:
        """See `Driver`. The time is bounded: the push goes on, whatever becomes of the page."""
        while (left := self._way_until - trio.current_time()) > 0:
            with trio.move_on_after(left):
                await until.wait()

    def _look_at_guest(self) -> bool:
        """Whether it has begun to wait for pages, or does not wait any more."""
        waits = self.machine.guest_waits
        if waits == self._guest_waited:
            return False
        self._guest_waited = waits
        now, eager_s = trio.current_time(), MAKE_WAY_S if waits else -math.inf
        self._way_until = now + eager_s
        self._lines[0].transport.eager_until = time.monotonic() + eager_s
        if not waits and self.machine.state is SourceState.MOVED and now >= self._rested_until + ANSWERED_S:
            self._way_until = self._rested_until = now + ANSWERED_S
        return True

    def wears(self, line: Line) -> None:
        """See `Driver`."""
        self.machine.wears(line.stream)

    def worn(self, line: Line, error: TransportError) -> None:
        """See `Driver`."""
        self.machine.wear_out(error, self.clock(), line.stream)
        self.kick()

    # ---- the tasks ----

    async def _run(self, task: Task) -> None:
        try:
            await task()
        except Exception as error:  # noqa: BLE001  # whatever it is, the guest must not stay paused for it
            self._broken(error)

    def _broken(self, error: Exception) -> None:
        """Something raised that must not: for the machine the connection is lost."""
        _log.error("a bug, here or in an embedder's guest", exc_info=error)
        lost = TransportError(ErrorCode.INTERNAL, repr(error))
        lost.__cause__ = error
        self._lose(lost)

    def _lose(self, error: TransportError | trio.ClosedResourceError | None, stream: int = 0) -> None:
        """A connection has ended; None says with the peer's proper end."""
        if isinstance(error, trio.ClosedResourceError):
            error = TransportError(ErrorCode.CONNECTION_LOST, "this side has closed the connection")
        self.machine.connection_lost(error, self.clock(), stream)
        self._left.set()
        self.kick()

    def _look_at_time(self) -> None:
        """Wake who keeps the time if the sleep is too long. Who wakes too early sleeps on."""
        at = self.machine.poll_timeout()
        if at is not None and at < self._wakes_at:
            self._to_time.set()

    async def _keep_time(self) -> None:
        """Until the session is over."""
        while not self._ended.is_set():
            at = self.machine.poll_timeout()
            self._wakes_at = math.inf if at is None else at
            if at is None:
                await self._to_time.wait()
                continue
            left = at - self.clock()
            if left <= 0:
                self.machine.handle_timeout(self.clock())
                self.kick()
                await trio.lowlevel.checkpoint()
                continue
            with trio.move_on_after(left):
                await self._to_time.wait()

    # ---- requests ----

    async def _carry_out(self) -> None:
        while True:
            request = self.machine.poll_request()
            if request is None:
                await self._to_perform.wait()
            else:
                await self._carry_out_one(request)

    async def _carry_out_one(self, request: Request) -> None:
        try:
            answer = await self._shielded(request)
        except SternaError as error:
            self.machine.fail(request, error, self.clock())
        except BaseException as error:
            # An embedder's guest may raise anything; the peer must not suffer, nor the guest.
            wrapped = GuestError(f"{type(request).__name__}: {error!r}", ErrorCode.GUEST_FAILED)
            wrapped.__cause__ = error
            self.machine.fail(request, wrapped, self.clock())
            if not isinstance(error, Exception):
                raise
        else:
            self._answer(request, answer)
        self.kick()

    def _answer(self, request: Request, answer: object) -> None:
        try:
            self.machine.complete(request, answer, self.clock())
            if isinstance(request, OpenStreams):
                self._connect(request.streams, answer)
        except LocalProtocolError as error:
            self.machine.fail(request, GuestError(error.detail), self.clock())
        except Exception as error:  # noqa: BLE001  # nonsense of the right type
            self._broken(error)

    def _connect(self, streams: Sequence[int], answer: object) -> None:
        """The data connections are there. One that is to be replaced ends when that is done [STR-14]."""
        assert isinstance(answer, Sequence)
        for stream, transport in zip(streams, answer, strict=True):
            assert isinstance(transport, Transport)
            if (older := self._lines.get(stream)) is not None:
                older.retire()
            self._put(stream, transport)

    def _close_replaced(self) -> None:
        for line in self._replaced:
            line.transport.abort()

    async def _shielded(self, request: Request) -> object:
        try:
            with trio.CancelScope(shield=True) as self._carrying:
                if isinstance(request, RollBack | RunOn | Discard):
                    self._limit(UNDO_S)
                self._hurry()
                if isinstance(request, Discard):
                    for line in (*self._lines.values(), *self._replaced):
                        await line.memory_free.wait()
                return await self._perform(request)
        finally:
            self._carrying = None
        raise GuestError(f"{type(request).__name__} was given up: it did not end in time")

    def _hurry(self) -> None:
        """Bound the request under way if something waits for it that matters more."""
        if self._carrying is None:
            return
        state = self.machine.state
        if state in _UNDOING:
            self._limit(OVERTAKEN_S)
        elif self._given_up or (state is SourceState.RELEASING and self.machine.poll_timeout() is None):
            self._limit(UNDO_S)

    def _limit(self, seconds: float) -> None:
        assert self._carrying is not None
        if self._carrying.deadline == math.inf:
            self._carrying.deadline = trio.current_time() + seconds

    # ---- the end ----

    async def _flush(self) -> None:
        """Let what is queued leave, as long as it moves and the peer may want it."""
        result = self.machine.result
        if result is not None and result.by_peer:
            return
        with trio.move_on_after(FLUSH_S):
            while self.machine.has_unsent or self._owes:
                with trio.move_on_after(FLUSH_STALL_S) as stalled:
                    await self._left.wait()
                if stalled.cancelled_caught:
                    return

    @property
    def _owes(self) -> bool:
        return any(line.transport.owes and not line.is_lost for line in self._lines.values())

    def _give_up(self) -> None:
        """Cancelled from outside: the connection is lost."""
        if self.machine.result is None:
            self._given_up = True
            self._lose(TransportError(ErrorCode.CONNECTION_LOST, "the endpoint was cancelled"))

    async def _carry_out_rest(self) -> None:
        """What the performer has left undone when it was cancelled: a roll-back, or a record of the end."""
        while (request := self.machine.poll_request()) is not None:
            await self._carry_out_one(request)
