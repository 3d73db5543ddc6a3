"""Drives a machine over a transport: the only place where the core meets trio.

Five small tasks share one machine, which is touched between checkpoints only and so needs no lock:

- the receiver reads into the buffer that the machine names, be it guest memory, and tells it how much came;
- the sender takes what the machine has to say, one unit at a time, so that the machine encodes pages only
  when the connection is ready for them;
- the performer carries out requests, one after another (sterna.core.events says why in order);
- the timekeeper sleeps until the machine's next timer;
- the caller's task waits for the end, flushes what is left (an ABORT that nobody hears helps nobody) and
  closes.

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
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from sterna.core.events import Discard, Event, Request, Result, RollBack, RunOn
from sterna.core.session import Session
from sterna.core.tables import DEAF, TERMINAL, SourceState
from sterna.errors import GuestError, LocalProtocolError, SternaError, TransportError
from sterna.net.rate import RateLimiter
from sterna.net.transport import Transport
from sterna.registry import ErrorCode

Perform: TypeAlias = Callable[[Request], Awaitable[object]]
OnEvent: TypeAlias = Callable[[Event], None]
Clock: TypeAlias = Callable[[], float]

# How long the last frames may take to leave once all is decided, and how long nothing of them may leave.
FLUSH_S: Final = 10.0
FLUSH_STALL_S: Final = 2.0
# How long after a failed send the receiver may look for what the peer said last.
LAST_WORDS_S: Final = 1.0
# How long a request may go on that an undo waits for.
OVERTAKEN_S: Final = 5.0
# How long setting the guest running again, or freeing it, may take. Holders answer in milliseconds; who gives
# up here leaves a paused guest to an operator.
UNDO_S: Final = 30.0

_UNDOING: Final = DEAF - TERMINAL
_NO_BUG: Final = (TransportError, trio.ClosedResourceError, trio.Cancelled)  # what a transport may raise

_log = logging.getLogger(__name__)


def boottime() -> float:
    """Seconds of CLOCK_BOOTTIME: it goes on while a host sleeps, as the peer's patience does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Signal:
    """Wakes one waiting task; set before the wait, the wait returns at once."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


class Pump:
    """One machine on one transport. `perform` carries out requests, `on_event` sees every event.

    An `on_event` that raises is logged and not called again: what shows a migration must not end it.
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
        beside: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`beside`: one task more, which is cancelled when the session is over."""
        self._machine = machine
        self._transport = transport
        self._perform = perform
        self._on_event = on_event
        self._limiter = limiter
        self._clock = clock
        self._beside = () if beside is None else (beside,)
        self._to_send = _Signal()
        self._to_perform = _Signal()
        self._to_time = _Signal()
        self._left = _Signal()  # bytes have left, or never will
        self._ended = trio.Event()
        self._heard_all = trio.Event()  # the receiver has ended
        self._receiving = trio.CancelScope()
        self._memory_free = trio.Event()  # the receiver reads into guest memory no more
        self._carrying: trio.CancelScope | None = None
        self._given_up = False
        self._worn = False

    async def drive(self) -> Result:
        """Run until the machine has a result, and close the transport."""
        try:
            async with trio.open_nursery() as nursery:
                for task in (self._receive, self._send, self._carry_out, self._keep_time, *self._beside):
                    nursery.start_soon(self._run, task)
                try:
                    self.kick()
                    await self._ended.wait()
                    await self._flush()
                finally:
                    self._give_up()
                    nursery.cancel_scope.cancel()
            await self._transport.close()
        finally:
            self._transport.abort()
            await self._carry_out_rest()
        result = self._machine.result
        assert result is not None
        return result

    def cancel(self, reason: str = "") -> None:
        """Ask the machine for the end.

        Raises:
            LocalProtocolError: TOO_LATE.
        """
        self._machine.cancel(self._clock(), reason)
        self.kick()

    def lose(self, error: TransportError) -> None:
        """Give the connection up, as if it had been lost."""
        self._lose(error)

    def kick(self) -> None:
        """Look at the machine again: call this after a command was given to it from outside."""
        while (event := self._machine.poll_event()) is not None:
            self._tell(event)
        if self._machine.result is not None:
            self._ended.set()
        if self._machine.state in DEAF and not self._memory_free.is_set():
            self._receiving.cancel()
        self._hurry()
        for signal in (self._to_send, self._to_perform, self._to_time):
            signal.set()

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001  # an embedder's
            _log.exception("on_event failed; it is not called any more")
            self._on_event = lambda _: None

    # ---- the tasks ----

    async def _run(self, task: Callable[[], Awaitable[None]]) -> None:
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

    def _lose(self, error: TransportError | trio.ClosedResourceError | None) -> None:
        """The connection has ended; None says with the peer's proper end."""
        if isinstance(error, trio.ClosedResourceError):
            error = TransportError(ErrorCode.CONNECTION_LOST, "this side has closed the connection")
        self._machine.connection_lost(error, self._clock())
        self._left.set()
        self.kick()

    async def _receive(self) -> None:
        try:
            await self._receive_all()
            self._lose(None)
        except _NO_BUG as error:
            _forget_frames(error)
            if isinstance(error, trio.Cancelled):
                raise
            self._lose(error)
        finally:
            self._memory_free.set()
            self._heard_all.set()

    async def _receive_all(self) -> None:
        """Receive until the peer's proper end."""
        machine, transport = self._machine, self._transport
        while True:
            with trio.CancelScope() as self._receiving:
                while count := await transport.receive_into(machine.get_buffer()):
                    machine.buffer_updated(count, self._clock())
                    self.kick()
                return
            self._memory_free.set()  # from here on what arrives goes nowhere

    async def _send(self) -> None:
        try:
            while True:
                await self._send_unit()
        except _NO_BUG as error:
            _forget_frames(error)
            if isinstance(error, trio.Cancelled):
                raise
            # The peer may have said why before it closed.
            with trio.move_on_after(LAST_WORDS_S):
                await self._heard_all.wait()
            self._lose(error)

    async def _send_unit(self) -> None:
        if not self._worn and (worn := self._transport.worn) is not None:
            self._worn = True
            self._machine.abandon(worn, self._clock())
            self.kick()
        buffers = self._machine.poll_transmit(self._clock())
        if not buffers:
            await self._to_send.wait()
            return
        self._to_time.set()
        if self._limiter is not None:
            await self._limiter.wait(sum(len(buffer) for buffer in buffers))
        await self._transport.send(buffers, self._sent)

    def _sent(self, count: int) -> None:
        self._machine.transmitted(count, self._clock())
        self._left.set()

    async def _keep_time(self) -> None:
        while True:
            at = self._machine.poll_timeout()
            if at is None:
                await self._to_time.wait()
                continue
            left = at - self._clock()
            if left <= 0:
                self._machine.handle_timeout(self._clock())
                self.kick()
                await trio.lowlevel.checkpoint()
                continue
            with trio.move_on_after(left):
                await self._to_time.wait()

    # ---- requests ----

    async def _carry_out(self) -> None:
        while True:
            request = self._machine.poll_request()
            if request is None:
                await self._to_perform.wait()
            else:
                await self._carry_out_one(request)

    async def _carry_out_one(self, request: Request) -> None:
        try:
            answer = await self._shielded(request)
        except SternaError as error:
            self._machine.fail(request, error, self._clock())
        except BaseException as error:
            # An embedder's guest may raise anything; the peer must not suffer, nor the guest.
            wrapped = GuestError(f"{type(request).__name__}: {error!r}", ErrorCode.GUEST_FAILED)
            wrapped.__cause__ = error
            self._machine.fail(request, wrapped, self._clock())
            if not isinstance(error, Exception):
                raise
        else:
            self._answer(request, answer)
        self.kick()

    def _answer(self, request: Request, answer: object) -> None:
        try:
            self._machine.complete(request, answer, self._clock())
        except LocalProtocolError as error:
            self._machine.fail(request, GuestError(error.detail), self._clock())
        except Exception as error:  # noqa: BLE001  # nonsense of the right type
            self._broken(error)

    async def _shielded(self, request: Request) -> object:
        name = type(request).__name__
        with trio.CancelScope(shield=True) as self._carrying:
            if isinstance(request, RollBack | RunOn | Discard):
                self._limit(UNDO_S)
            self._hurry()
            if isinstance(request, Discard):
                await self._memory_free.wait()
            return await self._perform(request)
        raise GuestError(f"{name} was given up: it did not end in time")

    def _hurry(self) -> None:
        """Bound the request under way if something waits for it that matters more."""
        if self._machine.state in _UNDOING:
            self._limit(OVERTAKEN_S)
        elif self._given_up or (
            self._machine.state is SourceState.RELEASING and self._machine.poll_timeout() is None
        ):
            self._limit(UNDO_S)

    def _limit(self, seconds: float) -> None:
        if self._carrying is not None and self._carrying.deadline == math.inf:
            self._carrying.deadline = trio.current_time() + seconds

    # ---- the end ----

    async def _flush(self) -> None:
        """Let what is queued leave, as long as it moves and the peer may want it."""
        result = self._machine.result
        if result is not None and result.by_peer:
            return
        with trio.move_on_after(FLUSH_S):
            while self._machine.has_unsent:
                with trio.move_on_after(FLUSH_STALL_S) as stalled:
                    await self._left.wait()
                if stalled.cancelled_caught:
                    return

    def _give_up(self) -> None:
        """Cancelled from outside: the connection is lost."""
        if self._machine.result is None:
            self._given_up = True
            self._lose(TransportError(ErrorCode.CONNECTION_LOST, "the endpoint was cancelled"))

    async def _carry_out_rest(self) -> None:
        """What the performer has left undone when it was cancelled: a roll-back, or a record of the end."""
        while (request := self._machine.poll_request()) is not None:
            await self._carry_out_one(request)


def _forget_frames(error: BaseException) -> None:
    """Drop what an error of the network, or a cancellation, remembers of the functions that it came through.

    Their variables are views of guest memory, which could not be freed as long as the error lives.
    """
    for each in (error, error.__cause__, error.__context__):
        if isinstance(each, (*_NO_BUG, OSError)):
            each.__traceback__ = None
