"""The lease store in files: a directory that all hosts share, and nothing to run or to pay for.

::

    leases/store                       says that this is a store, and which one
    leases/<guest>/<epoch>             a filled slot
    leases/<guest>/claim.<epoch>.<random>  a claim being made, or left by a claimant that died

A claim writes a file of its own, syncs it, and gives it the slot's name with link(2). That is the one atomic
step: link() never replaces a name, so of many claimants one succeeds, and the slot has its whole content from
the first moment. link()'s own answer is not believed (on NFS it can be lost, and the repeated call then fails
with "exists" although it was the first that made the link): whatever it says, the slot is read, and whose
runner stands there has won.

Nobody is told of a slot that a crash could take back [ONE-3]: the directory is synced before a runner is
named, by the reader too, who may be quicker than the claimant. spec/stores.md has the layout, and what shared
file systems must offer.

Names are made of guest and epoch alone, in hexadecimal and decimal digits; nothing from outside gets into
one.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import trio

from sterna.core.verdict import Slot
from sterna.errors import ConfigError, StoreDamaged, StoreUnavailable
from sterna.host.durable import Files, OsFiles
from sterna.host.slots import (
    ADVICE,
    EPOCH_MAX,
    SLOT_BYTES_MAX,
    check_guest_id,
    check_place,
    check_runner,
    decode_slot,
    encode_slot,
)
from sterna.wire.records import Runner

T = TypeVar("T")

_MARKER: Final = "store"
_MARKER_BYTES_MAX: Final = 256
_VERSION: Final = 1
_SLOT_NAME: Final = re.compile(r"[0-9]{20}", re.ASCII)
_CLAIM_NAME: Final = re.compile(r"claim\.([0-9]{20})\.[0-9a-f]{16}", re.ASCII)
# A guest that moves every minute for two months; a listing that is longer holds something else.
_NAMES_MAX: Final = 100_000
# A link, a FIFO or directory, a socket: nobody who keeps the rules makes one, and asking again is no use.
_NO_PLAIN_FILE: Final = frozenset({errno.ELOOP, errno.EINVAL, errno.ENXIO})
_THREADS: Final = 8  # calls that hang on storage that is gone; more of them wait for these
_WITHIN_S: Final = 10.0
_POLL_S: Final = 0.2


class FileLeaseStore:
    """A `LeaseStore` in a directory that all hosts share.

    Args:
        directory: the store, made by `create_file_store`.
        within_s: a call without an answer for so long is `StoreUnavailable`. What it has begun goes on in
            its thread, and may take effect later.
        poll_s: how often `watch` looks; shared file systems have no other way.
        files: for tests.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        within_s: float = _WITHIN_S,
        poll_s: float = _POLL_S,
        files: Files | None = None,
    ) -> None:
        self._root = os.fspath(directory)
        self._within_s = within_s
        self._poll_s = poll_s
        self._files: Files = files or OsFiles()
        self._threads = trio.CapacityLimiter(_THREADS)
        self._store_id = ""
        # The highest slot of each guest that is known to be durable: a claim that is made while the guest is
        # paused need not wait for the disk once more to be sure of its predecessor.
        self._durable: dict[bytes, int] = {}

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        """Fill the slot if it is the next one."""
        check_place(guest, epoch)
        check_runner(runner)
        return await self._call(lambda: self._claim(guest, epoch, runner))

    async def read(self, guest: bytes, epoch: int) -> Runner | None:
        """The slot's runner."""
        check_place(guest, epoch)
        return await self._call(lambda: self._named(guest, epoch))

    async def newest(self, guest: bytes) -> Slot | None:
        """The filled slot with the highest epoch."""
        check_guest_id(guest)
        return await self._call(lambda: self._newest(guest))

    async def watch(self, guest: bytes, epoch: int) -> Runner:
        """Look every now and then until the slot is filled."""
        while True:
            with suppress(StoreUnavailable):
                if (runner := await self.read(guest, epoch)) is not None:
                    return runner
            await trio.sleep(self._poll_s)

    async def aclose(self) -> None:
        """Nothing to let go of."""
        await trio.lowlevel.checkpoint()

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            with trio.fail_after(self._within_s):
                return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)
        except trio.TooSlowError:
            text = f"lease store {self._root}: no answer for {self._within_s:g} s; look after its storage"
            raise StoreUnavailable(text) from None
        except OSError as error:
            text = f"lease store {self._root}: {error.strerror} ({error.filename}); look after its storage"
            raise StoreUnavailable(text) from error

    # ---- what follows runs in a worker thread ----

    def _claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        named = self._named(guest, epoch)
        if named is not None:
            return named
        known = self._durable.get(guest, 0) >= epoch - 1
        if not known and self._named(guest, epoch - 1) is None:
            return None
        directory = self._directory(guest)
        self._files.make_directory(directory, 0o777)
        claim = f"{directory}/claim.{epoch:020}.{secrets.token_hex(8)}"
        try:
            self._files.create(claim, encode_slot(guest, epoch, runner), 0o666)
            if self._was_emptied(guest, epoch):
                raise self._hole(guest, epoch)
            # FileExistsError: somebody's, or our own on NFS. FileNotFoundError: who won has tidied up.
            with suppress(FileExistsError, FileNotFoundError):
                self._files.link(claim, self._slot(guest, epoch))
        except (OSError, StoreDamaged):
            # The claim is repeated until a full disk has room: not with a file more each time. A link that
            # was made in spite of its error stays, it is the slot's own name.
            with suppress(OSError):
                self._files.remove(claim)
            raise
        named = self._named(guest, epoch)
        if named is None:
            raise StoreUnavailable(f"{claim} was removed by somebody else; ask again")
        self._tidy(directory, claim, epoch, won=named == runner)
        return named

    def _named(self, guest: bytes, epoch: int) -> Runner | None:
        """The slot's runner, after which it is durable, and so are those before it."""
        self._check_marker()
        try:
            data = self._files.read(self._slot(guest, epoch), SLOT_BYTES_MAX + 1)
        except OSError as error:
            if error.errno not in _NO_PLAIN_FILE:
                raise
            text = f"lease store {self._root}: slot {epoch} of guest {guest.hex()} is no plain file; {ADVICE}"
            raise StoreDamaged(text) from error
        if data is None:
            return None
        runner = decode_slot(data, guest, epoch)
        durable = self._durable.get(guest, 0)
        if durable < epoch:
            self._files.sync_directory(self._directory(guest))
            if not durable:
                self._files.sync_directory(self._root)
            self._durable[guest] = max(epoch, self._durable.get(guest, 0))
        return runner

    def _was_emptied(self, guest: bytes, epoch: int) -> bool:
        """Whether a slot that is empty has been filled before: then the one behind it is filled."""
        behind = self._named(guest, epoch + 1) if epoch < EPOCH_MAX else None
        return behind is not None and self._named(guest, epoch) is None

    def _newest(self, guest: bytes) -> Slot | None:
        self._check_marker()
        names = self._files.names(self._directory(guest), _NAMES_MAX)
        if names is not None and len(names) == _NAMES_MAX:
            raise StoreDamaged(f"lease store {self._root}: too many files for guest {guest.hex()}")
        epochs = {int(name) for name in names or () if _SLOT_NAME.fullmatch(name)}
        newest = max(epochs, default=0)
        if newest - len(epochs) > _NAMES_MAX:
            raise self._hole(guest, newest)
        # A listing is no snapshot: what it lacks may have been filled meanwhile, what it ends with too.
        for epoch in range(1, newest):
            if epoch not in epochs and self._named(guest, epoch) is None:
                raise self._hole(guest, epoch)
        found: Slot | None = None
        for epoch in range(max(newest, 1), EPOCH_MAX + 1):
            runner = self._named(guest, epoch)
            if runner is None:
                break
            found = Slot(epoch, runner)
        if found is None and newest:
            raise self._hole(guest, newest)
        return found

    def _hole(self, guest: bytes, epoch: int) -> StoreDamaged:
        text = f"lease store {self._root}: slot {epoch} of guest {guest.hex()} is gone; {ADVICE}"
        return StoreDamaged(text)

    def _tidy(self, directory: str, claim: str, epoch: int, *, won: bool) -> None:
        """Remove our own claim; the winner also those of the dead, which can win nothing any more.

        A claim of this epoch or an earlier one whose claimant lives only learns that its slot is filled.
        """
        stale = [claim]
        with suppress(OSError):
            if won:
                names = self._files.names(directory, _NAMES_MAX) or ()
                stale += (f"{directory}/{name}" for name in _claims_up_to(epoch, names))
        for path in dict.fromkeys(stale):
            with suppress(OSError):
                self._files.remove(path)

    def _check_marker(self) -> None:
        """An empty directory where the store is to be mounted is another store, and must not become one."""
        data = self._files.read(f"{self._root}/{_MARKER}", _MARKER_BYTES_MAX)
        if data is None:
            advice = f"mount it, or make one with `sterna lease init {self._root}`"
            raise StoreUnavailable(f"no lease store at {self._root}: {advice}")
        found = _parse_marker(data)
        if found is None:
            raise StoreDamaged(f"{self._root}/{_MARKER} is not what `sterna lease init` wrote; {ADVICE}")
        if found != (self._store_id or found):
            raise StoreDamaged(f"{self._root} is another lease store than before; mount the first one")
        self._store_id = found

    def _directory(self, guest: bytes) -> str:
        return f"{self._root}/{guest.hex()}"

    def _slot(self, guest: bytes, epoch: int) -> str:
        return f"{self._root}/{guest.hex()}/{epoch:020}"


