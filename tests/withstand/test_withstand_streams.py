"""Data connections that nobody has asked for, shown to a destination that has a session with some.

Whoever can open a connection can say ATTACH. Tokens are guessed, replayed and shown by others, indexes and
generations made up, other frames said first, and connections left standing in the middle of a frame. What
must never come of it: a session that is disturbed, a connection of it that is closed, or pages of somebody
else in the guest's memory.

Published bugs of this class: none known.

[ATT-1] [ATT-2] [ATT-3] [STR-3] [STR-4] [STR-5] [HDR-5] [CON-65]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from withstand_moves import OTHER, OURS, STREAMS, Move, moved, said

from sterna.core import shares
from sterna.registry import GREASE_FIRST, ErrorCode, FrameType
from sterna.wire import records as r
from sterna.wire import unchecked


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "BLOCK_BYTES", 2 * 4096)


Forge = Callable[[r.Attach], r.Attach]
FORGED: dict[str, tuple[Forge, int, str, ErrorCode]] = {
    "another token": (lambda good: replace(good, token=bytes(32)), 1, OURS, ErrorCode.BAD_TOKEN),
    "nearly the token": (
        lambda good: replace(good, token=good.token[:-1] + bytes([good.token[-1] ^ 1])),
        1,
        OURS,
        ErrorCode.BAD_TOKEN,
    ),
    "no such session": (lambda good: replace(good, session=b"x" * 16), 1, OURS, ErrorCode.BAD_TOKEN),
    "another peer": (lambda good: good, 1, OTHER, ErrorCode.BAD_TOKEN),
    "an old generation": (lambda good: replace(good, generation=0), 1, OURS, ErrorCode.BAD_TOKEN),
    "one too many": (lambda good: replace(good, index=STREAMS), STREAMS + 1, OURS, ErrorCode.BAD_VALUE),
    "far too many": (lambda good: replace(good, index=16), 1, OURS, ErrorCode.BAD_VALUE),
    "another stream": (lambda good: replace(good, index=1), 1, OURS, ErrorCode.BAD_HEADER),
    "in the middle of a round": (lambda good: good, 1, OURS, ErrorCode.UNEXPECTED_FRAME),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_attach(name: str) -> None:
    """[STR-4] [STR-5] [ATT-2] [ATT-3] Refused by ABORT on its own connection; the session does not notice."""
    forge, stream, identity, code = FORGED[name]

    async def attack(move: Move) -> None:
        await move.call(said(forge(move.good), stream), identity)

    move = moved(attack)
    ((number, answer),) = move.answers
    assert isinstance(answer, r.Abort)
    assert (number, answer.code) == (stream, code)
    move.check()


def test_a_thousand_forged_ones() -> None:
    """[STR-4] Each costs its caller a connection, and the session nothing."""

    async def attack(move: Move) -> None:
        for number in range(1000):
            forged = replace(move.good, token=number.to_bytes(32, "little"))
            await move.call(said(forged))
            if not move.sessions._kept:
                break

    move = moved(attack)
    assert {answer.code for _, answer in move.answers if isinstance(answer, r.Abort)} == {ErrorCode.BAD_TOKEN}
    move.check()


STRANGE = {
    "ATTACH as a control connection's": (said(r.Attach(bytes(16), bytes(32), 0, 0), 0), ErrorCode.BAD_HEADER),
    "PING as a data connection's": (said(r.Ping(1), 1), ErrorCode.BAD_HEADER),
    "skipped on another connection": (
        said(r.Attach(bytes(16), bytes(32), 0, 0), 1, unchecked.frame(GREASE_FIRST)),
        ErrorCode.BAD_HEADER,
    ),
    "skipped first": (
        said(r.Attach(bytes(16), bytes(32), 0, 0), 1, unchecked.frame(GREASE_FIRST, stream=1)),
        ErrorCode.BAD_TOKEN,
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_first_frames_of_no_connection(name: str) -> None:
    """[HDR-5] [ATT-1]"""
    data, code = STRANGE[name]

    async def attack(move: Move) -> None:
        await move.call(data)

    move = moved(attack)
    assert [answer.code for _, answer in move.answers if isinstance(answer, r.Abort)] == [code]
    move.check()


def test_callers_that_say_half_of_it_and_wait() -> None:
    """[CON-74] They hold what they are, a connection each, until the handshake's deadline."""

    async def attack(move: Move) -> None:
        whole = said(move.good)
        for cut in range(1, len(whole)):
            await move.call(whole[:cut], leave_open=True)

    moved(attack).check()


def test_frames_behind_a_forged_attach_reach_nobody() -> None:
    """[STR-4] Whatever is said in one breath with it."""

    async def attack(move: Move) -> None:
        forged = replace(move.good, token=bytes(32))
        pages = unchecked.frame(FrameType.PAGES, bytes(24), bytes(4096), stream=1, sequence=1)
        await move.call(said(forged) + pages * 50)

    move = moved(attack)
    assert {answer.code for _, answer in move.answers if isinstance(answer, r.Abort)} == {ErrorCode.BAD_TOKEN}
    move.check()
