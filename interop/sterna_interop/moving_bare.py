"""The yardsticks of a transfer: blocking sockets and batches, no more.

Over the same memory files as everything else. With `hashed` each side also makes the hash pass that Sterna
makes over each chunk, on the batch that is under way; with contexts the sockets are `ssl.SSLSocket`.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias

from sterna.limits import BATCH_BYTES
from sterna.memory.pages import hash_chunks
from sterna.net.tcp import LOCAL_CONGESTION_CONTROL, do_not_pace_locally
from sterna_interop.memories import Memories
from sterna_interop.moving import Processes, Ready

HOST: Final = "127.0.0.1"
_HOSTS_CHOICE: Final = Path("/proc/sys/net/ipv4/tcp_congestion_control")


@dataclass(frozen=True, slots=True)
class Contexts:
    """OpenSSL's, of both sides."""

    client: ssl.SSLContext
    server: ssl.SSLContext


# What a side does with its connected, blocking socket and its memory; the sender tells its seconds.
SendOver: TypeAlias = Callable[[socket.socket, memoryview], float]
ReceiveOver: TypeAlias = Callable[[socket.socket, memoryview], None]
# Offset and length of each part of a memory that has content.
Extents: TypeAlias = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Batched:
    """What a loop moves at once.

    Attributes:
        extents: what has content; None is all.
        batch_bytes: the most bytes.
        hashed: whether each side makes Sterna's hash pass over it.
    """

    extents: Extents | None = None
    batch_bytes: int = BATCH_BYTES
    hashed: bool = False

    def batches(self, view: memoryview) -> Iterator[memoryview]:
        """In order."""
        for offset, length in [(0, len(view))] if self.extents is None else self.extents:
            for begin in range(offset, offset + length, self.batch_bytes):
                yield view[begin : min(begin + self.batch_bytes, offset + length)]

    def hash(self, batch: memoryview) -> None:
        """The pass, if there is one."""
        if self.hashed:
            hash_chunks(batch, [0], [len(batch)])


WHOLE: Final = Batched()


def over_sockets(
    send: SendOver, receive: ReceiveOver, memories: Memories, *, connections: int = 1
) -> Processes:
    """A way of moving over connections that are there already when each side begins.

    Of several each has its part of the memory, and a thread at each side. Their congestion control is
    Sterna's: what a loop can do that is paced as well would be no yardstick.
    """

    def dial(view: memoryview, port: int) -> float:
        with ExitStack() as stack:
            socks = [stack.enter_context(socket.create_connection((HOST, port))) for _ in range(connections)]
            for sock in socks:
                do_not_pace_locally(sock)
            if connections == 1:
                return send(socks[0], view)  # which knows when it begins: dialling does not count
            begin = time.perf_counter()
            _together(send, socks, view)
            return time.perf_counter() - begin

    def accept(view: memoryview, ready: Ready) -> None:
        with ExitStack() as stack:
            server = stack.enter_context(socket.create_server((HOST, 0)))
            ready(server.getsockname()[1])
            # They come in the order in which they were dialled.
            socks = [stack.enter_context(server.accept()[0]) for _ in range(connections)]
            for sock in socks:
                do_not_pace_locally(sock)
            _together(receive, socks, view)

    return Processes(dial, accept, memories)


def _together(
    act: Callable[[socket.socket, memoryview], object], socks: Sequence[socket.socket], view: memoryview
) -> None:
    """On each connection its part of the memory, cut where usual batches end."""
    if len(socks) == 1:
        act(socks[0], view)
        return
    batches = -(-len(view) // BATCH_BYTES)
    ends = [number * batches // len(socks) * BATCH_BYTES for number in range(len(socks) + 1)]
    parts = [view[begin:end] for begin, end in pairwise(ends)]
    with ThreadPoolExecutor(len(socks)) as pool:
        for _ in pool.map(act, socks, parts):
            pass


def congestion_control() -> str:
    """Whose connections have which, for people."""
    ours, others = LOCAL_CONGESTION_CONTROL.decode(), _HOSTS_CHOICE.read_text().strip()
    return f"Sterna's and the bare loops' {ours}, as on one machine; QEMU's {others}, this host's"


def bare(
    memories: Memories,
    *,
    contexts: Contexts | None = None,
    hashed: bool = False,
    connections: int = 1,
    batch_bytes: int = BATCH_BYTES,
) -> Processes:
    """The loop as a way of moving; handshakes of TLS count. Only memory without holes has several."""
    extents = None if memories.whole else memories.extents
    assert extents is None or connections == 1
    batched = Batched(extents, batch_bytes, hashed=hashed)

    def send(sock: socket.socket, view: memoryview) -> float:
        begin = time.perf_counter()
        if contexts is None:
            bare_send(sock, view, batched)
        else:
            with contexts.client.wrap_socket(sock) as tls_sock:
                bare_send(tls_sock, view, batched)
        return time.perf_counter() - begin

    def receive(sock: socket.socket, view: memoryview) -> None:
        if contexts is None:
            bare_receive(sock, view, batched)
        else:
            with contexts.server.wrap_socket(sock, server_side=True) as tls_sock:
                bare_receive(tls_sock, view, batched)

    return over_sockets(send, receive, memories, connections=connections)


def bare_send(sock: socket.socket, view: memoryview, batched: Batched = WHOLE) -> None:
    """`sendall` batch by batch, and wait for the receiver's answer to the last byte."""
    for batch in batched.batches(view):
        batched.hash(batch)
        sock.sendall(batch)
    sock.recv(1)


def bare_receive(sock: socket.socket, view: memoryview, batched: Batched = WHOLE) -> None:
    """`recv_into` until each batch is there."""
    for batch in batched.batches(view):
        rest = batch
        while len(rest):
            count = sock.recv_into(rest)
            if not count:
                raise ConnectionError("the sender ended early")
            rest = rest[count:]
        batched.hash(batch)
    sock.sendall(b"\0")
