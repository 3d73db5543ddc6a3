"""Batches that are encoded aside, by whoever drives a source."""

from __future__ import annotations

import pytest
from core_support import PAGE, PlainDestination, PlainSource
from lanes_support import check_moved, encoded, pair_of, run_to, work

from sterna.core import batches
from sterna.core.batches import Batches
from sterna.core.sending import Job, Sending
from sterna.core.tables import SourceState as S
from sterna.limits import Limits
from sterna.memory.bitmap import PageBitmap
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.registry import ErrorCode
from sterna.testing.pair import Pair, resuming_pair
from sterna.wire.records import Region


def packing(streams: int = 0, **changes: object) -> Pair:
    pair = pair_of(streams, **changes)
    pair.source.packs = True
    return pair


def worked(pair: Pair) -> Pair:
    """All of it, with everything done aside."""
    pair._between = work
    pair.run()
    return pair


@pytest.mark.parametrize("streams", [0, 1, 3])
def test_what_is_encoded_aside_arrives(streams):
    """[RND-3] [STR-8] On its connection, in rounds that end when all of it is there."""
    pair = packing(streams)
    taken: list[int] = []
    next_job = pair.source.next_job

    def noted(stream: int = 0) -> Job | None:
        job = next_job(stream)
        taken.extend([] if job is None else [job.stream])
        return job

    pair.source.next_job = noted
    check_moved(worked(pair))
    assert set(taken) == set(range(1, streams + 1)) or {0}
    assert len(taken) >= 24  # nothing went past
    assert isinstance(pair.source, Batches)


def test_zero_pages_need_nobody():
    pair = packing()
    for memory in pair.source_guest.bytes.values():
        memory[:] = bytes(len(memory))
    check_moved(worked(pair))


def test_nothing_is_given_out_to_who_does_not_ask():
    pair = pair_of(0)
    run_to(pair, S.ROUND)
    assert pair.source.next_job() is None
    pair.run()
    check_moved(pair)


def test_nothing_is_given_out_before_a_round_nor_after_it():
    pair = packing()
    assert pair.source.next_job() is None
    run_to(pair, S.DESCRIBING)
    assert pair.source.next_job() is None
    worked(pair)
    assert pair.source.next_job() is None


def test_there_is_one_job_at_a_time_for_each_connection():
    """And another as soon as the first is on its way, not when it has left."""
    pair = packing(2)
    run_to(pair, S.ROUND)
    assert pair.source.next_job(0) is None  # pages travel on the others
    assert pair.source.next_job(3) is None  # no such connection
    jobs = {stream: pair.source.next_job(stream) for stream in (1, 2)}
    assert all(jobs.values())
    assert pair.source.next_job(1) is pair.source.next_job(2) is None
    assert pair.source.job_done(jobs[1], encoded(pair, jobs[1]))
    assert pair.source.next_job(1) is None  # the first one waits
    unit = pair.source.poll_transmit(pair.now, 1)
    second = pair.source.next_job(1)
    assert not pair.source.job_done(second, encoded(pair, second))  # the connection had still something
    pair.source.transmitted(sum(map(len, unit)), pair.now, 1)
    pair.lanes[1].to_destination += b"".join(map(bytes, unit))
    pair.source.job_done(jobs[2], encoded(pair, jobs[2]))
    check_moved(worked(pair))


def test_a_connection_has_as_much_ahead_as_the_driver_says():
    """[CON-27] What is done waits for its turn, and is sent once, in the order in which it was done."""
    pair = packing()
    pair.source.ahead = 3
    run_to(pair, S.ROUND)
    pair.run()
    jobs = [pair.source.next_job() for _ in range(3)]
    assert all(jobs)
    assert pair.source.next_job() is None
    assert pair.source.waiting_bytes(0) == 0
    assert pair.source.job_done(jobs[1], encoded(pair, jobs[1]))
    assert not pair.source.job_done(jobs[0], encoded(pair, jobs[0]))
    assert pair.source.next_job() is None  # one is queued, one waits, one is under way
    one = pair.source.waiting_bytes(0)
    assert not pair.source.job_done(jobs[2], encoded(pair, jobs[2]))
    assert pair.source.waiting_bytes(0) > one > 2 * PAGE
    assert pair.source.waiting_bytes(7) == 0  # no such connection
    check_moved(worked(pair))


