"""A link that carries so many bytes a second and no more, and counts them: a process between, on loopback.

Whoever sends over it has the cap that a network has: nobody told it. And what went over the wire is what the
link says. QEMU 7.2 counts the pages of multifd as if they had not been compressed, and holds its own
cap by that count.

Only the way there is capped. The link holds less than a batch: what does not pass waits at the sender.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final, Self

from sterna_interop.moving import Side, forked

HOST: Final = "127.0.0.1"
BUFFER_BYTES: Final = 256 * 1024
_PIECE_BYTES: Final = 64 * 1024
_CREDIT_S: Final = 0.005  # more than a thread wakes late


class NarrowLink:
    """See the module's text. To be used in one process at a time, that which made it or one forked from it.

    Attributes:
        port: where it listens on loopback.
    """

    def __init__(self, rate_bytes_s: float) -> None:
        """`rate_bytes_s`: what passes a second, on all connections together."""
        self._forked: AbstractContextManager[Side] = forked("link", lambda pipe: _link(pipe, rate_bytes_s))
        self._stack = ExitStack()
        self.port = 0

    def __enter__(self) -> Self:
        self._side = self._stack.enter_context(self._forked)
        self.port = int(self._side.hear()[0])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def leads_to(self, port: int) -> None:
        """Pass on to there what comes. Once, before anybody connects."""
        self._side.tell(port)

    def passed(self) -> int:
        """Bytes that went there so far. Once, at the end."""
        self._side.tell(0)
        return int(self._side.hear()[0])


class _Bucket:
    """The cap, and the count."""

    def __init__(self, rate_bytes_s: float) -> None:
        self.passed = 0
        self._rate_bytes_s = rate_bytes_s
        self._paid_until = 0.0
        self._lock = threading.Lock()

    def wait(self, count: int) -> None:
        """Until so many bytes may pass."""
        with self._lock:
            self.passed += count
            earliest = time.monotonic() - _CREDIT_S
            self._paid_until = max(self._paid_until, earliest) + count / self._rate_bytes_s
            until = self._paid_until
        if (left := until - time.monotonic()) > 0:
            time.sleep(left)


def _link(pipe: Connection, rate_bytes_s: float) -> None:
    bucket = _Bucket(rate_bytes_s)
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        server.bind((HOST, 0))
        server.listen()
        pipe.send((server.getsockname()[1],))
        _start(_accept, server, pipe.recv(), bucket)
        pipe.recv()
        pipe.send((bucket.passed,))
        pipe.recv()  # until it is ended


def _start(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def _accept(server: socket.socket, port: int, bucket: _Bucket) -> None:
    while True:
        near, _ = server.accept()
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        far.connect((HOST, port))
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _start(_pass, near, far, bucket)
        _start(_pass, far, near, None)


def _pass(here: socket.socket, there: socket.socket, bucket: _Bucket | None) -> None:
    piece = memoryview(bytearray(_PIECE_BYTES))
    with suppress(OSError):
        while count := here.recv_into(piece):
            if bucket is not None:
                bucket.wait(count)
            there.sendall(piece[:count])
    with suppress(OSError):
        there.shutdown(socket.SHUT_WR)
