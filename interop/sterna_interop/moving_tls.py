"""Certificates of a throw-away authority, as everybody wants them who moves memory over mutual TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sterna.host import pki
from sterna.host.pki import Issued
from sterna.net.tls import TlsConfig
from sterna_interop.moving_bare import HOST, Contexts
from sterna_interop.moving_sterna import DESTINATION, SOURCE, Security
from sterna_interop.qemu import Tls

# What QEMU wants its files to be called.
_QEMU_NAMES: Final = {SOURCE: "client", DESTINATION: "server"}


class Certificates:
    """One authority, and a certificate of it for each side."""

    def __init__(self, directory: Path) -> None:
        pki.init_ca(directory)
        self._directory = directory
        self._issued = {name: pki.issue(directory, name, hosts=[HOST]) for name in (SOURCE, DESTINATION)}

    def security(self) -> Security:
        """For Sterna's endpoints."""
        return Security(*(_config(issued) for issued in self._issued.values()))

    def contexts(self) -> Contexts:
        """For bare sockets: with the same settings, so with the same cipher."""
        source, destination = (_config(issued) for issued in self._issued.values())
        return Contexts(source.context(server=False), destination.context(server=True))

    def for_qemu(self) -> Tls:
        """For QEMU."""
        directory = self._directory / "qemu"
        directory.mkdir()
        for name, issued in self._issued.items():
            (directory / "ca-cert.pem").write_bytes(issued.authority.read_bytes())
            (directory / f"{_QEMU_NAMES[name]}-cert.pem").write_bytes(issued.certificate.read_bytes())
            (directory / f"{_QEMU_NAMES[name]}-key.pem").write_bytes(issued.key.read_bytes())
        return Tls(directory, HOST)


def _config(issued: Issued) -> TlsConfig:
    return TlsConfig(issued.certificate, issued.key, issued.authority, lambda *_: None)
