"""TLS 1.3 with mutual authentication, straight between socket and guest memory.

trio's `SSLStream` goes through memory BIOs: every byte is copied twice more, and encryption happens inside
the event loop in pieces of its own choosing. Here a non-blocking `ssl.SSLSocket` is driven with trio's
`wait_readable` and `wait_writable`: OpenSSL reads from the socket and decrypts into the caller's buffer, and
encrypts from the caller's buffer into the socket.

What there is to know about OpenSSL as CPython sets it up:

- A write that would block must be repeated with the same bytes. OpenSSL has then encrypted and partly sent a
  record (16 KiB at most) out of a copy of its own; the repetition sends the rest of that, then
  goes on with what follows in the buffer (SSL_MODE_ENABLE_PARTIAL_WRITE is off, so a write returns only when
  all is sent; SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER is on). Pages of a running guest may change in
  between. That is safe: every byte is read exactly once, into that copy, before it is encrypted, so the
  peer gets each byte in its old or its new state under a valid record; the page's hash tells the receiver.
- A read returns one record at most, so reads go on until the buffer is full or nothing is left. `read` is
  what `recv_into` comes to, a call earlier: with 64 Ki records in a GiB that shows.
- A write goes to the socket record by record, and each would leave as a segment of its own, on loopback and
  on links with large ones. So what is longer than a record is sent corked: fewer segments, and receivers have
  a tenth less to do.
- End of file without close_notify must not look like an end: `suppress_ragged_eofs` is off, and so is
  OP_IGNORE_UNEXPECTED_EOF, which CPython up to 3.11.2 sets and which makes OpenSSL itself pretend.
- In TLS 1.3 the client has finished before the server looks at the client's certificate. A refusal reaches
  the client as an alert at its first read, or as a reset at an early write: then the alert is looked for.
- Session tickets are off: nobody resumes TLS sessions here, and they would be the first bytes to arrive.
- Python cannot send a KeyUpdate, and RFC 8446 (5.5) allows about 2**24.5 records under one AES-GCM key.
  `records_sent` counts them. Some time before `KEY_RECORDS_MAX` (256 GiB) the connection is `worn`, and the
  pump ends the session; a send that would pass it is refused [TLS-18].
- A peer's KeyUpdate is processed by OpenSSL [TLS-19]. One that asks for ours too, and comes while a write is
  pending, breaks the connection in OpenSSL 3.0 (openssl/openssl#8677): peers had better not ask.

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
from sterna.net.tcp import cork, dispose, linger, round_trip_s
from sterna.net.tls_errors import Doing, tls_error
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
    """A non-blocking `ssl.SSLSocket` that has finished its handshake; owns it from here on.

    Attributes:
        records_sent: TLS records written so far, each under the connection's one sending key.
    """

    def __init__(self, sock: ssl.SSLSocket, peer: Peer, tls: TlsInfo, *, server: bool) -> None:
        super().__init__(peer, tls)
        self.records_sent = 0
        self._sock = sock
        self._server = server
        self._stage = memoryview(bytearray(RECORD_BYTES))
        self._failed: TransportError | None = None  # of a receive; OpenSSL does not repeat itself
        self._owed = b""  # sent without a wait, and not wholly taken
        self._early = b""  # received while looking for the reason of a failed send
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._waiting: dict[bool, trio.Event] = {}  # writable?: ends when the task that waits for it wakes

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
        return bool(self._owed)

    def _before_send(self, size: int) -> None:
        records = -(-size // RECORD_BYTES)
        if self._key_lacks(records + (KEY_RECORDS_RESERVE if records > 1 else 0)):
            raise _used_up()

    def _key_lacks(self, records: int) -> bool:
        """Whether the key may not protect so many more records."""
        assert self.tls is not None
        return self.records_sent + records > KEY_RECORDS_MAX and "AES" in self.tls.cipher

    async def _send(self, views: list[memoryview], sent: OnSent) -> None:
        if self._owed:
            await self._write(memoryview(self._owed))
            self._owed = b""
            sent(0)
        is_long = sum(view.nbytes for view in views) > RECORD_BYTES
        if is_long:
            cork(self._sock, held=True)
        for piece in self._pieces(views):
            await self._write(piece)
            self.records_sent += -(-piece.nbytes // RECORD_BYTES)
            sent(piece.nbytes)
        if is_long:
            cork(self._sock, held=False)

    def _send_now(self, data: bytes) -> bool:
        if self._owed:
            return False
        try:
            self._sock.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self._owed = data  # OpenSSL has encrypted some of it, and is to be called with the same bytes
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
        rest = piece
        while rest.nbytes:
            try:
                count = self._sock.send(rest)
            except ssl.SSLWantWriteError:
                await self._wait(writable=True)
            except ssl.SSLWantReadError:
                await self._wait(writable=False)
            except OSError as error:
                raise self._send_error(error) from error
            else:
                rest = rest[count:]
                await self._yield_after(count)

    def _send_error(self, error: OSError) -> TransportError:
        """Why a send failed: what the peer said before it closed, if it said something."""
        if self._failed is None and not self.bytes_received:
            scratch = memoryview(bytearray(RECORD_BYTES))
            try:
                self._early += scratch[: self._sock.recv_into(scratch)]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLZeroReturnError):
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
                # With a buffer it is a number, which typeshed does not know.
                count = self._sock.read(limit - filled, view[filled:limit])  # type: ignore[assignment]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as want:
                if filled:
                    break
                if not await self._comes_again():
                    await self._wait(writable=isinstance(want, ssl.SSLWantWriteError))
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
            await self._wait(writable=False)
        return True

    def _is_heard(self) -> bool:
        return bool(self._early or self._failed or self._sock.pending() or self._poll.poll(0))

    def _receive_now(self, view: memoryview) -> int | None:
        if not self._is_heard():
            return None
        if self._early or self._failed:
            return 0
        filled = 0
        try:
            while filled < view.nbytes:
                filled += (count := self._sock.recv_into(view[filled:]))
                if count < RECORD_BYTES:  # behind a whole message comes nothing, mostly
                    break
        except ssl.SSLWantReadError:
            return filled or None
        except (ssl.SSLWantWriteError, ssl.SSLZeroReturnError):
            pass
        except OSError as error:
            self._failed = tls_error(error, Doing.RECEIVE, server=self._server)
        return filled

    async def _wait(self, *, writable: bool) -> None:
        """Wait for the socket; both tasks may wait for the same thing, which trio alone refuses.

        That happens when the peer renews its key: then reading may have to write, and the reverse.
        """
        if (event := self._waiting.get(writable)) is not None:
            await event.wait()
        else:
            event = self._waiting[writable] = trio.Event()
            try:
                await (trio.lowlevel.wait_writable if writable else trio.lowlevel.wait_readable)(self._sock)
            finally:
                del self._waiting[writable]
                event.set()
        # Essential: after `unwrap` this socket would read and write plaintext.
        self._waited()

    @property
    def gives_socket(self) -> bool:
        """See `Transport.gives_socket`."""
        return True

    def _detach(self) -> ssl.SSLSocket | None:
        return None if self._early or self._failed else self._sock

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
                self._sock.unwrap()
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
