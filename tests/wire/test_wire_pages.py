"""Page tables: the fast form against the schema, and every clause about them."""

import io
from dataclasses import replace

import numpy as np
import pytest
from construct import ConstructError, TerminatedError
from hypothesis import given
from hypothesis import strategies as st

from sterna.errors import LimitExceeded, LocalProtocolError, RemoteProtocolError
from sterna.limits import CHUNK_BYTES, HEADER_BYTES, Limits
from sterna.registry import Encoding, ErrorCode, FrameType, Transfer
from sterna.testing import strategies
from sterna.testing.strategies import BOUNDS, REGION
from sterna.wire import (
    Bounds,
    bulk_lengths,
    chunk_count,
    decode_body,
    encode_body,
    make_runs,
    pages,
    schema,
    share_pages,
    unchecked,
)
from sterna.wire import records as r
from sterna.wire.page_rules import Run, Table
from sterna.wire.rules import Violation

RAW, ZERO, ZSTD, DELTA, ABSENT = Encoding
EVERY = frozenset(Encoding)
SMALL = r.Region(1, 0, 200 << 12)
LAX = Limits(expansion=1 << 20)
SMALL_BOUNDS = Bounds(regions={1: SMALL}, encodings=EVERY, limits=LAX)


SPANS = st.sets(st.integers(0, 199), min_size=2, max_size=12).map(sorted)


def spans(borders: list[int], region: int = 1) -> tuple[r.Pages, set[int]]:
    """A table of the runs between every other two of these, and its pages."""
    pairs = list(zip(borders[::2], borders[1::2], strict=False))
    table = r.Pages(1, 1, region, make_runs([(low, high - low, ZERO) for low, high in pairs], 12), [])
    return table, {page for low, high in pairs for page in range(low, high)}


@given(SPANS, SPANS)
def test_tables_with_a_page_in_common(one, other):
    (left, pages_left), (right, pages_right) = spans(one), spans(other)
    assert share_pages(left, right) == share_pages(right, left) == bool(pages_left & pages_right)
    assert not share_pages(left, spans(other, region=2)[0])


def oracle(body: bytes, bounds: Bounds) -> Table | tuple[str, ErrorCode]:
    """What the schema makes of a body."""
    try:
        return schema.PAGES.parse_stream(io.BytesIO(body), bounds=bounds)
    except Violation as violation:
        return violation.clause, violation.code
    except TerminatedError:
        return "FRM-2", ErrorCode.TRAILING_BYTES
    except ConstructError:
        return "FRM-1", ErrorCode.MALFORMED


def fast(body: bytes, bounds: Bounds) -> Table | tuple[str, ErrorCode]:
    """What the codec makes of it, in the schema's words."""
    try:
        record = decode_body(FrameType.PAGES, body, bounds)
    except RemoteProtocolError as error:
        return error.clause, error.code
    return as_table(record)


def as_table(record: r.Pages) -> Table:
    rows = zip(
        *(record.runs[name].tolist() for name in ("first", "count", "size_bytes", "encoding")), strict=True
    )
    runs = tuple(Run(first, count, size, Encoding(encoding)) for first, count, size, encoding in rows)
    return Table(record.attempt, record.round, record.region, runs, tuple(record.hashes.tolist()))


def row(first: int, count: int, size_bytes: int, encoding: int, reserved: int = 0) -> tuple[object, ...]:
    return first, count, size_bytes, encoding, (reserved,) + (0,) * 6


def table(*rows: tuple[object, ...], hashes: int = 0, region: int = 1) -> r.Pages:
    return r.Pages(1, 1, region, np.array(list(rows), r.RUN_DTYPE), np.arange(hashes, dtype="<u8"))


