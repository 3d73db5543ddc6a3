"""Who a host is: the name in its certificate.

A host's identity is one URI in the certificate's subject alternative names, ``sterna:host:<name>``. It is
what peer lists name and what a session is bound to. DNS names and addresses say where a host is and are
checked only by a dialler that expects no particular identity; the subject's common name is never read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from sterna.errors import ConfigError, TransportError
from sterna.registry import ErrorCode

IDENTITY_PREFIX: Final = "sterna:host:"

# In the directory that has the certificates of a host (`sterna pki`): whose signature those of others bear.
CA_CERTIFICATE: Final = "ca.pem"

# Lower case only: two names never differ by case alone, neither in a peer list nor in a file system.
# 63 characters are a DNS label, and fit the 64 of an X.509 common name.
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")


def is_name(name: str) -> bool:
    """Whether `name` can be a host's identity."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def check_name(name: str) -> str:
    """Return `name`, or raise `ConfigError` if it cannot be a host's identity."""
    if not is_name(name):
        raise ConfigError(
            f"{name[:80]!r} is no host name: use 1 to 63 lower-case letters, digits, '-' and '.', "
            "beginning and ending with a letter or digit"
        )
    return name


def identity_of(certificate: Mapping[str, object]) -> str:
    """The identity in a verified certificate, given as `ssl.SSLSocket.getpeercert()` returns it.

    Raises:
        TransportError: `PEER_NOT_LISTED` if there is not exactly one well-formed identity.
    """
    names = certificate.get("subjectAltName", ())
    assert isinstance(names, tuple)
    found = [
        value[len(IDENTITY_PREFIX) :]
        for kind, value in names
        if kind == "URI" and value.startswith(IDENTITY_PREFIX)
    ]
    if len(found) == 1 and is_name(found[0]):
        return str(found[0])
    what = "several identities" if len(found) > 1 else "a malformed identity" if found else "no identity"
    raise TransportError(
        ErrorCode.PEER_NOT_LISTED,
        f"the peer's certificate bears {what} ({IDENTITY_PREFIX}<name>): issue one with `sterna pki issue`",
    )
