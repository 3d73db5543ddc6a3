"""Plain TCP, and what TLS shares with it.

The socket is a non-blocking one of the standard library, driven with trio's `wait_readable` and
`wait_writable`: one system call moves a frame's header, table and pages (`sendmsg`), and received bytes
land where the caller wants them. Every call is tried first and waited for only if it would block, which
at full rate saves most of the waiting; in exchange they yield after every `yield_bytes`, so that
heartbeats and the other direction get their turn.

How a connection ends. `close` sends FIN and then reads until the peer's own FIN: closing a socket with
unread bytes makes Linux send RST, and an RST lets the peer's system discard what we sent last, typically the
ABORT that says why. `abort` sends RST on purpose, so that the peer's next call fails instead of waiting.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from sterna.errors import TransportError
from sterna.net.transport import OnSent, Peer, Transport
from sterna.registry import ErrorCode

# sendmsg refuses more buffers than this. POSIX guarantees 16, Linux has 1024.
IOV_MAX: Final = os.sysconf("SC_IOV_MAX")

SCRATCH_BYTES: Final = 256 * 1024

FAST_BYTES_S: Final = 400e6
FAST_UNSENT_BYTES: Final = 4 * 1024 * 1024  # a batch
# What a rate is measured over: several times what the kernel holds, which leaves at no rate at all.
MEASURED_BYTES: Final = 16 * 1024 * 1024

# How much may be moved between two turns of the other tasks while nobody has to wait for the kernel: two or
# three milliseconds. With a turn for each MiB a twentieth of the time goes into turns.
YIELD_BYTES: Final = 8 * 1024 * 1024

# From here on a place to receive into is one for page bytes that were announced; read buffers are smaller.
OWED_BYTES: Final = 512 * 1024
MUCH_BYTES: Final = 4 * 1024 * 1024  # a batch
PATIENCE_S: Final = 0.05

# Where struct tcp_info of linux/tcp.h has its smoothed round trip, in microseconds.
_RTT_OFFSET: Final = 68
_RTT: Final = struct.Struct("=I")

_LINGER_RESET: Final = struct.pack("ii", 1, 0)

# Congestion control between two endpoints on one machine, where nothing can be congested. One that paces, as
# bbr does, spends up to a fifth of the sender's time on timers. This one is in every kernel, for everybody.
LOCAL_CONGESTION_CONTROL: Final = b"reno"


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """Options of a TCP connection. The defaults are for migration over anything from loopback to a WAN.

    Attributes:
        user_timeout_s: sent data unacknowledged, or a window closed, for this long ends the connection.
            Longer than the stall limit, and shorter than the deadlines of phases: what waits in the kernel
            is seen by the kernel alone, and a connection that is lost can be taken up again [CON-77].
        keepalive_idle_s: silence after which the kernel probes, every `keepalive_interval_s`, at most
            `keepalive_probes` times; for the phases in which nothing is sent.
        unsent_bytes: how much unsent data the kernel takes (TCP_NOTSENT_LOWAT); None is no bound.
            What waits there delays heartbeats and makes the measured rate too optimistic. A fast link is
            given more (`Backlog`).
        send_buffer_bytes: SO_SNDBUF; None leaves it to the kernel's autotuning, which knows the link.
        receive_buffer_bytes: SO_RCVBUF; None likewise.
    """

    user_timeout_s: float = 15.0
    keepalive_idle_s: int = 15
    keepalive_interval_s: int = 5
    keepalive_probes: int = 6
    unsent_bytes: int | None = 512 * 1024
    send_buffer_bytes: int | None = None
    receive_buffer_bytes: int | None = None

    def apply(self, sock: socket.socket) -> None:
        """Set them on a connected TCP socket.

        Congestion control is the administrator's choice, unless the peer is on this machine.
        """
        tcp = socket.IPPROTO_TCP
        sock.setsockopt(tcp, socket.TCP_NODELAY, 1)  # frames are whole when they are sent
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(tcp, socket.TCP_KEEPIDLE, self.keepalive_idle_s)
        sock.setsockopt(tcp, socket.TCP_KEEPINTVL, self.keepalive_interval_s)
        sock.setsockopt(tcp, socket.TCP_KEEPCNT, self.keepalive_probes)
        sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, int(self.user_timeout_s * 1000))
        unsent = 0xFFFFFFFF if self.unsent_bytes is None else self.unsent_bytes
        sock.setsockopt(tcp, socket.TCP_NOTSENT_LOWAT, struct.pack("I", unsent))
        for option, size in (
            (socket.SO_SNDBUF, self.send_buffer_bytes),
            (socket.SO_RCVBUF, self.receive_buffer_bytes),
        ):
            if size is not None:
                sock.setsockopt(socket.SOL_SOCKET, option, size)
        do_not_pace_locally(sock)


DEFAULT_OPTIONS: Final = SocketOptions()


class Backlog:
    """How much unsent data the kernel may take from a sender: more where the link is fast.

    With a whole batch in the kernel the next one is encoded while it leaves, and nobody waits for room
    several times a batch. On a link of `FAST_BYTES_S` that delays what is behind it by 10 ms at most.
    """

    def __init__(self, sock: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        self._sock = sock
        self._clock = clock
        self._since = clock()
        self._count = 0
        try:
            self._usual = self._now = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        except OSError:  # no TCP
            self._usual = self._now = 0

    def left(self, count: int) -> None:
        """So many bytes have been taken."""
        self._count += count
        if self._count < MEASURED_BYTES or not 0 < self._usual < FAST_UNSENT_BYTES:  # below 0: no bound
            return
        now = self._clock()
        fast = self._count >= FAST_BYTES_S * (now - self._since)
        self._since, self._count = now, 0
        wanted = FAST_UNSENT_BYTES if fast else self._usual
        if wanted != self._now:
            self._now = wanted
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, wanted)


class Wakes:
    """When a receiver is woken: not for each segment while much is on its way.

    A turn of the event loop costs as much as receiving some hundred kibibytes. So where the caller's place is
    large, and the peer hence owes that many bytes, the kernel wakes it for `MUCH_BYTES` at once, by
    SO_RCVLOWAT. What has come is not left lying for longer than `PATIENCE_S` on a link that is slower than
    that, and from then on such a link wakes its receiver for every byte.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._low = 1
        self._slow = False

    async def wait(self, owed: int) -> None:
        """Until something can be received; or not even that, after `PATIENCE_S`."""
        patient = owed >= OWED_BYTES and not self._slow
        self._set(min(owed, MUCH_BYTES) if patient else 1)
        if not patient:
            await trio.lowlevel.wait_readable(self._sock)
            return
        with trio.move_on_after(PATIENCE_S) as scope:
            await trio.lowlevel.wait_readable(self._sock)
        self._slow = scope.cancelled_caught

    def came(self, count: int) -> None:
        """So many bytes were received at once."""
        if count >= OWED_BYTES:
            self._slow = False

    def _set(self, low: int) -> None:
        if low != self._low:
            self._low = low
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low)