def refused(record: r.Pages, clause: str, code: ErrorCode, bounds: Bounds = SMALL_BOUNDS) -> None:
    """Both sides and the schema refuse a table, alone and behind many rows that are right."""
    with pytest.raises(LocalProtocolError) as caught:
        encode_body(record, bounds)
    assert (caught.value.clause, caught.value.code) == (clause, code)
    body = unchecked.body(record)
    assert fast(body, bounds) == oracle(body, bounds) == (clause, code)


# --- the two forms are one -----------------------------------------------------------------------


@given(strategies.pages(most=130))
def test_the_schema_reads_and_writes_the_same(record):
    body = encode_body(record, BOUNDS)
    found = oracle(body, BOUNDS)
    assert found == fast(body, BOUNDS)
    assert schema.PAGES.build(found, bounds=BOUNDS) == body


@given(strategies.pages(most=130), st.data())
def test_the_schema_finds_the_same_faults(record, data):
    """Any bytes of a table changed, cut or appended: the same record, or the same clause and code."""
    body = bytearray(encode_body(record, BOUNDS))
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.sampled_from((0, 1, 2, 3, 4, 5, 255)))
    end = data.draw(st.integers(0, len(body)) | st.just(len(body)))
    changed = bytes(body[:end]) + data.draw(st.sampled_from((b"", b"\0", bytes(24))))
    bounds = data.draw(
        st.sampled_from(
            (
                BOUNDS,
                Bounds(regions=BOUNDS.regions, encodings=EVERY),
                Bounds(regions=BOUNDS.regions, encodings=EVERY, limits=LAX),
                Bounds(regions=BOUNDS.regions, limits=Limits(batch_runs=3)),
                Bounds(regions=BOUNDS.regions, limits=Limits(bulk_bytes=1 << 20)),
                Bounds(regions=BOUNDS.regions, hashed=False),
                Bounds(),
            )
        )
    )
    assert fast(changed, bounds) == oracle(changed, bounds)


_ROWS = st.tuples(
    st.integers(0, 210),
    st.integers(0, 3),
    st.sampled_from((0, 1, 4096, 8192, 12288, 12289)),
    st.integers(0, 5),
    st.sampled_from((0, 0, 0, 1)),
)


@given(
    st.lists(_ROWS, max_size=90),
    st.integers(0, 4),
    st.booleans(),
    st.booleans(),
    st.sampled_from((0, 1, 2, 3, 4096, (1 << 64) - 1)),
)
def test_the_schema_judges_any_rows_alike(rows, hashes, in_order, every, expansion):
    rows = sorted(rows) if in_order else rows
    record = table(*(row(*one) for one in rows), hashes=hashes)
    limits = Limits(expansion=expansion)
    bounds = Bounds(regions={1: SMALL}, encodings=EVERY if every else frozenset({RAW, ZERO}), limits=limits)
    body = unchecked.body(record)
    assert fast(body, bounds) == oracle(body, bounds)


@given(st.binary(max_size=120))
def test_the_schema_judges_any_bytes_alike(body):
    assert fast(body, BOUNDS) == oracle(body, BOUNDS)


# --- clause by clause ----------------------------------------------------------------------------


def test_pages_need_a_region_table():
    """[PGS-1] The writer may write before it knows one; the reader may not read."""
    body = encode_body(table(row(0, 1, 4096, RAW), hashes=1))
    assert fast(body, Bounds()) == oracle(body, Bounds()) == ("PGS-1", ErrorCode.UNEXPECTED_FRAME)


def test_the_region_is_one_of_the_guest():
    """[PGS-2]"""
    refused(table(row(0, 1, 0, ZERO), region=2), "PGS-2", ErrorCode.OUTSIDE_REGION)


@pytest.mark.parametrize("transfer", [Transfer.SHARED, Transfer.REGENERATE, Transfer.OPAQUE])
def test_the_region_is_copied(transfer):
    """[PGS-3]"""
    bounds = Bounds(regions={1: r.Region(1, 0, 200 << 12, transfer=transfer)})
    refused(table(row(0, 1, 0, ZERO)), "PGS-3", ErrorCode.BAD_VALUE, bounds)


