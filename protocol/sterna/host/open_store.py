"""A lease store by its name.

=====================================  ==========================================================
``/srv/leases``, ``file:/srv/leases``  a directory that all hosts share
``etcd://host:2379,host:2379/prefix/``  etcd; one member or several, and a prefix of its keys, or neither
``etcds://host:2379``                  the same over TLS
=====================================  ==========================================================
"""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sterna.errors import ConfigError
from sterna.host.etcd import EtcdAccess
from sterna.host.lease import LeaseStore
from sterna.host.lease_etcd import PREFIX, EtcdLeaseStore
from sterna.host.lease_files import FileLeaseStore

_FILE: Final = "file:"
_ETCD: Final = re.compile(r"(etcds?)://([^/]+)(?:/(.*))?", re.DOTALL)
_ENDPOINT: Final = re.compile(
    r"(?:\[([0-9a-fA-F:.]{2,45})\]|([A-Za-z0-9.-]{1,253}))(?::([0-9]{1,5}))?", re.ASCII
)
_PREFIX: Final = re.compile(r"[A-Za-z0-9._/-]{1,200}", re.ASCII)
_PORT: Final = 2379
_PORT_MAX: Final = 65535
_ENDPOINTS_MAX: Final = 16
_PASSWORD_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """How to be let in to a store in etcd.

    Attributes:
        ca: certificates to trust, as a PEM file; None for the machine's.
        certificate: the client's certificate, as a PEM file.
        key: its key; None if the certificate's file has it.
        user: a user of etcd's own authentication.
        password_file: the user's password in its first line. A file, because arguments are for all to see.
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    user: str = ""
    password_file: str | os.PathLike[str] | None = None


_OPEN: Final = StoreAccess()


def open_store(name: str, access: StoreAccess = _OPEN) -> LeaseStore:
    """The store of this name. Nothing is asked of it yet.

    Raises:
        ConfigError: this is no name of a store, or a file of `access` cannot be used.
    """
    if (match := _ETCD.fullmatch(name)) is not None:
        return _open_etcd(name, match, access)
    path = name.removeprefix(_FILE)
    if not path or "://" in name:
        what = "write its directory, or etcd://host:2379"
        raise ConfigError(f"{name[:80]!r} is no lease store: {what}")
    if access != _OPEN:
        raise ConfigError(f"{name[:80]!r} is a directory: certificates and users are for etcd")
    return FileLeaseStore(path)


def _open_etcd(name: str, match: re.Match[str], access: StoreAccess) -> LeaseStore:
    scheme, places, prefix = match[1], match[2].split(","), match[3] or PREFIX
    if len(places) > _ENDPOINTS_MAX:
        raise ConfigError(f"{name[:80]!r}: more than {_ENDPOINTS_MAX} members; some of them are enough")
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(f"{prefix[:40]!r} is no prefix of keys: use letters, digits, '.', '_', '-' and '/'")
    secure = scheme == "etcds"
    if not secure and access != _OPEN:
        raise ConfigError(f"{name[:80]!r} is not encrypted: certificates and passwords need etcds://")
    endpoints = tuple(_endpoint(name, place) for place in places)
    tls = tls_context(access) if secure else None
    return EtcdLeaseStore(EtcdAccess(endpoints, tls, access.user, _password(access)), prefix=prefix)


def _endpoint(name: str, place: str) -> tuple[str, int]:
    match = _ENDPOINT.fullmatch(place)
    port = int(match[3] or _PORT) if match else 0
    if match is None or not 0 < port <= _PORT_MAX:
        raise ConfigError(
            f"{name[:80]!r}: {place[:80]!r} is no host and port; write for example store.example:2379"
        )
    return match[1] or match[2], port


def tls_context(access: StoreAccess) -> ssl.SSLContext:
    """TLS as a client of a store: the server is verified by its name or address.

    Raises:
        ConfigError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=access.ca)
        if access.certificate is not None:
            context.load_cert_chain(access.certificate, access.key, password=_no_password)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        named = (access.ca, access.certificate, access.key)
        files = ", ".join(str(path) for path in named if path is not None)
        text = f"cannot use {files}: {error}; PEM files are needed, the key without a password"
        raise ConfigError(text) from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # OpenSSL would ask at the terminal


def _password(access: StoreAccess) -> str:
    if bool(access.user) != (access.password_file is not None):
        raise ConfigError("a user of etcd and a file with the password belong together: give both or neither")
    if access.password_file is None:
        return ""
    try:
        with Path(access.password_file).open("rb") as file:
            data = file.read(_PASSWORD_BYTES_MAX)
        return data.decode().split("\n", 1)[0].rstrip("\r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the password in {access.password_file}: {error}") from error
