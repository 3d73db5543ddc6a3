from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.guest.holder_frames import (
    FRAME_BYTES,
    FRAME_DESCRIPTORS,
    Frame,
    FrameError,
    FrameReader,
    close_all,
    encode_frame,
)
from sterna.registry import ErrorCode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text().filter(lambda name: name != "descriptors"), VALUES, max_size=4)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def descriptors(count: int) -> list[int]:
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]


def is_open(descriptor: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{descriptor}")


@given(st.lists(OBJECTS, max_size=4), st.data())
def test_any_cut_gives_the_same_frames(objects: list, data: st.DataObject) -> None:
    stream = b"".join(encode_frame(fields) for fields in objects)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader = FrameReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.receive(stream[start:end])
        while (frame := reader.next_frame()) is not None:
            found.append(frame.fields)
    assert found == objects


@given(st.binary(max_size=64))
def test_any_bytes_give_frames_or_one_coded_error(body: bytes) -> None:
    """[HOL-7]: and behind a bad body the next frame is found."""
    reader = FrameReader()
    reader.receive(framed(body) + encode_frame({"id": 1}))
    fatal = False
    try:
        assert reader.next_frame() is not None
    except FrameError as error:
        fatal = error.fatal
    assert not fatal  # there is no way to spell "descriptors" in so few random bytes
    frame = reader.next_frame()
    assert frame is not None
    assert frame.fields == {"id": 1}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"7",
        b"{",
        b'{"a":1}x',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b"\xff\xfe",
        b'{"a":1,"a":2}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
    ids=range(12),
)
def test_what_is_no_object(body: bytes) -> None:
    """[HOL-3] [HOL-7]"""
    reader = FrameReader()
    reader.receive(framed(body))
    with pytest.raises(FrameError) as caught:
        reader.next_frame()
    assert caught.value.code is ErrorCode.MALFORMED
    assert not caught.value.fatal
    assert reader.next_frame() is None


def test_a_length_is_refused_before_its_bytes_come() -> None:
    """[HOL-4]"""
    reader = FrameReader()
    reader.receive((FRAME_BYTES + 1).to_bytes(4, "little"))
    with pytest.raises(FrameError) as caught:
        reader.next_frame()
    assert caught.value.code is ErrorCode.LIMIT_CONTROL
    assert caught.value.fatal
    reader = FrameReader()
    reader.receive(framed(json.dumps({"a": "x" * (FRAME_BYTES - 9)}).encode()))
    assert reader.next_frame() is not None


def test_we_send_nothing_too_large() -> None:
    with pytest.raises(FrameError):
        encode_frame({"a": "x" * FRAME_BYTES})
    with pytest.raises(FrameError):
        encode_frame({}, range(FRAME_DESCRIPTORS + 1))
    with pytest.raises(ValueError, match="JSON"):
        encode_frame({"a": float("nan")})


def test_descriptors_go_with_their_frames() -> None:
    """[HOL-5]"""
    one, two, three = descriptors(3)
    reader = FrameReader()
    reader.receive(encode_frame({"n": 1}, [one]), [one])
    reader.receive(encode_frame({"n": 2}) + encode_frame({"n": 3}, [two, three]), [two, three])
    frames = [reader.next_frame() for _ in range(3)]
    assert [frame.descriptors for frame in frames if frame is not None] == [(one,), (), (two, three)]
    for frame in frames:
        assert frame is not None
        frame.close()
    assert not any(is_open(descriptor) for descriptor in (one, two, three))


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"descriptors":2}', 1),
        (b'{"descriptors":1}', 2),
        (b"{}", 1),
        (b'{"descriptors":-1}', 0),
        (b'{"descriptors":65}', 0),
        (b'{"descriptors":true}', 1),
        (b'{"descriptors":"1"}', 1),
        (b"no object", 1),
    ],
)
def test_descriptors_that_do_not_fit_end_the_connection(body: bytes, sent: int) -> None:
    """[HOL-6]"""
    came = descriptors(sent)
    reader = FrameReader()
    reader.receive(framed(body), came)
    with pytest.raises(FrameError) as caught:
        reader.next_frame()
    assert caught.value.fatal
    reader.close()
    assert not any(is_open(descriptor) for descriptor in came)


def test_whether_there_is_a_frame_is_known_before_it_is_read() -> None:
    reader = FrameReader()
    data = framed(b"{}")
    for byte in data:
        assert not reader.has_frame
        reader.receive(bytes([byte]))
    assert reader.has_frame
    assert reader.next_frame() is not None
    assert not reader.has_frame
    reader.receive(b"\xff\xff\xff\xff")
    assert reader.has_frame  # an error to be told


def test_closing() -> None:
    came = descriptors(2)
    Frame({}, tuple(came)).close()
    assert not any(is_open(descriptor) for descriptor in came)
    close_all(())
