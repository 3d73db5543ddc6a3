"""Packed runs at the destination: what comes is what was sent, or it is refused, or rejected."""

import gc
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from sterna.errors import RemoteProtocolError
from sterna.limits import CHUNK_BYTES
from sterna.memory.pages import RegionPages, damaged_pages
from sterna.memory.regions import RegionTable
from sterna.memory.unpacking import Unpacker, Unpacking, is_packed
from sterna.memory.zstd import Compressor
from sterna.registry import Encoding, ErrorCode
from sterna.wire.records import RUN_DTYPE, PageRange, Pages, Region

RAW, ZERO, ZSTD, DELTA, _ = Encoding
PAGE = 4096
TABLE = RegionTable((Region(5, 0, 128 * PAGE),))
COMPRESSOR = Compressor(1)
NEW = b"".join(bytes([page]) * PAGE for page in range(1, 129))


def chunks(content: bytes) -> list[int]:
    return [xxh3_64_intdigest(content[at : at + CHUNK_BYTES]) for at in range(0, len(content), CHUNK_BYTES)]


def frame(content: bytes) -> bytes:
    return COMPRESSOR.frame(memoryview(content))


def delta(base: bytes, new: bytes) -> bytes:
    change = np.bitwise_xor(np.frombuffer(base, np.uint8), np.frombuffer(new, np.uint8))
    return np.array(chunks(base), "<u8").tobytes() + frame(change.tobytes())


class Room:
    """A sink, its memory, and what is sent there."""

    def __init__(self, content: bytes = bytes(128 * PAGE)) -> None:
        self.memory = bytearray(content)
        self.sink = Unpacking(RegionPages(TABLE, {5: memoryview(self.memory)}, fresh=False))

    def send(self, *rows: tuple[int, int, Encoding, bytes, bytes]) -> list[PageRange]:
        """Rows of first page, count, encoding, bulk bytes, and what they stand for."""
        table, bulk = packed(*rows)
        for target in self.sink.targets(table):
            target[:] = bulk[: len(target)]
            bulk = bulk[len(target) :]
        assert not bulk
        return self.sink.commit(table)

    def refuses(self, row: tuple[int, int, Encoding, bytes, bytes], clause: str) -> None:
        with pytest.raises(RemoteProtocolError) as caught:
            self.send(row)
        assert (caught.value.code, caught.value.clause) == (ErrorCode.MALFORMED, clause)


def packed(*rows: tuple[int, int, Encoding, bytes, bytes]) -> tuple[Pages, bytes]:
    runs = np.zeros(len(rows), RUN_DTYPE)
    for name, column in zip(
        ("first", "count", "size_bytes", "encoding"),
        zip(*((first, count, len(bulk), kind) for first, count, kind, bulk, _ in rows), strict=True),
        strict=True,
    ):
        runs[name] = column
    hashes = [each for _, _, kind, _, content in rows if kind != ZERO for each in chunks(content)]
    table = Pages(1, 1, 5, runs, np.array(hashes, np.uint64))
    return table, b"".join(bulk for _, _, _, bulk, _ in rows)


def row(
    first: int, count: int, encoding: Encoding, base: bytes = b""
) -> tuple[int, int, Encoding, bytes, bytes]:
    """What is right."""
    content = NEW[first * PAGE : (first + count) * PAGE]
    bulk = {RAW: content, ZERO: b"", ZSTD: frame(content), DELTA: delta(base or bytes(len(content)), content)}
    return first, count, encoding, bulk[encoding], content


def test_every_encoding_in_one_batch():
    """[PGS-13] [PGS-16] [PGS-19] What is between them stays as it is."""
    room = Room(Random(1).randbytes(128 * PAGE))
    before = bytes(room.memory)
    base = before[70 * PAGE : 103 * PAGE]
    rows = row(0, 3, RAW), row(3, 2, ZERO), row(8, 17, ZSTD), row(70, 33, DELTA, base), row(120, 1, ZSTD)
    assert room.send(*rows) == []
    after = bytearray(before)
    for first, count, encoding, _, content in rows:
        after[first * PAGE : (first + count) * PAGE] = bytes(count * PAGE) if encoding == ZERO else content
    assert room.memory == after


