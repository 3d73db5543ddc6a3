"""What the endpoints need of a connection, and the rules that every implementation shares.

A `Transport` carries bytes both ways, in order, between two peers that are known by the time it exists:
a TLS one has finished its handshake and checked the peer's certificate. It differs from trio's `Stream`
in what migration needs: a send takes several buffers (a frame's header, table and pages lie in different
places and are not joined), a receive fills the caller's memory (page bytes go from the socket to their
place), and a send tells how far it got, so that a deadline can tell a slow peer from a stalled one.

Rules, kept by the base class:

- One task may send while another one receives. A second sender or receiver is a `trio.BusyResourceError`.
- `receive_into` may be cancelled and called again: no byte is lost. A send that was cancelled or that
  failed may have left half a frame behind: the transport is then *torn*, further sends are refused with
  `trio.ClosedResourceError`, and its close is an abort, so that the peer cannot take the end for a proper
  one. Deadlines therefore end the migration, not a single send.
- Whatever the peer or the network does comes out as `TransportError`, with a code and a sentence.
  `trio.ClosedResourceError` means that this side had already closed it.
- The end of the stream is 0 bytes received, only if the peer ended it properly: FIN on plain TCP,
  close_notify on TLS. It is not success: only the protocol's own frames say that.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol

import trio

from sterna.errors import TransportError
from sterna.limits import CHUNK_BYTES

Buffer = bytes | bytearray | memoryview
OnSent = Callable[[int], None]

# A graceful close waits this long for the peer to take what was sent last and to close as well. Longer
# than a round trip anywhere on earth; a peer that needs more is not going to answer.
CLOSE_DEADLINE_S: Final = 2.0

# How much may be moved between two turns of the other tasks: one or two milliseconds of TLS. A turn costs
# some 30 us; after every 256 KiB it would be a fifth of the time that TLS takes.
YIELD_BYTES: Final = 1024 * 1024
# A receive without a turn counts for as many bytes at the least, or a peer that sends a few at a time could
# keep the event loop to itself.
MORE_BYTES: Final = CHUNK_BYTES
# The same where somebody waits for what the other tasks do, a guest for its pages: a chunk with its table.
SOON_BYTES: Final = CHUNK_BYTES + 4096


@dataclass(frozen=True, slots=True)
class TlsInfo:
    """What was negotiated, for people and for `--json`: ``TLSv1.3``, ``TLS_AES_256_GCM_SHA384``, True."""

    version: str
    cipher: str
    mutual: bool


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end.

    Attributes:
        address: ``host:port``, IPv6 in brackets; for people, never for authorisation.
        identity: the certificate's identity (`sterna.net.identity`); None on a plain connection.
        fingerprint: SHA-256 of the certificate in DER, 32 bytes; None on a plain connection.
    """

    address: str
    identity: str | None = None
    fingerprint: bytes | None = None

    def __str__(self) -> str:
        return self.address if self.identity is None else f"{self.identity} at {self.address}"


class Given(Protocol):
    """A connection that a transport has given away: a socket, or what stands in for one above TLS."""

    def __enter__(self) -> object: ...

    def __exit__(self, *exception: object) -> None: ...

    def fileno(self) -> int:
        """Of the socket."""

    def setblocking(self, flag: bool, /) -> None:
        """Whether calls wait."""

    def recv_into(self, view: memoryview, /) -> int:
        """What has come, 0 for the end."""

    def send(self, data: bytes, /) -> int:
        """As much as goes."""

    def sendall(self, data: bytes | memoryview, /) -> None:
        """All of it."""


class Guard:
    """Turns a second task in the same place into `trio.BusyResourceError` (trio's own is private)."""

    __slots__ = ("_message", "held")

    def __init__(self, message: str) -> None:
        self._message = message
        self.held = False

    def __enter__(self) -> None:
        if self.held:
            raise trio.BusyResourceError(self._message)
        self.held = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.held = False


