"""The guest's journal: what a guest has run, under which epoch, as seen from inside.

One line of JSON an event, appended with O_APPEND so that the holders of both sides may write to one file:
``[count, epoch, runner, ns, event]``, with the workload's count, the runner as ``host:id``, CLOCK_BOOTTIME
in nanoseconds, and one of

* ``run``: first writes under this epoch; ``resume``: first writes after a pause. Both are written after the
  writes that they tell of, so their count is above every earlier line's.
* ``beat``: running on; never written without progress since the line before.
* ``pause``, ``granted``, ``revoked``, ``end``: nothing runs. Their count may equal that of the line before,
  if epoch and runner are the same. A granted guest has no ``end``: it may run elsewhere by then.

So a running line whose count is not above its predecessor's, a lower epoch, or one epoch with two runners
is a fork.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from typing import Final

from sterna.wire.records import Runner


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: one clock for all processes of a host, and it does not stop while the host sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Journal:
    """Appends lines to a file; without a path it does nothing.

    Attributes:
        failure: the first error of the file, in words; the guest does not stop for it.

    Raises:
        OSError: it cannot be written to, or is no regular file: the guest would wait for a pipe's reader.
    """

    def __init__(self, path: str | None) -> None:
        self._fd = -1 if path is None else _open(path)
        self._cut = b""  # what ends a line that was written in part
        self.failure = ""

    def append(self, count: int, epoch: int, runner: Runner, event: str, ns: int | None = None) -> None:
        """One line, in one write(2), so that two writers never mix theirs."""
        if self._fd < 0:
            return
        line = json.dumps(
            [count, epoch, f"{runner.host}:{runner.id.hex()}", boottime_ns() if ns is None else ns, event],
            separators=(",", ":"),
        )
        data = self._cut + line.encode() + b"\n"
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            self.failure = self.failure or str(error)
            return
        self._cut = b""
        if written < len(data):  # a full disk; what is left of the line must not swallow the next one
            self._cut = b"\n"
            self.failure = self.failure or f"{written} of {len(data)} bytes of a line were written"

    def close(self) -> None:
        """Close the file. Legal twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _open(path: str) -> int:
    # A link could lead to anybody's file; opening a pipe for writing waits for its reader.
    flags: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd
