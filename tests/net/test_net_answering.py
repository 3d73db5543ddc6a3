"""net/answering.py: a source's pager answers requests for single pages [PCY-28]."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sterna.errors import SternaError
from sterna.memory.groups import Groups
from sterna.memory.regions import PageSets, RegionTable
from sterna.net.answering import Answering, Image, Near
from sterna.registry import ErrorCode
from sterna.wire.integrity import page_hash
from sterna.wire.records import Region
from sterna.wire.single import PAGE_HEAD_BYTES, decode_page, encode_request

STREAM = 2
POSITION = (3, 7)
PAGES = 40
LOG2 = 12


@dataclass
class Line:
    """The destination's end of a connection on which somebody answers."""

    sock: socket.socket
    thread: threading.Thread
    failed: list[BaseException]
    told: list[tuple[int, int]]
    sent: int = 0
    came: int = 0

    def ask(self, region: int, first: int, count: int) -> None:
        self.sent += 1
        self.sock.sendall(encode_request(STREAM, self.sent, region, first, count))

    def page(self) -> tuple[int, int, bytes, int]:
        """Region, page, bytes and hash of the next one."""
        self.came += 1
        head = decode_page(self.read(PAGE_HEAD_BYTES), STREAM, self.came)
        assert (head.attempt, head.round) == POSITION
        return head.region, head.page, self.read(head.size_bytes), head.hash

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            assert piece, "the source has ended the connection"
            data += piece
        return data

    def is_over(self) -> bool:
        over = not self.sock.recv(1)
        self.thread.join()
        return over


def _line(*, hashed: bool = True, log2: int = LOG2) -> Line:
    here, there = socket.socketpair()
    regions = {
        number: (
            Region(number, number << 32, PAGES << log2, log2),
            memoryview(b"".join(bytes([number + page % 7]) * (1 << log2) for page in range(PAGES))),
        )
        for number in (1, 4)
    }
    stale = PageSets(RegionTable(tuple(region for region, _ in regions.values())))
    for region, _ in regions.values():
        stale[region.id].set(0, PAGES - 3)
    groups = Groups(stale)
    failed: list[BaseException] = []
    told: list[tuple[int, int]] = []

    def answer() -> None:
        with there:
            try:
                Answering(
                    there, STREAM, Image(regions, groups, POSITION, hashed), lambda *at: told.append(at)
                ).run()
            except (SternaError, OSError) as error:
                failed.append(error)

    thread = threading.Thread(target=answer)
    thread.start()
    return Line(here, thread, failed, told)


@pytest.fixture
def line() -> Iterator[Line]:
    line = _line()
    yield line
    line.sock.close()
    line.thread.join()


def test_each_page_of_a_request_comes_by_itself_and_in_order(line: Line) -> None:
    """[PCY-28]"""
    line.ask(4, 17, 3)
    line.ask(1, 0, 1)
    for region, page in [(4, 17), (4, 18), (4, 19), (1, 0)]:
        content = bytes([region + page % 7]) * (1 << LOG2)
        assert line.page() == (region, page, content, page_hash(content))
    assert line.told == [(4, 17), (1, 0)]


def test_without_hashes_they_are_zero() -> None:
    """[MEM-20]"""
    line = _line(hashed=False)
    line.ask(1, 2, 1)
    assert line.page()[3] == 0
    line.sock.close()
    line.thread.join()


@pytest.mark.parametrize(
    ("region", "first", "count"),
    [(2, 0, 1), (1, 0, 17), (1, 15, 2), (1, PAGES - 4, 2), (1, PAGES - 2, 1), (1, PAGES, 1), (1, 1 << 50, 1)],
    ids=[
        "no region",
        "more than a block",
        "two blocks",
        "not all stale",
        "not stale",
        "no page",
        "far behind",
    ],
)
def test_what_nobody_may_ask_for_ends_the_connection(line: Line, region: int, first: int, count: int) -> None:
    """[PCY-27] [PCY-28]"""
    line.ask(region, first, count)
    assert line.is_over()
    assert isinstance(line.failed[0], SternaError)
    assert line.failed[0].code is ErrorCode.UNEXPECTED_FRAME


def test_nonsense_ends_the_connection(line: Line) -> None:
    line.sock.sendall(bytes(4096))
    line.thread.join()
    assert isinstance(line.failed[0], SternaError)


def test_a_request_that_is_repeated_ends_the_connection(line: Line) -> None:
    """[HDR-6]"""
    frame = encode_request(STREAM, 1, 1, 0, 1)
    line.sock.sendall(frame + frame)
    line.page()
    assert line.is_over()
    assert isinstance(line.failed[0], SternaError)


def test_nobody_is_answered_for_ever(line: Line) -> None:
    """[PCY-18]"""
    answered = 0
    for _ in range(2 * 2 * PAGES + 1):
        try:
            line.ask(1, 5, 1)
            line.page()
        except (AssertionError, OSError):
            break
        answered += 1
    assert answered == 2 * 2 * PAGES


@pytest.mark.parametrize(("log2", "records"), [(12, 1), (13, 1), (14, 2), (16, 5)])
def test_no_key_is_used_for_more_than_it_lasts(
    monkeypatch: pytest.MonkeyPatch, log2: int, records: int
) -> None:
    """[TLS-18] A page of 16 KiB or more is several records, with what its frame has before it."""
    monkeypatch.setattr("sterna.net.answering._RECORDS_MAX", 3 * records + records - 1)
    line = _line(log2=log2)
    for page in (2, 5, 5):
        line.ask(1, page, 1)
        assert line.page()[1] == page
    line.ask(1, 7, 1)
    assert line.is_over()
    assert not line.failed
    line.sock.close()


class Cut:
    """Over TLS, the end of a peer that was killed."""

    def setblocking(self, flag: bool, /) -> None:
        assert flag

    def recv_into(self, view: memoryview) -> int:
        raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol")


def test_the_end_of_a_peer_that_was_killed_is_no_failure() -> None:
    """Each side ends its process so, and at a session's end the other one may see it."""
    groups = Groups(PageSets(RegionTable((Region(1, 0, PAGES << LOG2, LOG2),))))
    image = Image({1: (Region(1, 0, PAGES << LOG2, LOG2), memoryview(b""))}, groups, POSITION, hashed=True)
    Answering(Cut(), STREAM, image, lambda *_: None).run()


def test_where_the_guest_is_is_told_once() -> None:
    near = Near()
    assert near.news() is None
    near.tell(1, 5)
    near.tell(2, 0)
    assert near.news() == (2, 0)
    assert near.news() is None
    near.tell(2, 0)
    assert near.news() == (2, 0)