class TcpTransport(Transport):
    """A connected, non-blocking stream socket; owns it from here on."""

    receives_more = True

    def __init__(self, sock: socket.socket, peer: Peer | None = None) -> None:
        super().__init__(peer or Peer(peer_address(sock)))
        self._sock = sock
        self.yield_bytes = YIELD_BYTES
        self._backlog = Backlog(sock)
        self._wakes = Wakes(sock)
        self._owed = memoryview(b"")  # sent without a wait, and not wholly taken

    @property
    def owes(self) -> bool:
        """See `Transport.owes`."""
        return bool(self._owed)

    def _send_now(self, data: bytes) -> bool:
        if self._owed:
            return False
        try:
            count = self._sock.send(data)
        except OSError:
            return False  # `send` waits, or finds out why
        self._backlog.left(count)
        self._owed = memoryview(data)[count:]
        return True

    async def _send(self, views: list[memoryview], sent: OnSent) -> None:
        if self._owed:
            await self._write([self._owed], lambda _: sent(0))
            self._owed = memoryview(b"")
        await self._write(views, sent)

    async def _write(self, views: list[memoryview], sent: OnSent) -> None:
        first = taken = 0
        while first < len(views):
            try:
                count = self._sock.sendmsg(views[first : first + IOV_MAX])
            except BlockingIOError:
                if taken:
                    await self._took(taken, sent)
                    taken = 0
                    continue  # that has taken time, too
                await trio.lowlevel.wait_writable(self._sock)
                self._waited()
                continue
            except OSError as error:
                sent(taken)
                raise connection_lost(error) from error
            taken += count
            first = _advance(views, first, count)
            if first == len(views) or taken >= self.yield_bytes or self.between is not None:
                await self._took(taken, sent)
                taken = 0

    async def _took(self, count: int, sent: OnSent) -> None:
        """The kernel has taken so many bytes, in one call or in several."""
        sent(count)
        self._backlog.left(count)
        await self._yield_after(count)

    async def _receive_into(self, view: memoryview) -> int:
        while True:
            try:
                count = self._sock.recv_into(view)
            except BlockingIOError:
                if not await self._comes_again():
                    await self._wakes.wait(max(view.nbytes, self.owed_bytes))
                    self._waited()
            except OSError as error:
                raise connection_lost(error) from error
            else:
                self._wakes.came(count)
                await self._yield_after(count)
                return count

    def _receive_more(self, views: Sequence[memoryview]) -> int:
        try:
            count = self._sock.recvmsg_into(views)[0] if len(views) > 1 else self._sock.recv_into(views[0])
        except BlockingIOError:
            return 0
        except OSError as error:  # the next call would not tell it again
            raise connection_lost(error) from error
        self._wakes.came(count)
        return count

    @property
    def rtt_s(self) -> float | None:
        """See `Transport.rtt_s`."""
        return round_trip_s(self._sock)

    @property
    def gives_socket(self) -> bool:
        """See `Transport.gives_socket`."""
        return True

    def _detach(self) -> socket.socket | None:
        return self._sock

    async def _finish(self) -> None:
        trio.lowlevel.notify_closing(self._sock)
        await linger(self._sock)

    def _dispose(self, *, abrupt: bool) -> None:
        dispose(self._sock, abrupt=abrupt)


