"""The memory digest: both sides keep the same entries."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from sterna.memory.digest import STALE_INDEX, ZERO_INDEX, MemoryDigest
from sterna.memory.pages import RegionPages, zero_batch
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import Encoding, Transfer
from sterna.wire.records import RUN_DTYPE, PageRange, Pages, Region

PAGE = 4096
TABLE = RegionTable(
    [
        Region(9, 0, 50 * PAGE),
        Region(4, 1 << 32, 20 << 14, granule_log2=14),
        Region(6, 1 << 40, 8 * PAGE, transfer=Transfer.REGENERATE),
    ]
)


def table_of(region, rows, hashes):
    runs = np.zeros(len(rows), RUN_DTYPE)
    for run, (first, count, encoding) in zip(runs, rows, strict=True):
        run["first"], run["count"], run["encoding"] = first, count, encoding
        if encoding == Encoding.RAW:
            run["size_bytes"] = count << TABLE[region].granule_log2
    return Pages(1, 1, region, runs, np.array(hashes, np.uint64))


def digest_of(entries):
    """The digest as the specification says it, from {region: [(hash, index)]}."""
    data = b""
    for region in sorted(entries):
        data += struct.pack("<IQ", region, len(entries[region]))
        data += b"".join(struct.pack("<Q", entry[0]) for entry in entries[region])
        data += bytes(entry[1] for entry in entries[region])
    return xxh3_128_digest(data)


def fresh_entries():
    return {region.id: [(0, STALE_INDEX)] * region.pages for region in TABLE.copied}


def test_nothing_held():
    """Copied regions count by ascending id, others are not part; no page is held at first. [MEM-7, MEM-13]"""
    digest = MemoryDigest(TABLE)
    assert digest.value() == digest_of(fresh_entries())
    assert len(digest.value()) == 16
    assert (digest.held_pages, digest.zero_pages, digest.stale_pages) == (0, 0, 70)
    for region in (4, 9):
        assert digest.stale(region).count() == TABLE[region].pages
    for ask in (digest.held, digest.zero, digest.stale):
        with pytest.raises(KeyError):
            ask(6)


def test_without_copied_regions():
    assert MemoryDigest(RegionTable([])).value() == xxh3_128_digest(b"")


def test_entries_are_chunk_hash_and_index():
    """[MEM-6, MEM-13]"""
    digest = MemoryDigest(TABLE)
    entries = fresh_entries()
    raw, zero, absent = Encoding.RAW, Encoding.ZERO, Encoding.ABSENT
    digest.record(table_of(9, [(0, 1, zero), (2, 20, raw), (30, 3, raw), (40, 2, absent)], [11, 22, 33]))
    entries[9][0] = (0, ZERO_INDEX)
    entries[9][2:22] = [(11, index) for index in range(16)] + [(22, index) for index in range(4)]
    entries[9][30:33] = [(33, 0), (33, 1), (33, 2)]
    entries[9][40:42] = [(0, ZERO_INDEX)] * 2
    digest.record(table_of(4, [(3, 5, raw)], [(1 << 64) - 1, 7]))
    entries[4][3:8] = [((1 << 64) - 1, index) for index in range(4)] + [(7, 0)]
    assert digest.value() == digest_of(entries)
    assert (digest.held_pages, digest.zero_pages, digest.stale_pages) == (28, 3, 39)
    held, zeros, stale = digest.held(9), digest.zero(9), digest.stale(9)
    assert (held.count(), zeros.count(), stale.count()) == (23, 3, 24)
    assert 2 in held
    assert 41 in zeros
    assert 1 in stale


def test_rejected_pages_are_stale():
    """[MEM-8]"""
    digest, entries = MemoryDigest(TABLE), fresh_entries()
    digest.record(
        table_of(9, [(0, 50, Encoding.RAW)], [1, 2, 3, 4]), [PageRange(9, 16, 16), PageRange(9, 48, 2)]
    )
    entries[9] = [
        ((0, STALE_INDEX) if 16 <= page < 32 or page >= 48 else (page // 16 + 1, page % 16))
        for page in range(50)
    ]
    assert digest.value() == digest_of(entries)
    assert digest.stale_pages == 18 + 20


def test_the_worked_example_of_the_specification():
    """[MEM-1, MEM-6, MEM-13] spec/protocol.md, 10.4"""
    table = RegionTable([Region(7, 0, 20 * PAGE)])
    content = bytearray(20 * PAGE)
    for page in range(17):
        content[page * PAGE : (page + 1) * PAGE] = bytes([page + 1]) * PAGE
    source, digest = RegionPages(table, {7: memoryview(content)}), MemoryDigest(table)
    first = source.encode(7, [0], [20]).table(1, 1)
    assert first.runs[["first", "count", "size_bytes", "encoding"]].tolist() == [
        (0, 17, 69632, Encoding.RAW),
        (17, 3, 0, Encoding.ZERO),
    ]
    assert first.hashes.tolist() == [0x97DAF28579BCC153, 0xE647403DB5B174BB]
    digest.record(first)
    content[3 * PAGE : 4 * PAGE] = b"\xa5" * PAGE
    second = source.encode(7, [3], [1]).table(1, 2)
    assert second.hashes.tolist() == [0x1B7AEA0426DB4D32]
    digest.record(second)
    assert digest.value() == bytes.fromhex("0A2E00424C9A1A32779F409BA35698B5")


def test_stale_pages_have_the_entry_of_pages_that_never_came():
    digest, before = MemoryDigest(TABLE), MemoryDigest(TABLE).value()
    rows = [(page, 1, Encoding.RAW) for page in range(0, 50, 2)]
    digest.record(table_of(9, rows, range(1, 26)))
    changed = digest.value()
    assert changed != before
    digest.mark_stale(9, [0], [1])
    assert digest.value() not in {before, changed}
    digest.mark_stale(9, np.arange(0, 50, 2), np.ones(25, int))
    assert digest.value() == before
    digest.record(table_of(9, [(0, 50, Encoding.ZERO)], []))
    sets = PageSets(TABLE)
    sets[9].fill()
    digest.mark_sets_stale(sets)
    assert digest.value() == before


def test_arguments_are_checked():
    digest = MemoryDigest(TABLE)
    raw = Encoding.RAW
    with pytest.raises(IndexError):
        digest.record(table_of(9, [(40, 11, raw)], [1]))
    with pytest.raises(KeyError):
        digest.record(Pages(1, 1, 6, np.zeros(0, RUN_DTYPE), np.empty(0, np.uint64)))
    for hashes in ([], [1], [1, 2, 3]):
        with pytest.raises(ValueError, match="hashes for 2 chunks"):
            digest.record(table_of(9, [(0, 17, raw)], hashes))
    with pytest.raises(IndexError):
        digest.mark_stale(9, [50], [1])
    with pytest.raises(KeyError):
        digest.mark_stale(6, [0], [1])
    assert digest.value() == MemoryDigest(TABLE).value()
    digest.record(table_of(9, [], []))
    assert digest.value() == MemoryDigest(TABLE).value()


@given(st.data())
def test_against_a_page_at_a_time(data):
    """Tables of any shape, rejections and writes, in any order."""
    digest, entries = MemoryDigest(TABLE), fresh_entries()
    for step in range(data.draw(st.integers(1, 5))):
        region = data.draw(st.sampled_from([4, 9]))
        pages, chunk = TABLE[region].pages, 16 >> (TABLE[region].granule_log2 - 12)
        cuts = sorted(data.draw(st.sets(st.integers(0, pages), max_size=24)))
        kinds = [data.draw(st.sampled_from([None, *Encoding])) for _ in cuts[1:]]
        rows = [
            (first, end - first, kind)
            for (first, end), kind in zip(pairwise(cuts), kinds, strict=True)
            if kind is not None
        ]
        hashes = []
        for first, count, kind in rows:
            for page in range(first, first + count):
                if kind in {Encoding.ZERO, Encoding.ABSENT}:
                    entries[region][page] = (0, ZERO_INDEX)
                    continue
                if (page - first) % chunk == 0:
                    hashes.append((step + 1) * 1000 + page)
                entries[region][page] = (hashes[-1], (page - first) % chunk)
        digest.record(table_of(region, rows, hashes))
        stale = sorted(data.draw(st.sets(st.integers(0, pages - 1), max_size=20)))
        for page in stale:
            entries[region][page] = (0, STALE_INDEX)
        digest.mark_stale(region, stale, [1] * len(stale))
        assert digest.value() == digest_of(entries)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 1 << 32),
    rounds=st.integers(1, 4),
    batch_bytes=st.integers(1 << 12, 1 << 20),
    max_runs=st.integers(1, 10),
)
def test_both_sides_agree_under_any_batching(seed, rounds, batch_bytes, max_runs):
    """A migration in miniature: rounds, writes, rejected chunks, a last round. [MEM-9, MEM-11]"""
    rng = np.random.default_rng(seed)
    memory = {region.id: bytearray(rng.bytes(region.size_bytes)) for region in TABLE.copied}
    target = {region.id: bytearray(region.size_bytes) for region in TABLE.copied}
    source = RegionPages(TABLE, {region: memoryview(content) for region, content in memory.items()})
    sink = RegionPages(TABLE, {region: memoryview(content) for region, content in target.items()})
    sent, arrived = MemoryDigest(TABLE), MemoryDigest(TABLE)
    pending = PageSets.full(TABLE)
    for number in range(rounds):
        last = number == rounds - 1
        sending, pending, rejected = pending, PageSets(TABLE), []
        for region, starts, counts in sending.batches(batch_bytes, max_runs):
            batch = source.encode(region, starts, counts)
            if not last and rng.random() < 0.5:
                victim = TABLE[int(rng.choice([4, 9]))]
                page, size = int(rng.integers(victim.pages)), 1 << victim.granule_log2
                memory[victim.id][page * size : (page + 1) * size] = bytes([rng.integers(2)]) * size
                pending[victim.id].set(page)
            table = batch.table(1, number + 1)
            for view, buffer in zip(sink.targets(table), batch.buffers, strict=True):
                view[:] = buffer
            refused = sink.commit(table)
            sent.record(table)
            arrived.record(table, refused)
            rejected += refused
        # ROUND_ACK, then the collect: both make pages stale at the source.
        assert not (last and rejected)
        pending.add_ranges(rejected)
        sent.mark_sets_stale(pending)
    assert target == memory
    assert sent.value() == arrived.value()
    assert sent.stale_pages == 0


def test_a_lost_page_shows():
    """A version that only one side knows of makes the digests differ."""
    memory = bytearray(np.random.default_rng(1).bytes(50 * PAGE))
    table = RegionTable([Region(9, 0, 50 * PAGE)])
    source = RegionPages(table, {9: memoryview(memory)})
    sent, arrived = MemoryDigest(table), MemoryDigest(table)
    first = source.encode(9, [0], [50]).table(1, 1)
    for digest in (sent, arrived):
        digest.record(first)
    assert sent.value() == arrived.value()
    memory[3 * PAGE] ^= 1
    sent.record(source.encode(9, [3], [1]).table(1, 2))
    assert sent.value() != arrived.value()


def test_entries_are_kept_where_they_outlive_the_process():
    """[PCY-16] Each change is there at once, and another process reads them from there."""
    here, place = MemoryDigest(TABLE), bytearray(9 * 70 + 3)
    assert here.size_bytes == 630
    here.record(table_of(9, [(0, 2, Encoding.ZERO)], []))
    here.move_to(place)
    here.record(table_of(4, [(1, 2, Encoding.RAW)], [0x1122334455667788]))
    there = MemoryDigest.kept_in(place, TABLE)
    assert there.value() == here.value()
    assert (there.zero_pages, there.held_pages, there.stale_pages) == (2, 2, 66)
    for _ in range(2):
        here.move_home()
        here.mark_stale(4, [1], [2])
    assert MemoryDigest.kept_in(place, TABLE).value() == there.value() != here.value()
    for use in (here.move_to, lambda short: MemoryDigest.kept_in(short, TABLE)):
        with pytest.raises(ValueError, match="629 bytes for the entries of 70 pages"):
            use(bytearray(629))


def test_entries_that_lie_in_a_place_already_stay_as_they_are():
    """[PCY-16] [MEM-13] And the digest of entries that stay as they are is computed once."""
    digest, place = MemoryDigest(TABLE), bytearray(630)
    digest.move_to(place)
    before = digest.value()
    digest._indexes[9][0] = 1  # behind its back
    digest.move_to(place)
    assert digest._indexes[9][0] == 1
    assert digest.value() == before
    digest.record(table_of(9, [(5, 1, Encoding.ZERO)], []))
    changed = digest.value()
    assert changed != before
    digest.mark_stale(9, [5], [1])
    digest._indexes[9][0] = STALE_INDEX
    assert digest.value() == before


@pytest.mark.parametrize("runs", [1, 24])
def test_hashes_of_pages_that_were_never_held_are_not_touched(runs):
    """[MEM-8] What was never written takes a byte a page: its hashes' memory is not there yet."""
    table = RegionTable([Region(1, 0, runs * 100 << 12)])
    digest = MemoryDigest(table)
    digest._hashes[1][:] = 7  # which shows what is written to
    starts, counts = np.arange(runs) * 100, np.full(runs, 90)
    digest.mark_stale(1, starts, counts)
    digest.record(zero_batch(1, starts, counts).table(1, 1))
    digest.mark_stale(1, starts, counts)
    assert digest.stale_pages == table.pages
    assert (digest._hashes[1] == 7).all()
    whole = np.array([(0, 90, 90 << 12, Encoding.RAW, (0,) * 7)], RUN_DTYPE)
    digest.record(Pages(1, 1, 1, whole, np.arange(6, dtype="<u8") + 1))
    digest.record(zero_batch(1, starts, counts).table(1, 1))
    assert not digest._hashes[1][:90].any()