@pytest.mark.parametrize("runs", [1, 3, 60])
def test_hashes_of_a_session_without(runs):
    """[PGS-25] [MEM-20] They are there, and each of them is 0. Checked behind PGS-12."""
    bounds = replace(SMALL_BOUNDS, hashed=False)
    found = table(*(row(2 * each, 1, 4096, RAW) for each in range(runs)), hashes=runs)
    found.hashes[:] = 0
    assert fast(encode_body(found, bounds), bounds) == as_table(found)
    found.hashes[-1] = 1 << 63
    refused(found, "PGS-25", ErrorCode.BAD_VALUE, bounds)
    found = replace(found, hashes=np.append(found.hashes, found.hashes))
    refused(found, "PGS-12", ErrorCode.COUNT_MISMATCH, bounds)


def test_a_batch_has_runs():
    """[PGS-4]"""
    refused(table(), "PGS-4", ErrorCode.BAD_VALUE)


def test_a_batch_has_at_most_the_announced_runs():
    """[PGS-5] [LIM-4] Refused by the count alone."""
    bounds = Bounds(regions={1: SMALL}, limits=Limits(batch_runs=2))
    rows = [row(number, 1, 0, ZERO) for number in range(3)]
    refused(table(*rows), "PGS-5", ErrorCode.LIMIT_RUNS, bounds)
    assert encode_body(table(*rows[:2]), bounds)
    with pytest.raises(LimitExceeded):
        decode_body(FrameType.PAGES, unchecked.body(table(), {"runs": 1 << 31})[:16], bounds)


# Rows that are right, to put the wrong one behind: none, few, and more than the loop takes.
BEFORE = [0, 1, 80]


def zeros_and_others(count: int) -> list[tuple[object, ...]]:
    """Rows of a page, every second one with bytes."""
    return [row(page, 1, *((4096, RAW) if page % 2 else (0, ZERO))) for page in range(count)]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize(
    ("clause", "code", "wrong"),
    [
        ("PGS-6", ErrorCode.BAD_VALUE, row(150, 0, 0, ZERO)),
        ("FRM-4", ErrorCode.BAD_VALUE, row(150, 1, 0, 5)),
        ("FRM-3", ErrorCode.BAD_VALUE, row(150, 1, 0, ZERO, reserved=1)),
        ("PGS-7", ErrorCode.OUTSIDE_REGION, row(199, 2, 0, ZERO)),
        ("PGS-7", ErrorCode.OUTSIDE_REGION, row(200, 1, 0, ZERO)),
        ("PGS-7", ErrorCode.OUTSIDE_REGION, row((1 << 64) - 1, 2, 0, ZERO)),
        ("PGS-10", ErrorCode.BAD_VALUE, row(150, 2, 4096, RAW)),
        ("PGS-10", ErrorCode.BAD_VALUE, row(150, 2, 0, RAW)),
        ("PGS-11", ErrorCode.BAD_VALUE, row(150, 2, 1, ZERO)),
        ("PGS-11", ErrorCode.BAD_VALUE, row(150, 2, 1, ABSENT)),
        ("PGS-11", ErrorCode.BAD_VALUE, row(150, 2, 0, ZSTD)),
        ("PGS-11", ErrorCode.BAD_VALUE, row(150, 2, 8193, DELTA)),
    ],
)
def test_rows(before, clause, code, wrong):
    """[FRM-3] [FRM-4] [PGS-6] [PGS-7] [PGS-10] [PGS-11]"""
    right = [row(number, 1, 0, ZERO) for number in range(before)]
    refused(table(*right, wrong), clause, code)
    with pytest.raises(RemoteProtocolError) as caught:
        decode_body(FrameType.PAGES, unchecked.body(table(*right, wrong)), SMALL_BOUNDS)
    assert caught.value.offset == HEADER_BYTES + 24 + 24 * before


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("second", [row(161, 1, 0, ZERO), row(150, 1, 0, ZERO), row(160, 2, 0, ZERO)])
def test_runs_ascend(before, second):
    """[PGS-8] For the writer even without a region table."""
    right = [row(number, 1, 0, ZERO) for number in range(before)]
    wrong = table(*right, row(160, 2, 0, ZERO), second)
    refused(wrong, "PGS-8", ErrorCode.OVERLAPPING_RUNS)
    with pytest.raises(LocalProtocolError) as caught:
        encode_body(wrong)
    assert caught.value.clause == "PGS-8"


