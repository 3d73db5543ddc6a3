"""The relay's faults, first as what they order, then on real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio

from sterna.registry import FrameType
from sterna.wire import unchecked
from sterna.wire.records import Ping
from sterna_interop.relay import (
    Action,
    AtByte,
    AtFrame,
    Clean,
    Delay,
    End,
    Fault,
    Frames,
    Passed,
    Rechunk,
    Wait,
    Way,
    relay,
)

THERE, BACK = Way.TO_DESTINATION, Way.TO_SOURCE
PREFACE = unchecked.preface()
PING = unchecked.frame(FrameType.PING, unchecked.body(Ping(7)))
PAGES = unchecked.frame(FrameType.PAGES, b"t" * 24, b"b" * 100)
READY = unchecked.frame(FrameType.READY, bytes(8))


def actions(fault: Fault, data: bytes, way: Way = THERE, size: int = 0) -> list[Action]:
    """What a fault orders for `data`, which comes in pieces of `size`."""
    pieces = [data] if not size else [data[at : at + size] for at in range(0, len(data), size)]
    found: list[Action] = []
    for piece in pieces:
        found += fault.passing(way, piece)
        if found and isinstance(found[-1], End):
            break
    return found


def passed(found: list[Action]) -> bytes:
    return b"".join(each for each in found if isinstance(each, bytes))


def test_nothing_and_delay() -> None:
    assert actions(Clean(), b"abc") == [b"abc"]
    assert actions(Delay(0.5), b"abc") == [Wait(0.5), b"abc"]


def test_other_pieces_are_the_same_bytes() -> None:
    """[FRM-13]"""
    data = bytes(range(256)) * 100
    found = actions(Rechunk(3), data)
    assert passed(found) == data
    assert [len(each) for each in found[:200]] == [1] * 200  # type: ignore[arg-type]
    assert found == actions(Rechunk(3), data) != actions(Rechunk(4), data)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_an_end_at_a_byte(size: int) -> None:
    fault = AtByte(THERE, 5, End.RESET)
    assert list(fault.passing(BACK, b"other way")) == [b"other way"]
    found = actions(fault, b"0123456789", size=size)
    assert (passed(found), found[-1]) == (b"01234", End.RESET)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_changed_byte(size: int) -> None:
    assert passed(actions(AtByte(THERE, 5), b"0123456789", size=size)) == b"01234\x156789"


@pytest.mark.parametrize("size", [0, 1, 7, 50])
def test_frames_are_found_however_they_come(size: int) -> None:
    data = PREFACE + PING + PAGES
    frames, found = Frames(), []
    for at in range(0, len(data), size or len(data)):
        found += list(frames.parts(data[at : at + (size or len(data))]))
    assert b"".join(part.data for part in found) == data
    whole = [part.frame for part in found if part.ends]
    assert whole == [0, FrameType.PING, FrameType.PAGES]
    assert {(part.body_bytes, part.bulk_bytes) for part in found if part.frame == FrameType.PAGES} == {
        (24, 100)
    }


@pytest.mark.parametrize("size", [0, 1, 33])
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (AtFrame(FrameType.PAGES, End.FIN), PREFACE + PING),
        (AtFrame(FrameType.PAGES, End.FIN, after=True), PREFACE + PING + PAGES),
        (AtFrame(FrameType.SEAL, End.FIN), PREFACE + PING + PAGES + PING),
    ],
)
def test_an_end_at_a_frame(fault: AtFrame, expected: bytes, size: int) -> None:
    fresh = AtFrame(fault.frame, fault.end, fault.after)
    found = actions(fresh, PREFACE + PING + PAGES + PING, size=size)
    assert passed(found) == expected
    assert (found[-1] is End.FIN) == (fault.frame == FrameType.PAGES)


@pytest.mark.parametrize("size", [0, 1, 33])
def test_a_byte_of_a_frame_changes_once(size: int) -> None:
    data = PREFACE + PAGES + PAGES
    found = passed(actions(AtFrame(FrameType.PAGES, offset=3, in_bulk=True), data, size=size))
    assert [at for at, (one, other) in enumerate(zip(data, found, strict=True)) if one != other] == [
        16 + 56 + 3
    ]


def test_a_fault_waits_until_it_is_armed() -> None:
    fault = AtFrame(FrameType.PAGES, End.RESET, armed_by=FrameType.READY)
    assert passed(actions(fault, PREFACE + PAGES)) == PREFACE + PAGES
    assert passed(actions(fault, PREFACE + READY, BACK)) == PREFACE + READY
    assert actions(fault, PAGES) == [End.RESET]


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
