"""A relay between real endpoints whose connections are cut, each after so many bytes."""

from __future__ import annotations

from collections.abc import Sequence

import trio


class Relay:
    """Listens on a port of its own and passes everything on to another.

    Attributes:
        port: where it listens.
        connections: how many there have been.
    """

    def __init__(self, target: int, cuts: Sequence[int], *, rate_bytes_s: float | None = None) -> None:
        """`cuts`: bytes from the source after which each connection is lost; those behind the last live.

        `rate_bytes_s`: what passes on a connection from the source, which knows of no cap.
        """
        self.port = 0
        self._rate_bytes_s = rate_bytes_s
        self.connections = 0
        self._target = target
        self._cuts = tuple(cuts)
        self._scopes: set[trio.CancelScope] = set()

    def cut(self) -> None:
        """What is connected now is lost."""
        for scope in self._scopes:
            scope.cancel()

    async def listen(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            task_status.started()
            await trio.serve_listeners(self._relay, [listener], handler_nursery=nursery)

    async def _relay(self, near: trio.SocketStream) -> None:
        number, self.connections = self.connections, self.connections + 1
        left = self._cuts[number] if number < len(self._cuts) else None
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self._target)
        except OSError:  # nobody there, at the moment
            await near.aclose()
            return
        async with near, far, trio.open_nursery() as both:
            self._scopes.add(both.cancel_scope)
            both.start_soon(self._pass_on, near, far, left, both.cancel_scope, self._rate_bytes_s)
            both.start_soon(self._pass_on, far, near, None, both.cancel_scope, None)
        self._scopes.discard(both.cancel_scope)

    async def _pass_on(
        self,
        inward: trio.SocketStream,
        outward: trio.SocketStream,
        left: int | None,
        scope: trio.CancelScope,
        rate_bytes_s: float | None,
    ) -> None:
        try:
            while data := await inward.receive_some(65536):
                if left is not None:
                    data, left = data[:left], left - len(data)
                await outward.send_all(data)
                if rate_bytes_s is not None:
                    await trio.sleep(len(data) / rate_bytes_s)
                if left is not None and left <= 0:
                    break
            else:
                await outward.send_eof()
                return
        except trio.BrokenResourceError:
            pass
        scope.cancel()
