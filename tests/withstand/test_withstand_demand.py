"""Demand connections that are not what they should be, shown to a session that can have one.

The first part calls a destination as anybody can: with tokens of others, old generations, one connection
after the other, and words where there are none. In the second the peer's own pager, which serves single pages
to a guest that runs in a holder, is replaced by one that misbehaves. What must never come of it: a session
that is disturbed, a guest that waits for ever or finds another page than it should, a process that is left.

Published bugs of this class: none known.

[ATT-2] [ATT-3] [ATT-5] [STR-4] [STR-5] [STR-6] [PCY-26] [PCY-27] [PCY-28] [PCY-30] [PCY-34] [PCY-35]
"""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from withstand_moves import OTHER, OURS, STREAMS, Move, moved, said

from early_support import Moved, Scene, scene
from sterna.core import shares
from sterna.core.events import Event, Finished, Outcome, Result
from sterna.core.policy import PolicySettings
from sterna.errors import GuestError, TransportError
from sterna.net.answering import Image
from sterna.net.asking import Terms
from sterna.net.memory import MemoryTransport
from sterna.registry import ErrorCode, FrameType, Phase
from sterna.wire import records as r
from sterna.wire import unchecked
from sterna.wire.integrity import page_hash
from sterna.wire.single import REQUEST_BYTES, decode_request, encode_page, encode_request

EARLY = {"early_pages": True, "post_copy": True, "policy": PolicySettings(switchover="bitmap")}
STREAM = STREAMS + 1
PAGE = 4096


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "BLOCK_BYTES", 2 * PAGE)
    # An endpoint asks for a demand connection only where it could give one away.
    monkeypatch.setattr(MemoryTransport, "gives_socket", True)


# ---- who calls a destination ----


def demand(move: Move, generation: int) -> r.Attach:
    """What the source might say on its demand connection."""
    return replace(move.good, index=STREAMS, generation=generation)


async def _source_has_one(move: Move) -> None:
    """Its own is there, of generation 0."""
    (kept,) = move.sessions._kept.values()
    await kept.demanded.wait()


