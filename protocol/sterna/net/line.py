"""One connection of a session, as its pump has it: a task that receives, and one that sends.

The receiver reads into the buffer that the machine names, be it guest memory, unless the machine wants the
connection to wait. The sender takes what the machine has to say there, one unit at a time, so that pages are
encoded only when the connection is ready for them.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

import trio

from sterna.core.session import Session
from sterna.core.tables import DestinationState
from sterna.errors import TransportError
from sterna.limits import CHUNK_BYTES
from sterna.net.rate import RateLimiter
from sterna.net.transport import Buffer, Transport

# How long after a failed send the receiver may look for what the peer said last.
LAST_WORDS_S: Final = 1.0

# A frame of so many bytes leaves with the one behind it, as far as these are not too many.
LITTLE_BYTES: Final = 2048
UNIT_BUFFERS: Final = 8

# What is worth to be sent at once: some requests for pages, or one group of pages with its table.
HURRY_BYTES: Final = CHUNK_BYTES + 4096

# So many units leave that way before others have their turn: a peer may ask for all of memory in one request.
HURRIES: Final = 16

# What a transport may raise.
NO_BUG: Final = (TransportError, trio.ClosedResourceError, trio.Cancelled)


class Signal:
    """Wakes one waiting task; set before the wait, the wait returns at once."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Wake it."""
        self._event.set()

    async def wait(self) -> None:
        """Wait for that."""
        await self._event.wait()
        self._event = trio.Event()


class Driver(Protocol):
    """The pump, as far as its connections need it."""

    machine: Session
    clock: Callable[[], float]
    limiter: RateLimiter | None

    @property
    def is_urgent(self) -> bool:
        """Whether the guest waits, or stands still, for what is said."""

    def kick(self, stream: int = 0) -> None:
        """Something has come on this connection: look at the machine again."""

    def lost(self, line: Line, error: TransportError | trio.ClosedResourceError | None) -> None:
        """A connection has ended; None says with the peer's proper end."""

    def took(self) -> None:
        """A connection was given something to send."""

    def left(self) -> None:
        """Bytes have left."""

    def idle(self, stream: int) -> None:
        """A connection has nothing to send."""

    async def make_way(self, until: Signal) -> None:
        """Let what the guest waits for go before what a data connection has; the signal wakes who does."""

    def wears(self, line: Line) -> None:
        """A connection is to be replaced when that is possible."""

    def worn(self, line: Line, error: TransportError) -> None:
        """A connection should come to its end as long as it still can."""