def _claims_up_to(epoch: int, names: Iterable[str]) -> Iterable[str]:
    matches = ((name, _CLAIM_NAME.fullmatch(name)) for name in names)
    return (name for name, match in matches if match and int(match[1]) <= epoch)


def _parse_marker(data: bytes) -> str | None:
    try:
        fields = json.loads(data)
        if fields["sterna_store"] == _VERSION and re.fullmatch("[0-9a-f]{32}", fields["id"]):
            return str(fields["id"])
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    return None


def create_file_store(directory: str | os.PathLike[str]) -> str:
    """Make a lease store, in a new or an empty directory; its id. One that exists is left as it is.

    Raises:
        ConfigError: it cannot be made there.
    """
    root = Path(directory)
    files = OsFiles()
    marker = root / _MARKER
    try:
        root.mkdir(exist_ok=True)
        if not marker.exists() and any(not each.name.startswith("new.") for each in root.iterdir()):
            raise ConfigError(f"{root} is not empty: give a lease store a directory of its own")
        text = json.dumps({"sterna_store": _VERSION, "id": secrets.token_hex(16)}) + "\n"
        new = f"{root}/new.{secrets.token_hex(8)}"
        files.create(new, text.encode(), 0o666)
        try:
            with suppress(FileExistsError):  # two operators make the same store
                files.link(new, os.fspath(marker))
        finally:
            files.remove(new)
        files.sync_directory(os.fspath(root))
        files.sync_directory(os.fspath(root.parent))
        found = _parse_marker(files.read(os.fspath(marker), _MARKER_BYTES_MAX) or b"")
    except OSError as error:
        raise ConfigError(f"cannot make a lease store at {root}: {error.strerror}") from error
    if found is None:
        raise ConfigError(f"{marker} is not what `sterna lease init` wrote: give the store another directory")
    return found
