"""The few file operations that lease stores and records are made of, and what each of them promises.

Nothing that is written here is there after a crash of the machine until it was synced: a file's content by
`sync`, its name by `sync_directory` of where the name stands. Between those two a crash may keep any part of
what was written, in any order. `sterna.testing.CrashFiles` is the same small interface over a disk that does
its worst, so that what is built on it can be shown to survive.

A failed sync is final for what it was to make durable. Linux tells of a write error once and then calls the
page clean, so a second fsync that succeeds says nothing about the first one's data: who gets an error here
must write the data again, or give up what depends on it.
"""

from __future__ import annotations

import errno
import os
import stat
from itertools import islice
from typing import Final, Protocol

# Whoever can plant files on shared storage must not make us wait (a FIFO) or read elsewhere (a link).
_CAREFUL: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class Files(Protocol):
    """Blocking calls, to be made in a worker thread. All raise OSError."""

    def make_directory(self, path: str, mode: int) -> None:
        """Make a directory; it may exist already."""
        ...

    def create(self, path: str, data: bytes, mode: int) -> None:
        """A new file with this content, which is synced; the name is not. FileExistsError if there is one."""
        ...

    def link(self, old: str, new: str) -> None:
        """A second name for a file, in one atomic step; FileExistsError if the name is taken."""
        ...

    def remove(self, path: str) -> None:
        """Remove a name."""
        ...

    def read(self, path: str, most: int) -> bytes | None:
        """The first `most` bytes of a file; None if there is none. An OSError if it is not a plain file."""
        ...

    def names(self, path: str, most: int) -> list[str] | None:
        """At most `most` names in a directory, in any order; None if there is no directory."""
        ...

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Overwrite or extend an existing file. Not synced."""
        ...

    def truncate(self, path: str, size: int) -> None:
        """Cut a file off, or extend it with zeros. Not synced."""
        ...

    def reserve(self, path: str, offset: int, size: int) -> None:
        """Make room on the disk for bytes that will be written there; zeros stand there until then."""
        ...

    def sync(self, path: str) -> None:
        """Return when the file's content is durable."""
        ...

    def sync_directory(self, path: str) -> None:
        """Return when the directory's names are durable."""
        ...

    def inode(self, path: str) -> int:
        """The file's number, which a copy of the file does not have."""
        ...


class OsFiles:
    """The machine's own files."""

    def make_directory(self, path: str, mode: int) -> None:
        """Make a directory; it may exist already."""
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise

    def create(self, path: str, data: bytes, mode: int) -> None:
        """A new file, its content synced."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAREFUL, mode)
        try:
            _write_all(descriptor, 0, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, old: str, new: str) -> None:
        """A second name."""
        os.link(old, new, follow_symlinks=False)

    def remove(self, path: str) -> None:
        """Remove a name."""
        os.unlink(path)

    def read(self, path: str, most: int) -> bytes | None:
        """The first `most` bytes."""
        try:
            descriptor = self._open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        found = bytearray()
        try:
            while len(found) < most and (piece := os.read(descriptor, most - len(found))):
                found += piece
        finally:
            os.close(descriptor)
        return bytes(found)

    def names(self, path: str, most: int) -> list[str] | None:
        """At most `most` names."""
        try:
            with os.scandir(path) as entries:
                return [entry.name for entry in islice(entries, most)]
        except FileNotFoundError:
            return None

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Overwrite or extend."""
        descriptor = self._open(path, os.O_WRONLY)
        try:
            _write_all(descriptor, offset, data)
        finally:
            os.close(descriptor)

    def truncate(self, path: str, size: int) -> None:
        """Cut off or extend."""
        descriptor = self._open(path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def reserve(self, path: str, offset: int, size: int) -> None:
        """Zeros, written: to overwrite them later takes neither new blocks nor the file system's journal.

        posix_fallocate would only do the former: that a block of its is written to is news for the journal.
        """
        self.write(path, offset, bytes(size))

    def sync(self, path: str) -> None:
        """fdatasync: the content, and as much of the rest as finding it again takes."""
        descriptor = self._open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def sync_directory(self, path: str) -> None:
        """Fsync of the directory."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def inode(self, path: str) -> int:
        """The inode's number."""
        return os.lstat(path).st_ino

    def _open(self, path: str, how: int) -> int:
        descriptor = os.open(path, how | _CAREFUL)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a plain file", path)
        return descriptor


def _write_all(descriptor: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, offset)
        offset += done
        view = view[done:]
