"""The source's memory on its way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from core_support import PAGE

from sterna import limits
from sterna.core import rounds, sending, shares
from sterna.core.sending import Sending
from sterna.errors import GuestError, PeerMisbehaved
from sterna.limits import ROUNDS_APART, Limits
from sterna.memory.bitmap import PageBitmap
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.registry import Encoding
from sterna.wire import records as r

TABLE = RegionTable([r.Region(3, 0, 8 * PAGE)])


class Memory:
    """Eight pages: four of data, four zero; and what a destination would know of them."""

    def __init__(self):
        self.bytes = bytearray(b"x" * 4 * PAGE + bytes(4 * PAGE))
        self.sending = Sending(TABLE, RegionPages(TABLE, {3: memoryview(self.bytes)}))
        self.arrived = MemoryDigest(TABLE)

    def round(self, now=0.0, *, last=False, zeros=True):
        opening = self.sending.begin(1, Limits(), 3 * PAGE, 1e12, now, last=last)
        tables = []
        while (batch := self.sending.next_batch(10 + len(tables), zeros=zeros)) is not None:
            tables.append(batch[0])
            self.arrived.record(batch[0])
        return opening, tables

    def write(self, *pages):
        bitmap = PageBitmap(8)
        for page in pages:
            self.bytes[page * PAGE] ^= 1
            bitmap.set(page, 1)
        return {3: bitmap}


def test_at_first_everything_is_missing():
    """[MEM-7] [MEM-11] [CON-20]"""
    memory = Memory()
    assert memory.sending.round == 0
    assert memory.sending.last_sequences == ()
    assert (memory.sending.pending_bytes, memory.sending.pages_missing) == (8 * PAGE, 8)
    opening, tables = memory.round()
    assert opening == r.Round(1, 1, 8)
    assert len(tables) == 3
    assert (memory.sending.pending_bytes, memory.sending.pages_missing) == (0, 0)
    assert memory.sending.bulk_bytes == 4 * PAGE
    assert memory.sending.last_sequences == ((0, 12),)
    assert memory.sending.ending() == r.RoundEnd(1, 1, 8, 4 * PAGE, ((0, 12),))


def test_the_digest_is_that_of_what_arrived():
    """[MEM-9] [MEM-14]"""
    memory = Memory()
    memory.round()
    assert memory.sending.seal() == memory.arrived.value()
    memory.sending.written(memory.write(2, 5))
    assert memory.sending.pages_missing == 2
    memory.round()
    assert memory.sending.seal() == memory.arrived.value()
    assert memory.arrived.stale_pages == 0


def test_what_is_dirty_is_sent_again_and_nothing_else():
    """[CON-34] Written or rejected."""
    memory = Memory()
    memory.round()
    memory.sending.acknowledged(r.RoundAck(1, 1, 7, 0, (r.PageRange(3, 6, 1),)))
    memory.sending.written(memory.write(0, 1))
    assert memory.sending.pending_bytes == 3 * PAGE
    opening, tables = memory.round()
    assert (opening.round, opening.pages) == (2, 3)
    sent = {(int(row["first"]), int(row["count"])) for table in tables for row in table.runs}
    assert sent == {(0, 2), (6, 1)}


def test_a_page_without_its_entry_seals_nothing():
    """[MEM-9] [MEM-10] [MEM-12] Whether it was written or rejected."""
    for missing in (
        lambda memory: memory.sending.written(memory.write(1)),
        lambda memory: memory.sending.acknowledged(r.RoundAck(1, 1, 7, 0, (r.PageRange(3, 6, 1),))),
    ):
        memory = Memory()
        memory.round()
        missing(memory)
        with pytest.raises(AssertionError):
            memory.sending.seal()
        memory.round()
        assert memory.sending.seal() == memory.arrived.value()


def test_what_is_declared_stale_is_not_sent_in_the_blackout():
    """[PCY-1] [PCY-2] [PCY-3] And follows later, from the round behind it [PCY-8]."""
    memory = Memory()
    memory.round()
    memory.sending.written(memory.write(1, 2, 6))
    assert not memory.sending.stale.any()
    assert memory.sending.begin_empty(1, 0.0) == r.Round(1, 2, 0)
    assert memory.sending.next_batch(20, zeros=True) is None
    assert memory.sending.ending() == r.RoundEnd(1, 2, 0, 0)
    assert memory.sending.stale.count() == 3
    memory.arrived.mark_stale(3, [1, 6], [2, 1])
    assert memory.sending.seal() == memory.arrived.value()
    serving = memory.sending.serving(1, peer=Limits(), own=Limits())
    table, _ = serving.next_batch(zeros=True)
    assert (table.attempt, table.round, table.runs["first"].tolist()) == (1, 3, [1, 6])
    memory.arrived.record(table)
    assert memory.sending.complete() == memory.arrived.value()
    memory.round()  # the attempt was taken back after all: it is pending as before
    assert not memory.sending.stale.any()


def test_zero_pages_where_they_were_not_selected():
    """[NEG-7]"""
    memory = Memory()
    _, tables = memory.round(zeros=False)
    assert {int(row["encoding"]) for table in tables for row in table.runs} == {Encoding.RAW}
    assert memory.sending.bulk_bytes == 8 * PAGE
    assert memory.sending.seal() == memory.arrived.value()


def test_wrong_answers_change_nothing():
    memory = Memory()
    memory.round()
    with pytest.raises(GuestError):
        memory.sending.written({3: PageBitmap(7)})
    with pytest.raises(GuestError):
        memory.sending.written({4: PageBitmap(8)})
    with pytest.raises(PeerMisbehaved):
        memory.sending.acknowledged(r.RoundAck(1, 2, 8, 0))
    assert memory.sending.pages_missing == 0
    assert memory.sending.seal() == memory.arrived.value()


def test_what_is_missing_shrinks_batch_by_batch():
    memory = Memory()
    memory.sending.begin(1, Limits(), 3 * PAGE, 1e12, 5.0, last=True)
    left = []
    while memory.sending.next_batch(1, zeros=True) is not None:
        left.append(memory.sending.pages_missing)
    assert left == [5, 2, 0]
    stats = memory.sending.stats(7.0, 0.25, None)
    assert (stats.round, stats.pages, stats.seconds, stats.throttle, stats.dirty_pages) == (
        1,
        8,
        2.0,
        0.25,
        0,
    )


def test_after_a_loss_the_open_round_is_abandoned_and_its_pages_are_pending():
    """[RES-8] [RES-9] [RES-10]"""
    memory = Memory()
    memory.round()
    report = memory.sending.report(r.Welcome(1, b"s" * 16, b"t" * 32, (), {}, "", 1, 0, 0))
    memory.sending.resume(report)
    assert (memory.sending.round, memory.sending.pages_missing) == (1, 8)
    assert memory.sending._digest.stale_pages == 8
    assert memory.round()[0] == r.Round(1, 2, 8)


def test_what_was_planned_anew_is_forgotten_of_the_earlier_round():
    memory = Memory()
    memory.round()
    memory.sending.written(memory.write(0, 1))
    memory.round()
    assert {number: sets.count() for number, sets in memory.sending._planned.items()} == {1: 6, 2: 2}


def test_of_many_rounds_without_an_answer_the_oldest_are_sent_again():
    table = RegionTable([r.Region(3, 0, 2 * ROUNDS_APART * PAGE)])
    memory = bytearray(table.size_bytes)
    sending = Sending(table, RegionPages(table, {3: memoryview(memory)}))
    for number in range(ROUNDS_APART):
        sending.begin(1, Limits(), PAGE, 1e12, 0.0, last=False)
        written = PageBitmap(table[3].pages)
        written.set(number)
        sending.written({3: written})
    opening = sending.begin(1, Limits(), PAGE, 1e12, 0.0, last=False)
    # Those of the first round that no later one was to carry; the page written last is one of them.
    assert (opening.round, opening.pages) == (ROUNDS_APART + 1, 2 * ROUNDS_APART - (ROUNDS_APART - 1))
    assert len(sending._planned) == ROUNDS_APART


def unwritten(*pages):
    bitmap = PageBitmap(8)
    for page in pages:
        bitmap.set(page)
    return {3: bitmap}


def test_what_was_never_written_goes_without_a_look(monkeypatch):
    """[MEM-9] [PGS-24] In long runs, of which only the receiver's limit makes more than one."""
    monkeypatch.setattr(limits, "BLANK_FACTOR", 1)
    memory = Memory()
    memory.sending.unwritten(unwritten(1, 4, 5, 6))  # page 1 is not zero, which only a look would show
    opening = memory.sending.begin(1, Limits(bulk_bytes=2 * PAGE), 3 * PAGE, 1e12, 0.0, last=False)
    assert opening == r.Round(1, 1, 8)
    rows = []
    while (batch := memory.sending.next_batch(len(rows), zeros=True)) is not None:
        table, buffers = batch
        assert table.bulk_bytes == sum(len(buffer) for buffer in buffers)
        memory.arrived.record(table)
        rows.append([(int(run["first"]), int(run["count"]), Encoding(run["encoding"])) for run in table.runs])
    raw, zero = Encoding.RAW, Encoding.ZERO
    assert rows == [
        [(0, 1, raw), (2, 1, raw)],
        [(1, 1, zero), (4, 1, zero)],
        [(3, 1, raw), (7, 1, zero)],
        [(5, 2, zero)],
    ]
    assert memory.sending.ending() == r.RoundEnd(1, 1, 8, 3 * PAGE, ((0, 3),))
    assert memory.sending.seal() == memory.arrived.value()


