"""The frame writer."""

import numpy as np
import pytest
from hypothesis import given

from sterna.errors import LocalProtocolError
from sterna.limits import HANDSHAKE_BODY_BYTES, HEADER_BYTES, Limits
from sterna.registry import Encoding, ErrorCode, FrameType
from sterna.testing import strategies
from sterna.testing.strategies import BOUNDS, REGION
from sterna.wire import (
    GREASE_BODY_BYTES,
    Bounds,
    FrameWriter,
    decode_header,
    encode_body,
    encode_frame,
    encode_grease,
    encode_preface,
    make_runs,
    unchecked,
)
from sterna.wire import records as r

TABLE = r.Pages(1, 2, REGION.id, make_runs([(0, 2, Encoding.RAW)], REGION.granule_log2), np.zeros(1, "<u8"))


@given(strategies.records())
def test_a_frame_is_header_and_body(record):
    """[HDR-1]"""
    bulk = [bytes(record.bulk_bytes)] if isinstance(record, r.Pages) else []
    frame = b"".join(encode_frame(record, 5, stream=3, bulk=bulk, bounds=BOUNDS))
    header = decode_header(frame[:HEADER_BYTES])
    assert (header.type, header.stream, header.sequence) == (record.type, 3, 5)
    assert len(frame) == HEADER_BYTES + header.body_bytes + header.bulk_bytes
    body = encode_body(record, BOUNDS)
    assert frame == unchecked.frame(record.type, body, b"".join(bulk), stream=3, sequence=5)


def test_page_buffers_pass_through():
    """No copy: the very objects that were given."""
    memory = memoryview(bytearray(16384))
    parts = [memory[:100], memory[100:]]
    first, *rest = encode_frame(TABLE, 0, bulk=parts, bounds=BOUNDS)
    assert len(first) == HEADER_BYTES + 24 + 24 + 8
    assert [id(part) for part in rest] == [id(part) for part in parts]


def test_page_buffers_are_counted_in_bytes():
    words = memoryview(bytearray(8192)).cast("Q")
    for parts in ([words, words], [words, bytes(8192)], [bytearray(16384)]):
        assert encode_frame(TABLE, 0, bulk=parts, bounds=BOUNDS)[1:] == parts
    with pytest.raises(LocalProtocolError, match="PGS-14"):
        encode_frame(TABLE, 0, bulk=[words], bounds=BOUNDS)


@pytest.mark.parametrize(("record", "size"), [(TABLE, 16383), (TABLE, 0), (r.Ping(1), 1)])
def test_the_bulk_part_is_what_the_table_says(record, size):
    """[PGS-14] [HDR-8]"""
    with pytest.raises(LocalProtocolError) as caught:
        encode_frame(record, 0, bulk=[bytes(size)])
    assert caught.value.clause == "PGS-14"


def test_the_peers_limits_are_kept():
    """[HDR-7] [HDR-9] [LIM-6]"""
    state = r.State(1, 0, 0, 1, 1, 0, 1000, 0, True, bytes(1000))
    with pytest.raises(LocalProtocolError) as caught:
        encode_frame(state, 0, bounds=Bounds(limits=Limits(control_bytes=1047)))
    assert (caught.value.clause, caught.value.code) == ("HDR-7", ErrorCode.LIMIT_CONTROL)
    assert encode_frame(state, 0, bounds=Bounds(limits=Limits(control_bytes=1048)))
    with pytest.raises(LocalProtocolError) as caught:
        encode_frame(TABLE, 0, bulk=[bytes(16384)], bounds=Bounds(limits=Limits(bulk_bytes=16383)))
    assert (caught.value.clause, caught.value.code) == ("HDR-9", ErrorCode.LIMIT_BULK)


def test_the_writer_counts():
    """[HDR-6] A frame that is refused takes no number."""
    writer = FrameWriter(stream=2)
    assert writer.preface() == encode_preface()
    frames = [*writer.frame(r.Ping(1)), writer.grease(0x7F10, b"x"), *writer.frame(r.Bye())]
    with pytest.raises(LocalProtocolError):
        writer.frame(r.Ping(-1))
    with pytest.raises(LocalProtocolError):
        writer.grease(0x7EFF, b"")
    headers = [decode_header(frame[:HEADER_BYTES]) for frame in frames]
    assert [(header.type, header.stream, header.sequence) for header in headers] == [
        (FrameType.PING, 2, 0),
        (0x7F10, 2, 1),
        (FrameType.BYE, 2, 2),
    ]
    assert writer.next_sequence == 3


def test_the_writer_learns():
    """[LIM-5] The handshake's bound first, then the peer's limits, regions and encodings."""
    writer = FrameWriter()
    long = r.State(1, 0, 0, 1, 1, 0, HANDSHAKE_BODY_BYTES, 0, True, bytes(HANDSHAKE_BODY_BYTES))
    for record, bulk, clause in ((long, [], "HDR-7"), (TABLE, [bytes(16384)], "HDR-9")):
        with pytest.raises(LocalProtocolError) as caught:
            writer.frame(record, bulk)
        assert caught.value.clause == clause
    writer.set_limits(Limits())
    assert writer.frame(long)
    assert writer.frame(TABLE, [bytes(16384)])
    writer.set_regions({})
    with pytest.raises(LocalProtocolError) as caught:
        writer.frame(TABLE, [bytes(16384)])
    assert caught.value.clause == "PGS-2"
    writer.set_regions(BOUNDS.regions)
    writer.set_encodings(frozenset())
    with pytest.raises(LocalProtocolError) as caught:
        writer.frame(TABLE, [bytes(16384)])
    assert caught.value.clause == "PGS-9"


@given(strategies.grease())
def test_grease(found):
    """[FRM-9]"""
    kind, payload = found
    assert encode_grease(kind, payload, 3, stream=1) == unchecked.frame(kind, payload, sequence=3, stream=1)


@pytest.mark.parametrize(
    ("kind", "size"), [(0x7EFF, 0), (0x8000, 0), (FrameType.PING, 8), (0x7F00, GREASE_BODY_BYTES + 1)]
)
def test_what_is_no_grease(kind, size):
    """[FRM-9]"""
    with pytest.raises(LocalProtocolError):
        encode_grease(kind, bytes(size), 0)
