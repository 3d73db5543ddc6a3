"""Handshakes that fail, as both sides see them: real TLS over loopback."""

import socket
import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from net_support import tcp_pair

from sterna.errors import TransportError
from sterna.net import handshake
from sterna.net.handshake import accept_tls, dial_tls
from sterna.net.tls import TlsConfig, TlsTransport
from sterna.net.tls_errors import ALERT_UNEXPECTED
from sterna.net.tls_layer import TlsLayer
from sterna.net.transport import Peer, TlsInfo
from sterna.registry import MAGIC, ErrorCode

PAST = datetime.now(UTC) - timedelta(days=100)
FUTURE = datetime.now(UTC) + timedelta(days=100)


@dataclass
class Side:
    """What became of one side. The acceptor greets the dialler with one byte, which that reads."""

    peer: Peer | None = None
    tls: TlsInfo | None = None
    error: TransportError | None = None
    read: bytes | None = None

    @contextmanager
    def errors(self):
        try:
            yield
        except TransportError as error:
            self.error = error

    @property
    def code(self):
        return None if self.error is None else self.error.code


async def use(side: Side, transport: TlsTransport) -> None:
    side.peer, side.tls = transport.peer, transport.tls
    buffer = memoryview(bytearray(100))
    try:
        side.read = bytes(buffer[: await transport.receive_into(buffer)])
        await transport.close()
    finally:
        transport.abort()


def unchanged(context: ssl.SSLContext) -> None:
    pass


async def attempt(
    dialler: TlsConfig,
    acceptor: TlsConfig,
    *,
    expected=None,
    hostname=None,
    change_dialler=unchanged,
    change_acceptor=unchanged,
    farewell=None,
) -> tuple[Side, Side]:
    a, b = tcp_pair()
    dial_context = dialler.context(server=False, check_hostname=hostname is not None)
    accept_context = acceptor.context(server=True)
    change_dialler(dial_context)
    change_acceptor(accept_context)
    dialled, accepted = Side(), Side()
    if hostname is None and expected is None:
        expected = "host-a"

    async def dial():
        with dialled.errors():
            transport = await dial_tls(
                a, dialler, dial_context, hostname=hostname, expected=expected, farewell=farewell
            )
            await use(dialled, transport)

    async def accept():
        with accepted.errors():
            transport = await accept_tls(b, acceptor, accept_context, farewell=farewell)
            await transport.send([b"!"])
            await use(accepted, transport)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            nursery.start_soon(accept)
    return dialled, accepted


def refuse(identity: str, fingerprint: bytes) -> None:
    raise TransportError(ErrorCode.PEER_NOT_LISTED, f"{identity} is not listed")


async def test_both_sides_know_each_other(host_a, host_b):
    """[TLS-8, TLS-12]"""
    dialled, accepted = await attempt(host_b, host_a)
    assert dialled.error is accepted.error is None
    assert dialled.read == b"!"
    assert accepted.read == b""
    assert (dialled.peer.identity, accepted.peer.identity) == ("host-a", "host-b")
    assert dialled.tls == accepted.tls
    assert dialled.tls.version == "TLSv1.3"


@pytest.mark.parametrize("hostname", ["localhost", "127.0.0.1", "::1"])
async def test_the_dialled_name_may_be_checked_instead(host_a, host_b, hostname):
    """[TLS-16]"""
    dialled, accepted = await attempt(host_b, host_a, hostname=hostname)
    assert dialled.error is accepted.error is None


@pytest.mark.parametrize(
    ("hostname", "text"), [("elsewhere", "bear the name"), ("10.0.0.1", "bear the address")]
)
async def test_a_certificate_for_another_name(host_a, host_b, hostname, text):
    """[TLS-16]"""
    dialled, accepted = await attempt(host_b, host_a, hostname=hostname)
    assert dialled.code == accepted.code == ErrorCode.TLS_FAILED
    assert text in str(dialled.error)
    assert "refuses this host's certificate: wrong name" in str(accepted.error)


async def test_another_host_than_expected(host_a, host_b):
    """[TLS-16]"""
    dialled, accepted = await attempt(host_b, host_a, expected="host-c")
    assert dialled.code == ErrorCode.PEER_NOT_LISTED
    assert "is 'host-a', not 'host-c'" in str(dialled.error)
    assert accepted.read == b""  # close_notify: nothing but a peer that went away


async def test_a_dialler_checks_exactly_one_thing(host_a):
    for context, options in [
        (host_a.context(server=False), {}),
        (host_a.context(server=False), {"hostname": "x", "expected": "y"}),
        (host_a.context(server=False), {"hostname": "x"}),
        (host_a.context(server=False, check_hostname=True), {"expected": "y"}),
    ]:
        with socket.socket() as sock, pytest.raises(ValueError, match="checks either"):
            await dial_tls(sock, host_a, context, **options)


