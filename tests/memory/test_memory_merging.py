"""Groups of which the guest has some pages: those are never written, and the rest is as it was sent."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from random import Random

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from late_support import Bitmaps
from sterna.guest.early_pages import EarlyPages
from sterna.limits import CHUNK_BYTES
from sterna.memory.merging import Merging
from sterna.memory.pages import PageSink, RegionPages
from sterna.memory.regions import RegionTable
from sterna.memory.unpacking import Unpacking
from sterna.memory.zstd import Compressor
from sterna.registry import Encoding
from sterna.wire.records import RUN_DTYPE, PageRange, Pages, Region

RAW, ZERO, ZSTD = Encoding.RAW, Encoding.ZERO, Encoding.ZSTD
PAGE = 4096
PAGES = 512
REGION = Region(5, 0, PAGES * PAGE)
TABLE = RegionTable((REGION,))
SOURCE = Random(7).randbytes(PAGES * PAGE)
OLD, GUESTS = b"o" * PAGE, b"g" * PAGE  # what is there before, and what the guest has made of an early page
Row = tuple[int, int, Encoding]


def at(page: int, count: int = 1) -> slice:
    return slice(page * PAGE, (page + count) * PAGE)


class Room:
    """A guest's memory, its early pages, and a sink."""

    def __init__(self, bitmaps: Bitmaps) -> None:
        self.memory = bytearray(OLD * PAGES)
        self.bitmaps = bitmaps
        self.pager: EarlyPages = bitmaps.fork()
        pages = RegionPages(TABLE, {5: memoryview(self.memory)}, fresh=False)
        self.merging = Merging(pages, bitmaps.endpoint)
        self.sink: PageSink = self.merging

    def early(self, *pages: int, data: bytes | None = None, hashed: bool = True) -> None:
        """The pager brings these, and the guest writes them at once."""
        for page in pages:
            came = SOURCE[at(page)] if data is None else data
            noted = xxh3_64_intdigest(came) if hashed else 0
            place = memoryview(self.memory)[at(page)]
            assert self.pager.install(5, page, memoryview(came), noted, place)
            assert self.memory[at(page)] == came
            self.memory[at(page)] = GUESTS

    def receive(self, *rows: Row, damaged: Sequence[int] = (), hashed: bool = True) -> list[PageRange]:
        """A table with these runs comes, with pages that were damaged on the way."""
        table, bulk = batch(rows, damaged, hashed=hashed)
        self.fill(self.sink.targets(table) if bulk else [], bulk)
        return self.sink.commit(table, hashed=hashed)

    def fill(self, targets: list[memoryview], bulk: bytes) -> None:
        for target in targets:
            target[:] = bulk[: len(target)]
            bulk = bulk[len(target) :]
        assert not bulk

    def shows(self, *rows: Row, early: Sequence[int] = ()) -> None:
        """Memory is as it was, but for these runs, and in them for the early pages."""
        expected = bytearray(OLD * PAGES)
        for first, count, encoding in rows:
            expected[at(first, count)] = bytes(count * PAGE) if encoding == ZERO else SOURCE[at(first, count)]
        for page in early:
            expected[at(page)] = GUESTS
        assert self.memory == expected


def batch(rows: Sequence[Row], damaged: Sequence[int] = (), *, hashed: bool = True) -> tuple[Pages, bytes]:
    runs = np.zeros(len(rows), RUN_DTYPE)
    bulk, hashes = [], []
    for number, (first, count, encoding) in enumerate(rows):
        content = bytearray(SOURCE[at(first, count)] if encoding != ZERO else b"")
        starts = range(0, len(content), CHUNK_BYTES)
        hashes += [xxh3_64_intdigest(content[start : start + CHUNK_BYTES]) for start in starts]
        for page in damaged:
            if first <= page < first + count:
                content[(page - first) * PAGE] ^= 1
        bulk.append(Compressor(1).frame(memoryview(content)) if encoding == ZSTD else bytes(content))
        runs[number] = first, count, len(bulk[-1]), encoding, (0,) * 7
    return Pages(1, 1, 5, runs, np.array(hashes, np.uint64) * np.uint64(hashed)), b"".join(bulk)


@pytest.fixture
def room() -> Iterator[Room]:
    with contextlib.closing(Bitmaps((REGION,), (5, 0, PAGES))) as bitmaps:
        room = Room(bitmaps)
        yield room
        room.pager.close()


def many(count: int = 20) -> tuple[Row, ...]:
    """More runs than are looked at one by one, raw ones and zero ones."""
    return tuple((16 * number, 15 - number % 3, ZERO if number % 5 == 2 else RAW) for number in range(count))


@pytest.mark.parametrize(
    "rows", [((3, 16, RAW), (32, 2, ZERO)), many(), tuple(row for row in many(30) if row[2] == RAW)]
)
def test_what_has_no_early_page_goes_straight_to_its_place(room: Room, rows: tuple[Row, ...]) -> None:
    """And is the endpoint's from then on [PCY-32]."""
    table, bulk = batch(rows)
    targets = room.sink.targets(table)
    room.fill(targets, bulk)
    assert room.memory[at(3)] == SOURCE[at(3)]
    for first, _, encoding in rows:
        if encoding == RAW:
            place = memoryview(bytearray(PAGE))
            assert not room.pager.install(5, first, memoryview(OLD), 0, place)
    assert room.sink.commit(table) == []
    room.shows(*rows)
    assert room.merging.early_pages == 0


