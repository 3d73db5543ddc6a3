"""What the transports cost: `TcpTransport` and `TlsTransport` beside bare blocking sockets, in one run.

``python -m sterna_interop.bench_transport`` moves the same memory four ways in alternation, over loopback,
sender and receiver in two processes, memory of both sides touched beforehand: `sendall` and `recv_into` of
1 MiB pieces on a blocking socket and on a blocking `ssl.SSLSocket`, and `send` and `receive_into` of the
same pieces on the transports, under trio at both ends. The receiver's last byte is answered before the clock
stops; handshakes are not counted. What counts is the median of the ratios, run by run.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio

from sterna.host import pki
from sterna.net.handshake import accept_tls, dial_tls
from sterna.net.tcp import SocketOptions, TcpTransport
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport

PIECE_BYTES = 1024 * 1024

Work = Callable[[socket.socket, mmap.mmap], float]


def _touched(size: int, fill: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, size)
    for offset in range(0, size, len(fill)):
        memory[offset : offset + len(fill)] = fill[: size - offset]
    return memory


def _blocking_send(sock: socket.socket, memory: mmap.mmap) -> float:
    view = memoryview(memory)
    begin = time.perf_counter()
    for offset in range(0, len(view), PIECE_BYTES):
        sock.sendall(view[offset : offset + PIECE_BYTES])
    sock.recv(1)
    return time.perf_counter() - begin


def _blocking_receive(sock: socket.socket, memory: mmap.mmap) -> float:
    view, offset = memoryview(memory), 0
    while offset < len(view):
        offset += sock.recv_into(view[offset : offset + PIECE_BYTES])
    sock.sendall(b"\0")
    return 0.0


async def _transport_send(transport: Transport, memory: mmap.mmap) -> float:
    view = memoryview(memory)
    begin = time.perf_counter()
    for offset in range(0, len(view), PIECE_BYTES):
        await transport.send([view[offset : offset + PIECE_BYTES]])
    await transport.receive_into(memoryview(bytearray(1)))
    seconds = time.perf_counter() - begin
    await transport.close()
    return seconds


async def _transport_receive(transport: Transport, memory: mmap.mmap) -> float:
    view, offset = memoryview(memory), 0
    while offset < len(view):
        offset += await transport.receive_into(view[offset : offset + PIECE_BYTES])
    await transport.send([b"\0"])
    await transport.close()
    return 0.0


class Ways:
    """The four ways: for each a function of the sender and one of the receiver."""

    def __init__(self, directory: Path, options: SocketOptions) -> None:
        pki.init_ca(directory)
        self._configs = {
            server: TlsConfig(issued.certificate, issued.key, issued.authority, lambda *_: None)
            for server, issued in ((True, pki.issue(directory, "b")), (False, pki.issue(directory, "a")))
        }
        self._options = options

    def pairs(self) -> dict[str, tuple[Work, Work]]:
        """By name: what the sender does, and what the receiver does."""
        return {
            "bare": (_blocking_send, _blocking_receive),
            "tcp": (self._over_tcp(_transport_send), self._over_tcp(_transport_receive)),
            "bare_tls": (
                self._over_ssl(_blocking_send, server=False),
                self._over_ssl(_blocking_receive, server=True),
            ),
            "tls": (self._send_over_tls, self._receive_over_tls),
        }

    def _over_tcp(self, work: Callable[..., object]) -> Work:
        def run(sock: socket.socket, memory: mmap.mmap) -> float:
            sock.setblocking(False)
            self._options.apply(sock)
            return float(trio.run(work, TcpTransport(sock), memory))  # type: ignore[arg-type]

        return run

    def _over_ssl(self, work: Work, *, server: bool) -> Work:
        def run(sock: socket.socket, memory: mmap.mmap) -> float:
            context: ssl.SSLContext = self._configs[server].context(server=server)
            with context.wrap_socket(sock, server_side=server) as tls_sock:
                return work(tls_sock, memory)

        return run

    def _send_over_tls(self, sock: socket.socket, memory: mmap.mmap) -> float:
        async def main() -> float:
            sock.setblocking(False)
            self._options.apply(sock)
            config = self._configs[False]
            transport = await dial_tls(sock, config, config.context(server=False), expected="b")
            return await _transport_send(transport, memory)

        return trio.run(main)

    def _receive_over_tls(self, sock: socket.socket, memory: mmap.mmap) -> float:
        async def main() -> float:
            sock.setblocking(False)
            self._options.apply(sock)
            config = self._configs[True]
            transport = await accept_tls(sock, config, config.context(server=True))
            return await _transport_receive(transport, memory)

        return trio.run(main)


def _measure(ways: tuple[Work, Work], source: mmap.mmap, destination: mmap.mmap) -> float:
    """Seconds that the sender needs; the receiver is a child process."""
    send, receive = ways
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if not child:
            code = 1
            try:
                with server.accept()[0] as sock:
                    receive(sock, destination)
                code = 0
            finally:
                os._exit(code)
        with socket.create_connection(server.getsockname()) as sock:
            seconds = send(sock, source)
    _, status = os.waitpid(child, 0)
    if status:
        raise ChildProcessError(f"the receiver failed: status {status}")
    return seconds


def main() -> int:
    """Measure, check that the bytes are equal, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ways", nargs="*", help="only these of bare, tcp, bare_tls, tls")
    parser.add_argument("--unsent-bytes", type=int, help="TCP_NOTSENT_LOWAT of the transports")
    parser.add_argument("--buffer-bytes", type=int, help="SO_SNDBUF and SO_RCVBUF of the transports")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    options = SocketOptions(
        unsent_bytes=arguments.unsent_bytes,
        send_buffer_bytes=arguments.buffer_bytes,
        receive_buffer_bytes=arguments.buffer_bytes,
    )
    source = _touched(arguments.bytes, os.urandom(16 * PIECE_BYTES))
    with tempfile.TemporaryDirectory() as directory:
        pairs = Ways(Path(directory), options).pairs()
        if arguments.ways:
            pairs = {name: pairs[name] for name in arguments.ways}
        seconds: dict[str, list[float]] = {name: [] for name in pairs}
        destination = _touched(arguments.bytes, b"\1" * PIECE_BYTES)
        for run in range(arguments.runs + 1):
            for name, pair in pairs.items():
                took = _measure(pair, source, destination)
                if run:  # the first one warms up
                    seconds[name].append(took)
    if memoryview(source) != memoryview(destination):
        raise SystemExit("the memories differ")
    _report(arguments.bytes, seconds, as_json=arguments.json)
    return 0


def _report(size: int, seconds: dict[str, list[float]], *, as_json: bool) -> None:
    rates = {name: size / statistics.median(each) for name, each in seconds.items()}
    ratios = {
        ours: [b / t for b, t in zip(seconds[bare], seconds[ours], strict=True)]
        for bare, ours in (("bare", "tcp"), ("bare_tls", "tls"))
        if bare in seconds and ours in seconds
    }
    medians = {name: statistics.median(each) for name, each in ratios.items()}
    if as_json:
        print(json.dumps({"schema": 1, "bytes_s": rates, "ratios": ratios, "medians": medians}))
        return
    for name, rate in rates.items():
        print(f"{name:9} {rate / 1e9:.2f} GB/s")
    for name, each in ratios.items():
        print(f"{name} / bare: {medians[name]:.2f} ({min(each):.2f} to {max(each):.2f})")


if __name__ == "__main__":
    sys.exit(main())
