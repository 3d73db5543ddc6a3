"""One direction: where its frames stand, their raw bytes, and which pages are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from observe_support import S, migration
from sterna.errors import RemoteProtocolError
from sterna.limits import HANDSHAKE_BODY_BYTES, Limits
from sterna.observe.budget import Budget, TooMuchError
from sterna.observe.direction import Direction, Frame, Preface
from sterna.registry import Encoding, ErrorCode, FrameType
from sterna.wire import encode_preface, make_runs, unchecked
from sterna.wire.records import NO_VCPU, PageRange, Pages, Ping, State

F = FrameType
TAPE = migration(damage=[1])
SOURCE = [unit for unit in TAPE if unit.sender is S]
STATE = State(1, 1, NO_VCPU, 1, 1, 0, total_bytes=100_000, offset=0, last=True, data=bytes(100_000))


def direction(keep_bytes: int = 0, limits: Limits | None = None) -> Direction:
    """A direction that is past its handshake, and knows the guest."""
    made = Direction(Budget().share(), keep_bytes=keep_bytes)
    made.set_limits(limits or Limits())
    made.reader.set_regions(TAPE.bounds.regions or {})
    return made


@pytest.mark.parametrize("cut", [1000, 65536, 1 << 20])
def test_frames_know_where_they_stand(cut: int) -> None:
    """[FRM-13]"""
    made = direction(keep_bytes=100)
    raw = b"".join(unit.raw for unit in SOURCE)
    seen = [each for at in range(0, len(raw), cut) for each in made.feed(raw[at : at + cut])]
    assert len(seen) == len(SOURCE)
    assert seen[0] == Preface(1, 1, SOURCE[0].raw)
    for each, unit in zip(seen[1:], SOURCE[1:], strict=True):
        assert isinstance(each, Frame)
        assert raw[each.offset : each.offset + len(unit.raw)] == unit.raw
        assert each.raw == unit.raw[:100]
        assert each.header.type == unit.type
    damaged = [each.damaged for each in seen if isinstance(each, Frame) and each.damaged]
    assert damaged == [(PageRange(0, 16, 16),)]
    assert made.bytes == made.offset == len(raw)
    assert made.unfinished_bytes == 0


def test_nothing_is_kept_unless_it_is_asked_for() -> None:
    (preface,) = direction().feed(SOURCE[0].raw)
    assert preface.raw == b""


def test_the_end_inside_a_frame() -> None:
    """[FRM-10]"""
    made = direction(keep_bytes=20)
    list(made.feed(encode_preface()))
    made.end()
    list(made.feed(unchecked.frame(F.PING, bytes(8))[:30]))
    assert (made.offset, made.unfinished_bytes) == (16, 30)
    assert made.raw_rest() == unchecked.frame(F.PING, bytes(8))[:20]
    with pytest.raises(RemoteProtocolError, match="FRM-10"):
        made.end()
    made.end()  # once is enough


def test_an_error_ends_it() -> None:
    """[FRM-11] What follows is counted, and not looked at; the bad frame can still be looked at."""
    made = direction(keep_bytes=64)
    bad = unchecked.frame(F.PING, bytes(8), body_crc=1, sequence=1)
    good = unchecked.frame(F.PING, bytes(8))
    seen = []
    with pytest.raises(RemoteProtocolError, match="HDR-10"):
        seen.extend(made.feed(encode_preface() + good + bad))
    seen += made.feed(b"more")
    assert made.error is not None
    assert (made.offset, made.unfinished_bytes) == (16 + 40, 44)
    assert made.raw_rest() == bad


def test_an_empty_batch_has_no_bulk_part() -> None:
    made = direction()
    zeros = Pages(1, 1, 0, make_runs([(0, 64, Encoding.ZERO)], 12), np.array([], dtype="<u8"))
    seen = list(made.feed(encode_preface() + unchecked.frame(F.PAGES, unchecked.body(zeros))))
    assert isinstance(seen[1], Frame)
    assert seen[1].damaged == ()


def test_an_unknown_frame_has_no_record() -> None:
    """[FRM-7]"""
    raw = unchecked.frame(0x7F00, b"abc")
    _, seen = direction(keep_bytes=99).feed(encode_preface() + raw)
    assert (seen.record, seen.raw) == (None, raw)


def test_more_than_the_reader_takes() -> None:
    """Announced or not decides whose trouble it is."""
    huge = encode_preface() + unchecked.frame(F.STATE, b"", body_bytes=(16 << 20) + 1)
    with pytest.raises(TooMuchError, match="a longer frame"):
        list(direction(limits=Limits(control_bytes=1 << 40)).feed(huge))
    with pytest.raises(RemoteProtocolError) as caught:
        list(direction(limits=Limits(control_bytes=1 << 20)).feed(huge))
    assert caught.value.code is ErrorCode.LIMIT_CONTROL
    bad = encode_preface() + unchecked.frame(F.PING, b"", sequence=5)
    with pytest.raises(RemoteProtocolError, match="HDR-6"):
        list(direction(limits=Limits(control_bytes=1 << 40, bulk_bytes=1 << 40)).feed(bad))


def test_a_bulk_part_comes_out_of_the_budget() -> None:
    budget = Budget(65536)
    made = Direction(budget.share())
    made.set_limits(Limits())
    made.reader.set_regions(TAPE.bounds.regions or {})
    pages = [unit for unit in SOURCE if unit.type == F.PAGES and len(unit.bulk) == 65536][:2]
    list(made.feed(encode_preface()))
    for at, unit in enumerate(pages):  # the second one has the place of the first
        list(made.feed(unchecked.patch(unit.raw, 8, bytes([at]))))
    assert budget.left_bytes == 0
    broke = Direction(Budget(65535).share())
    broke.set_limits(Limits())
    broke.reader.set_regions(TAPE.bounds.regions or {})
    with pytest.raises(TooMuchError, match="a batch of pages takes 64 KiB"):
        list(broke.feed(encode_preface() + unchecked.patch(pages[0].raw, 8, b"\0")))
    assert list(broke.feed(b"more")) == []


@pytest.mark.parametrize("piece_bytes", [1000, 1 << 20])
def test_a_long_body_comes_out_of_the_budget(piece_bytes: int) -> None:
    """Before it is there: many connections might each begin one."""
    long = unchecked.frame(F.STATE, unchecked.body(STATE))
    made = Direction(Budget(100_000 - HANDSHAKE_BODY_BYTES).share())
    made.set_limits(Limits())
    list(made.feed(encode_preface()))
    with pytest.raises(TooMuchError, match="a long frame takes"):
        list(made.feed(long[:piece_bytes]))


def test_a_closed_direction_counts_on() -> None:
    made = direction()
    made.close()
    assert list(made.feed(SOURCE[0].raw)) == []
    made.end()
    assert made.bytes == 16


def test_before_anything_is_announced() -> None:
    """[LIM-5]"""
    made = Direction(Budget().share())
    list(made.feed(encode_preface() + unchecked.frame(F.PING, unchecked.body(Ping(1)))))
    with pytest.raises(RemoteProtocolError, match="LIM-5"):
        list(made.feed(unchecked.frame(F.HELLO, bytes(65537), sequence=1)))


def stream_vectors() -> list[dict]:
    """Those whose outcome does not depend on what a receiver announced."""
    text = (Path(__file__).parents[2] / "spec" / "vectors" / "stream.json").read_text(encoding="utf-8")
    groups = [group for group in json.loads(text)["groups"] if "handshake" not in group["context"]]
    return [test for group in groups for test in group["tests"]]


@pytest.mark.parametrize("vector", stream_vectors(), ids=lambda vector: vector["id"])
def test_vectors(vector: dict) -> None:
    """Whole streams with known outcomes, with the same outcome as at an endpoint."""
    made = Direction(Budget().share())
    made.set_limits(Limits())
    frames, code = 0, None
    try:
        for seen in made.feed(bytes.fromhex(vector["hex"])):
            frames += isinstance(seen, Frame)
        if vector.get("eof"):
            made.end()
    except RemoteProtocolError as error:
        code = error.code.name.lower()
    assert code == vector.get("error")
    if code is not None:
        assert frames == vector["accepted"]


@pytest.mark.parametrize("window_log2", [0, 9, 10, 31, 63, (1 << 64) - 1])
def test_any_window_that_a_welcome_states(window_log2: int) -> None:
    """Of a session without packed pages it is 0, and what a recording says need not make sense."""
    direction = Direction(Budget().share())
    direction.look_back(window_log2)
