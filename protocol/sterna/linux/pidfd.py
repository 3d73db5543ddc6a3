"""pidfd_open(2) and who is at the other end of a Unix socket.

A process number is reused when its process is gone; a pidfd names one process for ever, becomes readable
when that process has ended, and lets us signal it without hitting another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import struct
from dataclasses import dataclass
from typing import Final

from sterna.linux.descriptor import Descriptor

_UCRED: Final = struct.Struct("=iII")  # struct ucred { pid_t pid; uid_t uid; gid_t gid }
_SO_PEERPIDFD: Final = 77  # Linux 6.5; no name in the socket module


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """Who connected a Unix socket, as the kernel noted it at that moment."""

    pid: int
    uid: int
    gid: int


def peer_credentials(sock: socket.socket) -> PeerCredentials:
    """SO_PEERCRED of a connected Unix socket."""
    return PeerCredentials(
        *_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    )


class Pidfd(Descriptor):
    """A reference to one process, alive or ended. The descriptor is readable once it has ended."""

    def __init__(self, fd: int, pid: int) -> None:
        super().__init__(fd)
        self.pid = pid

    @classmethod
    def open(cls, pid: int) -> Pidfd:
        """The process that has this number now.

        Raises:
            ProcessLookupError: there is none.
        """
        return cls(os.pidfd_open(pid), pid)

    @classmethod
    def of_peer(cls, sock: socket.socket) -> Pidfd:
        """The process that connected this socket.

        Raises:
            ProcessLookupError: it has ended and left no trace.
        """
        pid = peer_credentials(sock).pid
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
        except OSError as error:
            # Before Linux 6.5, where the number might have been reused meanwhile. EINVAL is of one that has
            # ended, so its number may well be another's by now.
            if error.errno == errno.ENOPROTOOPT:
                return cls.open(pid)
            raise ProcessLookupError(error.errno, error.strerror) from error
        return cls(struct.unpack("=i", raw)[0], pid)

    def ended(self, timeout_s: float = 0.0) -> bool:
        """Whether the process has ended, or ends within `timeout_s`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def is_process_of(self, other: Pidfd) -> bool:
        """Whether both are the same process, if this one is alive.

        One of a foreign process namespace has no number here (0), and is nobody's equal.
        """
        return self.pid == other.pid > 0

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens if the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)
