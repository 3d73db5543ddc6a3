"""Batches out of memory and into memory."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from sterna.limits import CHUNK_BYTES
from sterna.memory import pages as module
from sterna.memory.bitmap import FEW_RUNS, PageBitmap, expand_runs
from sterna.memory.pages import (
    EncodedBatch,
    PageSink,
    PageSource,
    RegionPages,
    damaged_pages,
    hash_chunks,
    zero_batch,
)
from sterna.memory.regions import RegionTable
from sterna.registry import Encoding, Transfer
from sterna.wire.records import RUN_DTYPE, PageRange, Pages, Region

PAGE = 4096
NO_HASHES = np.empty(0, np.uint64)


def one_region(pages, granule_log2=12):
    return RegionTable([Region(5, 0, pages << granule_log2, granule_log2=granule_log2)])


def random_memory(size_bytes, seed=1):
    return bytearray(np.random.default_rng(seed).bytes(size_bytes))


def pair(memory, granule_log2=12, fresh=True):
    """A source over `memory`, a sink over zeros (or rubbish), and the sink's memory."""
    table = one_region(len(memory) >> granule_log2, granule_log2)
    target = bytearray(len(memory)) if fresh else random_memory(len(memory), 2)
    source = RegionPages(table, {5: memoryview(memory)})
    return source, RegionPages(table, {5: memoryview(target)}, fresh=fresh), target


def transport(batch, targets):
    """Move the bulk part as a connection would."""
    data, at = b"".join(batch.buffers), 0
    assert len(data) == batch.bulk_bytes
    for view in targets:
        view[:] = data[at : at + len(view)]
        at += len(view)
    assert at == len(data)


def put(targets, bulk, begin, end):
    """Bytes of the bulk part, to their place."""
    at = 0
    for view in targets:
        low, high = max(begin, at), min(end, at + len(view))
        if low < high:
            view[low - at : high - at] = bulk[low:high]
        at += len(view)


def send(source, sink, starts, counts):
    batch = source.encode(5, starts, counts)
    table = batch.table(1, 1)
    transport(batch, sink.targets(table))
    return sink.commit(table)


def rows(batch):
    return [(int(r["first"]), int(r["count"]), Encoding(r["encoding"])) for r in batch.runs]


def test_the_protocols_fit():
    pages = RegionPages(one_region(1), {5: memoryview(bytearray(PAGE))})
    source: PageSource = pages
    sink: PageSink = pages
    assert source is sink


def test_one_run_of_data():
    memory = random_memory(40 * PAGE)
    source, sink, target = pair(memory)
    batch = source.encode(5, [2], [35])
    assert isinstance(batch, EncodedBatch)
    assert rows(batch) == [(2, 35, Encoding.RAW)]
    assert batch.runs["size_bytes"].tolist() == [35 * PAGE]
    assert batch.runs.dtype == RUN_DTYPE
    assert (batch.region, batch.page_count, batch.bulk_bytes) == (5, 35, 35 * PAGE)
    data = memory[2 * PAGE : 37 * PAGE]
    assert batch.hashes.dtype == np.uint64
    assert batch.hashes.tolist() == [
        xxh3_64_intdigest(bytes(data[at : at + CHUNK_BYTES])) for at in range(0, len(data), CHUNK_BYTES)
    ]
    table = batch.table(3, 4)
    assert (table.attempt, table.round, table.region) == (3, 4, 5)
    assert (table.page_count, table.bulk_bytes) == (35, 35 * PAGE)
    transport(batch, sink.targets(table))
    assert sink.commit(table) == []
    assert target[2 * PAGE : 37 * PAGE] == data
    assert not any(target[: 2 * PAGE] + target[37 * PAGE :])


def test_buffers_are_the_memory_itself():
    memory = random_memory(4 * PAGE)
    source, sink, target = pair(memory)
    batch = source.encode(5, [1], [1])
    memory[PAGE] ^= 0xFF
    assert batch.buffers[0][0] == memory[PAGE]
    (view,) = sink.targets(batch.table(1, 1))
    view[7] = 77
    assert target[PAGE + 7] == 77