Forge = Callable[[r.Attach], r.Attach]
FORGED: dict[str, tuple[Forge, int, str, ErrorCode]] = {
    "another token": (lambda good: replace(good, token=bytes(32)), STREAM, OURS, ErrorCode.BAD_TOKEN),
    "no such session": (lambda good: replace(good, session=b"x" * 16), STREAM, OURS, ErrorCode.BAD_TOKEN),
    "another peer": (lambda good: good, STREAM, OTHER, ErrorCode.BAD_TOKEN),
    "its own generation": (lambda good: replace(good, generation=0), STREAM, OURS, ErrorCode.BAD_TOKEN),
    "one too many": (lambda good: replace(good, index=STREAMS + 1), STREAM + 1, OURS, ErrorCode.BAD_VALUE),
    "another stream": (lambda good: good, 1, OURS, ErrorCode.BAD_HEADER),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_one(name: str) -> None:
    """[STR-4] [STR-5] [ATT-2] [ATT-3] Refused by ABORT on its own connection; the source's stays."""
    forge, stream, identity, code = FORGED[name]

    async def attack(move: Move) -> None:
        await _source_has_one(move)
        (kept,) = move.sessions._kept.values()
        before = kept.demand
        await move.call(said(forge(demand(move, 1)), stream), identity)
        assert kept.demand is before
        assert not before.ended.is_set()

    move = moved(attack, **EARLY)
    ((number, answer),) = move.answers
    assert isinstance(answer, r.Abort)
    assert (number, answer.code) == (stream, code)
    move.check()


def test_requests_in_one_breath_with_attach() -> None:
    """[ATT-5] [PCY-27] Of the source, which asks for nothing there at all."""

    async def attack(move: Move) -> None:
        await _source_has_one(move)
        await move.call(said(demand(move, 1), STREAM) + encode_request(STREAM, 1, 0, 0, 1) * 100)

    move = moved(attack, **EARLY)
    assert [answer.code for _, answer in move.answers if isinstance(answer, r.Abort)] == [
        ErrorCode.BAD_SEQUENCE
    ]
    move.check()


def test_one_after_the_other() -> None:
    """[STR-6] [PCY-26] Each takes the place of the one before, which is closed; one is left at any time."""

    async def attack(move: Move) -> None:
        await _source_has_one(move)
        (kept,) = move.sessions._kept.values()
        for generation in range(1, 50):
            if not move.sessions._kept:
                break
            before = kept.demand
            await move.call(said(demand(move, generation), STREAM), leave_open=True)
            await before.ended.wait()
        assert generation > 5

    moved(attack, **EARLY).check()


def test_words_that_nobody_reads() -> None:
    """[PCY-30] Behind ATTACHED, before anybody has asked: they stay where they are."""

    async def attack(move: Move) -> None:
        await _source_has_one(move)
        near, far = move.pair(OURS)
        move.nursery.start_soon(move.serve(far).run)
        await near.send([said(demand(move, 1), STREAM)])
        with suppress(TransportError):  # when the session is over
            while True:
                await near.send([os.urandom(65536)])

    moved(attack, **EARLY).check()


def test_one_that_outlives_its_control_connection() -> None:
    """[PCY-30] [PCY-26] It ends with that, and none can be had in a session that was resumed."""

    async def attack(move: Move) -> None:
        await _source_has_one(move)
        (kept,) = move.sessions._kept.values()
        before = kept.demand
        kept._pump.lose(TransportError(ErrorCode.CONNECTION_LOST))
        await before.ended.wait()
        await move.resumed.wait()
        await move.call(said(demand(move, 1), STREAM))

    move = moved(attack, **EARLY)
    assert {(each.outcome, each.resumed) for each in move.results.values()} == {(Outcome.COMPLETED, 1)}
    (answer,) = (answer for _, answer in move.answers if isinstance(answer, r.Abort))
    assert answer.code == ErrorCode.UNEXPECTED_FRAME


# ---- who answers a destination's pager ----

Answer = Callable[[socket.socket, int, Image, object], None]


def _requests(sock: socket.socket, stream: int) -> Iterator[r.PageRequest]:
    """What the destination asks for."""
    sock.setblocking(True)
    number = 1
    while frame := sock.recv(REQUEST_BYTES, socket.MSG_WAITALL):
        yield decode_request(frame, stream, number)
        number += 1


class _Pages:
    """Right pages, each in a frame of its own."""

    def __init__(self, stream: int, image: Image) -> None:
        self._stream = stream
        self._image = image
        self.sequence = 1

    def frame(
        self, region: int, page: int, *, content: bytes | None = None, hash_: int | None = None
    ) -> bytes:
        memory = self._image.memory[region][1]
        data = bytes(memory[page * PAGE : (page + 1) * PAGE]) if content is None else content
        hashed = page_hash(data) if hash_ is None else hash_
        head = encode_page(self._stream, self.sequence, self._image.position, region, page, PAGE, hashed)
        self.sequence += 1
        return head + data


def _noise(sock: socket.socket, *_: object) -> None:
    sock.setblocking(True)
    noise = random.Random(7)
    while True:
        sock.sendall(noise.randbytes(65536))


def _unasked(sock: socket.socket, stream: int, image: Image, _: object) -> None:
    sock.setblocking(True)
    pages = _Pages(stream, image)
    (region,) = image.memory
    for page in range(1000):
        sock.sendall(pages.frame(region, page))


def _backwards(sock: socket.socket, stream: int, image: Image, _: object) -> None:
    pages = _Pages(stream, image)
    for asked in _requests(sock, stream):
        for page in reversed(range(asked.first, asked.first + asked.count)):
            sock.sendall(pages.frame(asked.region, page))


def _twice(sock: socket.socket, stream: int, image: Image, _: object) -> None:
    pages = _Pages(stream, image)
    for asked in _requests(sock, stream):
        for page in range(asked.first, asked.first + asked.count):
            sock.sendall(pages.frame(asked.region, page) + pages.frame(asked.region, page))


def _damaged(sock: socket.socket, stream: int, image: Image, _: object) -> None:
    pages = _Pages(stream, image)
    for asked in _requests(sock, stream):
        sock.sendall(pages.frame(asked.region, asked.first, content=b"x" * PAGE, hash_=1))


def _of_another_page(sock: socket.socket, stream: int, image: Image, _: object) -> None:
    pages = _Pages(stream, image)
    for asked in _requests(sock, stream):
        sock.sendall(pages.frame(asked.region, asked.first ^ 1))


def _of_another_round(sock: socket.socket, stream: int, image: Image, _: object) -> None:
    attempt, number = image.position
    _backwards(sock, stream, replace(image, position=(attempt, number + 1)), None)


def _half(sock: socket.socket, stream: int, image: Image, _: object) -> None:
    pages = _Pages(stream, image)
    for asked in _requests(sock, stream):
        sock.sendall(pages.frame(asked.region, asked.first)[:2000])
        return


def _never(sock: socket.socket, stream: int, *_: object) -> None:
    for _asked in _requests(sock, stream):
        pass


def _bit_by_bit(sock: socket.socket, stream: int, image: Image, _: object) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pages = _Pages(stream, image)
    for asked in _requests(sock, stream):
        for page in range(asked.first, asked.first + asked.count):
            for byte in pages.frame(asked.region, page):
                sock.sendall(bytes([byte]))


def _reset(sock: socket.socket, stream: int, *_: object) -> None:
    for _asked in _requests(sock, stream):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return


def _last_words(sock: socket.socket, stream: int, *_: object) -> None:
    for _asked in _requests(sock, stream):
        abort = unchecked.body(r.Abort(ErrorCode.CANCELLED, Phase.AFTER, text="enough"))
        sock.sendall(unchecked.frame(FrameType.ABORT, abort, stream=stream, sequence=1))


ANSWERS: tuple[Answer, ...] = (
    _noise, _unasked, _backwards, _twice, _damaged, _of_another_page, _of_another_round, _half, _never,
    _bit_by_bit, _reset, _last_words,
)  # fmt: skip


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as made:
        yield made


def _check(before: set[str], results: Moved) -> None:
    """As if there had been no demand connection."""
    for result in results.results.values():
        assert (result.outcome, result.resumed) == (Outcome.COMPLETED, 0), result
    after = results.results["destination"].after
    assert after.mismatched == 0
    assert after.demanded + after.pushed == after.stale
    assert results.errors == 0
    assert _children() == before


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


real = [pytest.mark.slow, pytest.mark.needs("minor_faults")]


@pytest.mark.parametrize("answer", [pytest.param(each, marks=real, id=each.__name__) for each in ANSWERS])
async def test_what_may_be_answered(made: Scene, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    """[PCY-27] [PCY-28] [PCY-30] [PCY-34]"""
    monkeypatch.setattr("sterna.net.early_answers._answer", answer)
    before = _children()
    _check(before, await made.run())


def _lies(sock: socket.socket, stream: int, image: Image, _: object) -> None:
    pages = _Pages(stream, image)
    for asked in _requests(sock, stream):
        for page in range(asked.first, asked.first + asked.count):
            sock.sendall(pages.frame(asked.region, page, content=b"x" * PAGE))


@pytest.mark.slow
@pytest.mark.needs("minor_faults")
async def test_a_source_that_says_two_things_of_a_page(made: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """[PCY-35] [MEM-5] Whatever the guest has made of it by then, nobody calls that a good migration."""
    monkeypatch.setattr("sterna.net.early_answers._answer", _lies)
    ends: dict[str, Result] = {}

    def on_event(event: Event) -> None:
        if isinstance(event, Finished):
            ends["destination"] = event.result

    made.on_destination = on_event
    before = _children()
    with pytest.raises(GuestError):  # for pages are missing, and stay so
        await made.run()
    assert (ends["destination"].outcome, ends["destination"].code) == (Outcome.STRANDED, ErrorCode.PAGE_HASH)
    assert ends["destination"].after.mismatched > 0
    assert _children() == before


# ---- who asks a source's pager ----

Ask = Callable[..., None]


def _flood(sock: socket.socket, terms: Terms, *_: object) -> None:
    sock.setblocking(True)
    (region,) = terms.sizes
    for number in range(1, 1 << 20):
        sock.sendall(encode_request(terms.stream, number, region, number % 128 * 16, 16))


def _nonsense(sock: socket.socket, *_: object) -> None:
    _noise(sock)


def _asks_for(region: int, first: int, count: int) -> Ask:
    def ask(sock: socket.socket, terms: Terms, *_: object) -> None:
        sock.setblocking(True)
        sock.sendall(encode_request(terms.stream, 1, region, first, count))
        while sock.recv(65536):
            pass

    ask.__name__ = f"_asks_for_{region}_{first}_{count}"
    return ask


def _asks_slowly(sock: socket.socket, terms: Terms, *_: object) -> None:
    sock.setblocking(True)
    sock.sendall(encode_request(terms.stream, 1, 0, 0, 1)[:-1])
    signal.pause()


NOT_TO_BE_HAD = (
    (0, 15, 2),
    (0, 0, 17),
    (0, 0, 0),
    (0, 2047, 2),
    (0, (1 << 52) - 1, 1),
    (0, 1 << 63, 1),
    (0, (1 << 64) - 1, 1),
    (1, 0, 1),
    ((1 << 32) - 1, 0, 1),
)
ASKS: tuple[Ask, ...] = (_flood, _nonsense, _asks_slowly, *(_asks_for(*each) for each in NOT_TO_BE_HAD))


@pytest.mark.parametrize("ask", [pytest.param(each, marks=real, id=each.__name__) for each in ASKS])
async def test_what_may_be_asked_for(made: Scene, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """[PCY-27] [PCY-28] [PCY-30]"""
    monkeypatch.setattr("sterna.net.early_requests._ask", ask)
    before = _children()
    _check(before, await made.run())