class Transport(ABC):
    """A connection to one peer. Implementations fill in the methods with a leading underscore.

    Attributes:
        peer: who is at the other end.
        tls: what TLS negotiated, None on a plain connection.
        bytes_sent: payload bytes handed to the layer below so far.
        bytes_received: payload bytes received so far.
        yield_bytes: after how many bytes the other tasks get a turn.
        eager_until: until then, by time.monotonic(), a receive that finds nothing asks again in the next turn
            and does not sleep: to be woken takes as long as the answer to a request for pages.
        owed_bytes: what the peer surely sends next, in the place of the next receive and behind it: one that
            has to wait may wait for much of it at once.
        between: called while much is moved, after each piece of it, for what cannot wait for the rest. It
            must not touch this transport.
        receives_more: whether `receive_more` may ever find anything.
    """

    receives_more = False

    def __init__(self, peer: Peer, tls: TlsInfo | None = None) -> None:
        self.peer = peer
        self.tls = tls
        self.bytes_sent = 0
        self.bytes_received = 0
        self.yield_bytes = YIELD_BYTES
        self.eager_until = -math.inf
        self.owed_bytes = 0
        self.between: Callable[[], None] | None = None
        self._sending = Guard("another task is sending on this transport")
        self._receiving = Guard("another task is receiving on this transport")
        self._torn = False
        self._closed = False
        self._detached = False
        self._unyielded_bytes = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.peer}{', closed' if self._closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether this side has closed or aborted it (or has begun to)."""
        return self._closed

    async def send(self, buffers: Sequence[Buffer], on_sent: OnSent | None = None) -> None:
        """Send all of `buffers`, one after the other.

        Content that changes during the call is sent in its old or its new state, byte by byte.

        Args:
            buffers: C-contiguous buffers of bytes, borrowed until the call returns; empty ones are legal.
            on_sent: called with the number of bytes, each time that some were taken by the layer below; with
                0 for some that were owed.

        Raises:
            TransportError: the connection is lost, or its key is used up (`UNSUPPORTED`, TLS).
            trio.BusyResourceError: another task is sending.
            trio.ClosedResourceError: this side has closed it, or an earlier send was cut short.
        """
        views = [view for view in map(_as_bytes, buffers) if view.nbytes]
        with self._sending:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._closed or self._torn:
                raise trio.ClosedResourceError
            self._before_send(sum(view.nbytes for view in views))

            def sent(count: int) -> None:
                self.bytes_sent += count
                if on_sent is not None:
                    on_sent(count)

            self._torn = True  # until it is known that everything left
            try:
                await self._send(views, sent)
            except TransportError:
                self._check_open()
                raise
            self._torn = False

    def tear(self) -> None:
        """What was sent last will not become whole: `send` raises from now on, and `close` aborts."""
        self._torn = True

    def send_now(self, buffers: Sequence[Buffer], on_sent: OnSent | None = None) -> bool:
        """Send a little without a turn of any task; false, and nothing has happened, if that cannot be.

        What the layer below has taken and could not pass on is owed: it goes with the next `send`, even an
        empty one.

        Raises:
            TransportError: its key is used up (`UNSUPPORTED`, TLS).
        """
        data = b"".join(buffers)
        if self._sending.held or self._closed or self._torn or not data:
            return False
        self._before_send(len(data))
        if not self._send_now(data):
            return False
        self.bytes_sent += len(data)
        if on_sent is not None:
            on_sent(len(data))
        return True

    def _send_now(self, data: bytes) -> bool:
        """Send `data` if that needs no wait."""
        del data
        return False

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive at least one byte, at most as many as `buffer` holds.

        Returns:
            The number of bytes; 0 if the peer has ended its direction properly.

        Raises:
            TransportError: `NOT_CLOSED` for an end that the peer did not announce (TLS),
                `CONNECTION_LOST` and others for a broken connection.
            trio.BusyResourceError: another task is receiving.
            trio.ClosedResourceError: this side has closed it.
        """
        if not buffer.nbytes:
            raise ValueError("an empty buffer cannot tell the end of the stream from no data")
        with self._receiving:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_open()
            try:
                count = await self._receive_into(_as_bytes(buffer))
            except TransportError:
                self._check_open()
                raise
            self.bytes_received += count
            return count

    def receive_more(self, buffers: Sequence[memoryview]) -> int:
        """As `receive_into`, of what is there, into one buffer after the other; one or more, none empty.

        Returns:
            The number of bytes; 0 for nothing, or if it is the other tasks' turn.

        Raises:
            TransportError: as `receive_into`.
        """
        if self._receiving.held or self._closed or self.between is not None:
            return 0
        if self._unyielded_bytes >= self.yield_bytes:
            return 0
        count = self._receive_more(buffers)
        if count:
            self._unyielded_bytes += max(count, MORE_BYTES)
        self.bytes_received += count
        return count

    def _receive_more(self, views: Sequence[memoryview]) -> int:
        """Receive what is there, where that costs less than a turn: see `receives_more`."""
        del views
        return 0

    async def until_heard(self) -> bool:
        """Wait until `receive_now` may find something; false, without a wait, if it never does here."""
        return False

    def receive_now(self, buffer: memoryview) -> int | None:
        """Receive what is there without a wait: None for nothing, 0 if `receive_into` has to be asked."""
        if self._receiving.held or self._closed:
            return 0
        count = self._receive_now(_as_bytes(buffer))
        self.bytes_received += count or 0
        return count

    def _receive_now(self, view: memoryview) -> int | None:
        """Receive what is there."""
        del view
        return 0

    async def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """End this direction properly, give the peer time to take it, then close.

        What arrives meanwhile is discarded. A torn transport, or one that owes, is aborted instead. If the
        caller is cancelled the rest is done at once: the transport is closed in any case.
        """
        if self._closed or self._torn or self.owes:
            self.abort()
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            with trio.move_on_after(deadline_s):
                await self._finish()
        finally:
            self._dispose(abrupt=False)

    def abort(self) -> None:
        """Close at once; the peer sees a lost connection. Legal at any moment, any number of times."""
        self._closed = True
        if not self._detached:
            self._dispose(abrupt=True)

    @property
    def gives_socket(self) -> bool:
        """Whether connections of this kind can be given away by `detach`."""
        return False

    def detach(self) -> Given | None:
        """Give the socket away, which is the caller's from now on; None if it cannot be, and nothing changes.

        Nothing may be under way, and what follows on the connection is none of this transport's business.
        """
        if self._sending.held or self._receiving.held or self._closed or self._torn or self.owes:
            return None
        sock = self._detach()
        if sock is not None:
            self._closed = self._detached = True
        return sock

    def _detach(self) -> Given | None:
        """The socket, if that is all there is to it."""
        return None

    def _check_open(self) -> None:
        """Raise if this side has closed it: what failed then failed for that reason."""
        if self._closed:
            raise trio.ClosedResourceError

    async def _yield_after(self, count: int) -> None:
        """Let the other tasks have a turn if it is time, now that `count` bytes have been moved.

        Not a cancellation point: the caller must hear of those bytes.
        """
        if self.between is not None:
            self.between()
        self._unyielded_bytes += count
        if self._unyielded_bytes >= self.yield_bytes:
            self._unyielded_bytes = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _waited(self) -> None:
        """The other tasks have had a turn meanwhile. Raise if this side has closed it by now."""
        self._check_open()
        self._unyielded_bytes = 0

    async def _comes_again(self) -> bool:
        """Whether a receive should ask once more rather than sleep; the other tasks have had a turn then."""
        if time.monotonic() >= self.eager_until:
            return False
        await trio.lowlevel.checkpoint()
        self._waited()
        return True

    @property
    def rtt_s(self) -> float | None:
        """How long the network takes to the peer and back; None if the layer below does not know."""
        return None

    @property
    def owes(self) -> bool:
        """Whether something that `send_now` took waits for the next `send`."""
        return False

    @property
    def wears(self) -> bool:
        """Whether it is `worn`, or may be before a guest has been moved that is paused now."""
        return self.worn is not None

    @property
    def worn(self) -> TransportError | None:
        """Why the session should come to its end as long as it still can, None if it need not."""
        return None

    def _before_send(self, size: int) -> None:  # noqa: B027 (most need nothing)
        """Raise `TransportError` if `size` bytes cannot be sent any more; nothing of them has left then."""

    @abstractmethod
    async def _send(self, views: list[memoryview], sent: OnSent) -> None:
        """Send all of `views` (none empty), reporting to `sent`; a checkpoint."""

    @abstractmethod
    async def _receive_into(self, view: memoryview) -> int:
        """Receive into `view`; a checkpoint."""

    @abstractmethod
    async def _finish(self) -> None:
        """Announce the end of this direction, then discard what arrives until the peer's own end.

        Wakes tasks that wait in this transport with `trio.ClosedResourceError`. Raises nothing else but
        `trio.Cancelled`: there is nobody left who could act on it.
        """

    @abstractmethod
    def _dispose(self, *, abrupt: bool) -> None:
        """Release everything, waking waiting tasks; `abrupt` lets the peer see a lost connection."""


def _as_bytes(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
