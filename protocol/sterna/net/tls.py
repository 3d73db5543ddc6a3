"""TLS 1.3 with mutual authentication, straight between socket and guest memory.

trio's `SSLStream` joins and cuts what it copies, and encrypts in pieces of its own choosing. Here a
`TlsLayer` decrypts into the caller's buffer and encrypts from it, and its socket is waited for with trio's
`wait_readable` and `wait_writable`.

What there is to know about OpenSSL as CPython sets it up:

- A write encrypts all that it is given, and takes each byte once: pages of a running guest may change
  meanwhile. Every byte arrives in its old or its new state under a valid record, and the page's hash tells
  the receiver. What the kernel does not take is waited for before more is encrypted, so no more lies here
  than `SLICE_BYTES`.
- A read returns one record at most, so reads go on until the buffer is full or nothing is left.
- End of file without close_notify must not look like an end: `suppress_ragged_eofs` is off, and so is
  OP_IGNORE_UNEXPECTED_EOF, which CPython up to 3.11.2 sets and which makes OpenSSL itself pretend.
- In TLS 1.3 the client has finished before the server looks at the client's certificate. A refusal reaches
  the client as an alert at its first read, or as a reset at an early write: then the alert is looked for.
- Session tickets are off: nobody resumes TLS sessions here, and they would be the first bytes to arrive.
- Python cannot send a KeyUpdate, and RFC 8446 (5.5) allows about 2**24.5 records under one AES-GCM key.
  `records_sent` counts them. Some time before `KEY_RECORDS_MAX` (256 GiB) the connection is `worn`, and the
  pump ends the session; a send that would pass it is refused [TLS-18].
- A peer's KeyUpdate is processed by OpenSSL [TLS-19], also one that asks for ours.

Handshakes, and how it is decided who the peer is, are in `sterna.net.handshake`.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from sterna.errors import ConfigError, TransportError
from sterna.limits import RECORD_BYTES
from sterna.net.tcp import dispose, linger, round_trip_s
from sterna.net.tls_errors import Doing, tls_error
from sterna.net.tls_layer import TlsLayer
from sterna.net.transport import OnSent, Peer, TlsInfo, Transport
from sterna.registry import ALPN, ErrorCode

KEY_RECORDS_MAX: Final = 1 << 24

# Of these the last are for the end: what is under way leaves, then ABORT. A unit that is longer is refused,
# and the very last are for frames of one record, so that there is a key left in any case.
KEY_RECORDS_LAST: Final = 1 << 16
KEY_RECORDS_RESERVE: Final = 1024
# And so many (32 GiB of whole ones) for what cannot be interrupted: the guest stands still meanwhile.
KEY_RECORDS_BLACKOUT: Final = 1 << 21

# One SSL_write, and one call of `on_sent`: often enough for a deadline to see progress on a slow link.
SLICE_BYTES: Final = 256 * 1024

CheckPeer = Callable[[str, bytes], None]


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """A host's side of TLS.

    Attributes:
        certificate: PEM file: the host's certificate, followed by intermediate ones if there are any.
        key: PEM file: its private key, not encrypted.
        authority: PEM file: the CA certificates that peers' certificates must chain to.
        check_peer: called with the identity and the SHA-256 fingerprint of a verified certificate; raises
            `TransportError` with `PEER_NOT_LISTED` for a peer that is not welcome.
    """

    certificate: Path
    key: Path
    authority: Path
    check_peer: CheckPeer

    def context(self, *, server: bool, check_hostname: bool = False) -> ssl.SSLContext:
        """Load the files.

        Raises:
            ConfigError: a file is missing, damaged, encrypted, or does not fit the others.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = check_hostname
        context.verify_mode = ssl.CERT_REQUIRED
        context.hostname_checks_common_name = False
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        context.set_alpn_protocols([ALPN])
        if server:
            context.num_tickets = 0
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        for path in (self.certificate, self.key, self.authority):
            try:
                path.open("rb").close()
            except OSError as error:
                raise ConfigError(f"cannot read {path}: {error.strerror}; see `sterna pki`") from error
        try:
            # Without a callback OpenSSL asks for the password of an encrypted key on the terminal.
            context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None)
            why = "do not belong together" if reason == "KEY_VALUES_MISMATCH" else "cannot be loaded"
            raise ConfigError(
                f"{self.certificate} and {self.key} {why} ({error}): both are PEM, the key is not encrypted"
            ) from error
        try:
            context.load_verify_locations(self.authority)
        except ssl.SSLError as error:
            raise ConfigError(f"{self.authority} has no CA certificate in PEM ({error})") from error


