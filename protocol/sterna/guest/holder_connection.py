"""A connected socket as the holder has it: frames in, at most one unsent answer out.

Descriptors that a peer passes are taken, all of them, before they are judged. What the kernel drops for us,
because there was no room for it, it closes in our thread; and closing can take as long as the peer likes: a
TCP socket lingers, a FUSE file waits for its server. So what is no memory file, and a connection that has
unread bytes (there may be descriptors among them), is closed in a thread of its own.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Final

from sterna.guest.holder_engine import Party
from sterna.guest.holder_frames import FrameError, FrameReader, JsonObject, close_all, encode_frame
from sterna.linux.memfd import is_memory_file
from sterna.linux.pidfd import Pidfd

ATTACH_WITHIN_S: Final = 10.0  # a local process needs milliseconds; whoever needs more only takes up a place
_READ_BYTES: Final = 1 << 16
_KERNEL_DESCRIPTORS: Final = 253  # SCM_MAX_FD: no sendmsg(2) carries more
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_KERNEL_DESCRIPTORS * 4)


class Closed(Exception):  # noqa: N818 - not an error: the peer has closed
    """The connection has ended."""


def close_strange(descriptors: Iterable[int]) -> None:
    """Close what a peer has passed, and do not wait for it."""
    strange = []
    for descriptor in descriptors:
        if is_memory_file(descriptor):
            os.close(descriptor)
        else:
            strange.append(descriptor)
    if strange:
        _elsewhere(lambda: close_all(strange))


def _elsewhere(act: Callable[[], None]) -> None:
    threading.Thread(target=act, name="close", daemon=True).start()


class Connection:
    """See the module.

    Attributes:
        process: who has connected.
        party: what it attached as; None before that.
        attach_by: when it has to have attached, in monotonic seconds.
    """

    def __init__(self, sock: socket.socket, process: Pidfd, now: float) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.process = process
        self.party: Party | None = None
        self.attach_by = now + ATTACH_WITHIN_S
        self.reader = FrameReader(close_strange)
        self._unsent = b""
        self._descriptors: list[int] = []  # of the answer that is not yet sent; ours

    @property
    def blocked(self) -> bool:
        """Whether an answer waits for the peer to read."""
        return bool(self._unsent)

    @property
    def ready(self) -> bool:
        """Whether there is a frame to be answered, and a place for its answer."""
        return not self.blocked and self.reader.has_frame

    def receive(self) -> None:
        """Take what is there.

        Raises:
            Closed: the peer has ended the connection.
            FrameError: descriptors that the peer may not pass, or more than a frame may carry.
        """
        try:
            data, ancillary, flags, _ = self.socket.recvmsg(
                _READ_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
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
            raise FrameError("descriptors were lost", fatal=True)
        # Only a controller has a use for descriptors.
        if descriptors and (self.party is None or not self.party.controller):
            raise FrameError("descriptors of one that does not control", fatal=True)
        if not data:
            raise Closed

    def send(self, fields: JsonObject, descriptors: Iterable[int] = ()) -> None:
        """Send a frame, or as much of it as the socket takes now; `flush` sends the rest.

        The descriptors stay the caller's; those of an answer that has to wait are copied.
        """
        passed = list(descriptors)
        self._unsent = encode_frame(fields, passed)
        try:
            for descriptor in passed:
                self._descriptors.append(os.dup(descriptor))
        except OSError as error:
            raise Closed from error
        self.flush()

    def flush(self) -> None:
        """Send what an answer still lacks.

        Raises:
            Closed: the peer is gone.
        """
        try:
            if self._descriptors:  # with the first byte, so they are unsent as long as it is
                sent = socket.send_fds(self.socket, [self._unsent], self._descriptors)
                self._unsent = self._unsent[sent:]
                self._close_descriptors()
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            pass
        except OSError as error:
            raise Closed from error

    def close(self, *, keep_process: bool = False) -> None:
        """End the connection, and give the process reference back unless somebody else has taken it."""
        self.reader.close()
        self._close_descriptors()
        if self._has_unread():
            _elsewhere(self.socket.close)
        else:
            self.socket.close()
        if not keep_process:
            self.process.close()

    def _close_descriptors(self) -> None:
        close_all(self._descriptors)
        self._descriptors = []

    def _has_unread(self) -> bool:
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False