@pytest.mark.parametrize("encoding", [ZSTD, DELTA, ABSENT])
@pytest.mark.parametrize("before", BEFORE)
def test_encodings_were_selected(before, encoding):
    """[PGS-9]"""
    right = [row(number, 1, 0, ZERO) for number in range(before)]
    wrong = table(*right, row(160, 2, 0, encoding))
    bounds = Bounds(regions={1: SMALL}, encodings=frozenset({RAW, ZERO}))
    refused(wrong, "PGS-9", ErrorCode.NOT_SELECTED, bounds)


def test_not_even_zero_is_selected_by_itself():
    """[PGS-9]"""
    bounds = Bounds(regions={1: SMALL}, encodings=frozenset({RAW}))
    refused(table(row(0, 1, 0, ZERO)), "PGS-9", ErrorCode.NOT_SELECTED, bounds)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("hashes", [0, 2, 4])
def test_there_is_a_hash_for_each_chunk(before, hashes):
    """[PGS-12] 17 pages of 4 KiB are one chunk and a piece, 16 exactly one."""
    right = [row(number, 1, 0, ZERO) for number in range(before)]
    rows = (*right, row(120, 17, 17 << 12, RAW), row(160, 16, 16 << 12, RAW))
    assert encode_body(table(*rows, hashes=3), SMALL_BOUNDS)
    refused(table(*rows, hashes=hashes), "PGS-12", ErrorCode.COUNT_MISMATCH)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("encoding", [RAW, ZSTD, DELTA])