def test_what_is_written_later_is_looked_at():
    """[CON-34] However it was before, and as long as the session lasts."""
    memory = Memory()
    memory.sending.unwritten(unwritten(4, 5, 6))
    memory.sending.written(memory.write(5))
    _, tables = memory.round()
    assert tables[1].runs["first"].tolist() == [4, 6]
    assert memory.sending.bulk_bytes == 5 * PAGE
    memory.sending.acknowledged(r.RoundAck(1, 1, 8, 0, ()))
    memory.sending.written(memory.write(4))
    _, (table,) = memory.round()
    assert table.runs["encoding"].tolist() == [Encoding.RAW]


@pytest.mark.parametrize("answer", [{9: PageBitmap(8)}, {3: PageBitmap(7)}])
def test_unwritten_pages_that_the_guest_does_not_have(answer):
    with pytest.raises(GuestError):
        Memory().sending.unwritten(answer)


def test_a_page_that_is_written_before_its_turn_waits_for_the_next_round():
    """[CON-28] [CON-34] [PCY-3] Whether it is known to be zero or not."""
    memory = Memory()
    memory.sending.unwritten({3: PageBitmap.from_mask(np.arange(8) >= 4)})
    memory.sending.begin(1, Limits(), PAGE, 1e12, 0.0, last=False)
    tables = [memory.sending.next_batch(10 + number, zeros=True)[0] for number in range(2)]
    memory.sending.written_early(memory.write(1, 3, 5, 7), 0.0)
    while (batch := memory.sending.next_batch(10 + len(tables), zeros=True)) is not None:
        tables.append(batch[0])
    for table in tables:
        memory.arrived.record(table)
    sent = [
        int(page)
        for table in tables
        for run in table.runs
        for page in range(run["first"], run["first"] + run["count"])
    ]
    assert sent == [0, 4, 5, 6, 7, 2]
    assert memory.sending.pages_missing == 4
    assert memory.sending.ending().pages == 6
    memory.arrived.mark_stale(3, [1, 3, 5, 7], [1, 1, 1, 1])
    memory.sending.begin_empty(1, 0.0)
    assert memory.sending.seal() == memory.arrived.value()


