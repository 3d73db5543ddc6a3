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

import contextlib
import errno
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from sterna.wire.records import NO_RUNNER, Runner


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


class GuestJournal(Journal):
    """The journal of one guest on one host: which lines there are, and under whose name.

    Several threads may write the guest; the first that has written after `expect` tells of it.

    Attributes:
        count: tells how much the guest has written, as far as is known.
        epoch: under which it runs; 0 before it did.
        granted: it has been granted to another host, and not been won back.
    """

    def __init__(self, path: str | None, count: Callable[[], int]) -> None:
        super().__init__(path)
        self.count = count
        self.epoch = 0
        self.granted = False
        self._who = NO_RUNNER
        self._lock = threading.Lock()
        self._event = ""  # what the next write is to be told as
        self._told_count = -1
        self._told_epoch = 0  # of the last line that tells of writes

    @contextlib.contextmanager
    def running(self, epoch: int, runner: Runner) -> Iterator[None]:
        """What is begun within runs under this epoch, and its first write is told so; not if it fails."""
        before = self.epoch, self._who, self.granted
        self.epoch, self._who, self.granted = epoch, runner, False
        try:
            yield
        except BaseException:
            self.epoch, self._who, self.granted = before
            raise

    def expect(self, event: str) -> None:
        """The next write is to be told as this, empty for nothing; what was not told yet goes first."""
        self._event = self._event or event

    def progress(self, event: str) -> None:
        """It has written: the first time since `expect`, or ("beat") once more."""
        with self._lock:
            if event == "beat":
                # None before the first write since it was run: it may wait for a page, or for its rate.
                due = not self._event and self.count() > self._told_count
            else:
                event, self._event = self._event, ""
                due = bool(event)
            if due:
                self._told_epoch = self.epoch
                self._tell(event)

    def note(self, event: str) -> None:
        """Something has happened to it while nothing of it runs."""
        with self._lock:
            # Stopped before its first write in this epoch: the count is that of a line of the epoch before.
            if self._told_epoch == self.epoch:
                self._tell(event)

    def grant(self, *, revoked: bool = False) -> None:
        """It was granted to another host, which is the last line from here; or that was taken back."""
        self.note("revoked" if revoked else "granted")
        self.granted = not revoked

    def end(self) -> None:
        """It ends here, which is told if it cannot run elsewhere by now."""
        if not self.granted:
            self.note("end")

    def _tell(self, event: str) -> None:
        self._told_count = self.count()
        self.append(self._told_count, self.epoch, self._who, event)


def _open(path: str) -> int:
    # A link could lead to anybody's file; opening a pipe for writing waits for its reader.
    flags: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd
