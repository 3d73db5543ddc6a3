"""Peers of the commands that live in the test itself: half-hearted, scripted, or of another protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from sterna.core.deadlines import Deadlines
from sterna.core.events import Event, Result
from sterna.guest.api import SourceGuest
from sterna.guest.simulated import SimulatedDestinationGuest
from sterna.net.connect import Address, open_tcp
from sterna.net.destination import Destination
from sterna.net.listen import listen
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.net.tcp import TcpTransport
from sterna.net.transport import OnSent, Transport
from sterna.wire.framing import READ_AHEAD_BYTES

# For peers that shall not be the first to lose patience.
PATIENT = Deadlines(**dict.fromkeys(("round_s", "prepare_s", "blackout_s", "commit_s", "silence_s"), 600.0))


# For those that end by themselves once the other side has given them up.
IMPATIENT = Deadlines(
    **dict.fromkeys(("handshake_s", "describe_s", "round_s", "prepare_s"), 1.5), silence_s=1.5
)


# What is read ahead of a frame by a peer that is to stop there: less than a blackout without pages has.
AHEAD_BYTES = 128


class Stalling(Transport):
    """A transport whose reading and sending can be stopped: the process is there, and does nothing.

    Nor has it more than a few bytes already of what came behind the frame at which it stopped.
    """

    def __init__(self, inner: TcpTransport) -> None:
        super().__init__(inner.peer, inner.tls)
        self.reads = self.sends = True
        self._inner = inner
        self._reading = trio.CancelScope()

    def stall(self, what: str) -> None:
        """Stop `reading`, `sending`, or `both`, also a read that waits already."""
        self.reads = what == "sending"
        self.sends = what == "reading"
        if not self.reads:
            self._reading.cancel()

    async def _send(self, views: list[memoryview], sent: OnSent) -> None:
        if not self.sends:
            await trio.sleep_forever()
        await self._inner._send(views, sent)

    async def _receive_into(self, view: memoryview) -> int:
        if self.reads:
            with trio.CancelScope() as self._reading:
                few = AHEAD_BYTES if view.nbytes == READ_AHEAD_BYTES else view.nbytes
                return await self._inner._receive_into(view[:few])
        await trio.sleep_forever()
        raise AssertionError

    async def _finish(self) -> None:
        await self._inner._finish()

    def _dispose(self, *, abrupt: bool) -> None:
        self._inner._dispose(abrupt=abrupt)


class StallingDestination:
    """Takes guests until an event comes that `found`; then it does nothing any more.

    Attributes:
        guests: of each session.
        results: likewise, once they have ended.
    """

    def __init__(self, found: Callable[[Event], bool] | None, what: str) -> None:
        self.guests: list[SimulatedDestinationGuest] = []
        self.results: list[Result] = []
        self._found = found
        self._what = what

    async def serve(self, transport: Transport) -> None:
        """One session."""
        assert isinstance(transport, TcpTransport)
        stalling = Stalling(transport)
        if self._found is None:
            stalling.stall(self._what)
        guest = SimulatedDestinationGuest()
        self.guests.append(guest)

        def on_event(event: Event) -> None:
            if self._found is not None and self._found(event):
                stalling.stall(self._what)

        options = Options(on_event=on_event, deadlines=PATIENT)
        self.results.append(await Destination(lambda _: guest, stalling, options=options).run())


class StallingSource:
    """Sends a guest until an event comes that `found`; then it does nothing any more, but lives.

    Attributes:
        result: how the session ended at this side.
    """

    def __init__(self, guest: SourceGuest, found: Callable[[Event], bool] | None, what: str) -> None:
        self.result: Result
        self._guest = guest
        self._found = found
        self._what = what

    async def migrate(self, port: int) -> None:
        """Migrate to loopback."""
        stalling = Stalling(await open_tcp(Address("127.0.0.1", port)))
        if self._found is None:
            stalling.stall(self._what)

        def on_event(event: Event) -> None:
            if self._found is not None and self._found(event):
                stalling.stall(self._what)

        # It learns of the other side's end by its own deadlines alone: a stalled side reads no ABORT.
        options = Options(on_event=on_event, deadlines=IMPATIENT)
        self.result = await Source(self._guest, stalling, options=options).run()


async def listen_plainly(nursery: trio.Nursery, handler: Callable[[Transport], Awaitable[None]]) -> int:
    """Listen on loopback, until the nursery is cancelled; the port."""
    (address,) = await nursery.start(partial(listen, Address("127.0.0.1", 0), handler, tls=None))
    return address.port


@asynccontextmanager
async def answering(answer: bytes):
    """A server that says this to everybody, whatever it is told, and then only reads; its port."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                if answer:
                    await stream.send_all(answer)
                    async for _ in stream:
                        pass
            except trio.BrokenResourceError:
                return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def say(port: int, *pieces: bytes) -> bytes:
    """Connect, send, and read until the end."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    received = b""
    async with stream:
        try:
            for piece in pieces:
                await stream.send_all(piece)
            async for data in stream:
                received += data
        except trio.BrokenResourceError:
            pass
    return received
