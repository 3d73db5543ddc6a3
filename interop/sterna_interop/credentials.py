"""The certificates of a run: one authority, one host for each role, and a stranger that it signed as well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sterna.errors import TransportError
from sterna.host.pki import init_ca, issue
from sterna.net.tls import CheckPeer, TlsConfig
from sterna.registry import ErrorCode
from sterna_interop.contract import Role, TlsFiles

STRANGER: Final = "stranger"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files of `directory`; the identity of a host is its role's name."""

    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Credentials:
        """Issue everything; takes some milliseconds."""
        init_ca(directory)
        for name in (*Role, STRANGER):
            issue(directory, name)
        return cls(directory)

    def files(self, role: Role) -> TlsFiles:
        """What a shim in this role is told."""
        at = self.directory
        return TlsFiles(
            str(at / f"{role}.pem"), str(at / f"{role}.key"), str(at / "ca.pem"), role.value, role.other.value
        )

    def config(self, name: str, expected: str) -> TlsConfig:
        """The kit's own side, showing the certificate of `name`."""
        at = self.directory
        return TlsConfig(at / f"{name}.pem", at / f"{name}.key", at / "ca.pem", _only(expected))


def _only(expected: str) -> CheckPeer:
    def check_peer(identity: str, fingerprint: bytes) -> None:
        del fingerprint
        if identity != expected:
            raise TransportError(ErrorCode.PEER_NOT_LISTED, f"the endpoint is {identity!r}, not {expected!r}")

    return check_peer
