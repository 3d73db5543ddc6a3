"""What commands share that have to do with who owns a guest: where records are, and the lease store."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from sterna.cli.units import Duration
from sterna.errors import ConfigError, StoreError
from sterna.wire.records import NO_ID

if TYPE_CHECKING:
    from sterna.host.lease import LeaseStore

_STATE: Final = "XDG_STATE_HOME"
_STATE_DEFAULT: Final = "~/.local/state"
UNDECIDED_AFTER_S: Final = 30.0

PathOption = Annotated[Path | None, Parameter(show_default=False)]
TextOption = Annotated[str, Parameter(show_default=False)]
Within = Annotated[Duration, Parameter(show_default=True)]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """Records and store."""

    records: PathOption = None
    """directory of this host's durable records, on a disk of its own; by default in the user's state
    directory, by the host's name."""

    store: TextOption = ""
    """lease store that all hosts share: a directory, etcd://HOST:PORT, or etcds:// for etcd over TLS.
    Without one the two endpoints decide between them."""

    store_ca: PathOption = None
    """certificates to trust, for etcds."""

    store_certificate: PathOption = None
    """client certificate, for etcds."""

    store_key: PathOption = None
    """its key."""

    store_user: TextOption = ""
    """user of etcd's authentication, for etcds."""

    store_password_file: PathOption = None
    """file with the user's password in its first line."""

    def directory(self, name: str) -> Path:
        """Where the records of the host of this name are."""
        return self.records or default_records(name)

    @property
    def store_options(self) -> list[str]:
        """The options that name the store, for another command."""
        given = {
            "--store": self.store,
            "--store-ca": self.store_ca,
            "--store-certificate": self.store_certificate,
            "--store-key": self.store_key,
            "--store-user": self.store_user,
            "--store-password-file": self.store_password_file,
        }
        return [text for name, value in given.items() if value for text in (name, str(value))]

    @asynccontextmanager
    async def opened_store(self) -> AsyncIterator[LeaseStore | None]:
        """The lease store, None if there is none. Nothing is asked of it yet.

        Raises:
            ConfigError: --store is no name of a store, a file for it cannot be used, or there is no --store
                that its other options are for.
        """
        from sterna.host.open_store import StoreAccess, open_store

        if not self.store:
            if self.store_options:
                raise ConfigError(f"{self.store_options[0]} is for a lease store: name that with --store")
            yield None
            return
        access = StoreAccess(
            self.store_ca, self.store_certificate, self.store_key, self.store_user, self.store_password_file
        )
        store = open_store(self.store, access)
        try:
            yield store
        finally:
            await store.aclose()

    async def check_store(self) -> None:
        """What begins only with a store that answers asks it before it starts anything.

        Raises:
            ConfigError: there is no store of this name, or it does not answer.
        """
        async with self.opened_store() as store:
            if store is not None:
                try:
                    await store.newest(NO_ID)
                except StoreError as error:
                    raise ConfigError(f"--store: {error}") from error


def default_records(name: str) -> Path:
    """A host's records, unless --records says where: by name, since one machine may play two hosts."""
    state = os.environ.get(_STATE) or os.path.expanduser(_STATE_DEFAULT)
    return Path(state, "sterna", "records", name)