@pytest.mark.parametrize("granule_log2", [12, 13, 14, 15, 16])
def test_chunks_are_64_kib_for_every_granule(granule_log2):
    """[MEM-1]"""
    memory = random_memory(5 * CHUNK_BYTES)
    source, sink, target = pair(memory, granule_log2)
    pages = len(memory) >> granule_log2
    batch = source.encode(5, [0], [pages])
    assert len(batch.hashes) == 5
    assert send(source, sink, [0], [pages]) == []
    assert target == memory


def test_zero_pages_split_runs():
    memory = random_memory(12 * PAGE)
    for page in (0, 3, 4, 5, 11):
        memory[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    source, sink, target = pair(memory)
    raw, zero = Encoding.RAW, Encoding.ZERO
    batch = source.encode(5, [0], [12])
    assert rows(batch) == [(0, 1, zero), (1, 2, raw), (3, 3, zero), (6, 5, raw), (11, 1, zero)]
    assert batch.runs["size_bytes"].tolist() == [0, 2 * PAGE, 0, 5 * PAGE, 0]
    assert [len(buffer) for buffer in batch.buffers] == [2 * PAGE, 5 * PAGE]
    assert len(batch.hashes) == 2
    assert send(source, sink, [0], [12]) == []
    assert target == memory
    # Runs that touch stay apart, so that a table describes what was asked for.
    assert rows(source.encode(5, [3, 4, 6], [1, 1, 1])) == [(3, 1, zero), (4, 1, zero), (6, 1, raw)]


def test_whole_runs_are_zero_if_all_of_them_is():
    """[PCY-7] One row of the table for each, even where pages alternate."""
    memory = random_memory(8 * PAGE)
    memory[: 3 * PAGE] = bytes(3 * PAGE)
    source, _, _ = pair(memory)
    raw, zero = Encoding.RAW, Encoding.ZERO
    batch = source.encode(5, [0, 2, 4, 5], [2, 2, 0, 1], whole=True)
    assert rows(batch) == [(0, 2, zero), (2, 2, raw), (5, 1, raw)]
    assert rows(source.encode(5, [0], [2], zeros=False, whole=True)) == [(0, 2, raw)]


@pytest.mark.parametrize("first", [0, 2, 3])
@pytest.mark.parametrize("zeros", [True, False])
def test_one_whole_run_is_encoded_as_among_others(first, zeros):
    """What a guest waits for is one run, and takes a shorter way."""
    memory = random_memory(8 * PAGE)
    memory[: 3 * PAGE] = bytes(3 * PAGE)
    source, _, _ = pair(memory)
    alone = source.encode(5, [first], [2], zeros=zeros, whole=True)
    among = source.encode(5, [first, 7], [2, 1], zeros=zeros, whole=True)
    assert rows(alone) == rows(among)[:1]
    assert alone.hashes.tolist() == among.hashes.tolist()[:-1]
    assert (alone.page_count, alone.bulk_bytes) == (2, among.bulk_bytes - PAGE)
    assert list(alone.buffers) == list(among.buffers[:-1])
    assert alone.runs.dtype == RUN_DTYPE


def test_zero_pages_travel_as_bytes_where_the_encoding_was_not_selected():
    """[NEG-7] [PGS-9]"""
    memory = random_memory(8 * PAGE)
    memory[2 * PAGE : 5 * PAGE] = bytes(3 * PAGE)
    source, sink, target = pair(memory)
    batch = source.encode(5, [0, 4, 5], [3, 0, 3], zeros=False)
    assert rows(batch) == [(0, 3, Encoding.RAW), (5, 3, Encoding.RAW)]
    assert (batch.page_count, batch.bulk_bytes, len(batch.hashes)) == (6, 6 * PAGE, 2)
    table = batch.table(1, 1)
    transport(batch, sink.targets(table))
    assert sink.commit(table) == []
    assert target[: 3 * PAGE] == memory[: 3 * PAGE]
    assert target[5 * PAGE :] == memory[5 * PAGE :]


@pytest.mark.parametrize("offset", [0, 7, 8, PAGE - 8, PAGE - 1])
def test_one_byte_makes_a_page_not_zero(offset):
    memory = bytearray(3 * PAGE)
    memory[PAGE + offset] = 1
    source, _, _ = pair(memory)
    assert [row[2] for row in rows(source.encode(5, [0], [3]))] == [
        Encoding.ZERO,
        Encoding.RAW,
        Encoding.ZERO,
    ]


def test_nothing_to_encode():
    source, sink, _ = pair(random_memory(2 * PAGE))
    for starts, counts in (([], []), ([1], [0]), ([0, 1], [0, 0])):
        batch = source.encode(5, starts, counts)
        assert (len(batch.runs), len(batch.hashes), batch.buffers) == (0, 0, ())
        assert (batch.page_count, batch.bulk_bytes) == (0, 0)
        assert sink.targets(batch.table(1, 1)) == []
        assert sink.commit(batch.table(1, 1)) == []


def test_encode_minds_its_arguments():
    source, _, _ = pair(random_memory(10 * PAGE))
    with pytest.raises(KeyError):
        source.encode(4, [0], [1])
    for starts, counts in (([0], [11]), ([10], [1]), ([-1], [1])):
        with pytest.raises(IndexError):
            source.encode(5, starts, counts)
    for starts, counts in (([3, 1], [1, 1]), ([1, 2], [2, 1]), ([1], [1, 2])):
        with pytest.raises(ValueError, match=r"order|equal length"):
            source.encode(5, starts, counts)


def test_a_run_longer_than_a_table_can_say(monkeypatch):
    monkeypatch.setattr(module, "_SIZE_MAX", 4 * PAGE)
    source, _, _ = pair(random_memory(10 * PAGE))
    assert source.encode(5, [0, 4], [4, 4]).page_count == 8
    with pytest.raises(ValueError, match="too long"):
        source.encode(5, [0], [5])
    with pytest.raises(ValueError, match="too long"):
        source.encode(5, [0], [5], whole=True)


def test_memory_that_does_not_fit():
    table = one_region(2)
    wide = memoryview(bytearray(4 * PAGE))
    for views in ({}, {6: wide[: 2 * PAGE]}, {5: wide}, {5: wide[: 2 * PAGE - 1]}, {5: wide[::2]}):
        with pytest.raises(ValueError, match="region 5"):
            RegionPages(table, views)
    with pytest.raises(ValueError, match="region 5"):
        RegionPages(RegionTable([Region(5, 0, 0)]), {5: memoryview(b"")})


def test_views_of_any_format_and_only_copied_regions():
    words = np.arange(1024, dtype=np.uint64).reshape(2, 512)
    table = RegionTable([Region(5, 0, 2 * PAGE), Region(6, 1 << 40, PAGE, transfer=Transfer.SHARED)])
    pages = RegionPages(table, {5: words.data})
    assert b"".join(pages.encode(5, [0], [2]).buffers) == words.tobytes()
    with pytest.raises(KeyError):
        pages.encode(6, [0], [1])


def test_read_only_memory_is_a_source_only():
    memory = bytes(random_memory(2 * PAGE))
    pages = RegionPages(one_region(2), {5: memoryview(memory)})
    batch = pages.encode(5, [0], [2])
    assert b"".join(batch.buffers) == memory
    with pytest.raises(ValueError, match="read-only"):
        pages.targets(batch.table(1, 1))


def test_a_mismatch_rejects_the_whole_chunk_and_nothing_else():
    """[MEM-2, MEM-3]"""
    memory = random_memory(40 * PAGE)
    source, sink, target = pair(memory)
    batch = source.encode(5, [0], [40])
    memory[17 * PAGE + 5] ^= 1  # the guest writes between hash and send
    table = batch.table(1, 1)
    transport(batch, sink.targets(table))
    assert sink.commit(table) == [PageRange(5, 16, 16)]
    assert send(source, sink, [16], [16]) == []
    assert target == memory


def test_what_is_hashed_is_what_stands_in_the_memory():
    """[MEM-2] Not what came over the connection: a byte that changes behind it is found too."""
    source, sink, target = pair(random_memory(4 * PAGE))
    table = (batch := source.encode(5, [0], [4])).table(1, 1)
    transport(batch, sink.targets(table))
    target[3 * PAGE] ^= 1
    assert sink.commit(table) == [PageRange(5, 0, 4)]


def test_rejected_pages_of_neighbouring_chunks_are_one_range():
    memory = random_memory(60 * PAGE)
    source, sink, _ = pair(memory)
    batch = source.encode(5, [0, 40, 46, 50], [40, 5, 4, 10])
    for page in (20, 39, 40, 48, 50):
        memory[page * PAGE] ^= 1
    table = batch.table(1, 1)
    transport(batch, sink.targets(table))
    # 16..31, 32..39 and 40..44 touch; so do 46..49 and 50..59.
    assert sink.commit(table) == [PageRange(5, 16, 29), PageRange(5, 46, 14)]


@given(st.data())
def test_any_damage_is_found(data):
    """Whatever was damaged on the way is in a rejected range, and every rejected chunk has damage."""
    pages = 70
    wanted = sorted(data.draw(st.sets(st.integers(0, pages - 1), min_size=1)))
    zeros = data.draw(st.sets(st.integers(0, pages - 1)))
    memory = random_memory(pages * PAGE)
    for page in zeros:
        memory[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    source, sink, target = pair(memory)
    joined = np.array(wanted)
    breaks = np.flatnonzero(np.diff(joined, prepend=-2) > 1)
    batch = source.encode(5, joined[breaks], np.diff(breaks, append=len(joined)))
    assert sum(row[1] for row in rows(batch)) == batch.page_count == len(wanted)
    table = batch.table(1, 1)
    transport(batch, sink.targets(table))
    carried = [page for page in wanted if page not in zeros]
    damaged = data.draw(st.sets(st.sampled_from(carried))) if carried else set()
    for page in damaged:
        target[page * PAGE + data.draw(st.integers(0, PAGE - 1))] ^= 0x10
    expected = set()
    for first, count, encoding in rows(batch):
        for at in range(first, first + count, 16):
            chunk = set(range(at, min(at + 16, first + count)))
            if encoding is Encoding.RAW and chunk & damaged:
                expected |= chunk
    bulk = b"".join(sink.targets(table))
    ranges = sink.commit(table)
    assert damaged_pages(table, memoryview(bulk), 12) == ranges  # a reader without a guest sees the same
    covered = [page for item in ranges for page in range(item.first, item.first + item.count)]
    assert covered == sorted(expected)
    assert all(a.first + a.count < b.first for a, b in pairwise(ranges))
    for page in set(wanted) - expected:
        assert target[page * PAGE : (page + 1) * PAGE] == memory[page * PAGE : (page + 1) * PAGE]


@given(st.data())
def test_what_is_hashed_as_it_comes_is_what_is_hashed_at_the_end(data):
    """[MEM-1] [MEM-3] Chunks count from each run's start, however its bytes come; damage is found as ever."""
    pages = 70
    memory = random_memory(pages * PAGE)
    source, sink, target = pair(memory)
    borders = sorted(data.draw(st.sets(st.integers(0, pages), min_size=2, max_size=7)))
    starts, ends = borders[:-1:2], borders[1::2]
    starts = starts[: len(ends)]
    batch = source.encode(5, starts, np.subtract(ends, starts))
    table = batch.table(1, 1)
    size = batch.bulk_bytes
    bulk = bytearray(b"".join(batch.buffers))
    for at in data.draw(st.lists(st.integers(0, size - 1), max_size=3)):
        bulk[at] ^= 1
    come = 0
    for end in sorted(data.draw(st.lists(st.integers(0, size), max_size=6))):
        put(sink.targets(table), bulk, come, end)
        sink.came(table, end)
        come = end
    put(sink.targets(table), bulk, come, size)
    damaged = damaged_pages(table, memoryview(bulk), 12)
    assert sink.commit(table) == damaged
    if not damaged:
        for first, end in zip(starts, ends, strict=True):
            assert target[first * PAGE : end * PAGE] == memory[first * PAGE : end * PAGE]


@pytest.mark.parametrize("zeros", [False, True])
def test_pages_that_come_twice_at_once_are_hashed_when_all_has_come(zeros):
    """[MEM-3] What a source must not do [STR-7]. No hash stands for bytes that another table has replaced."""
    memory = random_memory(64 * PAGE)
    source, sink, _ = pair(memory)
    batch = source.encode(5, [0], [64])
    table = batch.table(1, 1)
    first = sink.targets(table)
    put(first, bytes(memory), 0, 32 * PAGE)
    if zeros:
        other = zero_batch(5, np.array([8]), np.array([1])).table(1, 1)
        sink.came(table, 32 * PAGE)
        assert sink.commit(other) == []
    else:
        late = source.encode(5, [8], [1]).table(1, 1)
        second = sink.targets(late)
        sink.came(table, 32 * PAGE)
        second[0][:] = bytes(PAGE)
    put(first, bytes(memory), 32 * PAGE, 64 * PAGE)
    assert sink.commit(table) == [PageRange(5, 0, 16)]


@pytest.mark.parametrize("size_pages", [15, 16, 17])
def test_many_runs_are_hashed_as_they_come_if_they_are_long(size_pages):
    """[MEM-3] As long as a chunk: what is changed behind them is not in the hash, and of short ones it is."""
    step = size_pages + 1
    memory = random_memory(FEW_RUNS * step * PAGE + step * PAGE)
    source, sink, target = pair(memory)
    batch = source.encode(5, range(0, len(memory) // PAGE, step), [size_pages] * (FEW_RUNS + 1))
    table = batch.table(1, 1)
    transport(batch, sink.targets(table))
    sink.came(table, batch.bulk_bytes)
    target[0] ^= 1
    first = PageRange(5, 0, min(size_pages, 16))
    assert sink.commit(table) == ([first] if size_pages < 16 else [])


def test_many_short_runs_are_hashed_when_all_has_come():
    memory = random_memory(64 * PAGE)
    source, sink, target = pair(memory)
    batch = source.encode(5, range(0, 64, 2), [1] * 32)
    table = batch.table(1, 1)
    sink.came(table, PAGE)
    transport(batch, sink.targets(table))
    assert sink.commit(table) == []
    assert target[: PAGE * 2] == memory[:PAGE] + bytes(PAGE)


def test_zero_runs_overwrite_what_was_there():
    memory = random_memory(200 * PAGE)
    source, sink, target = pair(memory)
    assert send(source, sink, [0], [200]) == []
    memory[20 * PAGE : 180 * PAGE] = bytes(160 * PAGE)
    assert send(source, sink, [0], [200]) == []
    assert target == memory
    memory[:] = bytes(len(memory))
    assert send(source, sink, np.arange(0, 200, 2), np.ones(100, int)) == []
    assert send(source, sink, [1], [199]) == []
    assert target == memory


def test_zero_runs_touch_only_pages_that_were_written():
    """First touch of fresh memory costs more than a copy, and makes it resident."""
    memory = bytearray(100 * PAGE)
    source, sink, target = pair(memory)
    memory[10 * PAGE] = 1
    assert send(source, sink, [10], [1]) == []
    # A marker instead of the zeros that would be there: whoever writes to such a page removes it.
    target[:] = b"\x55" * len(target)
    memory[10 * PAGE] = 0
    assert send(source, sink, [0], [100]) == []
    assert send(source, sink, [0, 9, 20], [9, 2, 5]) == []
    written = [page for page in range(100) if target[page * PAGE] != 0x55]
    assert written == [10]
    assert not any(target[10 * PAGE : 11 * PAGE])
    # Zeros again: it is known to be zero, so it is left alone.
    target[10 * PAGE] = 0x55
    assert send(source, sink, [0], [100]) == []
    assert target[10 * PAGE] == 0x55


def test_pages_that_were_offered_as_target_count_as_written():
    """A connection may break, or a chunk be rejected, after some bytes have arrived."""
    memory = random_memory(4 * PAGE)
    source, sink, target = pair(memory)
    for view in sink.targets(source.encode(5, [0], [4]).table(1, 1)):
        view[:] = b"\xaa" * len(view)
    memory[:] = bytes(len(memory))
    assert send(source, sink, [0], [4]) == []
    assert target == memory


@pytest.mark.parametrize("step", [2, module._SPAN_MOST, module._SPAN_MOST + 8])
@pytest.mark.parametrize("touched", [False, True])
def test_many_zero_runs_are_looked_at_together_if_they_lie_near(step, touched, monkeypatch):
    """[PGS-24] bounds the pages of a table, not the span over which they lie."""
    runs = FEW_RUNS + 1
    memory = random_memory(PAGE * (step * runs + 1))
    source, sink, target = pair(memory)
    if touched:
        batch = source.encode(5, [step, step + 1], [1, 1])
        table = batch.table(1, 1)
        transport(batch, sink.targets(table))
        assert sink.commit(table) == []
    looks = []
    meets = PageBitmap.meets
    monkeypatch.setattr(PageBitmap, "meets", lambda *given: looks.append(given[2]) or meets(*given))
    zeros = zero_batch(5, np.arange(runs) * step, np.ones(runs, np.int64)).table(1, 2)
    assert sink.commit(zeros) == []
    assert looks == ([] if step > module._SPAN_MOST else [step * (runs - 1) + 1])
    rest = memory[(step + 1) * PAGE : (step + 2) * PAGE] if touched else bytes(PAGE)
    assert target == bytes((step + 1) * PAGE) + rest + bytes(len(target) - (step + 2) * PAGE)


def test_memory_that_is_not_fresh_is_zeroed():
    memory = random_memory(300 * PAGE)
    memory[100 * PAGE : 290 * PAGE] = bytes(190 * PAGE)
    memory[95 * PAGE : 96 * PAGE] = bytes(PAGE)
    source, sink, target = pair(memory, fresh=False)
    assert send(source, sink, [0], [300]) == []
    assert target == memory


def test_absent_pages_read_as_zeros():
    """The sink knows that encoding before anybody may send it."""
    _, sink, target = pair(bytearray(4 * PAGE), fresh=False)
    runs = np.zeros(1, RUN_DTYPE)
    runs["first"], runs["count"], runs["encoding"] = 1, 2, Encoding.ABSENT
    assert sink.commit(Pages(1, 1, 5, runs, NO_HASHES)) == []
    assert not any(target[PAGE : 3 * PAGE])
    assert any(target[:PAGE])


class Restless:
    """Memory of a busy guest: it changes whenever something of it has been hashed."""

    def __init__(self, memory, change):
        self.memory, self.change = memory, change

    def hash(self, data):
        result = xxh3_64_intdigest(data)
        self.change(self.memory)
        return result


def test_memory_that_changes_while_it_is_encoded(monkeypatch):
    """Nothing crashes or repeats; what changed after its hash is rejected, and right when sent again."""
    memory = random_memory(64 * PAGE)
    source, sink, target = pair(memory)
    pages = iter(range(0, 64, 16))

    def change(content):
        page = next(pages, None)
        if page is not None:
            content[page * PAGE] ^= 1

    monkeypatch.setattr(module, "xxh3_64_intdigest", Restless(memory, change).hash)
    batch = source.encode(5, [0], [64])
    monkeypatch.undo()
    table = batch.table(1, 1)
    transport(batch, sink.targets(table))
    assert sink.commit(table) == [PageRange(5, 0, 64)]
    assert send(source, sink, [0], [64]) == []
    assert target == memory


def test_a_zero_page_that_is_written_after_the_test():
    """It goes as zero: the write came after the collect and will be reported by the next."""
    memory = bytearray(4 * PAGE)
    source, sink, target = pair(memory)
    batch = source.encode(5, [0], [4])
    memory[2 * PAGE] = 9
    table = batch.table(1, 1)
    transport(batch, sink.targets(table))
    assert sink.commit(table) == []
    assert not any(target)
    assert send(source, sink, [2], [1]) == []
    assert target == memory


@pytest.mark.parametrize("step", [1, 2, 3])
def test_more_candidates_than_one_step_of_the_zero_test(step):
    """First words are zero everywhere; only some of the pages are."""
    count = 3 * module._ZERO_TEST_PAGES
    content = np.zeros((count, PAGE), np.uint8)
    content[5::7, 100] = 1
    source, _, _ = pair(bytearray(content.tobytes()))
    starts = np.arange(0, count, step)
    batch = source.encode(5, starts, np.ones(len(starts), int))
    raw = batch.runs["encoding"] == Encoding.RAW
    pages = expand_runs(batch.runs["first"][raw].astype(int), batch.runs["count"][raw].astype(int))
    assert pages.tolist() == [page for page in range(0, count, step) if page % 7 == 5]


def test_hash_chunks():
    data = memoryview(random_memory(3 * CHUNK_BYTES))
    assert hash_chunks(data, [], []) == []
    assert hash_chunks(data, [10, CHUNK_BYTES], [100, CHUNK_BYTES + 1]) == [
        xxh3_64_intdigest(data[10:110]),
        xxh3_64_intdigest(data[CHUNK_BYTES : 2 * CHUNK_BYTES]),
        xxh3_64_intdigest(data[2 * CHUNK_BYTES : 2 * CHUNK_BYTES + 1]),
    ]


def test_pages_without_hashes():
    """[MEM-20] As many as ever, each of them 0; whatever comes is taken, and zero runs are zeroed."""
    memory = random_memory(40 * PAGE)
    memory[20 * PAGE : 22 * PAGE] = bytes(2 * PAGE)
    for starts, counts, chunks in (([0], [16], 1), ([3], [17], 2), ([0, 30], [25, 3], 4)):
        source, sink, target = pair(memory, fresh=False)
        batch = source.encode(5, starts, counts, hashed=False)
        assert batch.hashes.tolist() == [0] * chunks
        assert batch.hashes.dtype == np.uint64
        assert rows(batch) == rows(source.encode(5, starts, counts))
        transport(batch, sink.targets(batch.table(1, 1)))
        target[starts[0] * PAGE + 5] ^= 1
        assert sink.commit(batch.table(1, 1), hashed=False) == []
        target[starts[0] * PAGE + 5] ^= 1
        for start, count in zip(starts, counts, strict=True):
            assert (
                target[start * PAGE : (start + count) * PAGE] == memory[start * PAGE : (start + count) * PAGE]
            )


def test_batches_are_values():
    batch = pair(random_memory(PAGE))[0].encode(5, [0], [1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.region = 3


def test_zero_batches_need_no_memory():
    """However long their runs are."""
    batch = zero_batch(5, np.array([2, 1 << 30]), np.array([1 << 29, 3]))
    assert rows(batch) == [(2, 1 << 29, Encoding.ZERO), (1 << 30, 3, Encoding.ZERO)]
    assert (batch.page_count, batch.bulk_bytes, len(batch.hashes)) == ((1 << 29) + 3, 0, 0)
    assert batch.runs.dtype == RUN_DTYPE
    assert batch.hashes.dtype == np.uint64
