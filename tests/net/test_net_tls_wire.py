"""What somebody on the network sees of a TLS connection: records of TLS from the first byte to the last."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio
from net_support import receive_exactly, tcp_pair

from sterna.errors import TransportError
from sterna.net.handshake import accept_tls, dial_tls
from sterna.registry import MAGIC, ErrorCode

ALERT, HANDSHAKE, DATA = 21, 22, 23
CLIENT_HELLO, PRE_SHARED_KEY, EARLY_DATA = 1, 41, 42


def records(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """The TLS records of one direction, which have to be all that there is: (content type, fragment)."""
    at = 0
    while at < len(stream):
        kind, major, length = stream[at], stream[at + 1], int.from_bytes(stream[at + 3 : at + 5])
        assert kind in {20, ALERT, HANDSHAKE, DATA}, f"no TLS at {at}: {stream[at : at + 16]!r}"
        assert major == 3
        fragment = stream[at + 5 : at + 5 + length]
        assert len(fragment) == length <= 16384 + 256
        yield kind, fragment
        at += 5 + length


def extensions(hello: bytes) -> set[int]:
    """The extensions of a ClientHello."""
    assert hello[0] == CLIENT_HELLO
    at = 4 + 2 + 32
    at += 1 + hello[at]  # session id
    at += 2 + int.from_bytes(hello[at : at + 2])  # cipher suites
    at += 1 + hello[at]  # compression
    end = at + 2 + int.from_bytes(hello[at : at + 2])
    at += 2
    found = set()
    while at < end:
        found.add(int.from_bytes(hello[at : at + 2]))
        at += 4 + int.from_bytes(hello[at + 2 : at + 4])
    return found


class Wire:
    """Two TCP connections with somebody between them who writes down all that passes."""

    def __init__(self) -> None:
        self.dialler, self._near = tcp_pair()
        self._far, self.acceptor = tcp_pair()
        self.seen = {"dialler": bytearray(), "acceptor": bytearray()}

    async def carry(self) -> None:
        """Until both directions have ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._carry, "dialler", self._near, self._far)
            nursery.start_soon(self._carry, "acceptor", self._far, self._near)
        self._near.close()
        self._far.close()

    async def _carry(self, sender: str, one: socket.socket, other: socket.socket) -> None:
        source, sink = trio.socket.from_stdlib_socket(one.dup()), trio.socket.from_stdlib_socket(other.dup())
        with source, sink:
            while data := await source.recv(65536):
                self.seen[sender] += data
                await trio.SocketStream(sink).send_all(data)
            sink.shutdown(socket.SHUT_WR)


SECRET = MAGIC + b"the memory of a guest" * 5000


async def test_everything_is_inside_tls(host_a, host_b):
    """[TLS-4] [TLS-6] Nothing of it shows, and nothing goes before the handshake is done."""
    wire, sessions = Wire(), []

    async def use(transport):
        await transport.send([SECRET])
        assert await receive_exactly(transport, len(SECRET)) == SECRET
        sessions.append(transport._tls.tls.session)
        await transport.close()

    async def accept():
        await use(await accept_tls(wire.acceptor, host_a, host_a.context(server=True)))

    async def dial():
        context = host_b.context(server=False)
        await use(await dial_tls(wire.dialler, host_b, context, expected="host-a"))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for each in (wire.carry, accept, dial):
                nursery.start_soon(each)
    for stream in wire.seen.values():
        assert sum(len(fragment) for kind, fragment in records(bytes(stream)) if kind == DATA) > len(SECRET)
        assert MAGIC not in stream
        assert b"the memory of a guest" not in stream
    (kind, hello), *_ = records(bytes(wire.seen["dialler"]))
    assert kind == HANDSHAKE
    assert not extensions(hello) & {EARLY_DATA, PRE_SHARED_KEY}
    # [TLS-7] Without a ticket nobody can send early data over a later connection.
    assert not any(session.has_ticket for session in sessions if session is not None)


@pytest.mark.parametrize("answer", [MAGIC + bytes(4), b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
async def test_a_dialler_does_not_fall_back(host_b, answer):
    """[TLS-3] Whatever a server without TLS says, it never gets a byte outside of TLS."""
    a, b = tcp_pair()
    got = bytearray()

    async def serve():
        with trio.socket.from_stdlib_socket(b) as server:
            got.extend(await server.recv(65536))
            await trio.SocketStream(server).send_all(answer)
            server.shutdown(socket.SHUT_WR)
            while data := await server.recv(65536):
                got.extend(data)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with pytest.raises(TransportError) as caught:
                await dial_tls(a, host_b, host_b.context(server=False), expected="host-a")
    assert caught.value.code in {ErrorCode.PLAIN_ON_TLS, ErrorCode.TLS_FAILED}
    assert {kind for kind, _ in records(bytes(got))} <= {HANDSHAKE, ALERT}