def test_all_connections_together_hold_so_much(monkeypatch):
    """However many there are: what is encoded, what waits, and what leaves until it has."""
    monkeypatch.setattr(batches, "HELD_BYTES", 1)
    pair = packing(2)
    pair.source.ahead = 4
    run_to(pair, S.ROUND)
    job = pair.source.next_job(1)
    assert pair.source.next_job(1) is pair.source.next_job(2) is None  # one is encoded
    pair.source.job_done(job, encoded(pair, job))
    assert pair.source.next_job(2) is None  # it is queued
    unit = pair.source.poll_transmit(pair.now, 1)
    assert pair.source.next_job(2) is None  # it leaves
    pair.source.transmitted(sum(map(len, unit)), pair.now, 1)
    pair.lanes[1].to_destination += b"".join(map(bytes, unit))
    monkeypatch.setattr(batches, "HELD_BYTES", 1 << 20)
    jobs = [pair.source.next_job(stream) for stream in (1, 2, 2)]
    assert all(jobs)
    for each in jobs[1:]:
        pair.source.job_done(each, encoded(pair, each))
    monkeypatch.setattr(batches, "HELD_BYTES", 1)
    assert pair.source.next_job(2) is None
    pair.source.job_done(jobs[0], encoded(pair, jobs[0]))
    check_moved(worked(pair))


