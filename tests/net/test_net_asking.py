"""net/asking.py: a destination's pager asks for what the guest waits for [PCY-27] [PCY-28]."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from sterna.errors import RemoteProtocolError, SternaError
from sterna.guest.api import FAULT
from sterna.net import asking
from sterna.net.asking import Asking, Terms, Turns
from sterna.registry import ErrorCode
from sterna.wire.integrity import page_hash
from sterna.wire.single import REQUEST_BYTES, decode_request, encode_page

STREAM = 2
POSITION = (3, 7)
SIZE = 4096
TERMS = Terms(STREAM, POSITION, hashed=True, most=32, sizes={1: SIZE, 2: SIZE})


class Guest:
    """Stands in for kernel and memory: faults are written into a pipe, pages are kept."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.there: dict[tuple[int, int], bytes] = {}
        self.hashes: list[int] = []
        self.taken: set[tuple[int, int]] = set()  # asked for, or the endpoint's
        self.late: set[tuple[int, int]] = set()  # the endpoint's by the time when they come
        self.came = threading.Semaphore(0)

    def fault(self, region: int, page: int) -> None:
        os.write(self.writing, FAULT.pack(region, page))

    # ---- Pager ----

    def fileno(self) -> int:
        return self.reading

    def news(self) -> list[tuple[int, int]]:
        data = os.read(self.reading, 4096)
        return [(region, page) for region, page in FAULT.iter_unpack(data)]

    def wanted(self, region: int, page: int) -> list[tuple[int, int]]:
        """The page, and the next one."""
        runs = [each for each in (page, page + 1) if (region, each) not in self.taken]
        self.taken.update((region, each) for each in runs)
        return [(each, 1) for each in runs]

    def install(self, region: int, page: int, data: memoryview, hash_: int) -> bool:
        if (region, page) in self.late:
            self.came.release()
            return False
        self.there[region, page] = bytes(data)
        self.hashes.append(hash_)
        self.came.release()
        return True

    def is_missing(self, region: int, page: int) -> bool:
        return (region, page) not in self.there


@dataclass
class Line:
    """A source's end of a connection on which somebody asks, and that one's guest and endpoint."""

    sock: socket.socket
    guest: Guest
    endpoint: int
    thread: threading.Thread = field(default_factory=threading.Thread)
    failed: list[BaseException] = field(default_factory=list)
    came: int = 0
    sent: int = 0

    def request(self) -> tuple[int, int, int]:
        data = b""
        while len(data) < REQUEST_BYTES:
            piece = self.sock.recv(REQUEST_BYTES - len(data))
            assert piece, "the destination has ended the connection"
            data += piece
        self.came += 1
        request = decode_request(data, STREAM, self.came)
        assert request.urgent
        return request.region, request.first, request.count

    def answer(
        self,
        region: int,
        page: int,
        *,
        content: bytes = bytes(SIZE),
        wrong: int = 0,
        position: object = POSITION,
    ) -> None:
        self.sent += 1
        hashed = page_hash(content) ^ wrong
        assert isinstance(position, tuple)
        head = encode_page(STREAM, self.sent, position, region, page, len(content), hashed)
        self.sock.sendall(head + content)

    def told(self) -> tuple[int, int]:
        """What the endpoint hears next."""
        return FAULT.unpack(os.read(self.endpoint, FAULT.size))

    def end(self) -> list[BaseException]:
        self.sock.close()
        self.thread.join()
        return self.failed


@pytest.fixture
def line() -> Iterator[Line]:
    yield from _line(TERMS)


@pytest.fixture
def unhashed() -> Iterator[Line]:
    yield from _line(replace(TERMS, hashed=False))


def _line(terms: Terms) -> Iterator[Line]:
    here, there = socket.socketpair()
    told, tells = os.pipe()
    os.set_blocking(tells, False)
    guest = Guest()
    line = Line(here, guest, told)

    def ask() -> None:
        with there:
            try:
                Asking(there, terms, guest, tells, Turns()).run()
            except (SternaError, OSError) as error:
                line.failed.append(error)

    line.thread = threading.Thread(target=ask)
    line.thread.start()
    yield line
    line.end()
    for descriptor in (told, tells, guest.reading, guest.writing):
        os.close(descriptor)


def test_the_page_that_is_waited_for_is_asked_for_first(line: Line) -> None:
    """[PCY-28]"""
    line.guest.fault(1, 5)
    assert line.request() == (1, 5, 1)
    assert line.request() == (1, 6, 1)
    line.answer(1, 5, content=b"a" * SIZE)
    line.answer(1, 6, content=b"b" * SIZE)
    assert line.guest.came.acquire(timeout=30)
    assert line.guest.came.acquire(timeout=30)
    assert line.guest.there == {(1, 5): b"a" * SIZE, (1, 6): b"b" * SIZE}
    assert line.guest.hashes == [page_hash(b"a" * SIZE), page_hash(b"b" * SIZE)]
    assert not line.end()