async def test_the_acceptor_does_not_know_the_diallers_ca(authority, other_authority, host_a, monkeypatch):
    """[TLS-11] Whether or not the system as a whole trusts it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(other_authority.directory / "ca.pem"))
    issued = other_authority.issue("stranger")
    stranger = other_authority.config(issued, authority=host_a.authority)
    dialled, accepted = await attempt(stranger, host_a)
    assert dialled.code == accepted.code == ErrorCode.TLS_FAILED
    assert "its CA is not the one that this host trusts" in str(accepted.error)
    assert dialled.peer is not None  # TLS 1.3: refused only after the client had finished
    assert "does not trust the CA of this host's certificate" in str(dialled.error)


async def test_the_dialler_does_not_know_the_acceptors_ca(authority, other_authority, host_a, monkeypatch):
    """[TLS-11] Whether or not the system as a whole trusts it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.directory / "ca.pem"))
    stranger = other_authority.config(other_authority.issue("stranger-2"))
    dialled, accepted = await attempt(stranger, host_a)
    assert "its CA is not the one that this host trusts" in str(dialled.error)
    assert "does not trust the CA of this host's certificate" in str(accepted.error)


@pytest.mark.parametrize(
    ("start", "ours", "theirs"),
    [
        (PAST, "it has expired", "this host's certificate has expired"),
        (FUTURE, "is not valid yet", "refuses this host's certificate"),
    ],
)
async def test_validity(authority, host_a, start, ours, theirs):
    name = f"from-{start:%Y-%m-%d}"
    config = authority.config(authority.issue(f"{name}-b", days=10, now=start))
    dialled, accepted = await attempt(config, host_a)
    assert ours in str(accepted.error)
    assert theirs in str(dialled.error)
    config = authority.config(authority.issue(f"{name}-a", days=10, now=start))
    dialled, accepted = await attempt(host_a, config, expected=f"{name}-a")
    assert ours in str(dialled.error)
    assert theirs in str(accepted.error)


async def test_a_self_signed_certificate(authority, host_a, tmp_path):
    """[TLS-11]"""
    ca_key = serialization.load_pem_private_key((authority.directory / "ca.key").read_bytes(), None)
    ca = x509.load_pem_x509_certificate((authority.directory / "ca.pem").read_bytes())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "self")])
    certificate = (
        x509.CertificateBuilder(name, name, ca_key.public_key(), 1, ca.not_valid_before_utc, FUTURE)
    ).sign(ca_key, hashes.SHA256())
    path = tmp_path / "self.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    config = TlsConfig(path, authority.directory / "ca.key", host_a.authority, lambda *_: None)
    _, accepted = await attempt(config, host_a)
    assert "it is self-signed" in str(accepted.error)


async def test_no_certificate(host_a):
    """[TLS-10]"""

    def bare(server):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(host_a.authority)
        return context

    class Bare:
        context = staticmethod(lambda **_: bare(server=False))
        check_peer = staticmethod(lambda *_: None)

    dialled, accepted = await attempt(Bare, host_a)
    assert "showed no certificate" in str(accepted.error)
    assert dialled.code in {ErrorCode.WRONG_ALPN, ErrorCode.TLS_FAILED}


async def test_tls_1_2_is_refused(host_a, host_b):
    """[TLS-5]"""

    def old(context):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    dialled, accepted = await attempt(host_b, host_a, change_dialler=old)
    assert dialled.code == accepted.code == ErrorCode.TLS_FAILED
    assert "TLS 1.3, which Sterna requires" in str(dialled.error)
    assert "TLS 1.3, which Sterna requires" in str(accepted.error)
    dialled, accepted = await attempt(host_b, host_a, change_acceptor=old)
    assert "TLS 1.3, which Sterna requires" in str(dialled.error)


@pytest.mark.parametrize("other", [[], ["http/1.1"]])
async def test_alpn(host_a, host_b, other):
    """[TLS-8]"""

    def change(context):
        context.set_alpn_protocols(other or ["x"])

    dialled, accepted = await attempt(host_b, host_a, change_dialler=change, farewell=lambda _: b"no")
    assert accepted.code == ErrorCode.WRONG_ALPN
    assert "speaks TLS but not sterna/" in str(accepted.error)
    assert dialled.code == ErrorCode.WRONG_ALPN


