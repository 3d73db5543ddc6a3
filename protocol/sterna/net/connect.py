"""Dialling: addresses, and a connection over TCP or TLS within one deadline."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import Final

import trio

from sterna.errors import ConfigError, TransportError
from sterna.net.handshake import Farewell, dial_tls
from sterna.net.tcp import DEFAULT_OPTIONS, SocketOptions, TcpTransport, format_address
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna.registry import ErrorCode

CONNECT_DEADLINE_S: Final = 10.0

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9._])?")
_PORT: Final = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a host listens. `host` is a DNS name or an address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return format_address(self.host, self.port)


def parse_address(text: str, *, listen: bool = False) -> Address:
    """Read ``host:port`` or ``[v6 address]:port``; port 0 only to `listen` (the system chooses one).

    Raises:
        ConfigError: it is something else.
    """
    shown = repr(text[:80])
    host, colon, port_text = text.rpartition(":")
    if not colon or _PORT.fullmatch(port_text) is None:
        raise ConfigError(f"{shown} is no address: write host:port, or [v6 address]:port")
    port = int(port_text)
    if not (0 if listen else 1) <= port <= 65535:
        raise ConfigError(f"{shown}: a port is a number from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigError(f"{shown}: what is in brackets is no IPv6 address") from None
    elif ":" in host:
        raise ConfigError(f"{shown}: an IPv6 address is written in brackets: [{host[:60]}]:{port}")
    elif _HOST.fullmatch(host) is None:
        raise ConfigError(f"{shown}: {host[:80]!r} is neither a DNS name nor an address")
    return Address(host, port)


async def open_tcp(
    address: Address,
    *,
    deadline_s: float = CONNECT_DEADLINE_S,
    options: SocketOptions = DEFAULT_OPTIONS,
) -> TcpTransport:
    """Connect in plaintext.

    Raises:
        TransportError: `CONNECT_FAILED`, with the reason.
    """
    with trio.move_on_after(deadline_s):
        return TcpTransport(await _dial(address, options))
    raise _no_answer(address, deadline_s)


async def connect(
    address: Address | str,
    *,
    tls: TlsConfig | None,
    expected: str | None = None,
    farewell: Farewell | None = None,
    deadline_s: float = CONNECT_DEADLINE_S,
    options: SocketOptions = DEFAULT_OPTIONS,
) -> Transport:
    """Connect over TLS, or in plaintext if `tls` is None.

    Args:
        address: where to; as text, ``host:port``.
        tls: this host's certificate and whom it accepts; None is plaintext, for ``--insecure``.
        expected: the identity that must answer; if None, its certificate must bear the address's host.
        farewell: see `sterna.net.handshake.dial_tls`.
        deadline_s: for everything together: resolving, connecting, handshake.
        options: of the socket.

    Raises:
        ConfigError: the text is no address, or the files that `tls` names are not usable.
        TransportError: no connection, no handshake, or not the right peer.
    """
    if isinstance(address, str):
        address = parse_address(address)
    if tls is None:
        return await open_tcp(address, deadline_s=deadline_s, options=options)
    context = tls.context(server=False, check_hostname=expected is None)
    sock = None
    with trio.move_on_after(deadline_s):
        sock = await _dial(address, options)
        hostname = address.host if expected is None else None
        return await dial_tls(sock, tls, context, hostname=hostname, expected=expected, farewell=farewell)
    if sock is None:
        raise _no_answer(address, deadline_s)
    raise TransportError(
        ErrorCode.TLS_FAILED,
        f"{address} did not finish the TLS handshake within {deadline_s:g} s: is it a TLS port?",
    )


async def _dial(address: Address, options: SocketOptions) -> socket.socket:
    # ASCII needs no codec for names in other scripts, which takes a millisecond to import.
    host = address.host.encode() if address.host.isascii() else address.host
    try:
        stream = await trio.open_tcp_stream(host, address.port)
    except OSError as error:
        raise TransportError(
            ErrorCode.CONNECT_FAILED, f"cannot connect to {address}: {why(error)}"
        ) from error
    return take_socket(stream, options)


def take_socket(stream: trio.SocketStream, options: SocketOptions) -> socket.socket:
    """The socket of a stream, out of trio's hands, non-blocking, with `options` set."""
    sock = socket.socket(fileno=stream.socket.detach())
    try:
        sock.setblocking(False)
        options.apply(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _no_answer(address: Address, deadline_s: float) -> TransportError:
    return TransportError(
        ErrorCode.CONNECT_FAILED,
        f"{address} did not answer within {deadline_s:g} s: host down, or a firewall drops the packets",
    )


def why(error: OSError) -> str:
    """Why no socket could be had, in words; of several attempts (one an address) the last one's reason."""
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[-1]
    if isinstance(cause, socket.gaierror):
        return "the host name is not known"
    if not isinstance(cause, OSError) or not cause.errno:
        return str(cause)
    hints = {
        errno.ECONNREFUSED: "nothing listens there",
        errno.EADDRINUSE: "the port is in use",
        errno.EADDRNOTAVAIL: "this host has no such address",
        errno.EACCES: "not permitted; ports below 1024 need a capability",
    }
    return hints.get(cause.errno, os.strerror(cause.errno))