def round_trip_s(sock: socket.socket) -> float | None:
    """Seconds to the peer and back, as the kernel has measured them; None for what is no TCP socket."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_OFFSET + _RTT.size)
        (microseconds,) = _RTT.unpack_from(info, _RTT_OFFSET)
    except (OSError, struct.error):
        return None
    return float(microseconds * 1e-6)


def do_not_pace_locally(sock: socket.socket) -> None:
    """`LOCAL_CONGESTION_CONTROL` for a connection that does not leave this machine; others are left alone."""
    with suppress(OSError):  # the peer is gone by now; or it stays as it is
        if sock.getpeername()[0] == sock.getsockname()[0]:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, LOCAL_CONGESTION_CONTROL)


def _advance(views: list[memoryview], first: int, count: int) -> int:
    """Drop `count` sent bytes from `views`; the index of the first view with something left."""
    while count:
        size = views[first].nbytes
        if count < size:
            views[first] = views[first][count:]
            break
        count -= size
        first += 1
    return first


async def linger(sock: socket.socket) -> None:
    """Send FIN and discard what arrives until the peer's FIN. Raises nothing but `trio.Cancelled`.

    Above TLS it is the socket below: nobody wants these bytes.
    """
    scratch = bytearray(SCRATCH_BYTES)
    try:
        sock.shutdown(socket.SHUT_WR)
        while True:
            try:
                if not sock.recv_into(scratch):
                    return
                await trio.lowlevel.checkpoint()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
    except (OSError, trio.ClosedResourceError):
        return  # reset by the peer, or aborted by another task: it has ended


def dispose(sock: socket.socket, *, abrupt: bool) -> None:
    """Close `sock`, with RST if `abrupt`; harmless on a closed one."""
    if sock.fileno() == -1:
        return
    if abrupt:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    trio.lowlevel.notify_closing(sock)
    sock.close()


def peer_address(sock: socket.socket) -> str:
    """``host:port`` of the peer, ``[host]:port`` for IPv6."""
    try:
        name = sock.getpeername()
    except OSError:
        return "a peer that is gone"
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        return format_address(name[0], name[1])
    return "a local peer"


def format_address(host: str, port: int) -> str:
    """``host:port``, the host in brackets if it has colons itself."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_REASONS: Final = {
    errno.ECONNRESET: "the peer reset the connection: it crashed, was killed, or aborted",
    errno.EPIPE: "the peer has closed the connection and takes no more",
    errno.ETIMEDOUT: "the peer's system has acknowledged nothing for too long: host or network is down",
    errno.EHOSTUNREACH: "the peer's host is not reachable any more",
    errno.ENETUNREACH: "the peer's network is not reachable any more",
}


def connection_lost(error: OSError) -> TransportError:
    """The coded error for a system call that failed on a connection."""
    reason = _REASONS.get(error.errno or 0, os.strerror(error.errno) if error.errno else str(error))
    return TransportError(ErrorCode.CONNECTION_LOST, reason)
