"""A TLS client that renews its key, which Python's cannot: `openssl s_client`, and what goes through it."""

from __future__ import annotations

import socket
import subprocess
from functools import partial
from itertools import cycle

import trio

from sterna.net.connect import Address
from sterna.net.tls import TlsConfig
from sterna.net.transport import OnSent, Peer, Transport
from sterna.registry import ALPN

# A command to it begins with one of these letters: `k` renews its key, with `K` the peer is to do so, too.
_LETTERS = b"QCRkK"
_RENEW = (b"k\n", b"K\n")
_PART_BYTES = 8192  # it reads no more at once


class RenewingTransport(Transport):
    """What is sent goes through the client, whose key is another one after every `EVERY_BYTES`.

    A command is what a read of the client begins with. So its input keeps the borders of what is written, and
    data is cut where it goes on with no such letter.

    Attributes:
        renewals: how often it has said that it renews its key.
    """

    EVERY_BYTES = 256 * 1024

    def __init__(self, process: trio.Process, writes: socket.socket, peer: Peer) -> None:
        super().__init__(peer)
        self.renewals = 0
        self._process = process
        self._writes = trio.socket.from_stdlib_socket(writes)
        self._commands = cycle(_RENEW)
        self._left = self.EVERY_BYTES

    async def count(self) -> None:
        """Until the client has ended."""
        assert self._process.stderr is not None
        async for said in self._process.stderr:
            self.renewals += said.count(b"KEYUPDATE")

    async def _send(self, views: list[memoryview], sent: OnSent) -> None:
        data = b"".join(views)
        while data:
            if self._left <= 0:
                await self._writes.send(next(self._commands))
                self._left = self.EVERY_BYTES
            cut = min(len(data), _PART_BYTES)
            while data[cut : cut + 1] in {bytes([letter]) for letter in _LETTERS}:
                cut -= 1
            assert data[0] not in _LETTERS, "begins with a command"
            await self._writes.send(data[:cut])
            self._left -= cut
            sent(cut)
            data = data[cut:]

    async def _receive_into(self, view: memoryview) -> int:
        assert self._process.stdout is not None
        data = await self._process.stdout.receive_some(view.nbytes)
        view[: len(data)] = data
        return len(data)

    async def _finish(self) -> None:
        self._writes.close()
        scratch = memoryview(bytearray(4096))
        while await self._receive_into(scratch):
            pass

    def _dispose(self, *, abrupt: bool) -> None:
        self._writes.close()
        if abrupt:
            self._process.kill()


async def run_client(
    address: Address, dialler: TlsConfig, peer: Peer, task_status: trio.TaskStatus[RenewingTransport]
) -> None:
    """Dials this address, where this peer is; until the connection has ended."""
    command = (
        f"openssl s_client -connect {address} -tls1_3 -quiet -no_ign_eof -verify_return_error -alpn {ALPN}"
        f" -cert {dialler.certificate} -key {dialler.key} -CAfile {dialler.authority}"
    )
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    pipe = subprocess.PIPE
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command.split(), stdin=its, stdout=pipe, stderr=pipe, check=False)
        process = await nursery.start(run)
        its.close()
        transport = RenewingTransport(process, ours, peer)
        nursery.start_soon(transport.count)
        task_status.started(transport)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        await stream.aclose()
