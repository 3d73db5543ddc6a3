"""Single pages as struct reads and writes them, against the general writer and reader."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.errors import RemoteProtocolError
from sterna.limits import Limits
from sterna.registry import Encoding, ErrorCode
from sterna.wire import FrameReader, FrameReceived, FrameWriter, PagesAnnounced, make_runs, single, unchecked
from sterna.wire import records as r
from sterna.wire.page_rules import PAGE_SPACE
from sterna.wire.single import PAGE_HEAD_BYTES, REQUEST_BYTES, SinglePage

U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
STREAMS, SEQUENCES = st.integers(1, 16), st.integers(0, (1 << 63) - 1)
REQUESTS = st.builds(r.PageRequest, U32, st.integers(0, PAGE_SPACE - 16), st.integers(1, 16))
SIZES = [1 << log2 for log2 in range(12, 17)]
GRANULES = st.sampled_from(SIZES)
PAGES = st.builds(SinglePage, U32, U32, U32, st.integers(0, (1 << 47) - 1), GRANULES, U64)


def region_of(page: SinglePage) -> r.Region:
    """As large as it can be."""
    return r.Region(page.region, 0, 1 << 63, granule_log2=page.size_bytes.bit_length() - 1)


def table_of(page: SinglePage) -> r.Pages:
    """What the general codec makes of a page that comes alone."""
    runs = make_runs([(page.page, 1, Encoding.RAW)], page.size_bytes.bit_length() - 1)
    return r.Pages(page.attempt, page.round, page.region, runs, np.array([page.hash], np.uint64))


def page_frame(page: SinglePage, stream: int, sequence: int) -> bytes:
    position = page.attempt, page.round
    return single.encode_page(stream, sequence, position, page.region, page.page, page.size_bytes, page.hash)


def request_frame(request: r.PageRequest, stream: int, sequence: int) -> bytes:
    return single.encode_request(stream, sequence, request.region, request.first, request.count)


def by_reader(data: bytes, stream: int, sequence: int, region: r.Region | None = None) -> object:
    """The general reader's event, or its error's code and clause; None if it wants more."""
    reader = FrameReader(stream=stream)
    reader.receive_data(unchecked.preface())
    reader.next_event()
    reader.go_on_from(sequence)
    reader.set_limits(Limits())
    reader.set_encodings(frozenset(Encoding))
    if region is not None:
        reader.set_regions({region.id: region})
    try:
        reader.receive_data(data)
        return reader.next_event()
    except RemoteProtocolError as error:
        return error.code, error.clause


@given(REQUESTS, STREAMS, SEQUENCES)
def test_a_request_is_the_general_codecs(request, stream, sequence):
    """[PCY-27] And what is behind it is not looked at."""
    writer = FrameWriter(stream=stream)
    writer.go_on_from(sequence)
    (frame,) = writer.frame(request)
    assert request_frame(request, stream, sequence) == frame
    assert len(frame) == REQUEST_BYTES
    event = by_reader(frame, stream, sequence)
    assert isinstance(event, FrameReceived)
    assert single.decode_request(bytearray(frame + b"more"), stream, sequence) == event.record == request


@given(PAGES, STREAMS, SEQUENCES)
def test_a_page_is_the_general_codecs(page, stream, sequence):
    """[PCY-27]"""
    writer = FrameWriter(stream=stream)
    writer.go_on_from(sequence)
    writer.set_limits(Limits())
    writer.set_regions({page.region: region_of(page)})
    content = bytes(page.size_bytes)
    head, bulk = writer.frame(table_of(page), [content])
    assert page_frame(page, stream, sequence) == head
    assert bulk is content
    assert len(head) == PAGE_HEAD_BYTES
    event = by_reader(head, stream, sequence, region_of(page))
    assert isinstance(event, PagesAnnounced)
    assert event.record.rows == [(page.page, 1, page.size_bytes, Encoding.RAW)]
    assert single.decode_page(memoryview(head + content), stream, sequence) == page


def outcome(decode, frame: bytes, stream: int = 3, sequence: int = 5) -> object:
    """What a decoder makes of a frame, or its error's code and clause: no other error."""
    try:
        return decode(frame, stream, sequence)
    except RemoteProtocolError as error:
        return error.code, error.clause


NOT_ONE = (ErrorCode.UNEXPECTED_FRAME, "PCY-27")
REQUEST, PAGE = r.PageRequest(7, 40, 3), SinglePage(3, 9, 7, 40, 1 << 14, 0x1122334455667788)


def frame_of(kind: str, stream: int = 3, sequence: int = 5) -> tuple[object, bytes]:
    """A decoder, and a frame that is right for it."""
    if kind == "page":
        return single.decode_page, page_frame(PAGE, stream, sequence)
    return single.decode_request, request_frame(REQUEST, stream, sequence)


KINDS = ("request", "page")
BOTH = pytest.mark.parametrize("kind", KINDS)


@BOTH
def test_a_flipped_bit_is_refused_with_the_readers_code(kind):
    """[HDR-2] [HDR-10] No bit of either is without a checksum."""
    decode, frame = frame_of(kind)
    for bit in range(8 * len(frame)):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        error = outcome(decode, bytes(flipped))
        assert error == by_reader(bytes(flipped), 3, 5, region_of(PAGE))
        assert error[1] == ("HDR-2" if bit < 8 * 32 else "HDR-10")


