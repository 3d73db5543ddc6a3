"""Drives a machine over a transport: the only place where the core meets trio.

Five small tasks share one machine, which is touched between checkpoints only and so needs no lock:

- the receiver reads into the buffer that the machine names, be it guest memory, and tells it how much came;
- the sender takes what the machine has to say, one unit at a time, so that the machine encodes pages only
  when the connection is ready for them;
- the performer carries out requests, one after another (sterna.core.events says why in order);
- the timekeeper sleeps until the machine's next timer;
- the caller's task waits for the end, flushes what is left (an ABORT that nobody hears helps nobody) and
  closes.

Outcomes are results, not exceptions: whatever peer, network or guest do, `drive` returns a `Result`. Only
cancellation from outside passes through; then the connection is aborted and the machine's rights are those
of a lost connection: before HANDOVER the roll-back is still carried out, shielded and bounded.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from sterna.core.events import Event, Request, Result
from sterna.core.session import Session
from sterna.errors import GuestError, SternaError, TransportError
from sterna.net.rate import RateLimiter
from sterna.net.transport import Transport
from sterna.registry import ErrorCode

Perform: TypeAlias = Callable[[Request], Awaitable[object]]
OnEvent: TypeAlias = Callable[[Event], None]
Clock: TypeAlias = Callable[[], float]

# How long the last frames may take to leave once all is decided.
FLUSH_DEADLINE_S: Final = 2.0
# How long an outside cancellation may be held up by setting the guest running again.
ROLLBACK_DEADLINE_S: Final = 10.0


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
    """One machine on one transport. `perform` carries out requests, `on_event` sees every event."""

    def __init__(
        self,
        machine: Session,
        transport: Transport,
        perform: Perform,
        *,
        on_event: OnEvent = lambda _: None,
        limiter: RateLimiter | None = None,
        clock: Clock = boottime,
    ) -> None:
        self._machine = machine
        self._transport = transport
        self._perform = perform
        self._on_event = on_event
        self._limiter = limiter
        self._clock = clock
        self._to_send = _Signal()
        self._to_perform = _Signal()
        self._to_time = _Signal()
        self._progressed = _Signal()
        self._ended = trio.Event()

    async def drive(self) -> Result:
        """Run until the machine has a result, and close the transport."""
        try:
            async with trio.open_nursery() as nursery:
                for task in (self._receive, self._send, self._carry_out, self._keep_time):
                    nursery.start_soon(task)
                self.kick()
                await self._ended.wait()
                with trio.move_on_after(FLUSH_DEADLINE_S):
                    while self._machine.has_unsent:
                        await self._progressed.wait()
                nursery.cancel_scope.cancel()
            await self._transport.close()
        finally:
            self._transport.abort()
            if self._machine.result is None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + ROLLBACK_DEADLINE_S):
                    await self._give_up()
        result = self._machine.result
        assert result is not None
        return result

    def kick(self) -> None:
        """Look at the machine again: call this after a command was given to it from outside."""
        while (event := self._machine.poll_event()) is not None:
            self._on_event(event)
        if self._machine.result is not None:
            self._ended.set()
        self._to_send.set()
        self._to_perform.set()
        self._to_time.set()
        self._progressed.set()

    async def _receive(self) -> None:
        machine, transport = self._machine, self._transport
        while True:
            try:
                count = await transport.receive_into(machine.get_buffer())
            except (TransportError, trio.ClosedResourceError) as error:
                lost = error if isinstance(error, TransportError) else None
                machine.connection_lost(lost, self._clock())
                self.kick()
                return
            if not count:
                machine.connection_lost(None, self._clock())
                self.kick()
                return
            machine.buffer_updated(count, self._clock())
            self.kick()

    async def _send(self) -> None:
        machine, transport = self._machine, self._transport
        while True:
            buffers = machine.poll_transmit(self._clock())
            if not buffers:
                await self._to_send.wait()
                continue
            size = sum(len(buffer) for buffer in buffers)
            self._to_time.set()
            try:
                if self._limiter is not None:
                    await self._limiter.wait(size)
                await transport.send(buffers, self._sent)
            except (TransportError, trio.ClosedResourceError) as error:
                lost = error if isinstance(error, TransportError) else None
                machine.connection_lost(lost, self._clock())
                self.kick()
                return

    def _sent(self, count: int) -> None:
        self._machine.transmitted(count, self._clock())
        self._progressed.set()

    async def _carry_out(self) -> None:
        while True:
            request = self._machine.poll_request()
            if request is None:
                await self._to_perform.wait()
            else:
                await self._carry_out_one(request)

    async def _carry_out_one(self, request: Request) -> None:
        try:
            answer = await self._perform(request)
        except SternaError as error:
            self._machine.fail(request, error, self._clock())
        except Exception as error:  # noqa: BLE001  # an embedder's guest may raise anything; the peer must not suffer
            wrapped = GuestError(f"{type(request).__name__}: {error!r}", ErrorCode.GUEST_FAILED)
            wrapped.__cause__ = error
            self._machine.fail(request, wrapped, self._clock())
        else:
            self._machine.complete(request, answer, self._clock())
        self.kick()

    async def _give_up(self) -> None:
        """Cancelled from outside: see to what the loss of the connection asks for, above all a roll-back."""
        lost = TransportError(ErrorCode.CONNECTION_LOST, "the endpoint was cancelled")
        self._machine.connection_lost(lost, self._clock())
        while self._machine.result is None and (request := self._machine.poll_request()) is not None:
            await self._carry_out_one(request)

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
