"""From a connected socket to a `TlsTransport` whose peer is known, or to an error that says what to do.

Both sides verify the chain up to their CA file alone (no system store), take the identity URI
(`sterna.net.identity`) and pass it with the certificate's fingerprint to `check_peer`, normally that of the
peer list. The dialler also demands the identity that it expects or, if it expects none, the host name
or address that it dialled.

The first bytes are looked at before OpenSSL sees them: it would report plaintext as a wrong version number,
and the person at the other end wants to hear that a certificate option is missing. A plaintext client gets
a TLS alert for an answer, so that it can say the same at its own end.

Whatever fails, the socket is closed when the functions return, and the peer has had the time to read why.
There is no deadline here: whoever calls sets one around it.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from sterna.errors import TransportError
from sterna.net.identity import identity_of
from sterna.net.tcp import dispose, linger, peer_address
from sterna.net.tls import TlsConfig, TlsTransport
from sterna.net.tls_errors import ALERT_UNEXPECTED, FIRST_BYTES, Doing, plaintext, tls_error
from sterna.net.tls_layer import TlsLayer
from sterna.net.transport import Peer, TlsInfo, Transport
from sterna.registry import ALPN, ErrorCode

# How long a refused peer gets to read the alert that says why. It keeps its place among the unauthenticated.
REFUSAL_S: Final = 1.0


# The bytes that tell a peer, inside TLS, why it is not welcome.
Farewell = Callable[[TransportError], bytes]


async def accept_tls(
    sock: socket.socket, config: TlsConfig, context: ssl.SSLContext, *, farewell: Farewell | None = None
) -> TlsTransport:
    """Serve the TLS handshake on `sock` (connected, non-blocking, taken over).

    `farewell` gives the bytes that a peer is sent, inside TLS, if it is not on the list.

    Raises:
        TransportError: `TLS_FAILED`, `PLAIN_ON_TLS`, `WRONG_ALPN`, `PEER_NOT_LISTED` or `CONNECTION_LOST`.
    """
    return await _Handshake(sock, config, context, farewell, server=True).run()


async def dial_tls(
    sock: socket.socket,
    config: TlsConfig,
    context: ssl.SSLContext,
    *,
    hostname: str | None = None,
    expected: str | None = None,
    farewell: Farewell | None = None,
) -> TlsTransport:
    """Begin the TLS handshake on `sock` (connected, non-blocking, taken over).

    The peer's certificate must bear `hostname` (a DNS name or address; the context checks it) or the
    identity `expected`: one of the two is given. `farewell` as for `accept_tls`.

    Raises:
        TransportError: as for `accept_tls`.
    """
    if (hostname is None) == (expected is None) or context.check_hostname != (hostname is not None):
        raise ValueError("a dialler checks either the dialled name or the expected identity")
    return await _Handshake(sock, config, context, farewell, hostname=hostname, expected=expected).run()


async def dismiss(transport: Transport, error: TransportError, farewell: Farewell | None) -> None:
    """Tell a peer that is not welcome why, if there are words for it, and close."""
    with trio.move_on_after(REFUSAL_S), suppress(TransportError):
        if farewell is not None:
            await transport.send([farewell(error)])
        await transport.close(REFUSAL_S)
    transport.abort()


class _Handshake:
    def __init__(
        self,
        sock: socket.socket,
        config: TlsConfig,
        context: ssl.SSLContext,
        farewell: Farewell | None,
        *,
        server: bool = False,
        hostname: str | None = None,
        expected: str | None = None,
    ) -> None:
        self.sock = sock
        self.config = config
        self.context = context
        self.farewell = farewell
        self.server = server
        self.hostname = hostname
        self.expected = expected
        self.address = peer_address(sock)

    async def run(self) -> TlsTransport:
        try:
            layer = await self._negotiate()
        except BaseException as error:
            try:
                if isinstance(error, TransportError):
                    await self._refuse(error)
            finally:
                dispose(self.sock, abrupt=not isinstance(error, TransportError))
            raise
        return await self._admit(layer)

    async def _negotiate(self) -> TlsLayer:
        try:
            if self.server:
                await trio.lowlevel.wait_readable(self.sock)
                self._look_at_first_bytes()
            layer = TlsLayer(self.sock, self.context, server=self.server, hostname=self.hostname)
            await self._shake_hands(layer)
        except OSError as error:
            raise tls_error(error, Doing.HANDSHAKE, server=self.server) from error
        return layer

    async def _shake_hands(self, layer: TlsLayer) -> None:
        looked = self.server
        while True:
            try:
                layer.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self.sock)
                if not looked and not layer.is_heard:  # else the first ones have been taken
                    self._look_at_first_bytes()
                looked = True
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self.sock)
            else:
                return

    def _look_at_first_bytes(self) -> None:
        first = self.sock.recv(FIRST_BYTES, socket.MSG_PEEK)
        if not first:
            raise TransportError(ErrorCode.TLS_FAILED, "the peer closed the connection without a word of TLS")
        if (error := plaintext(first, server=self.server)) is not None:
            raise error

    async def _refuse(self, error: TransportError) -> None:
        """Let the peer read OpenSSL's alert, or ours, before the socket is closed."""
        with trio.move_on_after(REFUSAL_S):
            if error.code == ErrorCode.PLAIN_ON_TLS and self.server:
                with suppress(OSError):
                    self.sock.send(ALERT_UNEXPECTED)
            await linger(self.sock)

    async def _admit(self, layer: TlsLayer) -> TlsTransport:
        """Check who the peer is; it has proved possession of the key of a certificate of our CA."""
        transport = TlsTransport(layer, Peer(self.address), TlsInfo("", "", mutual=True), server=self.server)
        try:
            transport.peer = self._identify(layer)
            transport.tls = self._describe(layer)
        except BaseException as error:
            try:
                if isinstance(error, TransportError):
                    # Another service, or another draft, would not understand.
                    words = None if error.code == ErrorCode.WRONG_ALPN else self.farewell
                    await dismiss(transport, error, words)
            finally:
                transport.abort()
            raise
        return transport

    def _describe(self, layer: TlsLayer) -> TlsInfo:
        cipher = layer.tls.cipher()
        version = layer.tls.version()
        assert cipher is not None
        assert version is not None
        return TlsInfo(version, cipher[0], mutual=True)

    def _identify(self, layer: TlsLayer) -> Peer:
        if layer.tls.selected_alpn_protocol() != ALPN:
            raise TransportError(
                ErrorCode.WRONG_ALPN,
                f"the peer speaks TLS but not {ALPN}: it is another service, or another draft of Sterna",
            )
        der = layer.tls.getpeercert(binary_form=True)
        assert der is not None
        identity = identity_of(layer.tls.getpeercert() or {})
        if self.expected is not None and identity != self.expected:
            raise TransportError(
                ErrorCode.PEER_NOT_LISTED,
                f"the host at {self.address} is {identity!r}, not {self.expected!r}: check the address, "
                "or say that this host is expected",
            )
        fingerprint = hashlib.sha256(der).digest()
        self.config.check_peer(identity, fingerprint)
        return Peer(self.address, identity, fingerprint)