@pytest.mark.parametrize("few", [True, False])
def test_entries_without_hashes(few):
    """[MEM-20] Held, zero and stale are as ever, places in chunks too; memory for hashes is never touched."""
    table = RegionTable([Region(9, 0, 256 * PAGE)])
    rows = [(2 * run, 1, Encoding.ZERO if run % 3 else Encoding.RAW) for run in range(4 if few else 40)]
    rows += [(100, 70, Encoding.RAW)]
    hashed, digest = MemoryDigest(table), MemoryDigest(table, hashed=False)
    digest._hashes[9][:] = 7  # which shows what is written to
    chunks = sum(-(-count // 16) for _, count, kind in rows if kind == Encoding.RAW)
    for each in (hashed, digest):
        each.record(table_of(9, rows, [0] * chunks))
        each.mark_stale(9, [110], [3])
        each.record(table_of(9, [(120, 2, Encoding.ZERO)], []), [PageRange(9, 121, 1)])
    assert (digest._hashes[9] == 7).all()
    digest._hashes[9][:] = 0
    assert digest.value() == hashed.value()
    with pytest.raises(ValueError, match="hashes for"):
        digest.record(table_of(9, rows, [0] * (chunks + 1)))
    place = bytearray(digest.size_bytes)
    digest.move_to(place)
    assert not MemoryDigest.kept_in(place, table, hashed=False).hashed


def test_many_runs_come_to_what_each_of_them_comes_to():
    table = RegionTable([Region(9, 0, 256 * PAGE)])
    rows = [(2 * run, 1, Encoding.ZERO if run % 3 else Encoding.RAW) for run in range(40)]
    rows += [(100, 70, Encoding.RAW), (170, 80, Encoding.ZERO)]
    raw = [row for row in rows if row[2] == Encoding.RAW]
    hashes = list(range(1, len(raw) + 5))  # a chunk has 16 pages
    together, apart = MemoryDigest(table), MemoryDigest(table)
    together.record(table_of(9, rows, hashes))
    for row in rows:
        chunks = -(-row[1] // 16) if row in raw else 0
        apart.record(table_of(9, [row], hashes[:chunks]))
        hashes = hashes[chunks:]
    assert not hashes
    assert together.value() == apart.value()
    together.mark_stale(9, [first for first, _, _ in rows], [count for _, count, _ in rows])
    for first, count, _ in rows:
        apart.mark_stale(9, [first], [count])
    assert together.value() == apart.value() == MemoryDigest(table).value()
