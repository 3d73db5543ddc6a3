"""Lists read and written at once, against their declarations: the same rows, bytes and faults."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import pytest
from construct import Computed, ConstructError, Struct
from hypothesis import example, given
from hypothesis import strategies as st

from sterna.limits import STREAMS_MAX, Limits
from sterna.registry import ErrorCode, FrameType
from sterna.wire import decode_body, encode_body, lists, schema
from sterna.wire.lists import AtOnce
from sterna.wire.page_rules import PAGE_SPACE
from sterna.wire.records import PageRange, Region, RoundAck
from sterna.wire.rules import DEFAULT_BOUNDS, Bounds, Violation

U64 = (1 << 64) - 1
KNOWN = Bounds(regions={1: Region(1, 0, 16 << 12), 5: Region(5, 1 << 32, 1 << 40)})


def lists_in(construct: object, path: str) -> Iterator[tuple[str, AtOnce]]:
    """The lists with a glance that a declaration holds, by the path of names to them."""
    if isinstance(construct, AtOnce):
        yield path, construct
    elif hasattr(construct, "subcons"):
        for field in construct.subcons:
            yield from lists_in(field, f"{path}.{field.name}" if field.name else path)
    elif hasattr(construct, "subcon"):
        yield from lists_in(construct.subcon, path)


FOUND = dict(
    each for frame in ("HELLO", "HELLO_OF_ANY_VERSION", *(f.name for f in FrameType))
    for each in lists_in(getattr(schema, frame), frame)
)  # fmt: skip
EVERY = pytest.mark.parametrize("at_once", FOUND.values(), ids=FOUND)

# HELLO_OF_ANY_VERSION is for reading alone.
WRITTEN = {path: each for path, each in FOUND.items() if "OF_ANY" not in path}

# Numbers at the borders of the rules, as often as all others.
edges = st.sampled_from(
    [0, 1, 2, 5, 15, 16, STREAMS_MAX, STREAMS_MAX + 1, PAGE_SPACE - 1, PAGE_SPACE, PAGE_SPACE + 1, U64]
)


@st.composite
def raw_rows(draw, layout):
    """Rows as bytes: mostly ascending, rarely with something in a reserved field."""
    count = draw(st.integers(0, 6))
    rows = []
    for _ in range(count):
        numbers = [draw(edges | st.integers(0, U64)) for _ in layout.names]
        widths = [layout.dtype[name].itemsize for name in layout.names]
        rows.append([number & ((1 << 8 * width) - 1) for number, width in zip(numbers, widths, strict=True)])
    if draw(st.booleans()):
        rows.sort()
    raw = bytearray(b"".join(layout.row.pack(*row) for row in rows))
    if raw and draw(st.integers(0, 9)) == 0:
        raw[draw(st.integers(0, len(raw) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(raw[: len(raw) - draw(st.sampled_from([0] * 9 + [1]))])


def read(construct, at_once, raw, bounds):
    """Rows or fault, and where the stream stands afterwards; there are bytes before and behind."""
    count = -(-len(raw) // at_once.layout.row.size)
    stream = io.BytesIO(b"before" + raw)
    stream.seek(6)
    try:
        whole = Struct(at_once.count / Computed(count), "rows" / construct)
        found = whole.parse_stream(stream, bounds=bounds).rows
    except Violation as violation:
        return violation.args, violation.offset
    return found, stream.tell()


def write(construct, rows, bounds, **options):
    try:
        return Struct("rows" / construct).build({"rows": rows}, bounds=bounds, **options)
    except Violation as violation:
        return violation.args
    except (ConstructError, TypeError) as error:  # what the codec takes for a record that cannot be written
        return type(error)


def declared(at_once):
    return at_once.subcon


@pytest.mark.parametrize("bounds", [DEFAULT_BOUNDS, KNOWN], ids=["any region", "two regions"])
@EVERY
@given(data=st.data())
def test_a_list_is_read_as_it_is_declared(at_once, bounds, data):
    raw = data.draw(raw_rows(at_once.layout))
    assert read(at_once, at_once, raw, bounds) == read(declared(at_once), at_once, raw, bounds)


@pytest.mark.parametrize("bounds", [DEFAULT_BOUNDS, KNOWN], ids=["any region", "two regions"])
@pytest.mark.parametrize("at_once", WRITTEN.values(), ids=WRITTEN)
@given(data=st.data())
def test_a_list_is_written_as_it_is_declared(at_once, bounds, data):
    rows = [tuple(data.draw(edges | st.just(-1) | st.none()) for _ in at_once.layout.names)
            for _ in range(data.draw(st.integers(0, 4)))]  # fmt: skip
    if at_once.make is not None:
        rows = [at_once.make(*row) for row in rows]
    assert write(at_once, rows, bounds) == write(declared(at_once), rows, bounds)


@st.composite
def ascending(draw):
    """Ranges of one region, in order and apart."""
    rows, end = [], 0
    for gap, count in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=6)):
        rows.append((1, end + gap, count))
        end += gap + count
    return rows


@given(ascending(), st.sampled_from([DEFAULT_BOUNDS, KNOWN, Bounds(regions={})]))
@example([(1, 0, 16), (5, 0, 1 << 28)], KNOWN)
@example([(1, 0, 17)], KNOWN)
@example([(5, (1 << 28) - 1, 1)], KNOWN)
@example([(5, (1 << 28) - 1, 2)], KNOWN)
@example([(1, PAGE_SPACE - 1, 1)], DEFAULT_BOUNDS)
@example([(1, PAGE_SPACE, 1)], DEFAULT_BOUNDS)
@example([(1, U64, 2)], DEFAULT_BOUNDS)
@example([(1, 2, U64)], DEFAULT_BOUNDS)
@example([(1, 0, 2), (1, 1, 1)], DEFAULT_BOUNDS)
@example([(2, 0, 1), (1, 0, 1)], DEFAULT_BOUNDS)
def test_rejected_ranges_at_their_borders(rows, bounds):
    """[FRM-17] [FRM-18] [RAK-3]"""
    at_once = FOUND["ROUND_ACK.rejected"]
    raw = b"".join(struct.pack("<I4xQQ", *row) for row in rows)
    found = read(at_once, at_once, raw, bounds)
    assert found == read(declared(at_once), at_once, raw, bounds)
    right = found[1] == 6 + len(raw)
    assert right == lists.ranges_ascend(at_once.layout.columns(raw), bounds)


RIGHT = {
    "HELLO.features": [(1, 1, 0), (7, 0, 100)],
    "HELLO.limits": [(1, 65536), (99, U64)],
    "WELCOME.features": [(1, 0), (7, U64)],
    "WELCOME.limits": [(1, 65536), (99, U64)],
    "ROUND_END.last_sequences": [(0, 17), (STREAMS_MAX, U64)],
    "SEAL.last_sequences": [(0, 17)],
    "ROUND_ACK.rejected": [(1, 0, 5), (1, 5, 1), (5, 0, 9)],
}


def test_these_are_all():
    assert set(FOUND) == {*RIGHT, "HELLO_OF_ANY_VERSION.features", "HELLO_OF_ANY_VERSION.limits"}


@pytest.mark.parametrize(("path", "rows"), RIGHT.items(), ids=RIGHT)
def test_what_is_right_does_not_trouble_the_declaration(path, rows, monkeypatch):
    at_once = FOUND[path]
    items = tuple(rows) if at_once.make is None else tuple(at_once.make(*row) for row in rows)
    raw = b"".join(at_once.layout.row.pack(*row) for row in rows)
    monkeypatch.setattr(at_once, "subcon", None)
    assert read(at_once, at_once, raw, KNOWN) == (items, 6 + len(raw))
    assert write(at_once, items, KNOWN) == raw


def test_unchecked_rows_are_the_declaration_s(monkeypatch):
    at_once = FOUND["HELLO.features"]
    rows = [at_once.make(1, True, 0)] * 2
    assert write(at_once, rows, DEFAULT_BOUNDS)[1] == "HEL-3"
    assert len(write(at_once, rows, DEFAULT_BOUNDS, unchecked=True, counts={})) == 32


def test_a_layout_is_taken_from_the_declaration():
    layout = FOUND["ROUND_ACK.rejected"].layout
    assert layout.names == ("region", "first", "count")
    assert (layout.row.format, layout.row.size, layout.dtype.itemsize) == ("<L4xQQ", 24, 24)
    raw = layout.row.pack(1, 2, 3)
    assert layout.columns(raw)["count"].tolist() == [3]
    assert layout.columns(raw[:5] + b"\1" + raw[6:]) is None


def test_as_many_ranges_as_a_round_may_reject():
    """[RAK-2] [RAK-3] The last one can be wrong alone, and is found where it is."""
    most = Limits().rejected_runs
    record = RoundAck(1, 1, 0, 0, tuple(PageRange(5, 2 * first, 1) for first in range(most)))
    body = encode_body(record, KNOWN)
    assert decode_body(FrameType.ROUND_ACK, body, KNOWN) == record
    wrong = body[:-8] + bytes(8)
    with pytest.raises(Exception, match="FRM-17") as caught:
        decode_body(FrameType.ROUND_ACK, wrong, KNOWN)
    assert (caught.value.code, caught.value.offset) == (ErrorCode.BAD_VALUE, 32 + len(body) - 24)