def test_a_page_on_its_way_with_its_group_is_the_endpoint_s(line: Line) -> None:
    line.guest.taken |= {(1, 5), (1, 6)}
    line.guest.fault(1, 5)
    assert line.told() == (1, 5)


def test_one_that_comes_when_its_group_does_is_the_endpoint_s(line: Line) -> None:
    """[PCY-33]"""
    line.guest.late.add((1, 5))
    line.guest.fault(1, 5)
    line.request()
    line.answer(1, 5)
    assert line.guest.came.acquire(timeout=30)
    assert line.told() == (1, 5)


def test_of_what_does_not_come_in_time_the_endpoint_is_told(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest waits no longer than it would without all this."""
    monkeypatch.setattr(asking, "PATIENCE_S", 0.0)
    line.guest.fault(1, 5)
    assert line.request() == (1, 5, 1)
    assert line.told() == (1, 5)
    assert line.told() == (1, 6)
    line.answer(1, 5)
    line.answer(1, 6)
    line.guest.fault(1, 7)
    assert [line.request() for _ in range(3)] == [(1, 6, 1), (1, 7, 1), (1, 8, 1)]
    assert line.told() == (1, 7)


def test_so_much_is_asked_for_at_a_time_and_no_more(line: Line) -> None:
    """[PCY-29]: the rest is the endpoint's. A block has 16 pages, all of which may have to be asked for."""
    for page in range(0, 20, 2):
        line.guest.fault(1, page)
    assert [line.request()[1] for _ in range(18)] == list(range(18))
    assert line.told() == (1, 18)
    for page in (0, 1):
        line.answer(1, page)
        assert line.guest.came.acquire(timeout=30)
    line.guest.fault(1, 30)
    assert line.request() == (1, 30, 1)


@pytest.mark.parametrize(
    "wrong", [{"page": 6}, {"region": 2}, {"position": (3, 8)}, {"wrong": 1}, {"content": b""}]
)
def test_what_was_not_asked_for_or_is_damaged_ends_the_connection(
    line: Line, wrong: dict[str, object]
) -> None:
    """[PCY-26]: and nothing of it is the guest's."""
    line.guest.fault(1, 5)
    line.request()
    fields: dict[str, object] = {"region": 1, "page": 5, **wrong}
    if fields.get("content") == b"":
        fields["content"] = b"x" * 2 * SIZE
    line.answer(**fields)  # type: ignore[arg-type]
    line.thread.join()
    assert isinstance(line.failed[0], SternaError)
    assert not line.guest.there


def test_a_frame_that_nobody_has_asked_for_ends_the_connection(line: Line) -> None:
    """[PCY-26]"""
    line.answer(1, 5)
    line.thread.join()
    assert isinstance(line.failed[0], RemoteProtocolError)


def test_a_frame_that_comes_in_pieces_is_one(line: Line) -> None:
    line.guest.fault(1, 5)
    line.request()
    frame = encode_page(STREAM, 1, POSITION, 1, 5, SIZE, page_hash(bytes(SIZE))) + bytes(SIZE)
    for piece in (frame[:7], frame[7:100], frame[100:]):
        line.sock.sendall(piece)
        select.select([], [line.sock], [])
    assert line.guest.came.acquire(timeout=30)
    assert line.guest.there == {(1, 5): bytes(SIZE)}


def test_without_hashes_none_may_come(unhashed: Line) -> None:
    """[MEM-20] [PGS-25] Not even the right one."""
    unhashed.guest.fault(1, 5)
    unhashed.request()
    unhashed.answer(1, 5, wrong=page_hash(bytes(SIZE)))
    assert unhashed.guest.came.acquire(timeout=30)
    unhashed.guest.fault(1, 6)
    unhashed.request()
    unhashed.answer(1, 6)
    unhashed.thread.join()
    assert isinstance(failed := unhashed.failed[0], RemoteProtocolError)
    assert (failed.code, failed.clause) == (ErrorCode.BAD_VALUE, "PGS-25")
    assert unhashed.guest.there == {(1, 5): bytes(SIZE)}


def test_the_peer_s_end_is_the_end(line: Line) -> None:
    assert not line.end()


class Cut:
    """Over TLS, the end of a peer that was killed."""

    def __init__(self, sock: socket.socket) -> None:
        self.fileno, self.setblocking = sock.fileno, sock.setblocking

    def recv_into(self, view: memoryview) -> int:
        raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol")


def test_the_end_of_a_peer_that_was_killed_is_no_failure() -> None:
    """Each side ends its process so, and at a session's end the other one may see it."""
    here, there = socket.socketpair()
    here.close()
    guest = Guest()
    with there:
        Asking(Cut(there), TERMS, guest, guest.writing, Turns()).run()
    os.close(guest.reading)
    os.close(guest.writing)


def test_a_link_of_long_delay_is_waited_for() -> None:
    """Else every page would be asked for twice there."""
    assert TERMS.patience_s == asking.PATIENCE_S
    assert replace(TERMS, rtt_s=0.1).patience_s == pytest.approx(0.3)
