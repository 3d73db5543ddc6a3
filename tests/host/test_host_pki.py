"""Certificates: what is in them, who may read the keys, and what is refused."""

import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from sterna.errors import ConfigError
from sterna.host import pki


@pytest.fixture
def ca(tmp_path):
    return pki.init_ca(tmp_path / "ca")


def load(issued: pki.Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate.read_bytes())


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def test_a_ca(ca, tmp_path):
    certificate = load(ca)
    assert ca.certificate == ca.authority == tmp_path / "ca" / "ca.pem"
    assert extension(certificate, x509.BasicConstraints).critical
    assert extension(certificate, x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert extension(certificate, x509.KeyUsage).value.key_cert_sign
    assert certificate.not_valid_after_utc == ca.expires
    assert (ca.expires - datetime.now(UTC)) > timedelta(days=3649)
    certificate.verify_directly_issued_by(certificate)


def test_a_host(ca, tmp_path):
    issued = pki.issue(
        tmp_path / "ca", "host-a", hosts=["Host-A.example", "10.0.0.1", "::1", "10.0.0.1"], days=30
    )
    certificate = load(issued)
    certificate.verify_directly_issued_by(load(ca))
    names = extension(certificate, x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["sterna:host:host-a"]
    assert names.get_values_for_type(x509.DNSName) == ["host-a.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    assert set(extension(certificate, x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert not extension(certificate, x509.BasicConstraints).value.ca
    assert isinstance(certificate.public_key().curve, ec.SECP256R1)
    assert issued.fingerprint == certificate.fingerprint(hashes.SHA256())
    assert issued.authority == ca.certificate
    assert timedelta(days=29) < issued.expires - datetime.now(UTC) < timedelta(days=31)


def test_openssl_takes_them_in_its_strictest_mode(ca, tmp_path):
    issued = pki.issue(tmp_path / "ca", "host-a")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(issued.certificate, issued.key)
    context.load_verify_locations(issued.authority)


def test_keys_are_for_their_owner_alone(ca, tmp_path):
    issued = pki.issue(tmp_path / "ca", "host-a", out=tmp_path / "deep" / "out")
    assert issued.certificate.parent == tmp_path / "deep" / "out"
    for path in (ca.key, issued.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for directory in (ca.key.parent, issued.key.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["", "Host", "../x", "a/b", "a\0", "x" * 64, "ca"])
def test_names_are_checked(ca, tmp_path, name):
    with pytest.raises(ConfigError, match=r"name"):
        pki.issue(tmp_path / "ca", name)
    assert {path.name for path in (tmp_path / "ca").iterdir()} == {"ca.pem", "ca.key"}


def test_the_name_of_a_ca_is_checked(tmp_path):
    with pytest.raises(ConfigError, match="no host name"):
        pki.init_ca(tmp_path / "x", name="../x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "host",
    ["", "*.example", "a b", "a/b", "10.0.0.256", "::zz", "-a", "a..b", "ä.example", "x" * 300, "a\n"],
)
def test_hosts_are_checked(ca, tmp_path, host):
    with pytest.raises(ConfigError, match="neither a DNS name"):
        pki.issue(tmp_path / "ca", "host-a", hosts=[host])


def test_not_too_many_hosts(ca, tmp_path):
    with pytest.raises(ConfigError, match="at most 64"):
        pki.issue(tmp_path / "ca", "host-a", hosts=["x"] * 65)


@pytest.mark.parametrize("days", [0, -1, 36501])
def test_days_are_checked(ca, tmp_path, days):
    with pytest.raises(ConfigError, match="1 to 36500 days"):
        pki.issue(tmp_path / "ca", "host-a", days=days)


def test_nothing_is_overwritten(ca, tmp_path):
    before = ca.key.read_bytes(), ca.certificate.read_bytes()
    with pytest.raises(ConfigError, match="exists and is not replaced"):
        pki.init_ca(tmp_path / "ca")
    ca.key.rename(tmp_path / "key")
    with pytest.raises(ConfigError, match=r"ca\.pem exists"):
        pki.init_ca(tmp_path / "ca")
    assert not ca.key.exists()  # both files or none
    (tmp_path / "key").rename(ca.key)
    assert (ca.key.read_bytes(), ca.certificate.read_bytes()) == before


def test_a_symbolic_link_is_not_followed(ca, tmp_path):
    (tmp_path / "ca" / "host-a.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="exists"):
        pki.issue(tmp_path / "ca", "host-a")
    assert not (tmp_path / "elsewhere").exists()


def test_a_host_never_outlives_its_ca(tmp_path):
    ca = pki.init_ca(tmp_path / "ca", days=10)
    assert pki.issue(tmp_path / "ca", "host-a", days=100).expires == ca.expires


def test_an_expired_ca(tmp_path):
    pki.init_ca(tmp_path / "ca", days=1, now=datetime.now(UTC) - timedelta(days=3))
    with pytest.raises(ConfigError, match="expired on"):
        pki.issue(tmp_path / "ca", "host-a")


def test_no_ca(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no CA in .*ca\.pem is missing.*pki init"):
        pki.issue(tmp_path, "host-a")


@pytest.mark.parametrize("which", ["certificate", "key"])
@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_ca(ca, tmp_path, which, content):
    getattr(ca, which).write_bytes(content)
    with pytest.raises(ConfigError, match="are damaged"):
        pki.issue(tmp_path / "ca", "host-a")


def test_a_ca_file_that_is_too_large(ca, tmp_path):
    ca.certificate.write_bytes(b" " * 100_000)
    with pytest.raises(ConfigError, match="larger than any certificate"):
        pki.issue(tmp_path / "ca", "host-a")


def test_the_key_of_another_ca(ca, tmp_path):
    other = pki.init_ca(tmp_path / "other")
    ca.key.write_bytes(other.key.read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        pki.issue(tmp_path / "ca", "host-a")


def test_a_host_certificate_is_no_ca(ca, tmp_path):
    issued = pki.issue(tmp_path / "ca", "host-a")
    issued.certificate.rename(ca.certificate)
    issued.key.rename(ca.key)
    with pytest.raises(ConfigError, match="not the certificate of a CA"):
        pki.issue(tmp_path / "ca", "host-b")


def pem(key, encryption=None) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        encryption or serialization.NoEncryption(),
    )


def test_another_kind_of_key(ca, tmp_path):
    ca.key.write_bytes(pem(rsa.generate_private_key(65537, 2048)))
    with pytest.raises(ConfigError, match="no elliptic-curve key"):
        pki.issue(tmp_path / "ca", "host-a")


def test_an_encrypted_key(ca, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    ca.key.write_bytes(pem(key, serialization.BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigError, match="are damaged"):
        pki.issue(tmp_path / "ca", "host-a")


def test_what_the_file_system_refuses(ca, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot make the directory"):
        pki.init_ca(tmp_path / "file" / "ca")
    with pytest.raises(ConfigError, match="cannot read"):
        pki.issue(tmp_path / "file", "host-a")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pki.os, "fsync", refuse)
    with pytest.raises(ConfigError, match="No space left"):
        pki.issue(tmp_path / "ca", "host-a")
    assert {path.name for path in (tmp_path / "ca").iterdir()} == {"ca.pem", "ca.key"}
    monkeypatch.undo()
    monkeypatch.setattr(pki.os, "open", refuse)
    with pytest.raises(ConfigError, match="cannot write"):
        pki.issue(tmp_path / "ca", "host-a")
