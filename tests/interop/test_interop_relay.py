"""The relay on real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio

from sterna_interop.faults import AtByte, Clean, End, Fault, Way
from sterna_interop.relay import Passed, relay

THERE, BACK = Way.TO_DESTINATION, Way.TO_SOURCE


class Ends:
    """Two clients of a relay: the peers' ends of its sockets."""

    def __init__(self) -> None:
        self.source, self._near = socket.socketpair()
        self._far, self.destination = socket.socketpair()
        for sock in (self.source, self._near, self._far, self.destination):
            sock.setblocking(False)

    async def relay(self, fault: Fault) -> Passed:
        return await relay(self._near, self._far, fault)

    def close(self) -> None:
        self.source.close()
        self.destination.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


async def receive(sock: socket.socket) -> bytes:
    with trio.fail_after(5):
        await trio.lowlevel.wait_readable(sock)
        return sock.recv(1 << 16)


async def test_bytes_and_ends_pass_both_ways(ends: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.relay, Clean())
        ends.source.send(b"there")
        assert await receive(ends.destination) == b"there"
        ends.destination.send(b"back")
        assert await receive(ends.source) == b"back"
        ends.source.shutdown(socket.SHUT_WR)
        assert await receive(ends.destination) == b""
        ends.destination.send(b"more")
        assert await receive(ends.source) == b"more"
        ends.destination.close()
        assert await receive(ends.source) == b""


async def test_what_passed_is_counted_and_told(ends: Ends) -> None:
    told: list[tuple[Way, bytes]] = []
    ends.source.send(b"0123456789")
    passed = await relay(
        ends._near, ends._far, AtByte(THERE, 4, End.RESET), on_bytes=lambda *each: told.append(each)
    )
    assert (passed.bytes, passed.ended) == ({THERE: 4, BACK: 0}, End.RESET)
    assert told == [(THERE, b"0123")]


async def test_silence_closes_nothing_and_passes_nothing(ends: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.relay, AtByte(THERE, 2, End.SILENCE))
        ends.source.send(b"abcd")
        assert await receive(ends.destination) == b"ab"
        ends.source.send(b"efgh")
        ends.destination.send(b"back")
        ends.source.shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked()
        for sock in (ends.source, ends.destination):
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        nursery.cancel_scope.cancel()


async def test_half_an_end(ends: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.relay, AtByte(THERE, 2, End.HALF))
        ends.source.send(b"abcd")
        assert await receive(ends.destination) == b"ab"
        assert await receive(ends.destination) == b""
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(BlockingIOError):
            ends.source.recv(1)
        nursery.cancel_scope.cancel()


async def test_fin_comes_to_both(ends: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.relay, AtByte(THERE, 2, End.FIN))
        ends.source.send(b"abcd")
        assert await receive(ends.destination) == b"ab"
        assert await receive(ends.destination) == b""
        assert await receive(ends.source) == b""
        ends.close()