class Line:
    """See the module's text.

    Attributes:
        stream: its number, 0 for the control connection.
        transport: what it runs over.
        to_send: wakes the sender.
        to_receive: wakes a receiver that was told to wait.
        memory_free: the receiver reads into guest memory no more.
        ended: the connection is needed no more: it has ended by itself, another has taken its place, or the
            driver has done with the session.
        is_prompt: what comes may be taken by `take_now`, before the receiver has its turn.
        is_lost: what was not sent never will be.
    """

    def __init__(self, driver: Driver, stream: int, transport: Transport) -> None:
        self.stream: Final = stream
        self.transport: Final = transport
        self.to_send: Final = Signal()
        self.to_receive: Final = Signal()
        self.memory_free: Final = trio.Event()
        self.ended: Final = trio.Event()
        self._driver: Final = driver
        self._machine: Final = driver.machine
        self._running: Final[list[trio.CancelScope]] = []
        self._closed = False
        self._receiving = trio.CancelScope()
        self._heard_all: Final = trio.Event()
        self._wears = self._worn = False
        self._idle = False  # the sender waits for something to send
        self._busy_since = math.inf  # when it did for the last time
        self._unit: list[Buffer] = []  # what was taken for it
        self.is_prompt = self.is_lost = False

    @property
    def tasks(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """What the driver has to run, until it is cancelled or the connection is closed."""
        return partial(self._run, self._receive), partial(self._run, self._send)

    async def _run(self, task: Callable[[], Awaitable[None]]) -> None:
        scope = trio.CancelScope()
        self._running.append(scope)
        if self._closed:
            scope.cancel()
        by_itself = False
        try:
            with scope:
                await task()
            by_itself = True
        finally:
            self._running.remove(scope)
            if not self._running:
                self.memory_free.set()
                if by_itself:
                    self.ended.set()

    def hush(self) -> None:
        """What still comes does not matter."""
        if not self.memory_free.is_set():
            self._receiving.cancel()

    def close(self) -> None:
        """Another connection has taken its place."""
        self.retire()
        self.transport.abort()

    def retire(self) -> None:
        """Another connection is to take its place, and the peer does not know yet: leave it as it is."""
        self._closed = True
        for scope in self._running:
            scope.cancel()

    async def _receive(self) -> None:
        try:
            await self._receive_all()
            self._driver.lost(self, None)
        except NO_BUG as error:
            forget_frames(error)
            if isinstance(error, trio.Cancelled):
                raise
            self._driver.lost(self, error)
        finally:
            self.memory_free.set()
            self._heard_all.set()

    async def _receive_all(self) -> None:
        """Receive until the peer's proper end."""
        with trio.CancelScope() as self._receiving:
            while await self._receive_some():
                pass
            return
        self.memory_free.set()
        if self.stream or self._machine.state is DestinationState.JOINED:
            await trio.sleep_forever()  # what comes is for nobody, or for the session's machine
        while await self._receive_some():  # it goes nowhere
            pass

    async def _receive_some(self) -> int:
        machine, stream, count = self._machine, self.stream, None
        while count is None:
            while machine.is_held(stream):
                await self.to_receive.wait()
            if stream:
                await self._driver.make_way(self.to_receive)
            # No place to read into is kept over this wait: what comes may be taken meanwhile.
            if not self.is_prompt or not await self.transport.until_heard():
                break
            count = self.take_now()
        if count:
            return count
        transport, clock = self.transport, self._driver.clock
        transport.owed_bytes = machine.owed_bytes(stream)
        count = more = await transport.receive_into(machine.get_buffer(stream))
        while more:  # page bytes come in pieces, most of which need no turn of the event loop
            if machine.buffer_updated(more, clock(), stream):
                self._driver.kick(stream)
                break
            if machine.is_held(stream) or not transport.receives_more:
                break
            more = transport.receive_more(machine.get_buffers(stream))
        return count

    def take_now(self) -> int | None:
        """Take what has come, if that needs no wait; the result is that of `Transport.receive_now`."""
        machine, stream = self._machine, self.stream
        if machine.is_held(stream):
            return None
        count = self.transport.receive_now(machine.get_buffer(stream))
        if count and machine.buffer_updated(count, self._driver.clock(), stream):
            self._driver.kick(stream)
        return count

    async def _send(self) -> None:
        self._busy_since = trio.current_time()
        try:
            while True:
                await self._send_unit()
        except NO_BUG as error:
            forget_frames(error)
            if isinstance(error, trio.Cancelled):
                raise
            # The peer may have said why before it closed.
            with trio.move_on_after(LAST_WORDS_S):
                await self._heard_all.wait()
            self._driver.lost(self, error)

    def _look_at_wear(self) -> None:
        if not self._wears:
            self._wears = True
            self._driver.wears(self)
        if (worn := self.transport.worn) is not None:
            self._worn = True
            self._driver.worn(self, worn)

    async def _send_unit(self) -> None:
        driver = self._driver
        if not self._worn and self.transport.wears:
            self._look_at_wear()
        if self.stream:
            await driver.make_way(self.to_send)
            self._glance()
        buffers = self._next_unit()
        if not buffers and self.transport.owes:
            await self.transport.send((), self._sent)
            driver.left()
        elif not buffers:
            driver.idle(self.stream)
            self._idle = True
            await self.to_send.wait()
            self._idle = False
            self._busy_since = trio.current_time()
        if not buffers:
            return
        self._glance()
        driver.took()
        if driver.limiter is None:
            await self.transport.send(buffers, self._sent)
        else:
            await self._send_slowly(buffers, driver.limiter)

    async def _send_slowly(self, buffers: list[Buffer], limiter: RateLimiter) -> None:
        """Send it in parts. Where that is cut short between two of them it must not pass for a whole one."""
        left = sum(map(len, buffers))
        begun = False
        try:
            for part in limiter.grants(buffers):
                count = sum(map(len, part))
                await limiter.wait(count, self._busy_since)
                begun = True
                await self.transport.send(part, self._sent)
                left -= count
        finally:
            if begun and left:
                self.transport.tear()

    def _glance(self) -> None:
        """What cannot wait until a batch is encoded, or has left."""
        if self.transport.between is not None:
            self.transport.between()

    def _next_unit(self) -> list[Buffer]:
        """A frame, with those before it that are little: a call each would cost more than they do."""
        unit, self._unit = self._unit, []
        while not unit or (len(unit) < UNIT_BUFFERS and len(unit[-1]) <= LITTLE_BYTES):
            more = self._machine.poll_transmit(self._driver.clock(), self.stream)
            if not more:
                break
            unit += more
        return unit

    def look(self) -> None:
        """Wake the sender, if it is busy or there is something for it."""
        if self._idle and not self._unit:
            self._unit = self._machine.poll_transmit(self._driver.clock(), self.stream)
            if not self._unit and not self.transport.owes:
                return
        self.to_send.set()

    def hurry(self) -> None:
        """Send what the guest waits for without a turn of the sender, if that is idle and it is little."""
        driver = self._driver
        left = HURRIES
        while self._idle and not self._unit and driver.limiter is None and driver.is_urgent:
            unit = self._machine.poll_transmit(driver.clock(), self.stream)
            if not unit:
                return
            if sum(map(len, unit)) > HURRY_BYTES or not self.transport.send_now(unit, self._sent):
                self._unit = unit
            left -= 1
            if not left:
                return

    def _sent(self, count: int) -> None:
        self._machine.transmitted(count, self._driver.clock(), self.stream)
        self._driver.left()


def forget_frames(error: BaseException) -> None:
    """Drop what an error of the network, or a cancellation, remembers of the functions that it came through.

    Their variables are views of guest memory, which could not be freed as long as the error lives.
    """
    for each in (error, error.__cause__, error.__context__):
        if isinstance(each, (*NO_BUG, OSError)):
            each.__traceback__ = None
