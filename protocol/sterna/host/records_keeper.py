"""A guest's records for the one process that has them: locked, written in a worker thread, errors coded.

All tasks of the process share one keeper a guest. What two of them want to note is noted in turn, so that of
START in one and HANDBACK in the other, whichever comes first makes the other fail [ONE-27, ONE-44].

A guest may stand still for what is written here, so nobody waits for more than one sync: the log's head
follows when the record has been reported, and a record that only counts with the next one may be held.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Final, Self

import trio

from sterna.core.history import History, RecordConflict
from sterna.core.records import Claiming, Granted, Record, Start
from sterna.errors import RecordError
from sterna.host.durable import Files, OsFiles
from sterna.host.guest_lock import GuestLock, is_held
from sterna.host.promptly import run_promptly
from sterna.host.records_log import (
    DIRECTORY_MODE,
    HEAD,
    LOG_PREFIX,
    NAMES_MAX,
    RecordLog,
    RecordsMissing,
    folder,
    look,
)  # fmt: skip

LOCK: Final = "lock"
_LOOKS: Final = 10
# For these a guest stands still.
_IN_BLACKOUT: Final = (Granted, Claiming, Start)
_ADVICE: Final = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "the quota of this user is used up",
    errno.EROFS: "the file system is read-only; the kernel's log tells why",
    errno.EIO: "the disk has failed; the kernel's log tells more",
    errno.EACCES: "it has to belong to this user",
    errno.ENOENT: "make the directory",
}


class GuestRecords:
    """The records of one guest. Made by `open_records`."""

    def __init__(self, directory: str, guest: bytes, lock: GuestLock, log: RecordLog, files: Files) -> None:
        self._directory = directory
        self._guest = guest
        self._lock = lock
        self._log: RecordLog | None = log
        self._files = files
        self._turn = trio.Semaphore(1)  # and no Lock: who takes it may leave it to the settling
        self._history = log.history
        self._held: tuple[Record, ...] = ()
        self._closed = False

    @property
    def history(self) -> History:
        """What is durable, or held; after an append that failed, at least that."""
        return self._history

    async def append(self, record: Record) -> None:
        """Make a record durable; it is when this returns, and so is what was held.

        Not cut short by cancellation: a record is written or it is not.

        Raises:
            RecordConflict: another record stands against it.
            RecordError: RECORD_FAILED. It may be durable or not; what is there then shows with the next
                call, which looks anew.
        """
        await self._turn.acquire()
        try:
            self._check_open()
            if self._has(record):
                self._turn.release()
                return
            if isinstance(record, _IN_BLACKOUT):
                await run_promptly(partial(self._append, record))
            else:
                await trio.to_thread.run_sync(self._append, record)
        except BaseException:
            self._turn.release()
            raise
        trio.lowlevel.spawn_system_task(self._settle)

    async def hold(self, record: Record) -> None:
        """Note a record that need not be durable before the next one is, and will be then.

        Only where nothing follows from it alone: if the process ends before that, it was never noted.
        Raises as `append` does.
        """
        async with self._turn:
            self._check_open()
            longer = self._history.after(record)
            if longer is not self._history and self._held:  # one is enough to wait for a next one
                await trio.to_thread.run_sync(self._append, record)
            elif longer is not self._history:
                self._held, self._history = (record,), longer

    def _has(self, record: Record) -> bool:
        """Whether it is known to be durable: no thread is asked for that."""
        return self._log is not None and not self._held and self._history.after(record) is self._history

    def _check_open(self) -> None:
        if self._closed:
            raise RecordError("the records are closed, another process may have them; open them again")

    def _append(self, *records: Record) -> None:
        log, self._log = self._log, None  # it is put back unless something fails on the way
        try:
            if log is None:
                log = RecordLog(self._files, self._directory, self._guest)
            self._history = _with(log.history, self._held)
            try:
                log.append(*self._held, *records)
            except RecordError:
                self._log = log  # nothing was written
                raise
        except OSError as error:
            raise _failed(error, self._directory) from error
        self._held = ()
        self._log, self._history = log, log.history

    async def _settle(self) -> None:
        """The log's head, while whoever has appended goes on already."""
        try:
            if self._log is not None:
                await trio.to_thread.run_sync(self._log.settle)
        except OSError:
            self._log = None  # what was reported is durable all the same; the next call looks anew
        finally:
            self._turn.release()

    async def aclose(self) -> None:
        """Let another process have the guest."""
        async with self._turn:
            if self._held and not self._closed:
                with suppress(RecordError):  # nothing has followed from it
                    await trio.to_thread.run_sync(self._append)
            if self._log is not None and not self._closed:
                with suppress(OSError):  # whoever opens it next makes up for that
                    await trio.to_thread.run_sync(self._log.settle)
            self._closed = True
            self._lock.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):
            await self.aclose()


def _with(history: History, held: Iterable[Record]) -> History:
    """The history with what is held, unless it was decided against that."""
    for record in held:
        with suppress(RecordConflict):
            history = history.after(record)
    return history


async def open_records(
    directory: str | os.PathLike[str], guest: bytes, *, purpose: str, files: Files | None = None
) -> GuestRecords:
    """Lock a guest's records and read them; they are made if there are none.

    Args:
        directory: of the records of all guests on this host; on a disk of its own, not shared with others.
        guest: its id.
        purpose: what this process does, for the one that finds the guest busy.
        files: for tests.

    Raises:
        RecordError: BUSY, another process has them; RECORD_FAILED.
        RecordsMissing: records were lost, none of them counts.
    """
    return await trio.to_thread.run_sync(_open, os.fspath(directory), guest, purpose, files or OsFiles())


def _open(directory: str, guest: bytes, purpose: str, files: Files) -> GuestRecords:
    place = folder(directory, guest)
    try:
        OsFiles().make_directory(place, DIRECTORY_MODE)
        lock = GuestLock(f"{place}/{LOCK}", purpose)
        try:
            log = RecordLog(files, directory, guest)
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise _failed(error, place) from error
    return GuestRecords(directory, guest, lock, log, files)


async def set_aside(directory: str | os.PathLike[str], guest: bytes, *, purpose: str) -> list[str]:
    """Begin anew with a guest whose records do not count any more; the files stay, under other names.

    Only for an operator who has found out elsewhere who owns the guest [LOG-6].

    Returns:
        The new paths.

    Raises:
        RecordError: BUSY; RECORD_FAILED.
    """
    return await trio.to_thread.run_sync(_set_aside, os.fspath(directory), guest, purpose)


def _set_aside(directory: str, guest: bytes, purpose: str) -> list[str]:
    files, place, moved = OsFiles(), folder(directory, guest), []
    try:
        lock = GuestLock(f"{place}/{LOCK}", purpose)
        try:
            token = secrets.token_hex(4)
            names = files.names(place, NAMES_MAX) or []
            # The head first: logs without one count as missing too, if this is cut short.
            for name in sorted(each for each in names if each == HEAD or each.startswith(LOG_PREFIX)):
                moved.append(f"{place}/aside-{token}-{name}")
                files.link(f"{place}/{name}", moved[-1])
                files.remove(f"{place}/{name}")
                files.sync_directory(place)
        finally:
            lock.release()
    except OSError as error:
        raise _failed(error, place) from error
    return moved


def is_kept(directory: str | os.PathLike[str], guest: bytes) -> bool:
    """Whether a process has the guest's records, as far as can be seen: a session of it may be under way."""
    return is_held(f"{os.fspath(directory)}/{guest.hex()}/{LOCK}")


async def peek(directory: str | os.PathLike[str], guest: bytes) -> History:
    """What is written, without the lock: for display, while another process may write.

    The last of it may not be durable yet, or may have been reported: its writer is gone, or is at it.

    Raises:
        RecordError: RECORD_FAILED.
        RecordsMissing: records were lost.
    """
    return await trio.to_thread.run_sync(_peek, os.fspath(directory), guest)


def _peek(directory: str, guest: bytes) -> History:
    for attempt in range(_LOOKS):
        try:
            found = look(OsFiles(), directory, guest)
        except OSError as error:
            raise _failed(error, directory) from error
        except RecordsMissing:
            # Head and log are read one after the other, and the writer may have gone on in between.
            if attempt + 1 == _LOOKS:
                raise
            continue
        break
    return History(guest) if found is None else found.history


def _failed(error: OSError, place: str) -> RecordError:
    advice = _ADVICE.get(error.errno or 0, "look after that file system")
    return RecordError(f"{error.filename or place}: {error.strerror}; {advice}")