def test_what_comes_as_it_is_may_be_hashed_meanwhile():
    """[MEM-3] What comes packed is not what is hashed."""
    for rows in ([row(0, 16, RAW), row(16, 16, ZSTD)], [row(0, 16, RAW), row(32, 16, RAW)]):
        room = Room()
        table, bulk = packed(*rows)
        first, second = room.sink.targets(table)
        first[:] = bulk[: len(first)]
        room.sink.came(table, len(first))
        second[:] = bulk[len(first) :]
        room.sink.came(table, len(bulk) - 1)
        assert room.sink.commit(table) == []


class Coming:
    """A table whose bytes come piece by piece, beside others."""

    def __init__(self, room: Room, rows: list[tuple[int, int, Encoding, bytes, bytes]]) -> None:
        self.room, self.rows = room, rows
        self.table, self.bulk = packed(*rows)
        self.targets = room.sink.targets(self.table) if self.bulk else []
        self.come_bytes = 0

    def come(self, end: int) -> None:
        """So many bytes are there."""
        at = 0
        for target in self.targets:
            low, high = max(self.come_bytes - at, 0), min(max(end - at, 0), len(target))
            if low < high:
                target[low:high] = self.bulk[at + low : at + high]
            at += len(target)
        self.come_bytes = max(self.come_bytes, end)
        if self.targets and end < len(self.bulk):
            self.room.sink.came(self.table, self.come_bytes)

    def commit(self) -> None:
        """What is not rejected is there: the bytes that the hash is of."""
        self.come(len(self.bulk))
        rejected = self.room.sink.commit(self.table)
        bad = {page for each in rejected for page in range(each.first, each.first + each.count)}
        for first, count, _, _, content in self.rows:
            for page in set(range(first, first + count)) - bad:
                is_right = self.room.memory[page * PAGE :][:PAGE] == content[(page - first) * PAGE :][:PAGE]
                assert is_right, page


def run(
    room: Room, first: int, count: int, kind: Encoding, value: int
) -> tuple[int, int, Encoding, bytes, bytes]:
    """Pages that have this value; a change is one of what is there now."""
    content = bytes([value]) * (count * PAGE)
    base = bytes(room.memory[first * PAGE : (first + count) * PAGE])
    bulk = content if kind == RAW else frame(content) if kind == ZSTD else delta(base, content)
    return first, count, kind, bulk, content


RUNS = st.sampled_from(
    [[(0, 64)], [(0, 32)], [(16, 24)], [(40, 20)], [(0, 16), (32, 32)], [(8, 40), (60, 1)]]
)
KINDS = st.lists(st.sampled_from([RAW, RAW, RAW, ZSTD, DELTA]), min_size=2, max_size=2)
STEPS = st.lists(
    st.tuples(RUNS, KINDS) | st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=3, max_size=12
)


