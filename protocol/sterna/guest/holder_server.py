"""The holder's side of its Unix socket: connections, who controls, and when a controller is gone.

One thread, one poll loop. A controller is a process, not a connection: a connection that was closed says
nothing about mappings of guest memory that its process may still have, so the next controller waits until
that process has ended (a pidfd tells) or has said `detach`. While a connection has not taken its answer,
nothing more is read from it; so a peer that only writes holds no more memory than one frame and one answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import time
from pathlib import Path
from typing import Final

from sterna.errors import GuestError
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_engine import Answer, HolderEngine, Party
from sterna.guest.holder_fields import integer, text
from sterna.guest.holder_frames import (
    FRAME_DESCRIPTORS,
    Frame,
    FrameError,
    FrameReader,
    JsonObject,
    close_all,
    encode_frame,
)
from sterna.linux.pidfd import Pidfd, peer_credentials
from sterna.registry import ErrorCode

CONNECTIONS: Final = 16  # a controller, a few observers, and some that are being refused
ATTACH_WITHIN_S: Final = 10.0  # a local process needs milliseconds; whoever needs more only takes up a place
_READ_BYTES: Final = 1 << 16
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(FRAME_DESCRIPTORS * 4)

log = logging.getLogger(__name__)


class Closed(Exception):  # noqa: N818 - not an error: the peer has closed
    """The connection has ended."""


class Connection:
    """A connected socket: frames in, at most one unsent answer out."""

    def __init__(self, sock: socket.socket, process: Pidfd, now: float) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.process = process
        self.party: Party | None = None
        self.attach_by = now + ATTACH_WITHIN_S
        self.reader = FrameReader()
        self._unsent = b""

    @property
    def blocked(self) -> bool:
        """Whether an answer waits for the peer to read."""
        return bool(self._unsent)

    def receive(self) -> None:
        """Take what is there.

        Raises:
            Closed: the peer has ended the connection.
            FrameError: more descriptors than a frame may carry.
        """
        # Only a controller has a use for descriptors; without room for them the kernel drops them.
        room = _ANCILLARY_BYTES if self.party is not None and self.party.controller else 0
        try:
            data, ancillary, flags, _ = self.socket.recvmsg(_READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as error:
            raise Closed from error
        descriptors: list[int] = []
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(raw) - len(raw) % 4
                descriptors += memoryview(raw)[:whole].cast("i").tolist()
        self.reader.receive(data, descriptors)
        if flags & socket.MSG_CTRUNC:
            raise FrameError("too many descriptors", fatal=True)
        if not data:
            raise Closed

    def send(self, fields: JsonObject, descriptors: tuple[int, ...] = ()) -> None:
        """Send a frame, or as much of it as the socket takes now; `flush` sends the rest."""
        data = encode_frame(fields, descriptors)
        try:
            sent = socket.send_fds(self.socket, [data], list(descriptors)) if descriptors else 0
            self._unsent = data[sent:]
        except BlockingIOError:  # descriptors cannot wait: who asks for them must have read earlier answers
            raise Closed from None
        except OSError as error:
            raise Closed from error
        self.flush()

    def flush(self) -> None:
        """Send what an answer still lacks.

        Raises:
            Closed: the peer is gone.
        """
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            pass
        except OSError as error:
            raise Closed from error

    def close(self) -> None:
        """End the connection; the process reference is given back unless somebody has taken it."""
        self.reader.close()
        self.socket.close()
        self.process.close()


class HolderServer:
    """Serves one guest on one Unix socket.

    Args:
        path: where the socket shall be; only this user can connect.
        engine: the rules.
        parent: a process with which the holder ends.
    """

    def __init__(
        self, path: str | os.PathLike[str], engine: HolderEngine, *, parent: Pidfd | None = None
    ) -> None:
        self.path = Path(path)
        self.engine = engine
        self._parent = parent
        self._selector = selectors.DefaultSelector()
        self._connections: set[Connection] = set()
        self._controller: Connection | None = None
        self._former: Pidfd | None = None  # the last controller's process, which may still map the memory
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._listener = _listen(self.path)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._stop, selectors.EVENT_READ)
        if parent is not None:
            self._selector.register(parent, selectors.EVENT_READ)

    def stop(self) -> None:
        """Have `serve` return. Legal from any thread and from a signal handler."""
        os.eventfd_write(self._stop, 1)

    def serve(self) -> None:
        """Answer until a controller says `shutdown`, the image is released, the parent ends, or `stop`."""
        try:
            while not self.engine.ending:
                for key, events in self._selector.select(self._timeout_s()):
                    if key.fileobj in {self._stop, self._parent}:
                        return
                    self._ready_or_dropped(key, events)
                self._drop_silent()
        finally:
            self._close()

    def _ready_or_dropped(self, key: selectors.SelectorKey, events: int) -> None:
        try:
            self._ready(key, events)
        except Exception:
            # Whatever a peer has found: it loses its connection, and the guest runs on. [HOL-10]
            log.exception("a connection failed")
            if isinstance(key.data, Connection) and key.data in self._connections:
                self._drop(key.data)

    def _ready(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj is self._listener:
            self._accept()
        elif isinstance(key.data, Connection) and key.data in self._connections:
            if isinstance(key.fileobj, Pidfd):
                self._drop(key.data)  # the controller's process has ended; a child may keep the socket open
            else:
                self._converse(key.data, events)

    def _timeout_s(self) -> float | None:
        waiting = [connection.attach_by for connection in self._connections if connection.party is None]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for connection in [one for one in self._connections if one.party is None and one.attach_by <= now]:
            self._drop(connection)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        try:
            refused = peer_credentials(sock).uid not in {0, os.geteuid()}
            process = Pidfd.of_peer(sock)
        except OSError:
            sock.close()
            return
        connection = Connection(sock, process, time.monotonic())
        if refused or len(self._connections) >= CONNECTIONS:
            code = ErrorCode.NOT_AUTHORISED if refused else ErrorCode.BUSY
            _try_send(connection, _failure(None, GuestError("no connection for you", code)))
            connection.close()
            return
        self._connections.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _converse(self, connection: Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                connection.flush()
            else:
                connection.receive()
            while not connection.blocked and connection in self._connections:
                if not self._next_frame(connection):
                    break
        except FrameError as error:
            _try_send(connection, _failure(None, error))
            self._drop(connection)
        except Closed:
            self._drop(connection)
        if connection in self._connections:
            wanted = selectors.EVENT_WRITE if connection.blocked else selectors.EVENT_READ
            self._selector.modify(connection.socket, wanted, connection)

    def _next_frame(self, connection: Connection) -> bool:
        try:
            frame = connection.reader.next_frame()
        except FrameError as error:
            if error.fatal:
                raise
            connection.send(_failure(None, error))
            return True
        if frame is None:
            return False
        try:
            self._answer(connection, frame)
        finally:
            frame.close()
        return True

    def _answer(self, connection: Connection, frame: Frame) -> None:
        number: int | None = None
        name = ""
        try:
            number = integer(frame.fields, "id")
            name = text(frame.fields, "op")
            answer = self._operate(connection, name, frame)
        except GuestError as error:
            connection.send(_failure(number, error))
            return
        except Exception as error:
            log.exception("operation %s failed", name)
            connection.send(_failure(number, GuestError(type(error).__name__, ErrorCode.INTERNAL)))
            return
        try:
            connection.send({"id": number, "ok": answer.fields}, answer.descriptors)
        finally:
            close_all(answer.closing)
        if name == "detach":
            self._drop(connection, detached=True)

    def _operate(self, connection: Connection, name: str, frame: Frame) -> Answer:
        if connection.party is not None:
            if name == "detach":
                return Answer({})
            return self.engine.request(name, frame, connection.party)
        if name != "attach":
            raise GuestError("the first operation is attach", ErrorCode.UNEXPECTED_FRAME)
        party = Party()
        answer = self.engine.attach(frame, party)
        if party.controller:
            self._take_control(connection)
        connection.party = party
        return answer

    def _take_control(self, connection: Connection) -> None:
        if self._controller is not None and self._controller.process.ended():
            self._drop(self._controller)
        if self._controller is not None:
            raise GuestError(f"process {self._controller.process.pid} controls the guest", ErrorCode.BUSY)
        former = self._former
        if former is not None:
            if former.pid != connection.process.pid and not former.ended():
                raise GuestError(f"process {former.pid} controlled the guest and lives", ErrorCode.BUSY)
            former.close()
            self._former = None
        self._controller = connection
        self._selector.register(connection.process, selectors.EVENT_READ, connection)

    def _drop(self, connection: Connection, *, detached: bool = False) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.socket)
        if connection is self._controller:
            self._selector.unregister(connection.process)
            self._controller = None
            if not detached and not connection.process.ended():
                self._former = Pidfd(os.dup(connection.process.fileno()), connection.process.pid)
            self._controller_gone()
        connection.close()

    def _controller_gone(self) -> None:
        try:
            self.engine.controller_gone()
        except GuestError:
            log.exception("the guest could not be resumed after its controller had gone")
        if self.engine.state is HeldState.RELEASED:
            self.engine.ending = True  # [HOL-23]

    def _close(self) -> None:
        self.path.unlink(missing_ok=True)
        self._selector.close()
        self._listener.close()
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        if self._former is not None:
            self._former.close()
        os.close(self._stop)
        self.engine.close()


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`, which appears only once connecting works."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        listener.bind(str(temporary))
        temporary.chmod(0o600)
        listener.listen(CONNECTIONS)
        listener.setblocking(False)
        temporary.rename(path)
    except OSError as error:
        listener.close()
        raise GuestError(f"cannot listen on {path}: {error.strerror or error}") from error
    return listener


def _failure(number: int | None, error: GuestError) -> JsonObject:
    return {"id": number, "error": {"code": error.code.name.lower(), "text": error.detail[:255]}}


def _try_send(connection: Connection, fields: JsonObject) -> None:
    with contextlib.suppress(Closed):
        connection.send(fields)