class TlsTransport(Transport):
    """A layer over a non-blocking socket that has finished its handshake; owns it from here on.

    Attributes:
        records_sent: TLS records written so far, each under the connection's one sending key.
    """

    def __init__(self, layer: TlsLayer, peer: Peer, tls: TlsInfo, *, server: bool) -> None:
        super().__init__(peer, tls)
        self.records_sent = 0
        self._tls = layer
        self._sock = layer.sock
        self._server = server
        self._stage = memoryview(bytearray(RECORD_BYTES))
        self._failed: TransportError | None = None  # of a receive; OpenSSL does not repeat itself
        self._early = b""  # received while looking for the reason of a failed send
        self._poll = select.poll()
        self._poll.register(layer.sock, select.POLLIN)

    @property
    def rtt_s(self) -> float | None:
        """See `Transport.rtt_s`."""
        return round_trip_s(self._sock)

    @property
    def wears(self) -> bool:
        """See `Transport.wears` [STR-12]."""
        return self._key_lacks(KEY_RECORDS_LAST + KEY_RECORDS_BLACKOUT)

    @property
    def worn(self) -> TransportError | None:
        """See `Transport.worn` [TLS-18]."""
        return _used_up() if self._key_lacks(KEY_RECORDS_LAST) else None

    @property
    def owes(self) -> bool:
        """See `Transport.owes`."""
        return self._tls.owes

    def _before_send(self, size: int) -> None:
        records = -(-size // RECORD_BYTES)
        if self._key_lacks(records + (KEY_RECORDS_RESERVE if records > 1 else 0)):
            raise _used_up()

    def _key_lacks(self, records: int) -> bool:
        """Whether the key may not protect so many more records."""
        assert self.tls is not None
        return self.records_sent + records > KEY_RECORDS_MAX and "AES" in self.tls.cipher

    async def _send(self, views: list[memoryview], sent: OnSent) -> None:
        if self.owes:
            await self._flush()
            sent(0)
        for piece in self._pieces(views):
            await self._write(piece)
            self.records_sent += -(-piece.nbytes // RECORD_BYTES)
            sent(piece.nbytes)

    def _send_now(self, data: bytes) -> bool:
        if self.owes:
            return False
        try:
            self._tls.write(data)
        except OSError:
            return False  # `send` finds out why
        self.records_sent += -(-len(data) // RECORD_BYTES)
        return True

    def _pieces(self, views: list[memoryview]) -> Iterator[memoryview]:
        """Cut `views` into whole records: a header alone in a record costs as much as 16 KiB of pages.

        A piece is valid until the next one is asked for.
        """
        filled = 0
        for whole in views:
            rest = whole
            while rest.nbytes:
                if filled or rest.nbytes < RECORD_BYTES:
                    count = min(RECORD_BYTES - filled, rest.nbytes)
                    self._stage[filled : filled + count] = rest[:count]
                    filled += count
                    if filled == RECORD_BYTES:
                        yield self._stage
                        filled = 0
                else:
                    most = SLICE_BYTES if self.between is None else RECORD_BYTES
                    count = min(rest.nbytes - rest.nbytes % RECORD_BYTES, most)
                    yield rest[:count]
                rest = rest[count:]
        if filled:
            yield self._stage[:filled]

    async def _write(self, piece: memoryview) -> None:
        await self._flush()  # a new key that the peer has asked for: nothing is encrypted behind what is owed
        try:
            self._tls.write(piece)
        except OSError as error:
            raise self._send_error(error) from error
        await self._flush()
        await self._yield_after(piece.nbytes)

    async def _flush(self) -> None:
        while True:
            try:
                if self._tls.flush():
                    return
            except OSError as error:
                raise self._send_error(error) from error
            await trio.lowlevel.wait_writable(self._tls.sock)
            self._waited()

    def _send_error(self, error: OSError) -> TransportError:
        """Why a send failed: what the peer said before it closed, if it said something."""
        if self._failed is None and not self.bytes_received:
            scratch = memoryview(bytearray(RECORD_BYTES))
            try:
                self._early += scratch[: self._tls.recv_into(scratch)]
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                pass
            except OSError as reason:
                self._failed = tls_error(reason, Doing.RECEIVE, server=self._server)
        return self._failed or tls_error(error, Doing.SEND, server=self._server)

    async def _receive_into(self, view: memoryview) -> int:
        if self._early:
            count = min(view.nbytes, len(self._early))
            view[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        filled = 0
        limit = min(view.nbytes, self.yield_bytes)  # others get a turn even if the peer never pauses
        while filled < limit and self._failed is None:
            try:
                count = self._tls.read(limit - filled, view[filled:limit])
            except ssl.SSLWantReadError:
                if filled:
                    break
                if not await self._comes_again():
                    await self._wait()
            except ssl.SSLZeroReturnError:
                break
            except OSError as error:
                self._failed = tls_error(error, Doing.RECEIVE, server=self._server)
            else:
                if not count:
                    break  # close_notify; OpenSSL says so again next time
                filled += count
                if self.between is not None:
                    self.between()
        if self._failed is not None and not filled:
            raise TransportError(self._failed.code, self._failed.detail)
        await self._yield_after(filled)
        return filled

    async def until_heard(self) -> bool:
        """See `Transport.until_heard`."""
        if self._is_heard():
            await trio.lowlevel.checkpoint()
        elif not await self._comes_again():
            await self._wait()
        return True

    def _is_heard(self) -> bool:
        return bool(self._early or self._failed or self._tls.is_heard or self._poll.poll(0))

    def _receive_now(self, view: memoryview) -> int | None:
        if not self._is_heard():
            return None
        if self._early or self._failed:
            return 0
        filled = 0
        try:
            while filled < view.nbytes:
                filled += (count := self._tls.recv_into(view[filled:]))
                if count < RECORD_BYTES:  # behind a whole message comes nothing, mostly
                    break
        except ssl.SSLWantReadError:
            return filled or None
        except ssl.SSLZeroReturnError:
            pass
        except OSError as error:
            self._failed = tls_error(error, Doing.RECEIVE, server=self._server)
        return filled

    async def _wait(self) -> None:
        """Until something may be read."""
        await trio.lowlevel.wait_readable(self._sock)
        self._waited()

    @property
    def gives_socket(self) -> bool:
        """See `Transport.gives_socket`."""
        return True

    def _detach(self) -> TlsLayer | None:
        return None if self._early or self._failed else self._tls

    async def _finish(self) -> None:
        trio.lowlevel.notify_closing(self._sock)
        try:
            await self._close_notify()
        except (OSError, ValueError, trio.ClosedResourceError):
            return  # lost by now, or aborted by another task
        await linger(self._sock)

    async def _close_notify(self) -> None:
        while True:
            try:
                self._tls.unwrap()
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._sock)
            except ssl.SSLError:
                return  # ours has left; the peer's is still to come, perhaps behind data
            else:
                return

    def _dispose(self, *, abrupt: bool) -> None:
        dispose(self._sock, abrupt=abrupt)


def _used_up() -> TransportError:
    return TransportError(
        ErrorCode.UNSUPPORTED,
        "the TLS key of this connection has protected all the data that it may (256 GiB), "
        "and Python cannot renew it",
    )
