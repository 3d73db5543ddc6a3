"""The builders of wrong frames: wrong in exactly the way that was asked for."""

import numpy as np
import pytest
from hypothesis import given

from sterna.limits import HEADER_BYTES
from sterna.registry import Encoding, FrameType, Mode
from sterna.testing import strategies
from sterna.testing.strategies import BOUNDS
from sterna.wire import encode_body, encode_frame, make_runs, unchecked
from sterna.wire import records as r
from sterna.wire.integrity import crc32

PING = unchecked.frame(FrameType.PING, bytes(8))
FIELDS = [
    ("flags", 2, 2),
    ("stream", 4, 2),
    ("reserved", 6, 2),
    ("sequence", 8, 8),
    ("body_bytes", 16, 4),
    ("bulk_bytes", 20, 4),
    ("body_crc", 24, 4),
    ("header_crc", 28, 4),
]


@given(strategies.records())
def test_a_right_record_gives_the_right_body(record):
    assert unchecked.body(record) == encode_body(record, BOUNDS)


@pytest.mark.parametrize(("name", "offset", "size"), FIELDS)
def test_every_header_field_can_be_set(name, offset, size):
    """The header's checksum is right unless it is what is set."""
    frame = unchecked.frame(FrameType.PING, bytes(8), **{name: 0xA5})
    assert int.from_bytes(frame[offset : offset + size], "little") == 0xA5
    crc = int.from_bytes(frame[28:32], "little")
    assert (crc == crc32(frame[:28])) == (name != "header_crc")
    assert frame[HEADER_BYTES:] == bytes(8)


def test_counts_can_lie():
    hello = r.Hello(Mode.OPEN, (1,), (), {}, bytes(16), 1, r.NO_RUNNER)
    body = unchecked.body(hello, {"versions": 9, "limits": 3})
    assert (body[2], body[4], body[6]) == (9, 0, 3)
    assert body[7:] == encode_body(hello)[7:]
    table = r.Pages(1, 1, 1, make_runs([(0, 1, Encoding.ZERO)], 12), np.zeros(0, "<u8"))
    body = unchecked.body(table, {"runs": 9, "hashes": 8})
    assert (body[12], body[16], len(body)) == (9, 8, 48)


def test_text_can_be_any_bytes():
    assert unchecked.body(r.Abort(1, 2, text=b"\xff\0"))[24:] == b"\2\xff\0"


def test_patch_repairs_checksums_or_does_not():
    patched = unchecked.patch(PING, HEADER_BYTES, b"\7")
    assert patched == unchecked.frame(FrameType.PING, b"\7" + bytes(7))
    left = unchecked.patch(PING, HEADER_BYTES, b"\7", repair=False)
    assert left[:HEADER_BYTES] == PING[:HEADER_BYTES]
    assert left[HEADER_BYTES:] == patched[HEADER_BYTES:]
    assert unchecked.repaired(left) == patched
    assert unchecked.repaired(PING) == PING


@pytest.mark.parametrize("size", [0, 3, 8, 12])
def test_bodies_can_be_resized(size):
    whole = b"".join(encode_frame(r.Ping(0x0807060504030201), 4))
    expected = bytes(range(1, 9))[:size].ljust(size, b"\0")
    assert unchecked.resize(whole, size) == unchecked.frame(FrameType.PING, expected, sequence=4)


def test_prefaces_can_be_anything():
    assert unchecked.preface(b"GET / HTTP/1", 0x3120, 0x0A0D) == b"GET / HTTP/1 1\r\n"
