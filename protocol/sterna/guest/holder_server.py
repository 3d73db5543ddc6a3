"""The holder's side of its Unix socket: connections, who controls, and when a controller is gone.

One thread, one poll loop. A controller is a process, not a connection: a connection that was closed says
nothing about mappings of guest memory that its process may still have, so the next controller waits until
that process has ended (a pidfd tells) or has said `detach`. While a connection has not taken its answer,
nothing more is read from it; so a peer that only writes holds no more memory than one frame and one answer.
Each turn of the loop answers one request of each connection: one that sends thousands at once does not keep
the others waiting, nor the news that it is dead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sterna import limits
from sterna.errors import GuestError
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_connection import Closed, Connection, close_strange
from sterna.guest.holder_engine import Answer, HolderEngine, Party
from sterna.guest.holder_fields import integer, text
from sterna.guest.holder_frames import Frame, FrameError, JsonObject, close_all
from sterna.guest.holder_listener import Listener
from sterna.linux.pidfd import Pidfd, peer_credentials
from sterna.registry import ErrorCode

CONNECTIONS: Final = 16  # a controller, a few observers, and some that are being refused

log = logging.getLogger(__name__)


class HolderServer:
    """Serves one guest on one Unix socket.

    Args:
        path: where the socket shall be; only this user can connect.
        engine: the rules. The server closes it in the end, and at once if it cannot listen.
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
        self._stopping = threading.RLock()  # of `_stop`; a signal handler may interrupt its own thread
        try:
            self._listener = Listener(self.path, CONNECTIONS)
        except BaseException:
            os.close(self._stop)
            self._selector.close()
            engine.close()
            raise
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._stop, selectors.EVENT_READ)
        if parent is not None:
            self._selector.register(parent, selectors.EVENT_READ)

    def stop(self) -> None:
        """Have `serve` return. Legal from any thread, from a signal handler, and when it has returned."""
        with self._stopping:
            if self._stop >= 0:
                os.eventfd_write(self._stop, 1)

    def serve(self) -> None:
        """Answer until a controller says `shutdown`, the image is released, the parent ends, or `stop`."""
        try:
            while not self.engine.ending:
                behind = [one for one in self._connections if one.ready]
                for key, events in self._selector.select(0.0 if behind else self._timeout_s()):
                    if key.fileobj in {self._stop, self._parent}:
                        return
                    self._ready(key, events)
                for connection in behind:
                    with self._dropping(connection):
                        self._answer_next(connection)  # if it is still there
                self._drop_silent()
        finally:
            self._close()

    @contextlib.contextmanager
    def _dropping(self, connection: Connection) -> Iterator[None]:
        """Whatever a peer has found, it loses its connection and the guest runs on [HOL-10]."""
        try:
            yield
        except Closed:
            pass
        except FrameError as error:
            _try_send(connection, _failure(None, error))
        except Exception:
            log.exception("a connection failed")
        else:
            return
        if connection in self._connections:
            self._drop(connection)

    def _ready(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj is self._listener:
            try:
                self._accept()
            except OSError:
                pass  # it has gone, and who it was cannot be known
            except Exception:
                log.exception("a connection could not be accepted")
        elif isinstance(key.data, Connection) and key.data in self._connections:
            with self._dropping(key.data):
                if isinstance(key.fileobj, Pidfd):
                    raise Closed  # the controller's process has ended; a child may keep the socket open
                self._converse(key.data, events)

    def _timeout_s(self) -> float | None:
        waiting = [connection.attach_by for connection in self._connections if connection.party is None]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for connection in [one for one in self._connections if one.party is None and one.attach_by <= now]:
            self._drop(connection)

    def _accept(self) -> None:
        sock = self._listener.accept()
        if sock is None:
            return
        with contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            refused = peer_credentials(sock).uid not in {0, os.geteuid()}
            process = Pidfd.of_peer(sock)
            stack.callback(process.close)
            connection = Connection(sock, process, time.monotonic())
            stack.pop_all()
            stack.callback(_close_connection, connection)
            if refused or len(self._connections) >= CONNECTIONS:
                code = ErrorCode.NOT_AUTHORISED if refused else ErrorCode.BUSY
                _try_send(connection, _failure(None, GuestError("no connection for you", code)))
                return
            self._selector.register(sock, selectors.EVENT_READ, connection)
            self._connections.add(connection)
            stack.pop_all()

    def _converse(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            connection.flush()
        elif connection.ready:
            return  # it has sent enough; its turn comes
        else:
            connection.receive()
        self._answer_next(connection)

    def _answer_next(self, connection: Connection) -> None:
        if connection in self._connections and connection.ready:
            self._next_frame(connection)
        if connection in self._connections:
            wanted = selectors.EVENT_WRITE if connection.blocked else selectors.EVENT_READ
            self._selector.modify(connection.socket, wanted, connection)

    def _next_frame(self, connection: Connection) -> None:
        try:
            frame = connection.reader.next_frame()
        except FrameError as error:
            if error.fatal:
                raise
            connection.send(_failure(None, error))
            return
        assert frame is not None
        try:
            self._answer(connection, frame)
        finally:
            close_strange(frame.descriptors)

    def _answer(self, connection: Connection, frame: Frame) -> None:
        number: int | None = None
        name = ""
        answer = Answer({})
        try:
            number = integer(frame.fields, "id")
            name = text(frame.fields, "op")
            answer = self._operate(connection, name, frame)
            connection.send({"id": number, "ok": answer.fields}, answer.descriptors)
        except Closed:
            raise
        except GuestError as error:
            connection.send(_failure(number, error))
        except Exception as error:
            log.exception("operation %s failed", name)
            connection.send(_failure(number, GuestError(type(error).__name__, ErrorCode.INTERNAL)))
        else:
            if name == "detach":
                self._drop(connection, detached=True)
        finally:
            close_all(answer.closing)

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
            # Again: if the former controller's end was noticed only now, it has changed what is so.
            answer = self.engine.attach(frame, party)
        connection.party = party
        return answer

    def _take_control(self, connection: Connection) -> None:
        if self._controller is not None and self._controller.process.ended():
            self._drop(self._controller)
        if self._controller is not None:
            raise GuestError(f"process {self._controller.process.pid} controls the guest", ErrorCode.BUSY)
        former = self._former
        if former is not None:
            if not former.is_process_of(connection.process) and not former.ended():
                raise GuestError(f"process {former.pid} controlled the guest and lives", ErrorCode.BUSY)
            former.close()
            self._former = None
        self._controller = connection
        self._selector.register(connection.process, selectors.EVENT_READ, connection)

    def _drop(self, connection: Connection, *, detached: bool = False) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.socket)
        keep_process = False
        if connection is self._controller:
            self._selector.unregister(connection.process)
            self._controller = None
            if not detached and not connection.process.ended():
                self._former, keep_process = connection.process, True
            self._controller_gone()
        _close_connection(connection, keep_process=keep_process)

    def _controller_gone(self) -> None:
        try:
            self.engine.controller_gone()
        except Exception:
            log.exception("the guest could not be resumed after its controller had gone")
        if self.engine.state is HeldState.RELEASED:
            self.engine.ending = True  # [HOL-23]

    def _close(self) -> None:
        with self._stopping:
            stop, self._stop = self._stop, -1
            os.close(stop)
        self._selector.close()
        self._listener.close()
        for connection in self._connections:
            _close_connection(connection)
        self._connections.clear()
        if self._former is not None:
            self._former.close()
        self.engine.close()


def _close_connection(connection: Connection, *, keep_process: bool = False) -> None:
    try:
        connection.close(keep_process=keep_process)
    except Exception:  # no thread, for one: better a descriptor lost than the guest
        log.exception("a connection could not be closed")


def _failure(number: int | None, error: GuestError) -> JsonObject:
    # Cut to what section 3 calls a text: 255 bytes, not characters.
    text = error.detail.encode(errors="replace")[: limits.TEXT_BYTES].decode(errors="ignore")
    return {"id": number, "error": {"code": error.code.name.lower(), "text": text}}


def _try_send(connection: Connection, fields: JsonObject) -> None:
    with contextlib.suppress(Closed):
        connection.send(fields)
