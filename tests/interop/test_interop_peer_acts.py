"""Acts: what comes of an honest frame."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import trio

from sterna.net.memory import memory_transport_pair
from sterna.registry import Encoding, FrameType
from sterna.wire import Pages, Ping, Round, decode_header, make_runs, unchecked
from sterna_interop import peer_acts as do
from sterna_interop.case import Line
from sterna_interop.peer import Peer
from sterna_interop.peer_steps import Act, End, Manner, Moment, Raw, Say, Wait

ROUND = Say(Round(1, 2, 3))
TABLE = Pages(1, 2, 1, make_runs([(0, 2, Encoding.RAW), (5, 1, Encoding.ZERO)], 12), np.array([7], "<u8"))
PAGES = Say(TABLE, bytes(8192))


def steps(act: Act, honest: Say | None = ROUND) -> list[object]:
    async def main() -> list[object]:
        peer = Peer(Line(memory_transport_pair()[0]), Manner())
        return list(act(Moment(() if honest is None else (honest,), None, peer)))

    return trio.run(main)


def encoded(act: Act, honest: Say = ROUND, sequence: int = 5) -> bytes:
    (step,) = steps(act, honest)
    assert isinstance(step, Say | Raw)
    return step.encode(sequence)


def test_changed_records() -> None:
    assert steps(do.change(pages=9)) == [Say(Round(1, 2, 9))]
    assert steps(do.alter(Round, lambda round_: Round(9, round_.round, 0))) == [Say(Round(9, 2, 0))]
    (step,) = steps(do.change(region=4), PAGES)
    assert isinstance(step, Say)
    assert step.bulk == PAGES.bulk
    with pytest.raises(AssertionError):
        steps(do.alter(Ping, lambda ping: ping))


def test_order() -> None:
    other = Say(Ping(1))
    assert steps(do.before(other)) == [other, ROUND]
    assert steps(do.after(other)) == [ROUND, other]
    assert steps(do.after(other), None) == [other]
    assert steps(do.instead(other, End.RESET)) == [other, End.RESET]
    assert steps(do.instead()) == []
    assert steps(do.twice()) == [ROUND, ROUND]


def test_bytes_of_a_frame() -> None:
    honest = ROUND.encode(5)
    assert encoded(do.patch(32, b"\7")) == unchecked.patch(honest, 32, b"\7")
    assert encoded(do.patch(28, b"....", repair=False))[28:32] == b"...."
    assert encoded(do.numbered(2)) == ROUND.encode(7)
    assert decode_header(encoded(do.resize(-1))[:32]).body_bytes == 15
    assert decode_header(encoded(do.resize(3))[:32]).body_bytes == 19
    assert decode_header(encoded(do.resize(-99))[:32]).body_bytes == 0
    huge = encoded(do.header(body_bytes=1 << 31))
    assert decode_header(huge[:32]).body_bytes == 1 << 31
    assert huge[32:] == honest[32:]
    assert encoded(do.header()) == honest
    step = do.frame(0x8FFF, b"x", sequence=1)
    assert step.encode(5) == unchecked.frame(0x8FFF, b"x", sequence=1)


def test_numbers_go_on() -> None:
    (gap,), (cut, end) = steps(do.numbered(1)), steps(do.part(0.5, End.PROPER))
    assert isinstance(gap, Raw)
    assert gap.frames == 2
    assert isinstance(cut, Raw)
    assert (cut.frames, end) == (0, End.PROPER)
    assert cut.encode(5) == ROUND.encode(5)[:24]


def test_slow_ones() -> None:
    (drip,) = steps(do.drip(0.5))
    assert isinstance(drip, Raw)
    assert drip.interval_s == 0.5
    assert drip.encode(5) == ROUND.encode(5)
    assert steps(do.for_ever(ROUND, 2.0, times=2)) == [ROUND, Wait(2.0)] * 2


def test_tables() -> None:
    rows = encoded(do.run(-1, first=77), PAGES)
    assert struct.unpack_from("<Q", rows, 32 + 24 + 24) == (77,)
    assert TABLE.runs["first"].tolist() == [0, 5]  # the honest one is as it was
    hashes = encoded(do.wrong_hash(), PAGES)
    assert struct.unpack_from("<Q", hashes, 32 + 24 + 48) == (6,)
    assert encoded(do.wrong_hash(0), PAGES) == hashes
    short = encoded(do.bulk_cut(1), PAGES)
    assert decode_header(short[:32]).bulk_bytes == 8191
    (step,) = steps(do.table([(0, 9, Encoding.ZERO)]), PAGES)
    assert isinstance(step, Say)
    assert isinstance(step.record, Pages)
    assert (step.record.page_count, step.record.round, step.bulk) == (9, 2, b"")
    assert step.record.type is FrameType.PAGES
