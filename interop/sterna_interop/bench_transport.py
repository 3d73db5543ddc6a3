"""`sterna bench transport`: what `TcpTransport` and `TlsTransport` cost beside bare blocking sockets.

The same memory moves four ways over loopback, sender and receiver in two processes: `sendall` and `recv_into`
of a batch each on a blocking socket and on a blocking `ssl.SSLSocket`, and `send` and `receive_into` of the
same batches on the transports, under trio at both ends. Handshakes are not counted.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final, TypeAlias, TypeVar

import trio
from cyclopts import Parameter

from sterna.cli.output import Output
from sterna.cli.units import Json, Size
from sterna.host import pki
from sterna.limits import BATCH_BYTES
from sterna.net.handshake import accept_tls, dial_tls
from sterna.net.tcp import SocketOptions, TcpTransport
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna_interop.measured import Report
from sterna_interop.measuring import BARE, OURS, Measure, Runs, Turn, progress, take
from sterna_interop.memories import Memories
from sterna_interop.moving_bare import ReceiveOver, SendOver, bare_receive, bare_send, over_sockets

SIZE_BYTES: Final = 1 << 30

T = TypeVar("T")
Over: TypeAlias = Callable[[Transport, memoryview], Awaitable[T]]
Shake: TypeAlias = Callable[[socket.socket, TlsConfig], Awaitable[Transport]]


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
                    OURS: self._turn(self._over_tcp(send_all), self._over_tcp(receive_all)),
                    BARE: self._turn(timed(bare_send), bare_receive),
                },
                yardstick="blocking sockets",
                unit="bytes/s",
            ),
            Measure(
                name="tls",
                text="TlsTransport",
                ways={
                    OURS: self._turn(self._over_tls(send_all, dial), self._over_tls(receive_all, accept)),
                    BARE: self._turn(
                        self._over_ssl(timed(bare_send), server=False),
                        self._over_ssl(bare_receive, server=True),
                    ),
                },
                yardstick="blocking ssl.SSLSocket",
                unit="bytes/s",
            ),
        ]

    def _turn(self, send: SendOver, receive: ReceiveOver) -> Turn:
        way = over_sockets(send, receive, self._memories)
        return lambda: self._memories.size / way.move().seconds

    def _over_tcp(self, work: Over[T]) -> Callable[[socket.socket, memoryview], T]:
        async def main(sock: socket.socket, memory: memoryview) -> T:
            sock.setblocking(False)
            self._options.apply(sock)
            return await work(TcpTransport(sock), memory)

        return lambda sock, memory: trio.run(main, sock, memory)

    def _over_tls(self, work: Over[T], shake: Shake) -> Callable[[socket.socket, memoryview], T]:
        config = self._configs[shake is accept]

        async def main(sock: socket.socket, memory: memoryview) -> T:
            sock.setblocking(False)
            self._options.apply(sock)
            return await work(await shake(sock, config), memory)

        return lambda sock, memory: trio.run(main, sock, memory)

    def _over_ssl(
        self, work: Callable[[socket.socket, memoryview], T], *, server: bool
    ) -> Callable[[socket.socket, memoryview], T]:
        def run(sock: socket.socket, memory: memoryview) -> T:
            context: ssl.SSLContext = self._configs[server].context(server=server)
            with context.wrap_socket(sock, server_side=server) as tls_sock:
                return work(tls_sock, memory)

        return run


def timed(send: Callable[[socket.socket, memoryview], None]) -> SendOver:
    """`send`, with its seconds for an answer."""

    def run(sock: socket.socket, memory: memoryview) -> float:
        begin = time.perf_counter()
        send(sock, memory)
        return time.perf_counter() - begin

    return run


async def dial(sock: socket.socket, config: TlsConfig) -> Transport:
    """The sender's handshake."""
    return await dial_tls(sock, config, config.context(server=False), expected="b")


async def accept(sock: socket.socket, config: TlsConfig) -> Transport:
    """The receiver's."""
    return await accept_tls(sock, config, config.context(server=True))


async def send_all(transport: Transport, memory: memoryview) -> float:
    """Send batch by batch, and wait for the answer to the last byte."""
    begin = time.perf_counter()
    for offset in range(0, len(memory), BATCH_BYTES):
        await transport.send([memory[offset : offset + BATCH_BYTES]])
    await transport.receive_into(memoryview(bytearray(1)))
    seconds = time.perf_counter() - begin
    await transport.close()
    return seconds


async def receive_all(transport: Transport, memory: memoryview) -> None:
    """Receive batch by batch, and answer the last byte."""
    offset = 0
    while offset < len(memory):
        end = offset - offset % BATCH_BYTES + BATCH_BYTES
        count = await transport.receive_into(memory[offset:end])
        if not count:
            raise ConnectionError("the sender ended early")
        offset += count
    await transport.send([b"\0"])
    await transport.close()