def test_a_job_says_whether_the_guest_writes_nearby(monkeypatch):
    """Its turn comes behind the others' then, and what is sent of it is likely to be sent again."""
    monkeypatch.setattr(shares, "NEAR_BYTES", 2 * PAGE)
    memory = Memory()
    memory.sending.begin(1, Limits(), PAGE, 1e12, 0.0, last=False)
    memory.sending.written_early(memory.write(2), 0.0)
    jobs = []
    while (job := memory.sending.next_job(zeros=True)) is not None:
        jobs.append((int(job.starts[0]), job.hot))
    assert jobs == [*((page, False) for page in (0, 1, 4, 5, 6, 7)), (3, True)]


def test_a_look_is_wanted_now_and_then_while_enough_is_left(monkeypatch):
    monkeypatch.setattr(sending, "LOOK_BYTES", 2 * PAGE)
    memory = Memory()
    memory.bytes[:] = b"x" * len(memory.bytes)
    memory.sending.begin(1, Limits(), PAGE, 1e12, 0.0, last=False)
    wanted = []
    while memory.sending.next_batch(10, zeros=True) is not None:
        wanted.append(memory.sending.wants_look)
        assert not memory.sending.wants_look  # one at a time
        if wanted[-1]:
            memory.sending.written_early({3: PageBitmap(8)}, 0.0)
    assert wanted == [False, True, False, True, False, True, False, False]
    memory.sending.written(memory.write(*range(8)))
    memory.sending.begin(1, Limits(), PAGE, 1e12, 0.0, last=True)
    while memory.sending.next_batch(10, zeros=True) is not None:
        assert not memory.sending.wants_look
    memory.sending.written_early(memory.write(0), 0.0)
    assert memory.sending.pages_missing == 1


