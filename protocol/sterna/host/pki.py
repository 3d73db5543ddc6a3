"""A small certificate authority for the hosts of one installation: `sterna pki init` and `sterna pki issue`.

One CA signs one certificate a host; both sides of a connection show theirs. Nothing here is needed where
an installation has a PKI of its own: any certificate will do that chains to the CA file, allows server
and client authentication, and bears the identity URI (`sterna.net.identity`).

Keys are P-256, never encrypted on disk (endpoints start unattended) and readable by their owner only.
Existing files are never replaced: a CA key that is overwritten by accident locks every host out.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sterna.errors import ConfigError
from sterna.net.identity import CA_CERTIFICATE, IDENTITY_PREFIX, check_name

CA_KEY: Final = "ca.key"
CA_DAYS: Final = 3650
HOST_DAYS: Final = 365

# Clocks of two hosts differ; a certificate is used within seconds of being issued.
BACKDATED: Final = timedelta(hours=1)
HOSTS_MAX: Final = 64
PEM_BYTES_MAX: Final = 64 * 1024

# What `cryptography` raises for files that are no CA. TypeError: a key with a password.
_UNUSABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    InvalidSignature,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
)

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class Issued:
    """Files of a certificate.

    Attributes:
        name: the host's identity, or the CA's name.
        certificate: PEM file, one certificate.
        key: PEM file (PKCS #8), mode 0600.
        authority: the CA's certificate; `certificate` itself for a CA.
        fingerprint: SHA-256 of the certificate in DER, 32 bytes.
        expires: in UTC.
    """

    name: str
    certificate: Path
    key: Path
    authority: Path
    fingerprint: bytes
    expires: datetime


def init_ca(
    directory: Path, *, name: str = "sterna", days: int = CA_DAYS, now: datetime | None = None
) -> Issued:
    """Make a CA in `directory` (created with mode 0700 if absent): `ca.pem` and `ca.key`.

    Raises:
        ConfigError: the name or the time is not usable, a file exists or cannot be written.
    """
    check_name(name)
    start, end = _validity(days, now)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} CA")])
    builder = (
        _builder(subject, key.public_key(), issuer=subject, issuer_key=key.public_key())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
    )
    paths = directory / CA_CERTIFICATE, directory / CA_KEY
    return _write(name, builder.sign(key, hashes.SHA256()), key, paths, paths[0])


def issue(
    directory: Path,
    name: str,
    *,
    hosts: Sequence[str] = (),
    days: int = HOST_DAYS,
    out: Path | None = None,
    now: datetime | None = None,
) -> Issued:
    """Issue a certificate for the host `name`: `<name>.pem` and `<name>.key`.

    Args:
        directory: where `init_ca` made the CA.
        name: the host's identity.
        hosts: DNS names and addresses under which others dial it.
        days: how long it is valid; never longer than the CA.
        out: directory of the new files, `directory` by default; created with mode 0700 if absent.
        now: beginning of validity, the present by default; for tests.

    Raises:
        ConfigError: a name is malformed, the CA is not usable, a file exists or cannot be written.
    """
    check_name(name)
    if name == Path(CA_KEY).stem:
        raise ConfigError(f"{name!r} is the name of the CA's own files: choose another one for the host")
    start, end = _validity(days, now)
    authority, authority_key = _load_ca(directory)
    end = min(end, authority.not_valid_after_utc)
    if start >= end:
        raise ConfigError(
            f"the CA in {directory} expired on {authority.not_valid_after_utc:%Y-%m-%d}: make a new one"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(IDENTITY_PREFIX + name)]
    names += _general_names(hosts)
    builder = (
        _builder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            key.public_key(),
            issuer=authority.subject,
            issuer_key=authority_key.public_key(),
        )
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    out = directory if out is None else out
    paths = out / f"{name}.pem", out / f"{name}.key"
    certificate = builder.sign(authority_key, hashes.SHA256())
    return _write(name, certificate, key, paths, directory / CA_CERTIFICATE)


def _validity(days: int, now: datetime | None) -> tuple[datetime, datetime]:
    if not 1 <= days <= 36500:
        raise ConfigError(f"a certificate is valid for 1 to 36500 days, not {days}")
    start = datetime.now(UTC) if now is None else now
    return start - BACKDATED, start + timedelta(days=days)


def _general_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    if len(hosts) > HOSTS_MAX:
        raise ConfigError(f"{len(hosts)} host names and addresses; a certificate takes at most {HOSTS_MAX}")
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            # The last label of a DNS name is never a number: that is a mistyped address.
            if _DNS_NAME.fullmatch(host) is None or host.rpartition(".")[2].isdigit():
                raise ConfigError(
                    f"{host[:80]!r} is neither a DNS name (ASCII, no wildcard) nor an IP address"
                ) from None
            names.append(x509.DNSName(host.lower()))
    return names


def _builder(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _load_ca(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    remedy = "make a CA with `sterna pki init`, or name the directory that has one"
    try:
        certificate = x509.load_pem_x509_certificate(_read(directory / CA_CERTIFICATE))
        key = serialization.load_pem_private_key(_read(directory / CA_KEY), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{directory / CA_KEY} is no elliptic-curve key: {remedy}")
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ConfigError(f"{directory / CA_CERTIFICATE} is not the certificate of a CA: {remedy}")
        certificate.verify_directly_issued_by(certificate)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no CA in {directory} ({error.filename} is missing): {remedy}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
    except _UNUSABLE as error:
        raise ConfigError(f"the files of the CA in {directory} are damaged ({error}): {remedy}") from error
    if certificate.public_key() != key.public_key():
        raise ConfigError(
            f"{directory / CA_KEY} is not the key of {directory / CA_CERTIFICATE}: "
            "restore the two files that `sterna pki init` made together"
        )
    return certificate, key


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(PEM_BYTES_MAX + 1)
    if len(data) > PEM_BYTES_MAX:
        raise ConfigError(f"{path} is larger than any certificate or key")
    return data


def _write(
    name: str,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    paths: tuple[Path, Path],
    authority: Path,
) -> Issued:
    """Write both files or none."""
    certificate_path, key_path = paths
    try:
        key_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the directory {key_path.parent}: {error.strerror}") from error
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    _create(key_path, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), 0o600)
    try:
        _create(certificate_path, certificate.public_bytes(pem), 0o644)
    except ConfigError:
        key_path.unlink()
        raise
    fingerprint = certificate.fingerprint(hashes.SHA256())
    return Issued(name, certificate_path, key_path, authority, fingerprint, certificate.not_valid_after_utc)


def _create(path: Path, data: bytes, mode: int) -> None:
    # O_EXCL also refuses a symbolic link, wherever it leads.
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} exists and is not replaced: move it away first, or choose another directory"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        path.unlink()
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