async def test_the_acceptor_does_not_list_the_dialler(authority, host_a, host_b):
    """[TLS-15]"""
    strict = TlsConfig(host_a.certificate, host_a.key, host_a.authority, refuse)
    dialled, accepted = await attempt(host_b, strict)
    assert accepted.code == ErrorCode.PEER_NOT_LISTED
    assert "host-b is not listed" in str(accepted.error)
    assert dialled.read == b""  # no words given: a proper end before any byte

    dialled, accepted = await attempt(host_b, strict, farewell=lambda error: error.code.name.encode())
    assert accepted.code == ErrorCode.PEER_NOT_LISTED
    assert dialled.read == b"PEER_NOT_LISTED"


async def test_the_dialler_does_not_list_the_acceptor(host_a, host_b):
    """[TLS-15]"""
    strict = TlsConfig(host_b.certificate, host_b.key, host_b.authority, refuse)
    dialled, accepted = await attempt(strict, host_a, farewell=lambda error: error.code.name.encode())
    assert dialled.code == ErrorCode.PEER_NOT_LISTED
    assert accepted.read == b"PEER_NOT_LISTED"


async def test_a_certificate_of_ours_without_identity(authority, host_a, tmp_path):
    """Another service under the same CA [TLS-12]."""
    issued = authority.issue("no-identity")
    ca_key = serialization.load_pem_private_key((authority.directory / "ca.key").read_bytes(), None)
    old = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, old.public_key(), 7, old.not_valid_before_utc, old.not_valid_after_utc
    )
    path = tmp_path / "bare.pem"
    path.write_bytes(builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    config = TlsConfig(path, issued.key, issued.authority, lambda *_: None)
    _, accepted = await attempt(config, host_a)
    assert accepted.code == ErrorCode.PEER_NOT_LISTED
    assert "bears no identity" in str(accepted.error)


async def test_a_hook_that_breaks_leaves_nothing_open(host_a, host_b):
    def broken(*_):
        raise ZeroDivisionError

    config = TlsConfig(host_a.certificate, host_a.key, host_a.authority, broken)
    a, b = tcp_pair()

    async def dial():
        transport = await dial_tls(a, host_b, host_b.context(server=False), expected="host-a")
        with pytest.raises(TransportError):
            await transport.receive_into(memoryview(bytearray(1)))
        transport.abort()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        with pytest.raises(ZeroDivisionError):
            await accept_tls(b, config, config.context(server=True))


async def accepted_error(host_a, first: bytes, *, then_close=False) -> tuple[TransportError, bytes]:
    """What the acceptor makes of `first`, and what the other side reads as an answer."""
    a, b = tcp_pair()
    with a:
        if first:
            a.send(first)
        if then_close:
            a.shutdown(socket.SHUT_WR)
        caught = []
        answer = b""

        async def accept():
            with pytest.raises(TransportError) as error:
                await accept_tls(b, host_a, host_a.context(server=True))
            caught.append(error.value)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept)
                await trio.lowlevel.wait_readable(a)
                try:
                    answer = a.recv(100)
                except ConnectionResetError:
                    answer = b"reset"
                a.close()
    assert b.fileno() == -1
    return caught[0], answer


@pytest.mark.parametrize(
    ("first", "text"),
    [
        (MAGIC + bytes(4), "the client speaks Sterna without TLS"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "the client speaks HTTP"),
        (b"\0", "sent bytes that are not TLS (00)"),
        (b"\x80" * 100_000, "sent bytes that are not TLS"),
    ],
)
async def test_plaintext_at_a_tls_port(host_a, first, text):
    """[TLS-9]"""
    error, answer = await accepted_error(host_a, first)
    assert error.code == ErrorCode.PLAIN_ON_TLS
    assert text in str(error)
    assert answer == ALERT_UNEXPECTED  # so that the client can say that this is a TLS port


async def test_a_connection_without_a_word(host_a):
    error, answer = await accepted_error(host_a, b"", then_close=True)
    assert error.code == ErrorCode.TLS_FAILED
    assert "without a word of TLS" in str(error)
    assert answer == b""


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\xff\xff" + bytes(20_000)])
async def test_what_only_begins_like_tls(host_a, first):
    error, _ = await accepted_error(host_a, first)
    assert error.code in {ErrorCode.TLS_FAILED, ErrorCode.PLAIN_ON_TLS}


async def test_half_a_handshake(host_a):
    error, _ = await accepted_error(host_a, b"\x16\x03\x01\x02\x00\x01\x00", then_close=True)
    assert error.code == ErrorCode.TLS_FAILED
    assert "closed the connection during the handshake" in str(error)


