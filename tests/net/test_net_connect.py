"""Addresses, dialling, deadlines; with `listen` at the other end where one is needed."""

import errno
import socket

import pytest
import trio

from sterna.errors import ConfigError, TransportError
from sterna.net.connect import Address, connect, open_tcp, parse_address, why
from sterna.net.listen import listen
from sterna.net.tls import TlsConfig
from sterna.registry import ErrorCode


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:7000", "localhost", 7000),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("host-b.example.:65535", "host-b.example.", 65535),
        ("[::1]:7000", "::1", 7000),
        ("[fe80::1%eth0]:7000", "fe80::1%eth0", 7000),
    ],
)
def test_addresses(text, host, port):
    assert parse_address(text) == Address(host, port)
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no address"),
        ("localhost", "no address"),
        ("localhost:", "no address"),
        ("localhost:http", "no address"),
        ("localhost:-1", "no address"),
        ("localhost:+1", "no address"),
        ("localhost:7000\n", "no address"),
        ("localhost:\u0661", "no address"),
        ("localhost:0", "1 to 65535"),
        ("localhost:65536", "1 to 65535"),
        ("::1:7000", "in brackets"),
        ("[localhost]:7000", "no IPv6 address"),
        ("[::1:7000", "in brackets"),
        (":7000", "neither a DNS name"),
        ("a b:7000", "neither a DNS name"),
        ("a\0:7000", "neither a DNS name"),
        ("-x:7000", "neither a DNS name"),
        ("x" * 10_000 + ":7000", "neither a DNS name"),
    ],
)
def test_what_is_no_address(text, why):
    with pytest.raises(ConfigError, match=why) as caught:
        parse_address(text)
    assert len(str(caught.value)) < 400


def test_a_listener_may_leave_the_port_to_the_system():
    assert parse_address("0.0.0.0:0", listen=True) == Address("0.0.0.0", 0)


@pytest.fixture
def dead_port():
    """One on which nothing listens, nor can as long as the test has it: not even the dialler's own end."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        yield sock.getsockname()[1]


@pytest.mark.parametrize("encrypted", [False, True])
async def test_nothing_listens(host_b, encrypted, dead_port):
    address = Address("127.0.0.1", dead_port)
    with pytest.raises(TransportError) as caught:
        await connect(address, tls=host_b if encrypted else None, expected="host-a")
    assert caught.value.code == ErrorCode.CONNECT_FAILED
    assert str(address) in str(caught.value)
    assert "nothing listens there" in str(caught.value)


class Names(trio.abc.HostnameResolver):
    """Knows one name, of two addresses."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002, PLR0917
        await trio.lowlevel.checkpoint()
        if host != b"two.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("127.0.0.1", "127.0.0.2")
        ]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_several_addresses_and_nothing_listens(dead_port):
    trio.socket.set_custom_hostname_resolver(Names())
    with pytest.raises(TransportError, match="nothing listens there"):
        await open_tcp(Address("two.example", dead_port))


async def test_an_unknown_name():
    trio.socket.set_custom_hostname_resolver(Names())
    with pytest.raises(TransportError, match="name is not known"):
        await open_tcp(Address("nowhere.invalid", 7000))


@pytest.mark.parametrize("encrypted", [False, True])
async def test_no_answer(host_b, encrypted, monkeypatch, autojump_clock):
    async def silent(*_, **__):
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", silent)
    with pytest.raises(TransportError) as caught:
        await connect(
            Address("10.0.0.1", 7000), tls=host_b if encrypted else None, expected="host-a", deadline_s=3
        )
    assert caught.value.code == ErrorCode.CONNECT_FAILED
    assert "did not answer within 3 s" in str(caught.value)
    assert trio.current_time() == pytest.approx(3)


async def test_a_server_that_accepts_and_says_nothing(host_b, autojump_clock):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Address(*server.getsockname())
        with pytest.raises(TransportError) as caught:
            await connect(address, tls=host_b, expected="host-a", deadline_s=3)
    assert caught.value.code == ErrorCode.TLS_FAILED
    assert "did not finish the TLS handshake within 3 s" in str(caught.value)


async def test_files_are_checked_before_anybody_is_dialled(host_b, tmp_path):
    broken = TlsConfig(tmp_path / "none", host_b.key, host_b.authority, host_b.check_peer)
    with pytest.raises(ConfigError, match="cannot read"):
        await connect(Address("127.0.0.1", 1), tls=broken)


async def greet(transport):
    await transport.send([(transport.peer.identity or "nobody").encode()])
    await transport.close()


@pytest.mark.parametrize("expected", ["host-a", None])
async def test_tls(host_a, host_b, expected):
    async with trio.open_nursery() as nursery:
        [bound] = await nursery.start(
            lambda task_status: listen(LOOPBACK, greet, tls=host_a, task_status=task_status)
        )
        transport = await connect(bound, tls=host_b, expected=expected)
        assert transport.peer.identity == "host-a"
        buffer = memoryview(bytearray(100))
        assert bytes(buffer[: await transport.receive_into(buffer)]) == b"host-b"
        await transport.close()
        nursery.cancel_scope.cancel()


async def test_plain():
    async with trio.open_nursery() as nursery:
        [bound] = await nursery.start(
            lambda task_status: listen(LOOPBACK, greet, tls=None, task_status=task_status)
        )
        transport = await connect(bound, tls=None)
        assert transport.peer.address == str(bound)
        assert transport._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        buffer = memoryview(bytearray(100))
        assert bytes(buffer[: await transport.receive_into(buffer)]) == b"nobody"
        await transport.close()
        nursery.cancel_scope.cancel()


LOOPBACK = Address("127.0.0.1", 0)


async def test_options_that_cannot_be_set_close_the_socket():
    class Broken:
        def apply(self, sock):
            self.sock = sock
            raise OSError(errno.EINVAL, "Invalid argument")

    options = Broken()
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(OSError, match="Invalid"):
        await open_tcp(Address(*server.getsockname()), options=options)
    assert options.sock.fileno() == -1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EHOSTUNREACH, "x"), "No route to host"),
        (OSError("strange"), "strange"),
        (OSError(errno.EACCES, "x"), "not permitted"),
    ],
)
def test_reasons(error, text):
    assert text in why(error)
