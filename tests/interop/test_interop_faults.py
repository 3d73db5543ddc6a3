"""Faults, as what they order."""

from __future__ import annotations

import pytest

from sterna.registry import FrameType
from sterna.wire import unchecked
from sterna.wire.records import Ping
from sterna_interop.faults import (
    Action,
    AtByte,
    AtFrame,
    Clean,
    Delay,
    End,
    Fault,
    Frames,
    OfIndex,
    Rechunk,
    Wait,
    Way,
    at_byte,
    at_frame,
    clean,
    late,
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


@pytest.mark.parametrize("size", [0, 1, 33])
def test_a_data_connection_is_known_by_its_index(size: int) -> None:
    """What came before ATTACH goes unharmed, and is counted."""
    for index, expected in ((0, 60), (1, 50)):
        attach = unchecked.frame(FrameType.ATTACH, bytes(56), stream=1 + index)
        fault = OfIndex(1, AtByte(BACK, 50, End.RESET), AtByte(BACK, 60, End.FIN))
        assert passed(actions(fault, PREFACE, BACK, size)) == PREFACE
        assert passed(actions(fault, PREFACE + attach + PAGES, THERE, size)) == PREFACE + attach + PAGES
        found = actions(fault, bytes(100), BACK, size)
        assert len(PREFACE + passed(found)) == expected
        assert found[-1] is (End.RESET if index == 1 else End.FIN)


def test_each_that_is_made_has_a_state_of_its_own() -> None:
    assert isinstance(clean(1), Clean)
    assert actions(late(0.5)(1), b"abc") == [Wait(0.5), b"abc"]
    make = at_byte(THERE, 1, End.FIN)
    assert make(1) is not make(1)
    assert actions(make(1), b"abc") == actions(make(1), b"abc") == [b"a", End.FIN]
    assert actions(at_frame(FrameType.PAGES, End.RESET)(1), PREFACE + PAGES)[-1] is End.RESET
