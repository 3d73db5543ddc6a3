"""What the tests of `sterna.net` share: certificates, connected pairs."""

import socket
from dataclasses import dataclass
from pathlib import Path

import trio

from sterna.host import pki
from sterna.net.handshake import accept_tls, dial_tls
from sterna.net.tls import TlsConfig, TlsTransport


def welcome(identity: str, fingerprint: bytes) -> None:
    assert identity
    assert len(fingerprint) == 32


@dataclass
class Authority:
    directory: Path

    def issue(self, name: str, **options) -> pki.Issued:
        return pki.issue(self.directory, name, **options)

    @staticmethod
    def config(issued: pki.Issued, check_peer=welcome, authority: Path | None = None) -> TlsConfig:
        return TlsConfig(issued.certificate, issued.key, authority or issued.authority, check_peer)


def tcp_pair(buffer_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two connected, non-blocking TCP sockets: the one that dialled, the one that was accepted."""
    with socket.socket() as listener:
        if buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        a = socket.socket()
        if buffer_bytes is not None:
            a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        a.connect(listener.getsockname())
        b, _ = listener.accept()
    for sock in (a, b):
        sock.setblocking(False)
        if buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    return a, b


async def shake_hands(
    dialler: TlsConfig, acceptor: TlsConfig, expected: str, buffer_bytes: int | None = None
) -> tuple[TlsTransport, TlsTransport]:
    """A TLS connection over loopback: the dialler's end and the acceptor's."""
    a, b = tcp_pair(buffer_bytes)
    ends: dict[str, TlsTransport] = {}

    async def accept() -> None:
        ends["acceptor"] = await accept_tls(b, acceptor, acceptor.context(server=True))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            ends["dialler"] = await dial_tls(a, dialler, dialler.context(server=False), expected=expected)
    return ends["dialler"], ends["acceptor"]


async def receive_exactly(transport, count: int) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    while view.nbytes:
        got = await transport.receive_into(view)
        assert got, "ended early"
        view = view[got:]
    return bytes(data)


class Stub:
    """A socket that answers with the given results first."""

    def __init__(self, sock, **answers):
        self._sock = sock
        self._answers = answers

    def __getattr__(self, name):
        answers = self._answers.get(name)
        if not answers:
            return getattr(self._sock, name)

        def answer(*_):
            result = answers.pop(0)
            if isinstance(result, Exception):
                raise result
            return result() if callable(result) else result

        return answer
