"""TLS failures in the words of the person who has to repair them.

OpenSSL reports three kinds of trouble: our own verification of the peer's certificate failed (a code), the
peer told us by an alert that it gives up (an alert's name), or the bytes were not TLS at all. The reader of
a log sees only one side, so every sentence says which side refused and what to change, and where.

Names of OpenSSL's reasons differ between its versions in their prefix (``TLSV1_ALERT_``, ``SSLV3_ALERT_``),
so they are recognised by their end.
"""

from __future__ import annotations

import errno
import ssl
from enum import Enum
from typing import Final

from sterna.errors import TransportError
from sterna.net.tcp import connection_lost
from sterna.registry import ALPN, MAGIC, ErrorCode

# Enough to tell protocols apart.
FIRST_BYTES: Final = 16

# Content types of TLS records that may come first: handshake; and an alert, in answer to a handshake.
_HANDSHAKE: Final = 0x16
_ALERT: Final = 0x15

# A plaintext record with the fatal alert unexpected_message: tells a peer that tried without TLS what it
# has reached.
ALERT_UNEXPECTED: Final = bytes.fromhex("15 0303 0002 02 0a")


class Doing(Enum):
    """In which operation TLS failed."""

    HANDSHAKE = "handshake"
    RECEIVE = "receive"
    SEND = "send"


_SAME_CA: Final = "both hosts need certificates of one CA: compare their CA files"
_CLOCK: Final = "or a clock is wrong: compare the clocks, issue a new certificate with `sterna pki issue`"

# X509_V_ERR_* of OpenSSL, `SSLCertVerificationError.verify_code`.
_VERIFY: Final[dict[int, str]] = {
    7: f"its signature is not by the CA that this host trusts; {_SAME_CA}",
    9: f"it is not valid yet, {_CLOCK}",
    10: f"it has expired, {_CLOCK}",
    18: f"it is self-signed; {_SAME_CA}",
    19: f"its CA is not the one that this host trusts; {_SAME_CA}",
    20: f"its CA is not the one that this host trusts; {_SAME_CA}",
    26: "it does not allow this use: it needs both server and client authentication (`sterna pki issue`)",
    62: "it does not bear the name that was dialled: issue it with that name, or say which host is expected",
    64: "it does not bear the address that was dialled: issue it with it, or say which host is expected",
}

_ALERTS: Final[dict[str, str]] = {
    "UNKNOWN_CA": f"it does not trust the CA of this host's certificate; {_SAME_CA}",
    "CERTIFICATE_EXPIRED": f"it says that this host's certificate has expired, {_CLOCK}",
    "BAD_CERTIFICATE": "it refuses this host's certificate: wrong name, wrong CA, or damaged",
    "CERTIFICATE_UNKNOWN": "it refuses this host's certificate without saying why",
    "UNSUPPORTED_CERTIFICATE": "it refuses this host's certificate: it does not allow this use or this key",
    "CERTIFICATE_REVOKED": "it says that this host's certificate was revoked",
    "CERTIFICATE_REQUIRED": "it requires a certificate, and this host has shown none",
    "PROTOCOL_VERSION": "it does not speak TLS 1.3, which Sterna requires",
    "ACCESS_DENIED": "it does not grant access to this host's certificate: see its peer list",
}

_OWN: Final[dict[str, str]] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (
        "the peer showed no certificate; both sides need one (`sterna pki issue`)"
    ),
    "UNSUPPORTED_PROTOCOL": "the peer offers no TLS 1.3, which Sterna requires",
    "NO_SHARED_CIPHER": "the peer offers no cipher of TLS 1.3 that this host has",
    "TOO_MANY_KEY_UPDATES": "the peer asks for new keys, again and again, and takes none of them",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "bytes were changed on the way between the hosts",
}

_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST"})

_HTTP: Final = (b"GET ", b"HEAD", b"POST", b"PUT ", b"OPTI", b"CONN", b"PRI ", b"HTTP")


def plaintext(first: bytes, *, server: bool) -> TransportError | None:
    """What the peer's `first` bytes are if they cannot begin a TLS connection; None if they can.

    Args:
        first: one byte or more.
        server: whether this side is the TLS server.
    """
    if first[0] == _HANDSHAKE or (first[0] == _ALERT and not server):
        return None
    peer = "the client" if server else "the server"
    if first.startswith(MAGIC[: len(first)]):
        remedy = (
            "start it with certificates"
            if server
            else "start it with certificates, or dial it with --insecure if it is meant to be open"
        )
        said = f"speaks Sterna without TLS: {remedy}"
    elif first.startswith(_HTTP):
        said = "speaks HTTP: this is no web address" if server else "speaks HTTP: is this the right port?"
    elif first.startswith(b"SSH-"):
        said = "speaks SSH: is this the right port?"
    else:
        said = f"sent bytes that are not TLS ({first.hex(' ')})"
    return TransportError(ErrorCode.PLAIN_ON_TLS, f"{peer} {said}")


def tls_error(error: OSError, doing: Doing, *, server: bool) -> TransportError:
    """The coded error for what `ssl` raised: an `SSLError`, or another `OSError` of the socket."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = _VERIFY.get(error.verify_code, error.verify_message)
        return TransportError(ErrorCode.TLS_FAILED, f"this host refuses the peer's certificate: {why}")
    if isinstance(error, ssl.SSLEOFError):
        # CPython reports a reset in SSL_read as an end of file that has no reason.
        return _ended(doing, reset=error.reason is None)
    if not isinstance(error, ssl.SSLError):
        return connection_lost(error)
    reason = error.reason or "no reason given"
    if "ALERT_" in reason:
        alert = reason.partition("ALERT_")[2]
        if alert == "NO_APPLICATION_PROTOCOL":
            return TransportError(ErrorCode.WRONG_ALPN, f"the peer does not speak {ALPN}")
        why = _ALERTS.get(alert, f"alert {alert.lower()}")
        return TransportError(ErrorCode.TLS_FAILED, f"the peer ended TLS: {why}")
    if reason in _NOT_TLS and doing is Doing.HANDSHAKE:
        peer = "client" if server else "server"
        return TransportError(ErrorCode.PLAIN_ON_TLS, f"the {peer} sent bytes that are not TLS")
    why = _OWN.get(reason, f"OpenSSL says {reason.lower().replace('_', ' ')}")
    return TransportError(ErrorCode.TLS_FAILED, f"{doing.value}: {why}")


def _ended(doing: Doing, *, reset: bool) -> TransportError:
    if doing is Doing.HANDSHAKE:
        return TransportError(ErrorCode.TLS_FAILED, "the peer closed the connection during the handshake")
    if doing is Doing.SEND or reset:
        return connection_lost(OSError(errno.ECONNRESET, ""))
    return TransportError(
        ErrorCode.NOT_CLOSED,
        "the connection ended without close_notify: the peer was killed, or the stream was cut short",
    )
