"""What stands between two endpoints, and can be cut: a relay that knows nothing of what it passes on."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from functools import partial
from typing import Final

import trio

_PIECE_BYTES: Final = 64 * 1024
_AT_ONCE: Final = struct.pack("ii", 1, 0)


class Cable:
    """Takes connections on `port` of loopback and passes them on to `target`, another port there.

    Attributes:
        port: 0 until `run` has started.
        target: may be changed; connections that are open stay where they are.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.target = target
        self._open: set[trio.SocketStream] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pass on, until cancelled."""
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, self._carry, 0, host="127.0.0.1"))
            self.port = listeners[0].socket.getsockname()[1]
            task_status.started()

    def cut(self) -> None:
        """Both ends of every open connection see a reset; what is dialled later passes."""
        for stream in self._open:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            trio.lowlevel.notify_closing(stream.socket)
            stream.socket.close()
        self._open.clear()

    async def _carry(self, near: trio.SocketStream) -> None:
        async with near:
            with suppress(OSError):
                far = await trio.open_tcp_stream("127.0.0.1", self.target)
                async with far:
                    ends = {near, far}
                    self._open |= ends
                    try:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(_pass_on, near, far)
                            nursery.start_soon(_pass_on, far, near)
                    finally:
                        self._open -= ends


async def _pass_on(inward: trio.SocketStream, outward: trio.SocketStream) -> None:
    """An end is passed on as an end; a reset ends both ways when the other side next sends."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await inward.receive_some(_PIECE_BYTES):
            await outward.send_all(data)
        await outward.send_eof()
        return
    for stream in (inward, outward):
        with suppress(OSError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        await trio.aclose_forcefully(stream)
