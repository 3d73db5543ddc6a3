"""Sentences for what OpenSSL reports; the real reports are provoked in test_net_handshake."""

import ssl

import pytest

from sterna.net.tls_errors import Doing, plaintext, tls_error
from sterna.registry import MAGIC, ErrorCode


def ssl_error(reason, kind=ssl.SSLError):
    error = kind(1, "text")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("reason", "code", "text"),
    [
        ("TLSV1_ALERT_UNKNOWN_CA", ErrorCode.TLS_FAILED, "does not trust the CA of this host"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", ErrorCode.TLS_FAILED, "certificate has expired"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", ErrorCode.TLS_FAILED, "requires a certificate"),
        ("TLSV1_ALERT_NO_APPLICATION_PROTOCOL", ErrorCode.WRONG_ALPN, "does not speak sterna/"),
        ("TLSV1_ALERT_INTERNAL_ERROR", ErrorCode.TLS_FAILED, "alert internal_error"),
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE", ErrorCode.TLS_FAILED, "both sides need one"),
        ("LENGTH_MISMATCH", ErrorCode.TLS_FAILED, "OpenSSL says length mismatch"),
        ("WRONG_VERSION_NUMBER", ErrorCode.PLAIN_ON_TLS, "the client sent bytes that are not TLS"),
        (None, ErrorCode.TLS_FAILED, "no reason given"),
    ],
)
def test_reasons(reason, code, text):
    error = tls_error(ssl_error(reason), Doing.HANDSHAKE, server=True)
    assert error.code == code
    assert text in str(error)


def test_the_side_is_named():
    error = tls_error(ssl_error("WRONG_VERSION_NUMBER"), Doing.HANDSHAKE, server=False)
    assert "the server sent" in str(error)
    assert (
        tls_error(ssl_error("WRONG_VERSION_NUMBER"), Doing.RECEIVE, server=False).code == ErrorCode.TLS_FAILED
    )


@pytest.mark.parametrize(
    ("doing", "reason", "code"),
    [
        (Doing.HANDSHAKE, "UNEXPECTED_EOF_WHILE_READING", ErrorCode.TLS_FAILED),
        (Doing.HANDSHAKE, None, ErrorCode.TLS_FAILED),
        (Doing.RECEIVE, "UNEXPECTED_EOF_WHILE_READING", ErrorCode.NOT_CLOSED),
        (Doing.RECEIVE, None, ErrorCode.CONNECTION_LOST),
        (Doing.SEND, "UNEXPECTED_EOF_WHILE_READING", ErrorCode.CONNECTION_LOST),
        (Doing.SEND, None, ErrorCode.CONNECTION_LOST),
    ],
)
def test_ends(doing, reason, code):
    assert tls_error(ssl_error(reason, ssl.SSLEOFError), doing, server=True).code == code


def test_socket_errors_are_those_of_the_connection():
    error = tls_error(ConnectionResetError(104, "x"), Doing.RECEIVE, server=True)
    assert error.code == ErrorCode.CONNECTION_LOST
    assert "reset" in str(error)


def test_a_verification_that_has_no_sentence_of_ours():
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_code, error.verify_message = 23, "certificate revoked"
    assert "refuses the peer's certificate: certificate revoked" in str(
        tls_error(error, Doing.HANDSHAKE, server=False)
    )


@pytest.mark.parametrize(
    ("first", "server", "text"),
    [
        (MAGIC, True, "client speaks Sterna without TLS"),
        (MAGIC[:1], True, "client speaks Sterna without TLS"),
        (MAGIC + b"\x01\x00\x01\x00", False, "--insecure"),
        (b"GET / HTTP/1.1\r\n", True, "client speaks HTTP"),
        (b"HTTP/1.1 400 Bad", False, "server speaks HTTP"),
        (b"SSH-2.0-OpenSSH_", False, "speaks SSH"),
        (b"\x00\x01", True, "not TLS (00 01)"),
        (b"\x15\x03\x03", True, "not TLS"),
    ],
)
def test_plaintext_is_recognised(first, server, text):
    error = plaintext(first, server=server)
    assert error.code == ErrorCode.PLAIN_ON_TLS
    assert text in str(error)


def test_tls_is_let_through():
    assert plaintext(b"\x16\x03\x01", server=True) is None
    assert plaintext(b"\x16", server=False) is None
    assert plaintext(b"\x15\x03\x03", server=False) is None
