"""The public strategies give what they promise."""

from hypothesis import given
from hypothesis import strategies as st

from sterna.limits import Limits
from sterna.registry import FrameType
from sterna.testing import strategies
from sterna.wire import encode_body
from sterna.wire import records as r


def test_there_is_a_strategy_for_each_frame():
    assert list(strategies.BY_TYPE) == list(FrameType)


@given(strategies.records())
def test_records_are_valid(record):
    body = encode_body(record, strategies.BOUNDS)
    assert bool(body) == (record.type is not FrameType.BYE)


@given(strategies.ranges(100))
def test_ranges_ascend(ranges):
    assert ranges
    end = 0
    for first, count in ranges:
        assert first >= end
        assert count > 0
        end = first + count
    assert end <= 100


@given(
    st.booleans().flatmap(
        lambda critical: st.tuples(st.just(critical), strategies.unknown_types(critical=critical))
    )
)
def test_unknown_types_are_unknown(found):
    critical, number = found
    assert number not in set(map(int, FrameType))
    assert bool(number & 0x8000) == critical


@given(st.binary(max_size=50).flatmap(lambda data: st.tuples(st.just(data), strategies.pieces(data))))
def test_pieces_are_the_whole(found):
    data, pieces = found
    assert b"".join(pieces) == data


@given(strategies.pages(region=r.Region(1, 0, 20 << 12)))
def test_pages_lie_in_their_region(table):
    """Even in one that is smaller than what would be drawn."""
    assert (table.runs["first"] + table.runs["count"]).max() <= 20


@given(strategies.pages(region=r.Region(1, 0, 1 << 34, 16)))
def test_pages_are_no_more_than_the_default_limit_takes(table):
    """[PGS-21] Runs without bytes among them."""
    assert table.page_count << 16 <= Limits().bulk_bytes
