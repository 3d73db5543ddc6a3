"""The records of all guests, for the one process that works with some of them.

A guest's records are locked for a process, and all of its sessions share one keeper: so a question that
comes over one connection and the session that is under way on another note what they decide in turn [ONE-27,
ONE-44]. The lock is let go of with the last of them: the next command of this host finds the guest free.

Without a directory records live as long as the process: for tests, and for embedders that keep their own.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import trio

from sterna.core.history import History
from sterna.core.records import Record
from sterna.errors import RecordError
from sterna.host.durable import OsFiles
from sterna.host.guest_lock import GuestLock
from sterna.host.records_keeper import GuestRecords, open_records
from sterna.host.records_log import DIRECTORY_MODE, folder

SERVE_LOCK: Final = "serve.lock"
_TAKES_GUESTS: Final = "takes guests in with these records; end it, or give --records of its own to each"
_FOLDER: Final = re.compile("[0-9a-f]{32}", re.ASCII)


def make_directory(directory: Path) -> None:
    """The directory of all guests, durably: with it would go everything that was reported durable.

    Raises:
        RecordError: it cannot be made.
    """
    try:
        missing = [each for each in (directory, *directory.parents) if not each.exists()]
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        for each in missing:
            OsFiles().sync_directory(os.fspath(each.parent))
    except OSError as error:
        raise RecordError(
            f"{error.filename or directory}: {error.strerror}; give another --records"
        ) from error


async def _is_there(place: trio.Path) -> bool:
    """Whether a guest has records; what cannot be looked at is not nothing.

    Raises:
        RecordError: that.
    """
    try:
        await place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise RecordError(
            f"{place}: {error.strerror}; say --records or --name as its endpoints do"
        ) from error
    return True


class Keeper(Protocol):
    """A guest's records."""

    @property
    def history(self) -> History:
        """What is durable, or held."""
        ...

    async def append(self, record: Record) -> None:
        """Make a record durable; raises as `sterna.host.records_keeper.GuestRecords.append` does."""
        ...

    async def hold(self, record: Record) -> None:
        """Note a record that becomes durable with the next one, and counts for nothing without it."""
        ...


class MemoryRecords:
    """A `Keeper` of what nobody will ask for when the process is gone."""

    def __init__(self, guest: bytes) -> None:
        self.history = History(guest)

    async def append(self, record: Record) -> None:
        """Remember it."""
        self.history = self.history.after(record)
        await trio.lowlevel.checkpoint()

    hold = append


@dataclass(slots=True)
class _Taken:
    keeper: GuestRecords
    users: int = 0


class RecordsShelf:
    """Where a process has its guests' records.

    Args:
        directory: of all guests on this host; None keeps records in memory.
        purpose: what the process does, for another one that finds a guest busy.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, purpose: str = "") -> None:
        self.directory = None if directory is None else Path(directory)
        self._purpose = purpose
        self._taken: dict[bytes, _Taken] = {}
        self._memory: dict[bytes, MemoryRecords] = {}
        self._turn = trio.Lock()

    def guests(self) -> list[bytes]:
        """Guests that have records here, by id.

        Raises:
            RecordError: the directory cannot be read.
        """
        if self.directory is None:
            return list(self._memory)
        try:
            names = sorted(each.name for each in self.directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RecordError(f"{self.directory}: {error.strerror}") from error
        return [bytes.fromhex(name) for name in names if _FOLDER.fullmatch(name)]

    async def take(self, guest: bytes, *, make: bool = True) -> Keeper | None:
        """The guest's records, locked for this process until all that was taken is given back.

        Args:
            guest: its id.
            make: begin records if there are none; else the answer is None then. Who only asks, or only says
                that it brings a guest, makes nothing.

        Raises:
            RecordError: BUSY, another process has them; RECORD_FAILED.
            RecordsMissing: records were lost, none of them counts.
        """
        if self.directory is None:
            if make:
                self._memory.setdefault(guest, MemoryRecords(guest))
            return self._memory.get(guest)
        async with self._turn:
            taken = self._taken.get(guest)
            if taken is None:
                place = trio.Path(folder(os.fspath(self.directory), guest))
                if not make and not await _is_there(place):
                    return None
                if make:
                    await trio.to_thread.run_sync(make_directory, self.directory)
                taken = _Taken(await open_records(self.directory, guest, purpose=self._purpose))
                self._taken[guest] = taken
            taken.users += 1
            return taken.keeper

    async def give_back(self, guest: bytes) -> None:
        """Once for each `take` that gave something; cancellation does not cut it short."""
        with trio.CancelScope(shield=True):
            async with self._turn:
                taken = self._taken.get(guest)
                if taken is None:
                    return  # they are in memory
                taken.users -= 1
                if not taken.users:
                    del self._taken[guest]
                    await taken.keeper.aclose()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be the one process that takes guests in with these records, for as long as this lasts.

        Two would overwrite each other's openings, and look for each other's guests in their own holders.

        Raises:
            RecordError: BUSY, another process does; RECORD_FAILED.
        """
        if self.directory is None:
            yield
            return
        await trio.to_thread.run_sync(make_directory, self.directory)
        path = os.fspath(self.directory / SERVE_LOCK)
        try:
            lock = GuestLock(path, self._purpose, _TAKES_GUESTS)
        except OSError as error:
            raise RecordError(f"{path}: {error.strerror}; give another --records") from error
        try:
            yield
        finally:
            lock.release()

    @asynccontextmanager
    async def opened(self, guest: bytes, *, make: bool = True) -> AsyncIterator[Keeper | None]:
        """Take and give back; raises as `take` does."""
        keeper = await self.take(guest, make=make)
        try:
            yield keeper
        finally:
            if keeper is not None:
                await self.give_back(guest)
