"""A disk that does its worst: `sterna.host.durable.Files` in memory, with crashes and errors.

What was not synced is there after a crash or not, each write for itself, in any order, and the last pieces of
writes may be torn. What was synced is there.

::

    files = CrashFiles(random.Random(seed), crash_at=17)
    with suppress(Crashed):
        work(files)           # the 17th operation does not return
    files = files.restarted() # the machine is back; no crash is planned
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field

_TORN_AT_MOST = 512  # a write may be cut anywhere, and a piece of this size inside it may be missing


class Crashed(BaseException):
    """The machine is gone. No handler of errors sees this."""


@dataclass(frozen=True, slots=True)
class _Change:
    """A write to a file, and what a crash may make of it."""

    whole: Callable[[bytearray], None]
    torn: Callable[[bytearray], None]


@dataclass(slots=True, eq=False)
class _Inode:
    """A file: its content as everybody reads it, as the disk has it, and what lies between."""

    number: int
    content: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[_Change] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Folder:
    """A directory: its names now, on the disk, and the changes between."""

    names: dict[str, _Inode | _Folder] = field(default_factory=dict)
    durable: dict[str, _Inode | _Folder] = field(default_factory=dict)
    pending: list[tuple[str, _Inode | _Folder | None]] = field(default_factory=list)


class CrashFiles:
    """Files on a disk that is written to lazily.

    Args:
        chance: decides what survives.
        crash_at: the operation, counted from 1, that ends with `Crashed` half done; 0 for none.
        fail_at: the operation that fails with `fail_with` half done; 0 for none.
        fail_with: an error number.

    Attributes:
        operations: how many were begun.
    """

    def __init__(
        self, chance: random.Random, *, crash_at: int = 0, fail_at: int = 0, fail_with: int = errno.EIO
    ) -> None:
        self._chance = chance
        self._crash_at = crash_at
        self._fail_at = fail_at
        self._fail_with = fail_with
        self._numbers = 100
        self.operations = 0
        self.root = _Folder()

    def restarted(self, *, crash_at: int = 0, fail_at: int = 0) -> CrashFiles:
        """The disk after a crash at this moment."""
        files = CrashFiles(self._chance, crash_at=crash_at, fail_at=fail_at, fail_with=self._fail_with)
        files._numbers = self._numbers
        files.root = self._survivor(self.root)
        return files

    def plan(self, *, crash_at: int = 0, fail_at: int = 0) -> None:
        """Count from here, and plan anew: the same machine goes on."""
        self.operations, self._crash_at, self._fail_at = 0, crash_at, fail_at

    # ---- what is left of a disk ----

    def _survivor(self, folder: _Folder) -> _Folder:
        """What a crash leaves of a directory."""
        names = dict(folder.durable)
        for name, entry in folder.pending:
            if self._chance.random() < 0.5:
                continue
            if entry is None:
                names.pop(name, None)
            else:
                names[name] = entry
        left = _Folder()
        copies: dict[int, _Inode | _Folder] = {}
        for name, entry in names.items():
            if id(entry) not in copies:
                copies[id(entry)] = self._survivor(entry) if isinstance(entry, _Folder) else self._cut(entry)
            left.names[name] = left.durable[name] = copies[id(entry)]
        return left

    def _cut(self, inode: _Inode) -> _Inode:
        """What a crash leaves of a file."""
        content = bytearray(inode.durable)
        for change in inode.pending:
            self._chance.choice((change.whole, change.torn, lambda _: None))(content)
        return _Inode(inode.number, content, bytes(content))

    # ---- operations ----

    def make_directory(self, path: str, mode: int) -> None:
        """Make a directory; it may exist already."""
        del mode
        self._begin()
        parent, name = self._parent(path)
        entry = parent.names.get(name)
        if entry is None:
            self._enter(parent, name, _Folder())
        elif not isinstance(entry, _Folder):
            raise FileExistsError(errno.EEXIST, "File exists", path)

    def create(self, path: str, data: bytes, mode: int) -> None:
        """A new file, its content synced."""
        del mode
        parent, name = self._parent(path)
        if name in parent.names:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        self._numbers += 1
        inode = _Inode(self._numbers)
        self._enter(parent, name, inode)
        self._change(inode, 0, data)
        self._begin()
        self._settle(inode)

    def link(self, old: str, new: str) -> None:
        """A second name."""
        self._begin()
        parent, name = self._parent(new)
        if name in parent.names:
            raise FileExistsError(errno.EEXIST, "File exists", new)
        self._enter(parent, name, self._file(old))

    def remove(self, path: str) -> None:
        """Remove a name."""
        self._begin()
        self._file(path)
        parent, name = self._parent(path)
        del parent.names[name]
        parent.pending.append((name, None))

    def read(self, path: str, most: int) -> bytes | None:
        """The first `most` bytes."""
        self._begin()
        try:
            return bytes(self._file(path).content[:most])
        except FileNotFoundError:
            return None

    def names(self, path: str, most: int) -> list[str] | None:
        """At most `most` names."""
        self._begin()
        try:
            return list(self._folder(path).names)[:most]
        except FileNotFoundError:
            return None

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Overwrite or extend; where it ends in a crash or an error, a part of it was written."""
        inode = self._file(path)
        try:
            self._begin()
        except (Crashed, OSError):
            self._change(inode, offset, data[: self._chance.randrange(len(data) + 1)])
            raise
        self._change(inode, offset, data)

    def truncate(self, path: str, size: int) -> None:
        """Cut off or extend."""
        self._begin()
        inode = self._file(path)

        def change(content: bytearray) -> None:
            content[size:] = bytes(max(0, size - len(content)))

        change(inode.content)
        inode.pending.append(_Change(change, change))

    def reserve(self, path: str, offset: int, size: int) -> None:
        """Zeros, where nothing is yet."""
        self._begin()
        inode = self._file(path)
        if len(inode.content) < offset + size:
            self._change(inode, len(inode.content), bytes(offset + size - len(inode.content)))

    def sync(self, path: str) -> None:
        """The content is durable. A sync that fails drops what it should have written, and forgets it."""
        inode = self._file(path)
        try:
            self._begin()
        except OSError:
            survivor = self._cut(inode)
            inode.durable = bytes(survivor.content)
            inode.pending.clear()
            raise
        self._settle(inode)

    def sync_directory(self, path: str) -> None:
        """The names are durable."""
        self._begin()
        found = self._folder(path)
        found.durable = dict(found.names)
        found.pending.clear()

    def inode(self, path: str) -> int:
        """The file's number."""
        self._begin()
        return self._file(path).number

    # ---- below ----

    def _begin(self) -> None:
        self.operations += 1
        if self.operations == self._crash_at:
            raise Crashed
        if self.operations == self._fail_at:
            raise OSError(self._fail_with, "planned", "the disk")

    def _enter(self, parent: _Folder, name: str, entry: _Inode | _Folder) -> None:
        parent.names[name] = entry
        parent.pending.append((name, entry))

    def _change(self, inode: _Inode, offset: int, data: bytes) -> None:
        """Write now; of what the disk gets of it, pieces may be missing."""

        def whole(content: bytearray) -> None:
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data

        def torn(content: bytearray) -> None:
            kept = self._chance.randrange(len(data) + 1)
            hole = self._chance.randrange(kept + 1)
            gap = self._chance.randrange(_TORN_AT_MOST)
            before = bytes(content[offset : offset + kept]).ljust(kept, b"\0")
            content.extend(bytes(max(0, offset + kept - len(content))))
            content[offset : offset + kept] = data[:kept]
            content[offset + hole : offset + min(hole + gap, kept)] = before[hole : min(hole + gap, kept)]

        whole(inode.content)
        inode.pending.append(_Change(whole, torn))

    def _settle(self, inode: _Inode) -> None:
        """Write what is to be written; what an earlier sync has failed to is not, though readers see it."""
        content = bytearray(inode.durable)
        for change in inode.pending:
            change.whole(content)
        inode.durable = bytes(content)
        inode.pending.clear()

    def _parent(self, path: str) -> tuple[_Folder, str]:
        above, _, name = path.rpartition("/")
        return self._folder(above), name

    def _folder(self, path: str) -> _Folder:
        found: _Inode | _Folder = self.root
        for name in filter(None, path.split("/")):
            entry = found.names.get(name) if isinstance(found, _Folder) else None
            if entry is None:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
            found = entry
        if not isinstance(found, _Folder):
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path)
        return found

    def _file(self, path: str) -> _Inode:
        parent, name = self._parent(path)
        entry = parent.names.get(name)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        if isinstance(entry, _Folder):
            raise OSError(errno.EINVAL, "not a plain file", path)
        return entry