@settings(max_examples=500)
@given(st.sampled_from(KINDS), st.data())
def test_what_has_another_form_is_refused_with_the_readers_code(kind, data):
    """[PCY-27] [HDR-3] [HDR-4] Also with right checksums. Where only a number differs the form is right."""
    decode, frame = frame_of(kind)
    offset = data.draw(st.integers(0, len(frame) - 1))
    value = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 2, 16, 17, 64, 255])))
    changed = unchecked.patch(frame, offset, bytes([value]))
    region = None
    if kind == "page":
        number, size = int.from_bytes(changed[40:44], "little"), int.from_bytes(changed[68:72], "little")
        granule_log2 = size.bit_length() - 1 if size in SIZES else 12
        region = replace(region_of(PAGE), id=number, granule_log2=granule_log2)
    got, general = outcome(decode, changed), by_reader(changed, 3, 5, region)
    match got:
        case SinglePage():
            assert changed == page_frame(got, 3, 5)
            assert general.record.rows == [(got.page, 1, got.size_bytes, Encoding.RAW)]
        case r.PageRequest():
            assert changed == request_frame(got, 3, 5)
            assert general.record == got
        case _:
            assert got == (general if isinstance(general, tuple) else NOT_ONE)


STARTS = [b"", *(frame_of(kind)[1][:size] for kind in KINDS for size in (31, 40, 200))]


@given(st.sampled_from(STARTS), st.binary(max_size=200))
def test_any_bytes_are_refused_with_one_coded_error(start, rest):
    """[coded-refusal]"""
    for decode in (single.decode_request, single.decode_page):
        assert outcome(decode, start + rest) is not None


@BOTH
def test_a_part_of_a_frame_is_none(kind):
    """[FRM-10]"""
    decode, frame = frame_of(kind)
    for size in range(len(frame)):
        assert outcome(decode, frame[:size]) == (ErrorCode.TRUNCATED, "FRM-10")


@BOTH
def test_another_connection_and_another_number(kind):
    """[HDR-5] [HDR-6]"""
    decode, frame = frame_of(kind)
    assert outcome(decode, frame, 2, 5) == (ErrorCode.BAD_HEADER, "HDR-5")
    assert outcome(decode, frame, 3, 4) == (ErrorCode.BAD_SEQUENCE, "HDR-6")


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (r.Complete(1, bytes(16)), NOT_ONE),
        (r.Abort(1, 1, 1, 1, 1, "x" * 200), NOT_ONE),
        (replace(REQUEST, urgent=False), NOT_ONE),
        (replace(REQUEST, count=17), NOT_ONE),
        (replace(REQUEST, count=0), (ErrorCode.BAD_VALUE, "FRM-17")),
        (replace(REQUEST, first=PAGE_SPACE - 1, count=2), (ErrorCode.BAD_VALUE, "FRM-17")),
    ],
)
def test_frames_that_are_no_request(record, error):
    """[PCY-27]"""
    frame = unchecked.frame(record.type, unchecked.body(record), stream=3, sequence=5)
    assert outcome(single.decode_request, frame.ljust(REQUEST_BYTES, b"\0")) == error


NO_HASH = np.array([], np.uint64)
ONE = table_of(PAGE)


@pytest.mark.parametrize(
    ("table", "error"),
    [
        (replace(ONE, runs=make_runs([(40, 1, Encoding.ZERO)], 14), hashes=NO_HASH), NOT_ONE),
        (replace(ONE, runs=make_runs([(40, 1, Encoding.RAW), (41, 1, Encoding.RAW)], 14)), NOT_ONE),
        (replace(ONE, runs=make_runs([(40, 4, Encoding.RAW)], 12)), (ErrorCode.BAD_VALUE, "PGS-10")),
        (replace(ONE, runs=make_runs([(40, 2, Encoding.RAW)], 16)), (ErrorCode.BAD_VALUE, "PGS-10")),
        (replace(ONE, hashes=NO_HASH), (ErrorCode.COUNT_MISMATCH, "PGS-12")),
    ],
)
def test_tables_that_are_no_page(table, error):
    """[PCY-27]"""
    frame = unchecked.frame(table.type, unchecked.body(table), bytes(table.bulk_bytes), stream=3, sequence=5)
    assert outcome(single.decode_page, frame.ljust(PAGE_HEAD_BYTES, b"\0")) == error


def test_a_page_beyond_every_region():
    """[PGS-7] It is not one of this session's either, which the caller sees to."""
    last = replace(PAGE, page=(1 << 63) // PAGE.size_bytes - 1)
    assert single.decode_page(page_frame(last, 3, 5), 3, 5) == last
    beyond = replace(last, page=last.page + 1)
    assert outcome(single.decode_page, page_frame(beyond, 3, 5)) == (ErrorCode.OUTSIDE_REGION, "PGS-7")


@BOTH
def test_no_frame_is_skipped(kind):
    """[PCY-27] [FRM-6]"""
    decode, frame = frame_of(kind)
    for number, error in ((0x7F01, NOT_ONE), (0xFF01, (ErrorCode.UNKNOWN_CRITICAL, "FRM-6"))):
        unknown = unchecked.frame(number, bytes(len(frame) - 32), stream=3, sequence=5)
        assert outcome(decode, unknown) == error
