"""TLS between a socket and a caller's memory, by way of OpenSSL's memory.

OpenSSL on a socket makes two system calls for each record that comes, and one for each that goes: some
200 000 a GiB. Here what has come is taken from the kernel by `READ_BYTES`, and what goes is given to it as it
was written. Two more copies within a core's cache cost less than that.

It also means that OpenSSL never waits in the midst of a write. So a peer may renew its key at any time, and
ask for ours too, which breaks connections where a write is pending (openssl/openssl#8677).

What would have to wait raises what `ssl.SSLSocket` raises then, `ssl.SSLWantReadError` or
`ssl.SSLWantWriteError`.
"""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from typing import Final, Self

Data = bytes | bytearray | memoryview

# At a time from the kernel. What of it nobody wants yet lies here, once for each connection.
READ_BYTES: Final = 256 * 1024
# What may lie behind what the kernel does not take: new keys of ours, as a peer has asked for, 27 bytes each.
KEYS_BYTES: Final = 64 * 1024
# So often is the kernel asked in a read that may not wait: records may bear nothing for the caller.
FILLS_MAX: Final = 8


class TlsLayer:
    """A connection's TLS, with the socket below; owns it from here on.

    It has the methods of an `ssl.SSLSocket` that are used, and can be given to a forked process like one.

    Args:
        sock: connected; it may block, or not.
        context: this side's.
        server: whether this side is the server.
        hostname: that the server's certificate has to bear, if the context checks it.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server: bool, hostname: str | None = None
    ) -> None:
        self.sock: Final = sock
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: Final = context.wrap_bio(
            self._came, self._goes, server_side=server, server_hostname=hostname
        )
        self._owed = memoryview(b"")
        self._dry = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Of the socket; TLS is not ended by it."""
        self.sock.close()

    @property
    def tls(self) -> ssl.SSLObject:
        """Who the peer is, and what was negotiated."""
        return self._tls

    def fileno(self) -> int:
        """Of the socket. It may have nothing to read while `is_heard`."""
        return self.sock.fileno()

    def setblocking(self, flag: bool, /) -> None:
        """Whether calls wait rather than raise."""
        self.sock.setblocking(flag)

    @property
    def is_heard(self) -> bool:
        """Whether `read` may find something without the socket."""
        return not self._dry

    @property
    def owes(self) -> bool:
        """Whether something that was written has not left."""
        return bool(self._owed or self._goes.pending)

    def do_handshake(self) -> None:
        """As far as it gets.

        Raises:
            ssl.SSLError: it waits, or failed.
            OSError: the connection is lost.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush_all()
                self._fill()
            except ssl.SSLError:
                self._reply()
                raise
            else:
                self._flush_all()
                return

    def read(self, size: int, view: memoryview) -> int:
        """At most so many bytes, at most one record; 0 for the end that the peer has announced.

        Raises:
            ssl.SSLError: nothing is there for the caller so far, or it is no proper TLS.
            OSError: the connection is lost.
        """
        fills = 0
        while True:
            try:
                # With a buffer it is a number, which typeshed does not know.
                return self._tls.read(size, view)  # type: ignore[return-value]
            except ssl.SSLWantReadError:
                self._dry = True
                self._reply()
            finally:
                if self._goes.pending and not self._owed:
                    self._reply()
            if self._goes.pending > KEYS_BYTES:
                raise _too_many_keys()
            if fills >= FILLS_MAX and not self.sock.getblocking():
                raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "nothing for the caller has come")
            self._fill()
            fills += 1

    def recv_into(self, view: memoryview) -> int:
        """As `read`, at most as many as there is room for."""
        return self.read(view.nbytes, view)

    def write(self, data: Data) -> None:
        """All of it, behind what is owed; what the kernel does not take is owed, too.

        Raises:
            ssl.SSLError: TLS has ended.
            OSError: the connection is lost.
        """
        self._tls.write(data)
        self.flush()

    def send(self, data: Data) -> int:
        """As `write`, all or nothing of it, for who does not look after what is owed.

        Raises:
            ssl.SSLError: it waits, or TLS has ended.
            OSError: the connection is lost.
        """
        self.write(data)
        self._flush_all()
        return len(data)

    def sendall(self, data: Data) -> None:
        """As `send`."""
        self.send(data)

    def flush(self) -> bool:
        """Let go what is owed, as far as the kernel takes it; whether that was all.

        Raises:
            OSError: the connection is lost.
        """
        while self._owed or self._goes.pending:
            if not self._owed:
                self._owed = memoryview(self._goes.read())
            try:
                count = self.sock.send(self._owed)
            except BlockingIOError:
                return False
            self._owed = self._owed[count:]
        return True

    def unwrap(self) -> None:
        """Announce the end. Returns if the peer has as well.

        Raises:
            ssl.SSLError: it has not, or what was written has not left.
            OSError: the connection is lost.
        """
        try:
            self._tls.unwrap()
        finally:
            self._flush_all()

    def _reply(self) -> None:
        """What OpenSSL has to say to the peer of itself: a new key that was asked for, or an alert."""
        with suppress(OSError):  # who sends finds out
            self.flush()

    def _flush_all(self) -> None:
        if not self.flush():
            raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "the socket is full")

    def _fill(self) -> None:
        room = _room()
        try:
            count = self.sock.recv_into(room)
        except BlockingIOError:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "nothing has come") from None
        self._dry = False
        if count:
            self._came.write(room[:count])
        else:
            self._came.write_eof()


def _too_many_keys() -> ssl.SSLError:
    """For a peer that asks for keys and takes none."""
    error = ssl.SSLError(ssl.SSL_ERROR_SSL, "too many key updates")
    error.reason = "TOO_MANY_KEY_UPDATES"
    return error


_rooms: Final = threading.local()


def _room() -> memoryview:
    """Where this thread takes from the kernel what has come; what is there is OpenSSL's at once."""
    try:
        room: memoryview = _rooms.room
    except AttributeError:
        room = _rooms.room = memoryview(bytearray(READ_BYTES))
    return room
