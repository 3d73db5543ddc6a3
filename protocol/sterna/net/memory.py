"""Two transports joined in memory, with a link between them that can be slow, far and faulty.

For tests, and for embedding both ends in one process. Time is trio's, so under `MockClock` a gibibyte over
a slow link takes no time at all and the same virtual time in every run.

A direction of the link is a queue of pieces. A piece leaves once its bytes have passed at `rate_bytes_s`
behind those of the piece before it, and arrives `latency_s` later. Until the receiver has taken it, it
counts against `capacity_bytes`, which stands for both sockets' buffers and the flight: as on a real path,
a rate is only reached if the capacity is larger than rate times latency.

What was on its way when a direction ended is still delivered, then comes the end. Faults, each of one end:
`cut_after` (the link breaks behind a byte), `stall` (this end stops reading), `vanish` (nothing arrives any
more and nobody says so: power loss) and `end_ragged` (an end without close_notify).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from sterna.errors import TransportError
from sterna.net.transport import OnSent, Peer, TlsInfo, Transport
from sterna.registry import ErrorCode

CAPACITY_BYTES: Final = 1024 * 1024
PIECE_BYTES: Final = 64 * 1024


class _Direction:
    """One direction of the link. Whatever changes wakes all that wait; they look again for themselves."""

    def __init__(self, capacity_bytes: int, rate_bytes_s: float | None, latency_s: float) -> None:
        self.cut_in: int | None = None  # bytes until the link breaks
        self.stalled = False  # the receiver does not read
        self.dead = False  # nothing arrives any more
        self._capacity_bytes = capacity_bytes
        self._rate_bytes_s = rate_bytes_s
        self._latency_s = latency_s
        self._pieces: deque[tuple[float, memoryview]] = deque()  # time of arrival, bytes
        self._held_bytes = 0  # in the queue, or just leaving
        self._free_at = 0.0  # when the last piece has left
        self._end_at: float | None = None  # when the end arrives
        self._end_error: ErrorCode | None = None  # None: a proper end
        self._refused = False  # the receiver's side takes no more
        self._changed = trio.lowlevel.ParkingLot()

    def wake(self) -> None:
        self._changed.unpark_all()

    def end(self, error: ErrorCode | None) -> None:
        """Nothing more will be sent; the first call counts."""
        if self._end_at is None:
            self._end_at = trio.current_time() + self._latency_s
            self._end_error = error
        self.wake()

    def refuse(self) -> None:
        """Nothing more will be taken."""
        self._refused = True
        self.wake()

    async def wait_room(self, closed: Callable[[], bool]) -> int:
        """Bytes that may be sent now, at least one."""
        while True:
            if closed():
                raise trio.ClosedResourceError
            if self._refused or self._end_at is not None:
                raise TransportError(ErrorCode.CONNECTION_LOST)
            room = self._capacity_bytes - self._held_bytes
            if self.cut_in is not None:
                room = min(room, self.cut_in)
            if room > 0:
                return min(room, PIECE_BYTES)
            await self._changed.park()

    async def put(self, piece: memoryview) -> None:
        """Let a piece leave; when this returns it is on its way."""
        count = piece.nbytes
        self._held_bytes += count
        try:
            if self._rate_bytes_s is None:
                await trio.lowlevel.checkpoint()
            else:
                self._free_at = max(self._free_at, trio.current_time()) + count / self._rate_bytes_s
                await trio.sleep_until(self._free_at)
        except trio.Cancelled:
            self._held_bytes -= count
            raise
        self._pieces.append((trio.current_time() + self._latency_s, piece))
        if self.cut_in is not None:
            self.cut_in -= count
        self.wake()

    async def take(self, view: memoryview, closed: Callable[[], bool]) -> int:
        """Receive into `view`, 0 at a proper end."""
        while not closed():
            due = self._pieces[0][0] if self._pieces else self._end_at
            if self.stalled or self.dead or due is None:
                await self._changed.park()
            elif due > trio.current_time():
                with trio.move_on_at(due):
                    await self._changed.park()
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return self._take_due(view)
        raise trio.ClosedResourceError

    def _take_due(self, view: memoryview) -> int:
        if not self._pieces:
            if self._end_error is not None:
                raise TransportError(self._end_error)
            return 0
        arrival, piece = self._pieces.popleft()
        count = min(view.nbytes, piece.nbytes)
        view[:count] = piece[:count]
        if count < piece.nbytes:
            self._pieces.appendleft((arrival, piece[count:]))
        self._held_bytes -= count
        self.wake()
        return count


class MemoryTransport(Transport):
    """One end of `memory_transport_pair`."""

    def __init__(self, outgoing: _Direction, incoming: _Direction, peer: Peer, tls: TlsInfo | None) -> None:
        super().__init__(peer, tls)
        self._outgoing = outgoing
        self._incoming = incoming
        self._disposed = False

    def cut_after(self, count: int) -> None:
        """Break the link, both ways, when this end has sent `count` more bytes; 0 is now."""
        self._outgoing.cut_in = count
        self._cut_if_due()

    def stall(self) -> None:
        """Stop reading: `receive_into` at this end waits, and the buffer before it fills."""
        self._incoming.stalled = True

    def unstall(self) -> None:
        """Read again."""
        self._incoming.stalled = False
        self._incoming.wake()

    def vanish(self) -> None:
        """This end's host is gone: nothing arrives at either end any more, and no error says so."""
        self._outgoing.dead = self._incoming.dead = True

    def end_ragged(self) -> None:
        """End this direction without announcing it: the peer gets `NOT_CLOSED` after the last byte."""
        self._outgoing.end(ErrorCode.NOT_CLOSED)

    def _cut_if_due(self) -> None:
        if self._outgoing.cut_in == 0:
            self._outgoing.end(ErrorCode.CONNECTION_LOST)
            self._incoming.end(ErrorCode.CONNECTION_LOST)

    async def _send(self, views: list[memoryview], sent: OnSent) -> None:
        for whole in views:
            rest = whole
            while rest.nbytes:
                count = min(rest.nbytes, await self._outgoing.wait_room(lambda: self._closed))
                await self._outgoing.put(memoryview(bytes(rest[:count])))
                rest = rest[count:]
                sent(count)
                self._cut_if_due()

    async def _receive_into(self, view: memoryview) -> int:
        return await self._incoming.take(view, lambda: self._closed)

    async def _finish(self) -> None:
        self._outgoing.end(None)
        self._incoming.wake()
        scratch = memoryview(bytearray(PIECE_BYTES))
        with suppress(TransportError, trio.ClosedResourceError):
            while await self._incoming.take(scratch, lambda: self._disposed):
                pass

    def _dispose(self, *, abrupt: bool) -> None:
        self._disposed = True
        self._outgoing.end(ErrorCode.CONNECTION_LOST if abrupt else None)
        self._incoming.refuse()


def memory_transport_pair(
    *,
    capacity_bytes: int = CAPACITY_BYTES,
    rate_bytes_s: float | None = None,
    latency_s: float = 0.0,
    identities: tuple[str, str] | None = None,
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two connected transports.

    Args:
        capacity_bytes: the most that is sent and not yet received, each way.
        rate_bytes_s: bandwidth each way; None is no bound.
        latency_s: time of flight of every byte.
        identities: of the first and the second end, as TLS would have shown them; None is a plain link.
    """
    if capacity_bytes < 1 or latency_s < 0 or (rate_bytes_s is not None and rate_bytes_s <= 0):
        raise ValueError("capacity and rate are positive, latency is not negative")
    there, back = (_Direction(capacity_bytes, rate_bytes_s, latency_s) for _ in range(2))
    tls = None if identities is None else TlsInfo("none", "none", mutual=True)
    first, second = identities or (None, None)
    return (
        MemoryTransport(there, back, Peer("memory", second), tls),
        MemoryTransport(back, there, Peer("memory", first), tls),
    )
