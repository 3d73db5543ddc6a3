"""One authority, and certificates under the names that each of them wants."""

from __future__ import annotations

import ssl

from sterna_interop.moving_tls import Certificates


def test_everybody_has_the_same_certificates(tmp_path):
    certificates = Certificates(tmp_path)
    security = certificates.security()
    for_qemu = certificates.for_qemu()
    assert sorted(path.name for path in for_qemu.directory.iterdir()) == [
        *("ca-cert.pem", "client-cert.pem", "client-key.pem", "server-cert.pem", "server-key.pem")
    ]
    assert (for_qemu.directory / "server-key.pem").read_bytes() == security.destination.key.read_bytes()
    assert (for_qemu.directory / "client-cert.pem").read_bytes() == security.source.certificate.read_bytes()
    contexts = certificates.contexts()
    assert contexts.server.verify_mode is contexts.client.verify_mode is ssl.CERT_REQUIRED
