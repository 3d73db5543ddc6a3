"""`sterna bench transport`: what `TcpTransport` and `TlsTransport` cost beside bare blocking sockets.

The same memory moves four ways over loopback, sender and receiver in two processes: `sendall` and `recv_into`
of 1 MiB pieces on a blocking socket and on a blocking `ssl.SSLSocket`, and `send` and `receive_into` of the
same pieces on the transports, under trio at both ends. Handshakes are not counted.
"""

from __future__ import annotations

import mmap
import socket
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final

import trio
from cyclopts import Parameter

from sterna.cli.output import Output
from sterna.cli.units import Json, Size
from sterna.host import pki
from sterna.net.handshake import accept_tls, dial_tls
from sterna.net.tcp import SocketOptions, TcpTransport
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna_interop.measuring import BARE, OURS, Measure, Report, Runs, progress, take
from sterna_interop.moving import PIECE_BYTES, Memories, Transfer, Work, bare_receive, bare_send

SIZE_BYTES: Final = 1 << 30

Over = Callable[[Transport, mmap.mmap], Awaitable[float]]
Shake = Callable[[socket.socket, TlsConfig], Awaitable[Transport]]


def transport(
    *,
    size: Size = SIZE_BYTES,
    runs: Runs = 5,
    unsent: Annotated[Size | None, Parameter(show_default=False)] = None,
    buffer: Annotated[Size | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> None:
    """What the transports cost, plain and with mutual TLS, beside bare sockets.

    Args:
        size: memory that is moved in every turn.
        runs: turns of each way; medians are shown.
        unsent: TCP_NOTSENT_LOWAT of the transports.
        buffer: SO_SNDBUF and SO_RCVBUF of the transports.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    options = SocketOptions(unsent_bytes=unsent, send_buffer_bytes=buffer, receive_buffer_bytes=buffer)
    with tempfile.TemporaryDirectory() as directory, progress(output) as say:
        measures = Ways(Path(directory), options, Memories(size)).measures()
        taken = take(measures, runs, say)
    Report(bench="transport", runs=runs, taken=taken).show(output)


class Ways:
    """The four ways, and what they need."""

    def __init__(self, directory: Path, options: SocketOptions, memories: Memories) -> None:
        pki.init_ca(directory)
        self._configs = {
            server: TlsConfig(issued.certificate, issued.key, issued.authority, lambda *_: None)
            for server, issued in ((True, pki.issue(directory, "b")), (False, pki.issue(directory, "a")))
        }
        self._options = options
        self._memories = memories

    def measures(self) -> list[Measure]:
        """Plain and TLS, each beside its bare loop."""
        return [
            Measure(
                name="tcp",
                text="TcpTransport",
                ways={
                    OURS: self._transfer(self._over_tcp(send_all), self._over_tcp(receive_all)),
                    BARE: self._transfer(bare_send, bare_receive),
                },
                yardstick="blocking sockets",
                unit="bytes/s",
            ),
            Measure(
                name="tls",
                text="TlsTransport",
                ways={
                    OURS: self._transfer(self._over_tls(send_all, dial), self._over_tls(receive_all, accept)),
                    BARE: self._transfer(
                        self._over_ssl(bare_send, server=False), self._over_ssl(bare_receive, server=True)
                    ),
                },
                yardstick="blocking ssl.SSLSocket",
                unit="bytes/s",
            ),
        ]

    def _transfer(self, send: Work, receive: Work) -> Transfer:
        return Transfer(send, receive, self._memories)

    def _over_tcp(self, work: Over) -> Work:
        async def main(sock: socket.socket, memory: mmap.mmap) -> float:
            sock.setblocking(False)
            self._options.apply(sock)
            return await work(TcpTransport(sock), memory)

        return lambda sock, memory: trio.run(main, sock, memory)

    def _over_tls(self, work: Over, shake: Shake) -> Work:
        config = self._configs[shake is accept]

        async def main(sock: socket.socket, memory: mmap.mmap) -> float:
            sock.setblocking(False)
            self._options.apply(sock)
            return await work(await shake(sock, config), memory)

        return lambda sock, memory: trio.run(main, sock, memory)

    def _over_ssl(self, work: Work, *, server: bool) -> Work:
        def run(sock: socket.socket, memory: mmap.mmap) -> float:
            context: ssl.SSLContext = self._configs[server].context(server=server)
            with context.wrap_socket(sock, server_side=server) as tls_sock:
                return work(tls_sock, memory)

        return run


async def dial(sock: socket.socket, config: TlsConfig) -> Transport:
    """The sender's handshake."""
    return await dial_tls(sock, config, config.context(server=False), expected="b")


async def accept(sock: socket.socket, config: TlsConfig) -> Transport:
    """The receiver's."""
    return await accept_tls(sock, config, config.context(server=True))


async def send_all(transport: Transport, memory: mmap.mmap) -> float:
    """Send in pieces, and wait for the answer to the last byte."""
    begin = time.perf_counter()
    with memoryview(memory) as view:
        for offset in range(0, len(view), PIECE_BYTES):
            await transport.send([view[offset : offset + PIECE_BYTES]])
    await transport.receive_into(memoryview(bytearray(1)))
    seconds = time.perf_counter() - begin
    await transport.close()
    return seconds


async def receive_all(transport: Transport, memory: mmap.mmap) -> float:
    """Receive in pieces, and answer the last byte."""
    with memoryview(memory) as view:
        offset = 0
        while offset < len(view):
            count = await transport.receive_into(view[offset : offset + PIECE_BYTES])
            if not count:
                raise ConnectionError("the sender ended early")
            offset += count
    await transport.send([b"\0"])
    await transport.close()
    return 0.0