async def test_a_connection_that_is_reset_before_the_handshake(host_a):
    a, b = tcp_pair()
    a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    a.close()
    with pytest.raises(TransportError) as caught:
        await accept_tls(b, host_a, host_a.context(server=True))
    assert caught.value.code == ErrorCode.CONNECTION_LOST


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (MAGIC + bytes(4), "the server speaks Sterna without TLS"),
        (b"HTTP/1.1 400 Bad Request\r\n", "the server speaks HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the server speaks SSH"),
    ],
)
@pytest.mark.parametrize("early", [False, True])
async def test_a_server_that_answers_in_plaintext(host_b, answer, text, early):
    """[TLS-9]"""
    a, b = tcp_pair()
    with b:
        if early:  # OpenSSL may read it before we can look: then the sentence is the general one
            b.send(answer)
            text = "the server s"

        async def serve():
            await trio.lowlevel.wait_readable(b)
            if not early:
                b.send(answer)
            b.shutdown(socket.SHUT_WR)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                with pytest.raises(TransportError) as caught:
                    await dial_tls(a, host_b, host_b.context(server=False), expected="host-a")
    assert caught.value.code == ErrorCode.PLAIN_ON_TLS
    assert text in str(caught.value)


async def test_a_server_that_hangs_up(host_b):
    a, b = tcp_pair()
    b.shutdown(socket.SHUT_WR)
    with b, trio.fail_after(60), pytest.raises(TransportError) as caught:
        await dial_tls(a, host_b, host_b.context(server=False), expected="host-a")
    assert caught.value.code == ErrorCode.TLS_FAILED


async def test_a_handshake_that_finds_the_socket_full(host_a, host_b, monkeypatch):
    tries = []

    class Full(TlsLayer):
        def do_handshake(self):
            tries.append(self)
            if len(tries) == 1:
                raise ssl.SSLWantWriteError
            super().do_handshake()

    monkeypatch.setattr(handshake, "TlsLayer", Full)
    a, b = tcp_pair()

    async def accept():
        (await accept_tls(b, host_a, host_a.context(server=True))).abort()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            transport = await dial_tls(a, host_b, host_b.context(server=False), expected="host-a")
            assert transport.peer.identity == "host-a"
            transport.abort()


@pytest.mark.parametrize("role", ["dialler", "acceptor"])
async def test_cancelling_closes_the_socket(host_a, role, autojump_clock):
    a, b = tcp_pair()
    with b, trio.move_on_after(5) as scope:
        if role == "dialler":
            await dial_tls(a, host_a, host_a.context(server=False), expected="host-a")
        else:
            await accept_tls(a, host_a, host_a.context(server=True))
    assert scope.cancelled_caught
    assert a.fileno() == -1


async def test_cancelling_while_a_refused_peer_reads_closes_the_socket(host_a, autojump_clock):
    a, b = tcp_pair()
    with b:
        b.send(b"GET /")
        with trio.move_on_after(0.5) as scope:
            await accept_tls(a, host_a, host_a.context(server=True))
    assert scope.cancelled_caught
    assert a.fileno() == -1


async def test_an_early_write_finds_the_alert_that_refused_this_host(other_authority, host_a, monkeypatch):
    """The dialler writes at once; the acceptor refuses its certificate and is gone before it reads."""
    monkeypatch.setattr(handshake, "REFUSAL_S", 0)
    stranger = other_authority.config(other_authority.issue("early"), authority=host_a.authority)
    a, b = tcp_pair(64 * 1024)

    async def accept():
        with pytest.raises(TransportError):
            await accept_tls(b, host_a, host_a.context(server=True))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            transport = await dial_tls(a, stranger, stranger.context(server=False), expected="host-a")
            with pytest.raises(TransportError) as caught:
                await transport.send([bytes(50_000_000)])
            transport.abort()
    assert caught.value.code == ErrorCode.TLS_FAILED
    assert "does not trust the CA" in str(caught.value)


async def test_what_comes_first_is_looked_at_only_if_it_is_first(host_a, host_b, monkeypatch):
    """A server's first record has come, and been taken, when the client asks for the first time."""
    a, b = tcp_pair()
    server = TlsLayer(b, host_a.context(server=True), server=True)
    fills = []

    class Early(TlsLayer):
        def _fill(self):
            fills.append(None)
            if len(fills) == 1:
                with pytest.raises(ssl.SSLWantReadError):
                    server.do_handshake()
                size = 5 + int.from_bytes(self.sock.recv(5, socket.MSG_PEEK)[3:], "big")
                self._dry = False
                self._came.write(self.sock.recv(size))
            elif len(fills) == 2:
                raise ssl.SSLWantReadError
            else:
                super()._fill()

    monkeypatch.setattr(handshake, "TlsLayer", Early)
    with server, trio.fail_after(30):
        transport = await dial_tls(a, host_b, host_b.context(server=False), expected="host-a")
        assert transport.peer.identity == "host-a"
        transport.abort()