def test_what_is_held_is_never_more_than_that():
    """At its real size, with batches that do not divide it: the one that would be taken counts."""
    large = Region(1, 0, 48 << 20)
    size = 3 << 20
    source = PlainSource((large,))
    source.bytes[1][::PAGE] = b"x" * large.pages
    pair = resuming_pair(source, PlainDestination(), streams=4, batch_bytes=size)
    pair.source.packs, pair.source.ahead = True, 4
    run_to(pair, S.ROUND)
    jobs: list[Job] = []
    while taken := [job for stream in range(1, 5) if (job := pair.source.next_job(stream)) is not None]:
        jobs += taken
    assert [int(job.counts.sum()) * PAGE for job in jobs] == [size] * (batches.HELD_BYTES // size)
    for job in jobs:  # done, it waits, and is as large
        pair.source.job_done(job, encoded(pair, job))
        assert pair.source.next_job(job.stream) is None
    assert pair.source._held_bytes == len(jobs) * size
    check_moved(worked(pair))


def test_a_batch_that_is_larger_goes_alone(monkeypatch):
    """A peer may take such batches, and nothing would go otherwise."""
    monkeypatch.setattr(batches, "HELD_BYTES", PAGE - 1)
    check_moved(worked(packing(2)))


def test_what_waits_when_the_link_is_lost_is_dropped():
    """[RES-9] It is of a round that was abandoned."""
    pair = packing()
    pair.source.ahead = 2
    run_to(pair, S.ROUND)
    pair.run()
    jobs = [pair.source.next_job() for _ in range(2)]
    for job in jobs:
        pair.source.job_done(job, encoded(pair, job))
    lane = pair.source._lanes.get(0)
    pair.source._memory._round = pair.source._memory._no_round(9)
    assert not pair.source._send_waiting(lane)
    assert not pair.source._waiting[0]


def test_a_round_does_not_end_before_its_jobs():
    """[RND-3]"""
    pair = packing()
    run_to(pair, S.ROUND)
    pair._between = lambda pair: None
    jobs = []
    for _ in range(100):
        pair.run()
        if (job := pair.source.next_job()) is None:
            break
        jobs.append(job)
        pair.run()
        assert pair.source.state is S.ROUND
        pair.source.job_done(job, encoded(pair, job))
    assert len(jobs) == 32
    pair.run()
    check_moved(worked(pair))


def test_who_stops_to_pack_goes_on_as_ever():
    """The driver may change its mind while a job is under way."""
    pair = packing()
    run_to(pair, S.ROUND)
    pair.run()
    job = pair.source.next_job()
    pair.source.packs = False
    pair.run()
    assert pair.source.state is S.ROUND
    pair.source.job_done(job, encoded(pair, job))
    pair.run()
    check_moved(pair)


def test_what_is_done_too_late_is_dropped():
    """The link is lost meanwhile: what was given out is sent again when the session goes on."""
    pair = packing()
    run_to(pair, S.ROUND)
    pair.run()
    job = pair.source.next_job()
    pair.source.connection_lost(None, pair.now)
    assert not pair.source.job_done(job, encoded(pair, job))
    assert pair.source.next_job() is None
    pair.perform("source", pair.source)
    assert pair.source.carry.memory.pages_missing == 32


def test_what_is_done_for_a_connection_that_is_gone():
    pair = packing(1)
    run_to(pair, S.ROUND)
    job = pair.source.next_job(1)
    pair.source._lanes.remove(1)
    assert not pair.source.job_done(job, encoded(pair, job))


def test_a_cancelled_source_takes_nothing():
    pair = packing()
    run_to(pair, S.ROUND)
    pair.run()
    job = pair.source.next_job()
    pair.source.cancel(pair.now)
    assert not pair.source.job_done(job, encoded(pair, job))
    pair.run()
    assert pair.source.result.code is ErrorCode.CANCELLED


def test_what_was_agreed_can_be_seen():
    pair = packing(2)
    assert pair.source.selection is None
    run_to(pair, S.ROUND)
    assert pair.source.selection is not None
    assert pair.source.streams == (0, 1, 2)


# ---- the memory of it ----

TABLE = RegionTable([Region(3, 0, 8 * PAGE)])


def written(*pages: int) -> PageBitmap:
    bitmap = PageBitmap(8)
    for page in pages:
        bitmap.set(page, 1)
    return bitmap


class Memory:
    """Eight pages of data in batches of four, and what a destination would know of them."""

    def __init__(self) -> None:
        pages = RegionPages(TABLE, {3: memoryview(b"x" * 8 * PAGE)})
        self.pages, self.sending, self.arrived = pages, Sending(TABLE, pages), MemoryDigest(TABLE)
        self.begin()

    def begin(self, *, last: bool = False) -> None:
        self.sending.begin(1, Limits(), 4 * PAGE, 1e12, 0.0, last=last)

    def job(self) -> Job:
        job = self.sending.next_job(zeros=True)
        assert job is not None
        return job

    def done(self, job: Job) -> None:
        batch = self.pages.encode(job.region, job.starts, job.counts)
        self.arrived.record(self.sending.job_done(job, batch, 10)[0])


def test_what_is_written_while_it_is_encoded_is_sent_again():
    """[MEM-7] [MEM-10] [PCY-2] Its entry is not that of the newest version."""
    memory = Memory()
    first = memory.job()
    memory.sending.written_early({3: written(1, 6)}, 0.0)
    memory.done(first)
    second = memory.job()
    assert (second.starts.tolist(), second.counts.tolist()) == ([4, 7], [2, 1])
    memory.done(second)
    assert memory.sending.next_job(zeros=True) is None
    assert memory.sending.next_batch(12, zeros=True, aside=True) is None
    assert memory.sending.is_given_out
    assert memory.sending.pages_missing == 2
    memory.sending.begin_empty(1, 0.0)
    assert memory.sending.seal()  # what is declared stale is what has no entry [PCY-2]
    memory.begin(last=True)
    memory.done(memory.job())
    assert memory.sending.seal() == memory.arrived.value()


def test_a_job_of_an_earlier_round_is_not_wanted():
    memory = Memory()
    job = memory.job()
    assert memory.sending.wants(job)
    memory.begin()
    assert not memory.sending.wants(job)


def test_a_round_of_jobs_is_given_out_when_they_are_done():
    memory = Memory()
    first, second = memory.job(), memory.job()
    assert memory.sending.next_batch(10, zeros=True, aside=True) is None
    assert not memory.sending.is_given_out
    memory.done(second)
    assert not memory.sending.is_given_out
    memory.done(first)
    assert memory.sending.is_given_out
    assert memory.sending.ending().pages == 8
