"""Where a link is slow, what is sent is what was hashed, whatever the guest writes meanwhile."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import trio
from trio.abc import Clock

from sterna.core.events import Outcome, Result, RoundFinished, RoundStarted
from sterna.core.policy import RoundStats
from sterna.core.rounds import SMALL_BATCH_BYTES
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.memory import pages as pages_module
from sterna.memory.pages import EncodedBatch, RegionPages, hash_chunks
from sterna.memory.regions import RegionTable
from sterna.net import steady
from sterna.net.destination import Destination
from sterna.net.memory import memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.net.steady import CALM_BATCHES, GAP_MAX_S, UNMEASURED_BYTES, SteadyPages, tolerable_gap_s
from sterna.registry import ErrorCode
from sterna.testing import run_workload
from sterna.wire.records import Region

PAGES = 1024
PAGE = 4096
GAP_S = tolerable_gap_s(PAGES * PAGE)


class Bench:
    """Memory of 4 MiB, a clock that a test sets, and the pages of both."""

    def __init__(self) -> None:
        self.memory: npt.NDArray[np.uint8] = np.arange(PAGES * PAGE, dtype=np.uint64).astype(np.uint8)
        self.memory |= 1
        table = RegionTable((Region(0, 0, PAGES * PAGE),))
        self.now = 0.0
        self.plain = RegionPages(table, {0: self.memory.data})
        self.steady = SteadyPages(self.plain, lambda: self.now)

    def encode(self) -> EncodedBatch:
        return self.steady.encode(0, [0, 100], [50, PAGES - 100])

    def warm_up(self) -> None:
        """Until the link is known, and fast."""
        while UNMEASURED_BYTES > 0 and self.is_copied(self.encode()):
            pass

    def is_copied(self, batch: EncodedBatch) -> bool:
        """Whether a write of the guest leaves the batch as it is."""
        before = b"".join(map(bytes, batch.buffers))
        self.memory ^= 2
        after = b"".join(map(bytes, batch.buffers))
        self.memory ^= 2
        return before == after


def test_with_more_connections_a_shorter_pause_shows_a_slow_link() -> None:
    """Each has a batch under way while the others are encoded."""
    copied = []
    for connections in (1, 4):
        bench = Bench()
        bench.steady = SteadyPages(bench.plain, lambda bench=bench: bench.now, connections)
        bench.warm_up()
        bench.now += GAP_S / 2
        copied.append(bench.is_copied(bench.encode()))
    assert copied == [False, True]


def test_what_a_large_guest_bears_spoils_a_small_one() -> None:
    """So that no guest, however hot, comes near what RAK-5 takes for a broken sender."""
    assert tolerable_gap_s(64 << 20) < tolerable_gap_s(256 << 20) < GAP_MAX_S == tolerable_gap_s(1 << 40)


def test_without_hashes_nothing_is_copied() -> None:
    """[MEM-20] What the guest writes meanwhile is sent again as it is; nothing can be rejected."""
    bench = SlowBench()
    batch = bench.steady.encode(0, [0, 100], [50, PAGES - 100], hashed=False)
    assert not bench.is_copied(batch)
    assert not batch.hashes.any()


def finished(pages: int, rejected: int) -> RoundFinished:
    return RoundFinished(RoundStats(1, pages, pages * PAGE, 1.0, 0, 0, rejected_pages=rejected))


def test_a_copy_says_the_same() -> None:
    bench = Bench()
    copied, plain = bench.encode(), bench.plain.encode(0, [0, 100], [50, PAGES - 100])
    assert bench.is_copied(copied)
    assert not bench.is_copied(plain)
    assert copied.runs.tobytes() == plain.runs.tobytes()
    assert copied.hashes.tolist() == plain.hashes.tolist()
    assert b"".join(map(bytes, copied.buffers)) == b"".join(map(bytes, plain.buffers))
    assert (copied.page_count, copied.bulk_bytes) == (plain.page_count, plain.bulk_bytes)


def test_the_hashes_are_those_of_the_copy() -> None:
    """The guest writes between the first look at a page and the copy: what is hashed is what is sent."""
    bench = Bench()

    class Writing(RegionPages):
        def encode(self, *arguments: object, **options: object) -> EncodedBatch:
            batch = super().encode(*arguments, **options)  # type: ignore[arg-type]
            bench.memory ^= 2
            return batch

    table = RegionTable((Region(0, 0, PAGES * PAGE),))
    pages = SteadyPages(Writing(table, {0: bench.memory.data}), lambda: 0.0)
    batch = pages.encode(0, [0], [PAGES])
    bulk = b"".join(map(bytes, batch.buffers))
    assert batch.hashes.tolist() == hash_chunks(memoryview(bulk), [0], [len(bulk)])


def test_a_fast_link_is_found_out_and_goes_without_copies() -> None:
    bench = Bench()
    sent = 0
    while bench.is_copied(batch := bench.encode()):
        sent += batch.bulk_bytes
    assert sent == pytest.approx(UNMEASURED_BYTES, abs=PAGES * PAGE)


def test_a_slow_batch_has_the_next_one_copied() -> None:
    bench = Bench()
    bench.warm_up()
    bench.now += GAP_S * 1.5
    assert bench.is_copied(bench.encode())
    assert not bench.is_copied(bench.encode())


class SlowBench(Bench):
    """Every batch takes long, and is a sixteenth of the guest."""

    def encode(self) -> EncodedBatch:
        self.now += GAP_S * 1.5
        return self.steady.encode(0, [0, 100], [14, 50])


def test_a_guest_that_writes_nothing_goes_without_copies_on_a_slow_link() -> None:
    bench = SlowBench()
    assert not any(bench.is_copied(bench.encode()) for _ in range(3))


def test_what_was_written_while_it_left_has_the_next_batches_copied() -> None:
    """One chunk of a batch is looked at in every second one or so."""
    bench = SlowBench()
    bench.encode()
    spoiled = 1
    bench.memory[120 * PAGE] ^= 2
    while not bench.is_copied(bench.encode()):
        bench.memory[120 * PAGE] ^= 2
        spoiled += 1
    assert spoiled < 8
    copied = 1
    while bench.is_copied(bench.encode()):
        copied += 1
    assert copied == CALM_BATCHES


def test_what_is_written_all_over_shows_at_once() -> None:
    bench = SlowBench()
    bench.encode()
    bench.memory ^= 2
    assert bench.is_copied(bench.encode())


def test_with_many_batches_under_way_a_small_guest_has_all_of_them_copied() -> None:
    """They could all be spoiled before that shows."""
    bench = SlowBench()
    bench.steady = SteadyPages(bench.plain, lambda: bench.now, 2)
    assert all(bench.is_copied(bench.encode()) for _ in range(3))


def test_what_is_to_be_looked_at_is_let_go_of_at_the_end() -> None:
    memory = bytearray(PAGES * PAGE)
    table = RegionTable((Region(0, 0, PAGES * PAGE),))
    pages = SteadyPages(RegionPages(table, {0: memoryview(memory)}), lambda: 0.0)
    memory[:] = b"1" * len(memory)
    pages.encode(0, [0], [64])
    pages.close()
    memory.append(0)  # BufferError as long as somebody has a view


def test_rejected_pages_have_the_next_round_copied() -> None:
    bench = Bench()
    bench.warm_up()
    bench.steady.on_event(finished(1000, 11))
    assert bench.is_copied(bench.encode())
    bench.steady.on_event(finished(1000, 10))
    assert not bench.is_copied(bench.encode())


def test_a_paused_guest_writes_nothing() -> None:
    bench = Bench()
    bench.steady.on_event(RoundStarted(1, PAGES, last=False))
    assert bench.is_copied(bench.encode())
    bench.steady.on_event(RoundStarted(2, PAGES, last=True))
    assert not bench.is_copied(bench.encode())


def test_zero_pages_have_nothing_to_copy() -> None:
    bench = Bench()
    bench.memory[:] = 0
    batch = bench.encode()
    assert batch.bulk_bytes == 0
    assert not b"".join(map(bytes, batch.buffers))


async def migrate_a_hot_guest() -> Result:
    """It rewrites its pages many times while a batch leaves."""
    parameters = WorkloadParameters.for_memory(8 << 20, 8 << 20)
    guest = SimulatedSourceGuest(parameters, rate_bytes_s=200e6)
    room = SimulatedDestinationGuest()
    ends = memory_transport_pair(rate_bytes_s=10e6, capacity_bytes=64 << 10)
    options = Options(clock=trio.current_time)
    results: list[Result] = []

    async def send() -> None:
        results.append(await Source(guest, ends[0], options=options).run())
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_workload, guest, 0.005)
        nursery.start_soon(send)
        await Destination(lambda _: room, ends[1], options=options).run()
    return results[0]


async def test_a_hot_guest_on_a_slow_link(autojump_clock: Clock) -> None:
    result = await migrate_a_hot_guest()
    assert result.outcome is Outcome.COMPLETED
    batch_pages = SMALL_BATCH_BYTES * 2 // PAGE  # a sixteenth of the guest
    assert 0 < sum(stats.rejected_pages for stats in result.rounds) <= batch_pages


async def test_without_copies_nearly_all_of_it_would_be_rejected(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the copies are for: a destination cannot tell such a guest from a broken sender [RAK-5]."""
    monkeypatch.setattr(steady, "UNMEASURED_BYTES", 0)
    monkeypatch.setattr(steady, "GAP_MAX_S", math.inf)
    monkeypatch.setattr(steady, "SPOILED_SHARE", math.inf)
    monkeypatch.setattr(steady, "SAMPLES", 0)
    result = await migrate_a_hot_guest()
    assert result.code is ErrorCode.TOO_MANY_REJECTED


def test_a_batch_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that is copied only the copy is hashed, which is as much as the whole batch costs otherwise."""
    sizes: list[int] = []

    def counting(view: memoryview, offsets: list[int], lengths: list[int]) -> list[int]:
        sizes.extend(lengths)
        return hash_chunks(view, offsets, lengths)

    monkeypatch.setattr(steady, "hash_chunks", counting)
    monkeypatch.setattr(pages_module, "hash_chunks", counting)
    bench = Bench()
    copied = bench.encode()
    assert bench.is_copied(copied)
    assert sum(sizes) == copied.bulk_bytes
    bench.warm_up()
    sizes.clear()
    plain = bench.encode()
    assert not bench.is_copied(plain)
    assert sum(sizes) == plain.bulk_bytes
    assert plain.hashes.tolist() == copied.hashes.tolist()