@pytest.mark.parametrize(
    ("blank", "order"), [((4, 5, 6, 7), "rzrzrzrz"), ((0, 1, 2, 3, 4, 5, 6), "rzzzzzzz"), (range(8), "z" * 8)]
)
def test_zeros_take_turns_with_what_fills_the_sockets(blank, order, monkeypatch):
    """In a round that has both, and after these; nothing is left out, and nothing is sent twice."""
    monkeypatch.setattr(limits, "BLANK_FACTOR", 1)
    memory = Memory()
    memory.bytes[:] = b"x" * len(memory.bytes)
    memory.sending.unwritten(unwritten(*blank))
    memory.sending.begin(1, Limits(bulk_bytes=PAGE), PAGE, 1e12, 0.0, last=False)
    tables = []
    while (batch := memory.sending.next_batch(len(tables), zeros=True)) is not None:
        assert not memory.sending.is_given_out
        tables.append(batch[0])
    assert memory.sending.is_given_out
    assert "".join("zr"[table.bulk_bytes > 0] for table in tables) == order
    assert sorted(int(table.runs["first"][0]) for table in tables) == list(range(8))


def test_a_small_guest_is_sent_in_small_batches():
    """What 32 of them hold on its way would be as much as the guests themselves."""
    size = 32 * rounds.SMALL_BATCH_BYTES
    table = RegionTable([r.Region(3, 0, size)])
    memory = Sending(table, RegionPages(table, {3: memoryview(b"x" * size)}))
    memory.begin(1, Limits(), size, 1e12, 0.0, last=False)
    batch = memory.next_batch(10, zeros=True)
    assert batch is not None
    assert batch[0].bulk_bytes == size // rounds.ROUND_BATCHES


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [(0.001, [1, 1, 4, 2]), (1.0, [1] * 8), (0.0, [1, 1, 4, 2])],
    ids=["fast", "slow", "no time at all"],
)
def test_batches_grow_where_the_link_turns_out_to_be_fast(monkeypatch, seconds, sizes):
    """[PGS-22] From the first look on, by what has left beyond what buffers take."""
    for name, value in (("LOOK_BYTES", PAGE), ("FIRST_LOOK_BYTES", 2 * PAGE)):
        monkeypatch.setattr(sending, name, value)
    monkeypatch.setattr(rounds, "ROUND_BATCHES", 1)
    monkeypatch.setattr(rounds, "_UNMEASURED_BYTES", PAGE)
    monkeypatch.setattr(rounds, "SMALL_BATCH_BYTES", PAGE)
    memory = Memory()
    memory.bytes[:] = b"x" * len(memory.bytes)
    memory.sending.begin(1, Limits(), 4 * PAGE, 0.0, 0.0, last=False)
    found = []
    while (batch := memory.sending.next_batch(10, zeros=True)) is not None:
        found.append(batch[0].page_count)
        if memory.sending.wants_look:
            memory.sending.written_early({}, seconds)
    assert found == sizes


