"""Where the connections of one shim come in, and wait until somebody has use for them."""

from __future__ import annotations

import socket
from contextlib import suppress

import trio

from sterna_interop.process import MORE_MAX


class Door:
    """Connections, one after the other."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[socket.socket](MORE_MAX + 1)

    async def come(self, sock: socket.socket) -> None:
        """A connection."""
        try:
            self._send.send_nowait(sock)
        except (trio.BrokenResourceError, trio.ClosedResourceError):  # nobody waits for it any more
            sock.close()

    async def next(self) -> socket.socket | None:
        """Wait for the next one; None if there will not be any."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            return None

    def close(self) -> None:
        """Nothing more comes, and what nobody has taken is closed."""
        with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                self._receive.receive_nowait().close()
        self._send.close()
