"""The relay between two endpoints: it passes bytes on, and does what a *fault* (faults.py) says."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from sterna_interop.faults import End, Fault, Wait, Way

PIECE_BYTES: Final = 64 * 1024

_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Passed:
    """What went through a relay."""

    bytes: dict[Way, int] = field(default_factory=lambda: dict.fromkeys(Way, 0))
    ended: End | None = None


OnBytes = Callable[[Way, bytes], None]


async def relay(
    source: socket.socket,
    destination: socket.socket,
    fault: Fault,
    *,
    on_bytes: OnBytes | None = None,
) -> Passed:
    """Pass bytes between two connected, non-blocking sockets until both have ended; closes them.

    An end that nobody ordered is passed on as it came: FIN as FIN, a reset as a reset.
    """
    return await _Relay(source, destination, fault, on_bytes or (lambda _way, _data: None)).run()


class _Relay:
    def __init__(
        self, source: socket.socket, destination: socket.socket, fault: Fault, on_bytes: OnBytes
    ) -> None:
        self._ends = {
            Way.TO_DESTINATION: (source, destination),
            Way.TO_SOURCE: (destination, source),
        }
        self._sockets = (source, destination)
        self._fault = fault
        self._on_bytes = on_bytes
        self._passed = Passed()

    async def run(self) -> Passed:
        try:
            async with trio.open_nursery() as nursery:
                for way in Way:
                    nursery.start_soon(self._pump, way, nursery.cancel_scope)
        finally:
            for sock in self._sockets:
                if sock.fileno() != -1:
                    trio.lowlevel.notify_closing(sock)
                    sock.close()
        return self._passed

    async def _pump(self, way: Way, scope: trio.CancelScope) -> None:
        inward, outward = self._ends[way]
        while True:
            try:
                data = await _receive(inward)
            except OSError:
                data = None
            if not data or self._passed.ended is not None:
                if self._passed.ended is None:
                    self._pass_end_on(outward, reset=data is None)
                if not data:
                    return
                continue  # after an ordered end: what still comes is read and dropped
            for action in self._fault.passing(way, data):
                match action:
                    case Wait(seconds=seconds):
                        await trio.sleep(seconds)
                    case End():
                        self._order(action, scope)
                    case bytes() if not await self._pass_on(way, outward, action):
                        self._pass_end_on(inward, reset=True)
                        return
                    case _:
                        pass

    def _pass_end_on(self, sock: socket.socket, *, reset: bool) -> None:
        if reset:
            _reset(sock)
            return
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    async def _pass_on(self, way: Way, outward: socket.socket, data: bytes) -> bool:
        """Whether the peer took them, or need not any more."""
        if self._passed.ended is not None:
            return True
        self._on_bytes(way, data)  # first: once they have left, the answer to them may be told before
        try:
            await _send(outward, data)
        except OSError:
            return False
        self._passed.bytes[way] += len(data)
        return True

    def _order(self, end: End, scope: trio.CancelScope) -> None:
        self._passed.ended = end
        source, destination = self._sockets
        match end:
            case End.RESET:
                _reset(source)
                _reset(destination)
                scope.cancel()
            case End.FIN:
                for sock in self._sockets:
                    self._pass_end_on(sock, reset=False)
            case End.HALF:
                _reset(destination)
            case End.SILENCE:
                pass


def _reset(sock: socket.socket) -> None:
    if sock.fileno() == -1:
        return
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    trio.lowlevel.notify_closing(sock)
    sock.close()


async def _receive(sock: socket.socket) -> bytes:
    while True:
        try:
            return sock.recv(PIECE_BYTES)
        except BlockingIOError:
            try:
                await trio.lowlevel.wait_readable(sock)
            except trio.ClosedResourceError as error:
                raise OSError("closed") from error


async def _send(sock: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            try:
                await trio.lowlevel.wait_writable(sock)
            except trio.ClosedResourceError as error:
                raise OSError("closed") from error
    await trio.lowlevel.checkpoint()
