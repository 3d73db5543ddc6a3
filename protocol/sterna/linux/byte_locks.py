"""Locks of single bytes of a file, between processes that trust each other: fcntl(2), F_OFD_SETLK.

A lock belongs to an *open file description*, not to a process: it is let go of when the last descriptor of
that is closed, so at the latest when its process ends, whatever it was doing. A forked process shares the
descriptions of its parent, and with them the locks; it makes one of its own (`anew`) to have locks of its
own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final, Self

from sterna.linux.descriptor import Descriptor

# struct flock { short l_type, l_whence; off_t l_start, l_len; pid_t l_pid }, of 64-bit machines
_FLOCK: Final = struct.Struct("@hhqqi4x")
_TAKEN: Final = frozenset({errno.EAGAIN, errno.EACCES})

# Packed once: these calls come with each table of pages.
BYTES: Final = 2  # from 0 on; nobody locks another one
_LOCKS: Final = tuple(_FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0) for byte in range(BYTES))
_UNLOCKS: Final = tuple(_FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0) for byte in range(BYTES))


class ByteLocks(Descriptor):
    """An open file description of its own, which can lock bytes for writing. Closing it lets go of them."""

    @classmethod
    def on(cls, fd: int) -> Self:
        """For the file of a descriptor, which stays as it is.

        Raises:
            OSError: it cannot be opened for writing.
        """
        return cls(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC))

    def anew(self) -> None:
        """Go on with another description of the same file, which holds no lock: in a process that was forked.

        Those of the parent stay the parent's.

        Raises:
            OSError: it cannot be opened.
        """
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)
        self.close()
        self._fd = fd

    def try_lock(self, byte: int) -> bool:
        """Lock it unless another description has. What is locked already stays so."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _LOCKS[byte])
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            return False
        return True

    def lock(self, byte: int) -> None:
        """Lock it, when nobody else has it any more."""
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLKW, _LOCKS[byte])

    def unlock(self, byte: int) -> None:
        """Let go of it."""
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _UNLOCKS[byte])

    def is_free(self, byte: int) -> bool:
        """Whether nobody but this description has it locked."""
        answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _LOCKS[byte])
        return int(_FLOCK.unpack(answer)[0]) == fcntl.F_UNLCK