@pytest.mark.parametrize("rows", [((3, 13, RAW), (32, 4, ZERO), (64, 16, RAW)), many()])
def test_an_early_page_is_never_written(room: Room, rows: tuple[Row, ...]) -> None:
    """[PCY-32] Not while its group comes, either. The rest of the group is as it was sent."""
    room.early(4, 70)
    room.early(33, data=bytes(PAGE))
    table, bulk = batch(rows)
    room.fill(room.sink.targets(table), bulk)
    assert room.memory[at(3, 2)] == OLD + GUESTS  # nothing of it comes to its place unverified
    room.early(5)  # and until then the pager goes on
    assert room.sink.commit(table) == []
    room.shows(*rows, early=(4, 5, 33, 70))
    assert room.merging.early_pages == 4
    assert not room.pager.install(5, 3, memoryview(OLD), 0, memoryview(bytearray(PAGE)))


def test_an_early_page_behind_the_look_at_zeros(room: Room) -> None:
    """A table without bytes has no places."""
    room.early(33, data=bytes(PAGE))
    assert room.receive((32, 40, ZERO)) == []
    room.shows((32, 40, ZERO), early=(33,))
    assert room.receive((0, 16, ZERO)) == []
    assert room.merging.early_pages == 1


def test_zeros_where_nothing_is_early(room: Room) -> None:
    assert room.receive((32, 40, ZERO)) == []
    room.shows((32, 40, ZERO))
    assert not room.pager.install(5, 32, memoryview(OLD), 0, memoryview(bytearray(PAGE)))


def test_a_damaged_group_comes_again(room: Room) -> None:
    """[MEM-5] In place or beside, as its early bits say."""
    room.early(4)
    assert room.receive((0, 16, RAW), (16, 16, RAW), damaged=(3, 20)) == [PageRange(5, 0, 32)]
    assert room.memory[at(0, 16)] == OLD * 4 + GUESTS + OLD * 11
    room.early(6)  # what was not merged is not taken
    assert room.receive((0, 16, RAW), (16, 16, RAW)) == []
    room.shows((0, 32, RAW), early=(4, 6))
    assert room.merging.early_pages == 2


def test_an_early_page_that_differs_from_its_groups_damages_it(room: Room) -> None:
    """[PCY-35] [MEM-5] What the guest has made of the page does not matter, what it came with does."""
    room.early(4, data=SOURCE[at(5)])
    room.early(33, data=b"\1" + bytes(PAGE - 1))
    rows = (0, 16, RAW), (20, 40, ZERO), (64, 16, RAW)
    assert room.receive(*rows) == [PageRange(5, 0, 16), PageRange(5, 20, 16)]
    room.shows((36, 24, ZERO), (64, 16, RAW), early=(4, 33))
    assert room.receive(*rows) == [PageRange(5, 0, 16), PageRange(5, 20, 16)]
    assert room.merging.early_pages == 0


def test_what_an_early_page_came_with_is_not_always_known(room: Room) -> None:
    """[PCY-35] As after a takeover, or in a session without hashes."""
    room.early(4, data=SOURCE[at(5)], hashed=False)
    room.early(33, data=SOURCE[at(5)], hashed=False)
    assert room.receive((0, 16, RAW), (32, 2, ZERO)) == []
    room.shows((0, 16, RAW), (32, 2, ZERO), early=(4, 33))


def test_chunks_without_hashes_are_not_verified(room: Room) -> None:
    """[MEM-20] [PCY-35] Nor is anything compared."""
    room.early(4, 33)
    assert room.receive((0, 16, RAW), (32, 2, ZERO), damaged=(3, 4), hashed=False) == []
    assert room.memory[at(2, 3)] == SOURCE[at(2)] + bytes([SOURCE[3 * PAGE] ^ 1]) + SOURCE[at(3)][1:] + GUESTS
    assert room.memory[at(32, 2)] == bytes(PAGE) + GUESTS


def test_runs_of_many_chunks(room: Room) -> None:
    """Each chunk by itself."""
    room.early(4, 40)
    room.early(21, data=OLD)
    rows = (0, 50, RAW), (60, 20, RAW)
    assert room.receive(*rows, damaged=(33, 77)) == [PageRange(5, 16, 32), PageRange(5, 76, 4)]
    assert room.memory[at(0, 16)] == SOURCE[at(0, 4)] + GUESTS + SOURCE[at(5, 11)]
    assert room.memory[at(16, 32)] == OLD * 5 + GUESTS + OLD * 18 + GUESTS + OLD * 7
    assert room.merging.early_pages == 1


def test_packed_runs_are_merged_too(room: Room) -> None:
    """[PGS-16] They are taken apart beside, where early pages are, and are as if they had come raw."""
    room.sink = Unpacking(room.merging)
    room.early(4, 70)
    rows = (0, 16, ZSTD), (16, 16, ZSTD), (32, 1, ZERO), (64, 16, RAW)
    assert room.receive(*rows, damaged=(20,)) == [PageRange(5, 16, 16)]
    assert room.receive(rows[1]) == []
    room.shows(*rows, early=(4, 70))
    assert room.merging.early_pages == 2


def test_what_never_came_is_forgotten(room: Room) -> None:
    """With its table, when its connection is gone; it comes again."""
    room.early(4)
    table, _ = batch(((0, 16, RAW),))
    room.sink.targets(table)
    assert len(room.merging._apart) == 1
    del table
    gc.collect()
    assert len(room.merging._apart) == 0
    assert room.receive((0, 16, RAW)) == []
    room.shows((0, 16, RAW), early=(4,))


def test_it_knows_the_regions(room: Room) -> None:
    assert room.merging.table is TABLE
