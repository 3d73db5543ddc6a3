"""One process a guest and host: the lock of whoever has the guest's records. And one that takes guests in.

flock(2) on a file beside them: the kernel lets go of it when the process is gone, however that came, and not
before. So a lock file is never "stale", and there is nothing to clean up. The file tells who has it, for the
operator who finds a guest busy. Records are on a disk of the host's own; across hosts, only lease stores
decide.
"""

from __future__ import annotations

import fcntl
import os
import socket
from typing import Final

from sterna.errors import RecordError
from sterna.host.sealed import seal, unseal
from sterna.registry import ErrorCode

_MODE: Final = 0o600
_TEXT_BYTES_MAX: Final = 4096
_HAS_GUEST: Final = "has this guest; wait for it, or end it"


class GuestLock:
    """The lock, held until `release`.

    Args:
        path: the lock file; made if there is none, in a directory that exists.
        purpose: what this process does, for others to read.
        what: what whoever holds it has or does, and what is to be done about that.

    Raises:
        RecordError: BUSY, and who has it.
        OSError: the file cannot be made.
    """

    def __init__(self, path: str, purpose: str, what: str = _HAS_GUEST) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, seal({"pid": os.getpid(), "purpose": purpose[:255]}), 0)
        except BlockingIOError:
            holder = _holder(os.pread(self._descriptor, _TEXT_BYTES_MAX, 0))
            os.close(self._descriptor)
            text = f"{path}: {holder} on {socket.gethostname()} {what}"
            raise RecordError(text, ErrorCode.BUSY) from None
        except BaseException:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Let go; again is no error. The file stays: without it two processes could lock two of one name."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def is_held(path: str) -> bool:
    """Whether some process has the lock, as far as the kernel tells: who tried it would turn others away."""
    try:
        number = os.stat(path).st_ino
        with open("/proc/locks", encoding="ascii") as lines:
            return any(_is_lock_of(number, line.split()) for line in lines)
    except OSError:
        return False


def _is_lock_of(number: int, words: list[str]) -> bool:
    """Of a line of proc_locks(5), in which a file is device and number: devices of some file systems vary."""
    return "FLOCK" in words and words[-3].rpartition(":")[2] == str(number)


def _holder(text: bytes) -> str:
    """Who has the lock, in words; the text may be half written."""
    found = unseal(text) or {}
    pid, purpose = found.get("pid"), found.get("purpose")
    if not isinstance(pid, int) or not isinstance(purpose, str):
        return "another process"
    return f"process {pid} ({purpose!r})"
