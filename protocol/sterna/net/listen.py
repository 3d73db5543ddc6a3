"""Listening, and how many strangers may wait at the door.

A listener owes nothing to a connection that has not authenticated. Such a stranger gets one deadline for
its handshake, and there are at most `strangers_max` of them: a further one takes the place of the oldest.
So a peer that opens connections and says nothing (slow loris) locks nobody out, unless it opens that many
within the time of one honest handshake. On a plain listener everybody comes in, and the deadline of the
protocol's own handshake takes care of the silent.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from sterna.errors import ConfigError, SternaError, TransportError
from sterna.net.connect import Address, parse_address, take_socket, why
from sterna.net.handshake import Farewell, accept_tls, dismiss
from sterna.net.tcp import DEFAULT_OPTIONS, SocketOptions, TcpTransport, peer_address
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna.registry import ErrorCode

BACKLOG: Final = 128

# What accept() reports when this process or system is short of something: all one can do is wait.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_EXHAUSTED_PAUSE_S: Final = 0.1

_log = logging.getLogger(__name__)

Handler = Callable[[Transport], Awaitable[None]]
OnFailure = Callable[[str, SternaError], None]


def log_failure(peer: str, error: SternaError) -> None:
    """Write a connection that came to nothing to the log."""
    _log.warning("%s: %s", peer, error)


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """Bounds of a listener.

    Attributes:
        handshake_deadline_s: how long a TLS handshake may take.
        strangers_max: handshakes under way; each holds a socket and OpenSSL's buffers, some 100 KiB.
        sessions_max: handlers that run, one a connection, of which a session may have 17; a further peer is
            refused with `FULL`.
        socket_options: of the accepted sockets.
    """

    handshake_deadline_s: float = 10.0
    strangers_max: int = 64
    sessions_max: int = 512
    socket_options: SocketOptions = DEFAULT_OPTIONS


async def listen(
    address: Address | str,
    handler: Handler,
    *,
    tls: TlsConfig | None,
    farewell: Farewell | None = None,
    on_failure: OnFailure = log_failure,
    options: ListenOptions = ListenOptions(),
    task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept connections until cancelled; each authenticated one goes to a task that runs `handler`.

    Args:
        address: where, as text ``host:port``, with port 0 for any; a DNS name may give several sockets.
        handler: owns the transport while it runs; what it leaves open is aborted. A `SternaError` out of
            it goes to `on_failure`; any other exception ends the listener.
        tls: this host's certificate and whom it accepts; None is plaintext, for ``--insecure``.
        farewell: gives the bytes that tell a peer, in its own protocol, why it is not let in.
        on_failure: told of connections that came to nothing: the peer, and why.
        options: bounds.
        task_status: started with the addresses that are bound.

    Raises:
        ConfigError: the text is no address, it cannot be bound, or the files of `tls` are not usable.
    """
    if isinstance(address, str):
        address = parse_address(address, listen=True)
    context = None if tls is None else tls.context(server=True)
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {why(error)}") from error

    async def admit(sock: socket.socket) -> Transport:
        if tls is None or context is None:
            return TcpTransport(sock)
        return await accept_tls(sock, tls, context, farewell=farewell)

    door = _Door(admit, handler, farewell, on_failure, options)
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(door.accept, listener, nursery)
        task_status.started([Address(*listener.socket.getsockname()[:2]) for listener in listeners])


class _Door:
    """What the sockets of one listener share."""

    def __init__(
        self,
        admit: Callable[[socket.socket], Awaitable[Transport]],
        handler: Handler,
        farewell: Farewell | None,
        on_failure: OnFailure,
        options: ListenOptions,
    ) -> None:
        self._admit = admit
        self._handler = handler
        self._farewell = farewell
        self._on_failure = on_failure
        self._options = options
        self._strangers: dict[trio.CancelScope, None] = {}  # the oldest first
        self._sessions = 0

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in _EXHAUSTED:
                        raise
                    await trio.sleep(_EXHAUSTED_PAUSE_S)
                else:
                    # Counted here, not in the new task: accepting may be faster than starting.
                    nursery.start_soon(self._serve, stream, self._stranger())

    def _stranger(self) -> trio.CancelScope:
        if len(self._strangers) >= self._options.strangers_max:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.cancel()
        scope = trio.CancelScope(deadline=trio.current_time() + self._options.handshake_deadline_s)
        self._strangers[scope] = None
        return scope

    async def _serve(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        sock = take_socket(stream, self._options.socket_options)
        address = peer_address(sock)
        transport = None
        try:
            with scope:
                transport = await self._admit(sock)
        except SternaError as error:
            self._on_failure(address, error)
            return
        finally:
            self._strangers.pop(scope, None)
        if transport is None:
            late = trio.current_time() >= scope.deadline
            said = f"within {self._options.handshake_deadline_s:g} s" if late else "before newer ones came"
            self._on_failure(address, TransportError(ErrorCode.TLS_FAILED, f"no handshake {said}"))
            return
        try:
            await self._session(transport)
        except SternaError as error:
            self._on_failure(str(transport.peer), error)
        finally:
            transport.abort()

    async def _session(self, transport: Transport) -> None:
        if self._sessions >= self._options.sessions_max:
            error = TransportError(ErrorCode.FULL, f"{self._sessions} connections are served already")
            await dismiss(transport, error, self._farewell)
            raise error
        self._sessions += 1
        try:
            await self._handler(transport)
        finally:
            self._sessions -= 1
