"""A lease store by its name: a directory, as ``/srv/leases`` or ``file:/srv/leases``."""

from __future__ import annotations

from typing import Final

from sterna.errors import ConfigError
from sterna.host.lease import LeaseStore
from sterna.host.lease_files import FileLeaseStore

_FILE: Final = "file:"


def open_store(name: str) -> LeaseStore:
    """The store of this name. Nothing is asked of it yet.

    Raises:
        ConfigError: this is no name of a store.
    """
    path = name.removeprefix(_FILE)
    if not path or "://" in name:
        raise ConfigError(f"{name[:80]!r} is no lease store: write its directory")
    return FileLeaseStore(path)