def test_batches_do_not_grow_beyond_what_the_peer_takes(monkeypatch):
    """[LIM-6]"""
    monkeypatch.setattr(sending, "LOOK_BYTES", PAGE)
    monkeypatch.setattr(rounds, "ROUND_BATCHES", 1)
    monkeypatch.setattr(rounds, "_UNMEASURED_BYTES", 0)
    monkeypatch.setattr(rounds, "SMALL_BATCH_BYTES", PAGE)
    memory = Memory()
    memory.bytes[:] = b"x" * len(memory.bytes)
    memory.sending.begin(1, Limits(bulk_bytes=2 * PAGE), 4 * PAGE, 0.0, 0.0, last=False)
    memory.sending.next_batch(10, zeros=True)
    memory.sending.written_early({}, 0.001)
    assert memory.sending.next_batch(11, zeros=True)[0].page_count == 2


def test_batches_of_packed_pages_grow_by_what_their_pages_take(monkeypatch):
    """Two pages have passed, in few bytes: at that rate of pages four are soon through the link, too."""
    monkeypatch.setattr(sending, "LOOK_BYTES", PAGE)
    monkeypatch.setattr(rounds, "ROUND_BATCHES", 1)
    monkeypatch.setattr(rounds, "_UNMEASURED_BYTES", PAGE)
    monkeypatch.setattr(rounds, "SMALL_BATCH_BYTES", 2 * PAGE)
    memory = Memory()
    memory.bytes[:] = b"x" * len(memory.bytes)
    memory.sending.begin(1, Limits(), 4 * PAGE, 0.0, 0.0, last=False)
    batch = RegionPages(TABLE, {3: memoryview(memory.bytes)}).encode(3, [0], [2])
    memory.sending._round.next_runs()
    memory.sending._sent(replace(batch, bulk_bytes=PAGE // 2, unpacked_bytes=2 * PAGE), 10, 0)
    memory.sending.written_early({}, 0.001)
    assert memory.sending.next_batch(11, zeros=True)[0].page_count == 4


def test_batches_do_not_become_smaller_in_the_midst_of_a_round(monkeypatch):
    """One session of many in a process is slow because of the others; small batches would cost all."""
    for name, value in (("LOOK_BYTES", PAGE), ("FIRST_LOOK_BYTES", 2 * PAGE)):
        monkeypatch.setattr(sending, name, value)
    monkeypatch.setattr(rounds, "ROUND_BATCHES", 1)
    monkeypatch.setattr(rounds, "_UNMEASURED_BYTES", PAGE)
    monkeypatch.setattr(rounds, "SMALL_BATCH_BYTES", PAGE)
    memory = Memory()
    memory.bytes[:] = b"x" * len(memory.bytes)
    memory.sending.begin(1, Limits(), 2 * PAGE, 1e12, 0.0, last=False)
    found = []
    while (batch := memory.sending.next_batch(10, zeros=True)) is not None:
        found.append(batch[0].page_count)
        memory.sending.written_early({}, 100.0)
    assert found == [2] * 4
