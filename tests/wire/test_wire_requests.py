"""Requests for pages as struct reads and writes them, against the schema."""

from __future__ import annotations

import io

import pytest
from construct import ConstructError
from hypothesis import given
from hypothesis import strategies as st

from sterna.registry import FrameType
from sterna.wire import codec, requests
from sterna.wire.page_rules import PAGE_SPACE
from sterna.wire.records import PageRequest, Region
from sterna.wire.rules import DEFAULT_BOUNDS, Bounds, Violation
from sterna.wire.schema import BODIES

SCHEMA = BODIES[FrameType.PAGE_REQUEST]
KNOWN = Bounds(regions={1: Region(1, 0, 16 << 12)})
BOUNDS = st.sampled_from([DEFAULT_BOUNDS, KNOWN])
NUMBERS = st.sampled_from([-1, 0, 1, 2, 15, 16, 17, PAGE_SPACE - 1, PAGE_SPACE, (1 << 64) - 1, 1 << 64])
REQUESTS = st.builds(
    PageRequest,
    st.sampled_from([-1, 0, 1, 2, 1 << 32]),
    NUMBERS,
    NUMBERS,
    st.sampled_from([False, True, 0, 1, 2]),
)


def by_schema(body: bytes, bounds: Bounds) -> PageRequest | None:
    try:
        return SCHEMA.parse_stream(io.BytesIO(body), bounds=bounds)
    except (Violation, ConstructError):
        return None


@given(REQUESTS, BOUNDS)
def test_what_is_written_is_what_the_schema_writes(request, bounds):
    """[FRM-5] [FRM-17] [FRM-18]"""
    stream = io.BytesIO()
    try:
        SCHEMA.build_stream(request, stream, bounds=bounds)
    except (Violation, ConstructError):
        assert requests.build(request, bounds) is None
    else:
        assert requests.build(request, bounds) == stream.getvalue()


@given(REQUESTS.filter(lambda each: requests.build(each, DEFAULT_BOUNDS)), BOUNDS, st.data())
def test_what_is_read_is_what_the_schema_reads(request, bounds, data):
    """[FRM-1] [FRM-2] [FRM-3] Also with a byte changed, missing or too many."""
    body = bytearray(requests.build(request, DEFAULT_BOUNDS))
    assert requests.parse(body, bounds) == by_schema(bytes(body), bounds)
    assert requests.parse(body + b"\0", bounds) is requests.parse(body[1:], bounds) is None
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    assert requests.parse(body, bounds) == by_schema(bytes(body), bounds)


@pytest.mark.parametrize("urgent", [False, True])
def test_both_doors_of_the_codec_go_this_way(urgent, monkeypatch):
    monkeypatch.setattr(codec, "BODIES", {FrameType.PAGE_REQUEST: object()})  # not what answers here
    request = PageRequest(1, 3, 13, urgent=urgent)
    body = codec.encode_body(request, KNOWN)
    assert codec.decode_body(FrameType.PAGE_REQUEST, body, KNOWN) == request
    assert body == bytes([1, 0, 0, 0, urgent, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 13, 0, 0, 0, 0, 0, 0, 0])