def test_a_batch_has_at_most_the_announced_bytes(before, encoding):
    """[PGS-21] [LIM-4] Decoded; runs without bytes are bounded by themselves."""
    right = zeros_and_others(before)
    record = table(*right, row(100, 3, 3 << 12 if encoding == RAW else 1, encoding), hashes=before // 2 + 1)
    most = before // 2 + 3 << 12

    def bounds(bulk_bytes: int) -> Bounds:
        return Bounds(
            regions={1: SMALL}, encodings=EVERY, limits=Limits(bulk_bytes=bulk_bytes, expansion=3 << 12)
        )

    body = encode_body(record, bounds(most))
    assert fast(body, bounds(most)) == as_table(record)
    refused(record, "PGS-21", ErrorCode.LIMIT_BULK, bounds(most - 1))


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("encoding", [ZERO, ABSENT])
def test_runs_without_bytes_cover_a_multiple_of_that(before, encoding):
    """[PGS-24] [LIM-4] Whatever runs with bytes are among them."""
    region = r.Region(1, 0, 1 << 30)
    right = zeros_and_others(before)
    limits = Limits(bulk_bytes=before // 2 + 1 << 12)
    bounds = Bounds(regions={1: region}, encodings=EVERY, limits=limits)
    most = 64 * (before // 2 + 1) - (before + 1) // 2
    record = table(*right, row(100, most, 0, encoding), hashes=before // 2)
    assert fast(encode_body(record, bounds), bounds) == as_table(record)
    more = table(*right, row(100, most + 1, 0, encoding), hashes=before // 2)
    refused(more, "PGS-24", ErrorCode.LIMIT_BULK, bounds)
    both = table(*right, row(100, most + 1, 0, encoding), row(1 << 17, 2, 8192, RAW), hashes=before // 2 + 1)
    refused(both, "PGS-21", ErrorCode.LIMIT_BULK, bounds)


def test_the_decoded_size_comes_before_the_count_of_hashes():
    """[PGS-21] [HDR-11] And behind the sizes of the runs."""
    bounds = Bounds(regions={1: SMALL}, limits=Limits(bulk_bytes=4096))
    refused(table(row(0, 2, 8192, RAW), hashes=7), "PGS-21", ErrorCode.LIMIT_BULK, bounds)
    refused(table(row(0, 2, 1, ZERO)), "PGS-11", ErrorCode.BAD_VALUE, bounds)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("encoding", [ZSTD, DELTA])
def test_a_run_expands_as_far_as_announced(before, encoding):
    """[PGS-18] [LIM-4] Known from the table, before a byte of the run is there."""
    right = [row(number, 1, 4096, RAW) for number in range(before)]

    def bounds(expansion: int) -> Bounds:
        return Bounds(regions={1: SMALL}, encodings=EVERY, limits=Limits(expansion=expansion))

    for size, least in ((100, 82), (8192, 1), (8191, 2)):
        record = table(*right, row(160, 2, size, encoding), hashes=before + 1)
        assert encode_body(record, bounds(least))
        assert encode_body(record, bounds((1 << 64) - 1))
        refused(record, "PGS-18", ErrorCode.LIMIT_EXPANSION, bounds(least - 1))


def test_expansion_comes_before_the_count_of_hashes():
    """[PGS-18] [PGS-24] And behind the size of the batch."""
    wrong = table(row(0, 2, 1, ZSTD), hashes=7)
    refused(wrong, "PGS-18", ErrorCode.LIMIT_EXPANSION, Bounds(regions={1: SMALL}, encodings=EVERY))
    limits = Limits(bulk_bytes=4096)
    refused(wrong, "PGS-21", ErrorCode.LIMIT_BULK, Bounds(regions={1: SMALL}, encodings=EVERY, limits=limits))
    wrong = table(row(0, 1, 1, ZSTD), row(1, 65, 0, ZERO))
    refused(wrong, "PGS-24", ErrorCode.LIMIT_BULK, Bounds(regions={1: SMALL}, encodings=EVERY, limits=limits))


def test_packed_runs_that_are_right():
    """[PGS-11] [PGS-12]"""
    record = table(row(0, 17, 1, ZSTD), row(17, 1, 4096, DELTA), row(20, 80, 0, ABSENT), hashes=3)
    body = encode_body(record, SMALL_BOUNDS)
    assert fast(body, SMALL_BOUNDS) == oracle(body, SMALL_BOUNDS) == as_table(record)


def test_the_head_has_a_reserved_field():
    """[FRM-3]"""
    body = bytearray(unchecked.body(table(row(0, 1, 0, ZERO))))
    body[20] = 1
    assert (
        fast(bytes(body), SMALL_BOUNDS) == oracle(bytes(body), SMALL_BOUNDS) == ("FRM-3", ErrorCode.BAD_VALUE)
    )


def test_a_run_of_four_thousand_million_pages():
    """[PGS-24] [SEC-10] Sums are taken in 64 bits."""
    region = r.Region(1, 0, 1 << 63, 16)
    bounds = Bounds(regions={1: region}, encodings=EVERY, limits=Limits(bulk_bytes=1 << 54))
    count = 0xFFFFFFFF
    record = table(row(0, count, 0, ZERO), row(1 << 40, count, 0, ABSENT))
    body = encode_body(record, bounds)
    assert fast(body, bounds) == oracle(body, bounds) == as_table(record)
    refused(table(row(0, count, 0xFFFFFFFF, RAW)), "PGS-10", ErrorCode.BAD_VALUE, bounds)
    refused(record, "PGS-24", ErrorCode.LIMIT_BULK, Bounds(regions={1: region}, encodings=EVERY))


def test_a_table_of_a_whole_address_space():
    """[PGS-24] [SEC-10] The largest sum that PGS-7 and PGS-8 let through."""
    region = r.Region(1, 0, (1 << 64) - (1 << 16), 16)
    count = 0xFFFFFFFF
    rows = [row(number * count, count, 0, ZERO) for number in range(region.pages // count)]
    assert sum(each[1] for each in rows) << 16 > 1 << 63
    for bulk_bytes, clause in (((1 << 58), None), (1 << 57, "PGS-24")):
        bounds = Bounds(regions={1: region}, limits=Limits(bulk_bytes=bulk_bytes, batch_runs=1 << 17))
        found = fast(unchecked.body(table(*rows)), bounds)
        assert found == (clause, ErrorCode.LIMIT_BULK) if clause else len(found.runs) == len(rows)


# --- helpers -------------------------------------------------------------------------------------


@given(strategies.pages(most=130))
def test_counts_agree_with_their_definition(record):
    """[PGS-12]"""
    lengths = bulk_lengths(record.runs)
    assert sum(lengths) == record.bulk_bytes
    chunks = [len(range(0, length, CHUNK_BYTES)) for length in lengths]
    assert pages.chunk_counts(record.runs, REGION.granule_log2).tolist() == chunks
    assert chunk_count(record.runs, REGION.granule_log2) == sum(chunks) == len(record.hashes)
    assert pages.carries_bytes(record.runs).tolist() == [length > 0 for length in lengths]


def test_make_runs():
    runs = make_runs([(3, 2, RAW), (9, 1, ZERO)], 13)
    assert runs["first"].tolist() == [3, 9]
    assert runs["size_bytes"].tolist() == [16384, 0]
    assert make_runs([], 12).shape == (0,)


# --- tables of the wrong length ------------------------------------------------------------------

RIGHT = encode_body(table(row(0, 1, 4096, RAW), row(5, 2, 0, ZERO), hashes=1), SMALL_BOUNDS)


def judged(body: bytes, clause: str, code: ErrorCode, offset: int) -> None:
    assert fast(body, SMALL_BOUNDS) == oracle(body, SMALL_BOUNDS) == (clause, code)
    with pytest.raises(RemoteProtocolError) as caught:
        decode_body(FrameType.PAGES, body, SMALL_BOUNDS)
    assert caught.value.offset == HEADER_BYTES + offset


@pytest.mark.parametrize("size", range(len(RIGHT)))
def test_a_table_cut_anywhere(size):
    """[FRM-1] [FRM-12] What is too short for a list is refused where the list begins."""
    clause, offset = ("FRM-1", size) if size < 24 else ("FRM-12", 24 if size < 24 + 2 * 24 else 24 + 2 * 24)
    judged(RIGHT[:size], clause, ErrorCode.MALFORMED, offset)


def test_bytes_behind_a_table():
    """[FRM-2]"""
    judged(RIGHT + bytes(3), "FRM-2", ErrorCode.TRAILING_BYTES, len(RIGHT))


@pytest.mark.parametrize(
    ("size", "clause"), [(24 + 24 + 23, "FRM-12"), (24 + 24 + 24, "PGS-6"), (len(RIGHT) + 1, "PGS-6")]
)
def test_a_wrong_row_of_a_table_of_the_wrong_length(size, clause):
    """[HDR-11] [FRM-12] All rows must be there before the first is read; the hashes come behind them."""
    body = bytearray(RIGHT + b"\0")
    body[24 + 24 + 8] = 0
    code, offset = (ErrorCode.MALFORMED, 24) if clause == "FRM-12" else (ErrorCode.BAD_VALUE, 24 + 24)
    judged(bytes(body[:size]), clause, code, offset)


def test_a_wrong_count_of_a_cut_head_comes_first():
    """[PGS-4] [HDR-11]"""
    judged(bytes(16), "PGS-4", ErrorCode.BAD_VALUE, 12)
    judged(bytes(15), "FRM-1", ErrorCode.MALFORMED, 15)
