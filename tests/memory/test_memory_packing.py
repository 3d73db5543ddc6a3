"""Batches packed at the source, unpacked at the destination."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.limits import CHUNK_BYTES, EXPANSION, Limits
from sterna.memory import packing
from sterna.memory.packing import PIECE_BYTES, SAMPLE_BYTES, Measure, Packer
from sterna.memory.pages import EncodedBatch, RegionPages
from sterna.memory.recent import RecentPages
from sterna.memory.regions import RegionTable
from sterna.memory.unpacking import Unpacking
from sterna.memory.zstd import Compressor
from sterna.registry import Encoding, FrameType
from sterna.wire import Bounds, decode_body, encode_body
from sterna.wire.records import Region

RAW, ZERO, ZSTD, DELTA, _ = Encoding
PAGE = 4096
REGION = Region(5, 0, 512 * PAGE)
TABLE = RegionTable((REGION,))
LEVEL_1 = Compressor(1)
RANDOM = Random(1).randbytes(512 * PAGE)
TEXT = (b"a page of a guest, which is like the others and has a number: %9d\n" * 65)[:PAGE]


class Pair:
    """A source and a destination that start alike: all zeros."""

    def __init__(self, expansion: int = EXPANSION, room_bytes: int = 0) -> None:
        self.here, self.there = bytearray(512 * PAGE), bytearray(512 * PAGE)
        self.recent = RecentPages(TABLE, room_bytes) if room_bytes else None
        self.packer = Packer(RegionPages(TABLE, {5: memoryview(self.here)}), expansion, self.recent)
        self.sink = Unpacking(RegionPages(TABLE, {5: memoryview(self.there)}))
        limits = Limits(expansion=max(expansion, 1))
        self.bounds = Bounds(regions={5: REGION}, encodings=frozenset(Encoding), limits=limits)

    def write(self, page: int, content: bytes) -> None:
        self.here[page * PAGE : page * PAGE + len(content)] = content

    def send(
        self,
        starts: list[int],
        counts: list[int],
        compressor: Compressor | None = LEVEL_1,
        *,
        zeros: bool = True,
        remember: bool = True,
    ) -> EncodedBatch:
        """Send pages; the destination has them then, and nothing was rejected."""
        batch = self.packer.pack(5, starts, counts, compressor, zeros=zeros, remember=remember)
        table = decode_body(FrameType.PAGES, encode_body(batch.table(1, 1), self.bounds), self.bounds)
        bulk = b"".join(batch.buffers)
        assert batch.bulk_bytes == len(bulk) == table.bulk_bytes
        assert batch.page_count == table.page_count == sum(counts)
        for target in self.sink.targets(table):
            target[:] = bulk[: len(target)]
            bulk = bulk[len(target) :]
        assert self.sink.commit(table) == []
        for start, count in zip(starts, counts, strict=True):
            here = self.here[start * PAGE : (start + count) * PAGE]
            assert self.there[start * PAGE : (start + count) * PAGE] == here
        return batch


def kinds(batch: EncodedBatch) -> list[tuple[int, int, int]]:
    names = "first", "count", "encoding"
    return list(zip(*(batch.runs[name].tolist() for name in names), strict=True))


def test_what_compresses_is_compressed():
    pair = Pair()
    pair.write(10, TEXT * 30)
    pair.write(60, RANDOM[: 20 * PAGE])
    batch = pair.send([8, 60], [34, 21])
    assert kinds(batch) == [(8, 34, ZSTD), (60, 21, RAW)]  # few zeros count as pages
    assert batch.bulk_bytes < 22 * PAGE
    measure = pair.packer.measure
    assert (measure.page_bytes, measure.sent_bytes) == (50 * PAGE, batch.bulk_bytes)
    assert (measure.zstd_bytes, measure.change_bytes) == (55 * PAGE, 0)
    assert pair.packer.sample == bytes(2 * PAGE) + TEXT * 30
    assert (batch.versions_asked, batch.versions_found) == (0, 0)
    assert len(pair.packer.sample) == SAMPLE_BYTES


def test_packed_without_hashes():
    """[MEM-20]"""
    pair = Pair()
    pair.write(0, TEXT * 40)
    packer = Packer(pair.packer._pages, EXPANSION, hashed=False)
    with_hashes = pair.packer.pack(5, [0], [60], LEVEL_1, zeros=True)
    without = packer.pack(5, [0], [60], LEVEL_1, zeros=True)
    assert kinds(without) == kinds(with_hashes)
    assert without.hashes.tolist() == [0] * len(with_hashes.hashes)


def test_nothing_but_zeros():
    pair = Pair(room_bytes=1 << 20)
    batch = pair.send([0], [512])
    assert kinds(batch) == [(0, 512, ZERO)]
    assert (pair.packer.measure, len(pair.packer.sample)) == (Measure(), 0)


def test_no_pages_at_all():
    batch = Pair().packer.pack(5, [], [], LEVEL_1, zeros=True)
    assert (len(batch.runs), len(batch.hashes), batch.buffers) == (0, 0, ())


def test_zeros_as_such_may_not_be_allowed():
    """[PGS-18] What a peer lets a run expand to bounds the pieces."""
    pair = Pair()
    assert {kind for _, _, kind in kinds(pair.send([0], [512], zeros=False))} == {ZSTD}


@pytest.mark.parametrize("expansion", [0, 1, 2, 100, 410, 1000, 6554, 1 << 15, 10**6])
def test_no_run_expands_to_more_than_is_allowed(expansion):
    """[PGS-18] The codec would refuse it."""
    pair = Pair(expansion)
    pair.write(0, b"\x55" * (200 * PAGE))
    pair.write(200, TEXT * 200)
    batch = pair.send([0], [400])
    packs = {kind for _, _, kind in kinds(batch)} == {ZSTD}
    assert packs == (expansion >= 410)  # frames of a page have ten bytes at least
    assert (batch.bulk_bytes < 20 * PAGE) == (expansion >= 410)


def test_pieces_are_cut_at_chunks(monkeypatch):
    """[PGS-12] So that hashes are those of the run uncut."""
    assert PIECE_BYTES % CHUNK_BYTES == 0
    monkeypatch.setattr(packing, "PIECE_BYTES", 1 << 20)
    pair = Pair()
    pair.write(0, TEXT * 512)
    batch = pair.send([3], [500])
    step = (1 << 20) // PAGE
    assert [first for first, _, _ in kinds(batch)] == [3, 3 + step]
    plain = RegionPages(TABLE, {5: memoryview(pair.here)}).encode(5, [3], [500])
    assert batch.hashes.tolist() == plain.hashes.tolist()


def test_frames_are_made_of_some_pieces_at_a_time(monkeypatch):
    """They take memory until those that are made together are there."""
    made: list[list[int]] = []

    class Noted(Compressor):
        def frames(self, contents):
            made.append([len(content) // PAGE for content in contents])
            return super().frames(contents)

    monkeypatch.setattr(packing, "PIECE_BYTES", 8 * PAGE)
    pair = Pair()
    pair.write(0, RANDOM[: 40 * PAGE])
    pair.send([0, 10, 20, 30], [3, 3, 3, 10], Noted(1))
    assert made == [[3, 3], [3], [8], [2]]
    made.clear()
    pair.send([0], [1], Noted(1))
    assert made == [[1]]


def test_a_change_is_sent_as_such():
    """[PGS-19] Random pages of which a byte was written."""
    pair = Pair(room_bytes=4 << 20)
    pair.write(0, RANDOM[: 100 * PAGE])
    assert pair.send([0], [100]).bulk_bytes == 100 * PAGE
    for page in range(0, 100, 3):
        pair.here[page * PAGE + 77] ^= 0xFF
    batch = pair.send([0], [100])
    assert {kind for _, _, kind in kinds(batch)} == {DELTA}
    assert batch.bulk_bytes < 2 * PAGE
    assert pair.packer.measure.change_bytes == 100 * PAGE
    assert pair.packer.measure.changed_bytes == batch.bulk_bytes
    pair.here[5] ^= 0xFF
    assert pair.send([0], [1]).bulk_bytes < 60


def test_changes_without_compression():
    """What is not known goes as it is."""
    pair = Pair(room_bytes=4 << 20)
    pair.write(0, TEXT * 20)
    assert {kind for _, _, kind in kinds(pair.send([0], [10], None))} == {RAW}
    pair.here[5] ^= 0xFF
    batch = pair.send([0], [20], None)
    assert kinds(batch) == [(0, 10, DELTA), (10, 10, RAW)]
    assert (batch.versions_asked, batch.versions_found) == (20, 10)


def test_pages_that_were_written_anew():
    """Neither helps: they go as they are. Or compressing them does."""
    pair = Pair(room_bytes=4 << 20)
    pair.write(0, RANDOM[: 40 * PAGE])
    pair.send([0], [40])
    pair.write(0, RANDOM[40 * PAGE : 56 * PAGE])
    pair.write(20, TEXT * 16)
    batch = pair.send([0, 20], [16, 16])
    assert kinds(batch) == [(0, 16, RAW), (20, 16, ZSTD)]
    assert pair.packer.measure.changed_bytes == batch.bulk_bytes


def test_a_page_that_became_zero_is_not_a_base():
    """[PGS-20] At the destination it is zeros now."""
    pair = Pair(room_bytes=4 << 20)
    pair.write(0, RANDOM[:PAGE])
    pair.send([0], [1])
    pair.write(0, bytes(PAGE))
    assert kinds(pair.send([0], [1])) == [(0, 1, ZERO)]
    pair.write(0, RANDOM[:PAGE])
    assert kinds(pair.send([0], [1])) == [(0, 1, RAW)]


def test_only_what_is_to_be_remembered_is():
    """What was known stays so, in its newest version."""
    pair = Pair(room_bytes=4 << 20)
    pair.write(0, RANDOM[: 2 * PAGE])
    pair.send([0], [1])
    pair.here[1] ^= 1
    assert kinds(pair.send([0], [2], remember=False)) == [(0, 1, DELTA), (1, 1, RAW)]
    pair.here[2] ^= 1
    assert kinds(pair.send([0], [2], remember=False)) == [(0, 1, DELTA), (1, 1, RAW)]


def test_a_change_that_expands_too_much():
    """[PGS-18] Nothing at all has changed, and that would be too few bytes."""
    pair = Pair(expansion=20, room_bytes=4 << 20)
    pair.write(0, RANDOM[: 16 * PAGE])
    pair.send([0], [16])
    assert {kind for _, _, kind in kinds(pair.send([0], [16]))} == {RAW}


def test_what_is_sent_is_one_version():
    """The guest writes on: bytes, hashes and what is remembered are those of the moment."""
    pair = Pair(room_bytes=4 << 20)
    pair.write(0, RANDOM[: 16 * PAGE])
    batch = pair.packer.pack(5, [0], [16], LEVEL_1, zeros=True, remember=True)
    pair.write(0, bytes(16 * PAGE))
    assert b"".join(batch.buffers) == RANDOM[: 16 * PAGE]
    assert pair.recent is not None
    assert pair.recent.versions(5, 0, 16).tobytes() == RANDOM[: 16 * PAGE]


def test_larger_granules():
    region = Region(5, 0, 1 << 20, 16)
    memory = bytearray(TEXT * 256)
    pages = RegionPages(RegionTable((region,)), {5: memoryview(memory)})
    batch = Packer(pages, EXPANSION).pack(5, [0], [16], LEVEL_1, zeros=True)
    assert kinds(batch) == [(0, 16, ZSTD)]
    narrow = Packer(pages, 100).pack(5, [0], [16], LEVEL_1, zeros=True)
    assert kinds(narrow) == [(page, 1, RAW) for page in range(16)]


_PAGE = st.sampled_from((bytes(PAGE), TEXT, RANDOM[:PAGE], RANDOM[PAGE : 2 * PAGE], b"\x55" * PAGE))


@given(
    st.lists(st.dictionaries(st.integers(0, 40), _PAGE | st.integers(0, PAGE - 1), max_size=20), max_size=6),
    st.sampled_from((0, 16 * PAGE, 2 << 20)),
    st.sampled_from((1, 100, EXPANSION)),
    st.booleans(),
)
def test_the_destination_gets_what_the_source_has(rounds, room_bytes, expansion, compresses):
    """[PGS-13] [PGS-19] Whatever was written in between, and whatever is known of it."""
    pair = Pair(expansion, room_bytes)
    for writes in rounds:
        for page, what in writes.items():
            if isinstance(what, int):
                pair.here[page * PAGE + what] ^= 0xA5
            else:
                pair.write(page, what)
        numbers = np.array(sorted(writes), np.int64)
        pair.send(numbers.tolist(), [1] * len(numbers), LEVEL_1 if compresses else None) if len(
            numbers
        ) else None
        pair.send([0], [41], LEVEL_1 if compresses else None)
        if pair.recent is not None:
            pair.recent.next_round()
    assert pair.here == pair.there


def test_many_zeros_are_sent_as_such():
    """A chunk of them between other pages is; less is packed with these."""
    pair = Pair()
    pair.write(0, TEXT * 100)
    for first, count in ((10, 15), (40, 16), (70, 15), (100, 60)):
        pair.write(first, bytes(count * PAGE))
    batch = pair.send([0], [130])
    assert kinds(batch) == [(0, 40, ZSTD), (40, 16, ZERO), (56, 44, ZSTD), (100, 30, ZERO)]
    assert {kind for _, _, kind in kinds(pair.send([0], [130], None))} == {RAW, ZERO}