@pytest.mark.slow
@given(STEPS)
def test_no_page_is_taken_for_what_it_is_not(steps):
    """[MEM-2] [MEM-3] [PGS-20] Also if others come to the same pages meanwhile [STR-18], and however."""
    room, under_way = Room(bytes([255]) * (128 * PAGE)), []
    for value, (what, how) in enumerate(steps):
        if isinstance(what, list):
            rows = [run(room, *pages, kind, value) for pages, kind in zip(what, how, strict=False)]
            under_way.append(Coming(room, rows))
        elif what < len(under_way):
            one = under_way[what]
            one.come(max(one.come_bytes, len(one.bulk) * how // 4))
            if how >= 4:
                under_way.remove(one)
            if how == 4:  # else it is lost
                one.commit()
    for one in under_way:
        one.commit()


def test_nothing_is_touched_before_all_of_it_is_there():
    room = Room()
    table, _ = packed(row(0, 16, ZSTD))
    (target,) = room.sink.targets(table)
    target[:] = b"\xff" * len(target)
    assert room.memory == bytes(128 * PAGE)
    assert len(target) < PAGE


def test_a_damaged_chunk_is_rejected():
    """[MEM-3]"""
    room = Room()
    first, count, encoding, _, content = row(0, 40, ZSTD)
    wrong = content[: 20 * PAGE] + b"?" + content[20 * PAGE + 1 :]
    assert room.send((first, count, encoding, frame(wrong), content)) == [PageRange(5, 16, 16)]


@pytest.mark.parametrize(
    ("bulk", "clause"),
    [
        (b"?" * 99, "PGS-16"),
        (frame(NEW[: 15 * PAGE]), "PGS-16"),
        (frame(NEW[: 16 * PAGE]) + b"\0", "PGS-17"),
        (frame(NEW[: 16 * PAGE])[:-1], "PGS-17"),
    ],
)
def test_what_is_no_frame(bulk, clause):
    """[PGS-16] [PGS-17]"""
    Room().refuses((0, 16, ZSTD, bulk, NEW[: 16 * PAGE]), clause)


@pytest.mark.parametrize("size", [1, 7, 8, 15, 16])
def test_a_delta_without_a_frame(size):
    """[PGS-19] Two chunks have hashes of sixteen bytes."""
    Room().refuses((0, 17, DELTA, bytes(size), NEW[: 17 * PAGE]), "PGS-19")


def test_a_delta_of_the_wrong_size():
    """[PGS-17] [PGS-19]"""
    bulk = np.array(chunks(bytes(17 * PAGE)), "<u8").tobytes()
    Room().refuses((0, 17, DELTA, bulk + frame(NEW[: 16 * PAGE]), NEW[: 17 * PAGE]), "PGS-16")


def test_a_delta_of_something_else():
    """[PGS-20] The chunk is left alone and rejected, and the others of the run are taken."""
    room = Room()
    room.memory[20 * PAGE] = 1
    before = bytes(room.memory)
    assert room.send(row(0, 40, DELTA)) == [PageRange(5, 16, 16)]
    assert room.memory[: 16 * PAGE] == NEW[: 16 * PAGE]
    assert room.memory[16 * PAGE : 32 * PAGE] == before[16 * PAGE : 32 * PAGE]
    assert room.memory[32 * PAGE : 40 * PAGE] == NEW[32 * PAGE : 40 * PAGE]


def test_a_delta_of_something_else_that_is_there_already():
    """[PGS-20] Rejected although its hash would match; each page is named once."""
    room = Room(NEW)
    assert room.send(row(0, 40, DELTA)) == [PageRange(5, 0, 40)]
    assert room.memory == NEW


def test_rejected_for_either_reason():
    """[PGS-20] [MEM-3]"""
    room = Room()
    room.memory[0] = 1
    first, count, encoding, _, content = row(16, 16, ZSTD)
    rows = (
        row(0, 16, DELTA),
        (first, count, encoding, frame(bytes(len(content))), content),
        row(64, 16, DELTA),
    )
    assert room.send(*rows) == [PageRange(5, 0, 32)]
    room.memory[:] = bytes(128 * PAGE)
    room.memory[0] = room.memory[64 * PAGE] = 1
    assert room.send(row(0, 16, DELTA), row(64, 16, DELTA)) == [PageRange(5, 0, 16), PageRange(5, 64, 16)]


def test_packed_pages_without_hashes():
    """[MEM-20] [PGS-16] Whatever a frame holds is taken; but it has to be one, of so many bytes."""
    room = Room()
    table, bulk = packed(row(0, 2, RAW), row(2, 20, ZSTD))
    wrong = bytearray(bulk)
    wrong[0] ^= 1
    for target in room.sink.targets(table):
        target[:] = wrong[: len(target)]
        del wrong[: len(target)]
    assert room.sink.commit(table, hashed=False) == []
    assert room.memory[1 : 22 * PAGE] == NEW[1 : 22 * PAGE]
    table, bulk = packed((0, 4, ZSTD, frame(NEW[: 3 * PAGE]), NEW[: 4 * PAGE]))
    for target in room.sink.targets(table):
        target[:] = bulk
    with pytest.raises(RemoteProtocolError) as caught:
        room.sink.commit(table, hashed=False)
    assert caught.value.code is ErrorCode.MALFORMED


def test_a_reader_looks_at_no_hashes_where_there_are_none():
    """[MEM-20]"""
    table, bulk = packed((0, 20, ZSTD, frame(NEW[: 20 * PAGE]), NEW[PAGE : 21 * PAGE]))
    assert Unpacker().damaged(table, memoryview(bulk), 12)
    assert Unpacker().damaged(table, memoryview(bulk), 12, hashed=False) == []


def test_what_never_came_is_forgotten():
    """A connection is gone: neither its table nor the bytes set aside for it are kept."""
    room = Room()
    table, _ = packed(row(0, 16, ZSTD))
    again, bulk = packed(row(0, 16, ZSTD))
    targets = room.sink.targets(table)
    (other,) = room.sink.targets(again)
    assert len(room.sink._coming) == 2
    del table, targets
    gc.collect()
    assert len(room.sink._coming) == 1
    other[:] = bulk
    assert room.sink.commit(again) == []
    assert room.memory[: 16 * PAGE] == NEW[: 16 * PAGE]


def test_batches_of_several_connections():
    """Their bytes come in any order."""
    room = Room()
    tables = [packed(row(16 * number, 16, ZSTD)) for number in range(4)]
    targets = [room.sink.targets(table) for table, _ in tables]
    for (table, bulk), (target,) in reversed(list(zip(tables, targets, strict=True))):
        target[:] = bulk
        assert room.sink.commit(table) == []
    assert room.memory[: 64 * PAGE] == NEW[: 64 * PAGE]


def test_what_is_packed():
    assert not is_packed(packed(row(0, 1, RAW), row(1, 1, ZERO))[0])
    assert is_packed(packed(row(0, 1, RAW), row(1, 1, ZSTD))[0])


# ---- for readers without memory ----


def test_a_reader_finds_the_same_damage():
    """What is raw is judged as `damaged_pages` judges it."""
    for rows in (
        (row(0, 40, RAW), row(50, 3, ZERO), row(60, 40, RAW)),
        (row(0, 40, RAW), row(50, 3, ZERO), row(60, 40, ZSTD)),
        (row(0, 40, ZSTD), row(60, 40, DELTA)),
    ):
        table, bulk = packed(*rows)
        assert Unpacker().damaged(table, memoryview(bulk), 12) == []
    table, bulk = packed(row(0, 40, RAW), row(60, 40, RAW))
    bulk = bytearray(bulk)
    for page in (20, 39, 40):
        bulk[page * PAGE] ^= 1
    assert Unpacker().damaged(table, memoryview(bulk), 12) == damaged_pages(table, memoryview(bulk), 12)
    content = bytearray(NEW[: 40 * PAGE])
    content[16 * PAGE] ^= 1
    table, bulk = packed((0, 40, ZSTD, frame(bytes(content)), NEW[: 40 * PAGE]))
    assert Unpacker().damaged(table, memoryview(bulk), 12) == [PageRange(5, 16, 16)]


def test_a_reader_refuses_the_same():
    """[PGS-16] [PGS-19]"""
    for bulk, encoding in ((b"?", ZSTD), (bytes(8), DELTA), (bytes(9), DELTA)):
        table, joined = packed((0, 1, encoding, bulk, NEW[:PAGE]))
        with pytest.raises(RemoteProtocolError):
            Unpacker().damaged(table, memoryview(joined), 12)
