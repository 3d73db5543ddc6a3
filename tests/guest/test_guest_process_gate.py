from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.guest.holder_bitmaps import set_bits
from sterna.guest.late_pages import LatePages
from sterna.guest.process_gate import CHUNK_PAGES, FaultGate, Times
from sterna.linux.memfd import PAGE_BYTES, MemoryFile
from sterna.memory.bitmap import PageBitmap
from sterna.wire.records import Region

WITHIN_S = 30.0


@given(st.lists(st.integers(0, 10**12), min_size=1), st.floats(0, 1))
def test_quantiles_are_right_to_four_percent(times: list[int], share: float) -> None:
    found = Times()
    for time in times:
        found.add(time)
    exact = sorted(times)[max(1, round(share * len(times))) - 1]
    assert abs(found.quantile_ns(share) - exact) <= 0.04 * exact
    assert (found.count, found.total_ns, found.max_ns) == (len(times), sum(times), max(times))


def test_no_times_at_all() -> None:
    assert Times().quantile_ns(0.5) == 0


def test_counters_are_bounded() -> None:
    times = Times()
    for time in np.random.default_rng(1).integers(0, 1 << 40, 20_000).tolist():
        times.add(time)
    assert len(times._counts) <= 40 * 16


@pytest.mark.needs("minor_faults")
def test_the_gate_opens_when_its_pages_are_there() -> None:
    """Only what had to wait is counted, and neighbours that came with it had not to."""
    file = MemoryFile("test", 8 * PAGE_BYTES)
    memory, ours = file.map(), file.map()
    memory.populate(0, memory.size_bytes)
    stale = PageBitmap(8)
    stale.set(2, 4)
    late = LatePages((Region(0, 0, memory.size_bytes),), {0: memory}, {0: stale})
    gate = FaultGate(memory, late.stale(0), (late.installed(0), late.early(0)))
    assert gate.enter(0, 2)
    assert gate.enter(6, 2)
    assert gate.times.all.count == 0
    passed: list[bool] = []
    thread = threading.Thread(target=lambda: passed.append(gate.enter(0, 8)))
    thread.start()
    late.uffd.resolve(memory.address + 5 * PAGE_BYTES, PAGE_BYTES)  # one that it does not wait for yet
    set_bits(late.installed(0), 2, 4)
    late.uffd.resolve(memory.address, memory.size_bytes)
    thread.join(WITHIN_S)
    assert passed == [True]
    assert gate.times.all.count <= 1
    assert late.missing() == 0
    late.end()
    assert gate.enter(0, 8)
    memory.close()
    ours.close()
    file.close()


def test_the_first_wait_of_each_chunk_is_counted_apart() -> None:
    """Whoever waits for its next pages waits for what was asked for behind the first."""
    file = MemoryFile("test", 3 * CHUNK_PAGES * PAGE_BYTES)
    memory = file.map()
    stale, there = (np.zeros(1, dtype=np.uint64) for _ in range(2))
    stale[:] = 2 * (1 << 2 * CHUNK_PAGES) - 1  # the third chunk has one
    gate = FaultGate(memory, stale, (there,))
    assert not gate.enter(0, 2 * CHUNK_PAGES + 2)
    assert (gate.times.all.count, gate.times.first.count) == (2 * CHUNK_PAGES + 1, 3)
    assert 0 < gate.times.first.total_ns < gate.times.all.total_ns
    memory.close()
    file.close()


@pytest.mark.needs("minor_faults")
def test_the_gate_opens_for_early_pages() -> None:
    """[HOL-47] They are missing for everybody else."""
    file = MemoryFile("test", 8 * PAGE_BYTES)
    memory = file.map()
    memory.populate(0, memory.size_bytes)
    late = LatePages((Region(0, 0, memory.size_bytes),), {0: memory}, {0: PageBitmap.full(8)})
    gate = FaultGate(memory, late.stale(0), (late.installed(0), late.early(0)))
    set_bits(late.early(0), 0, 3)
    set_bits(late.installed(0), 3, 1)
    late.uffd.resolve(memory.address, 4 * PAGE_BYTES)
    assert gate.enter(0, 4)
    assert gate.times.all.count == 0
    assert late.missing() == 7
    late.end()
    memory.close()
    file.close()


@pytest.mark.needs("minor_faults")
def test_who_is_let_go_without_a_page_is_told() -> None:
    file = MemoryFile("test", PAGE_BYTES)
    memory = file.map()
    memory.populate(0, PAGE_BYTES)
    late = LatePages((Region(0, 0, PAGE_BYTES),), {0: memory}, {0: PageBitmap.full(1)})
    gate = FaultGate(memory, late.stale(0), (late.installed(0), late.early(0)))
    passed: list[bool] = []
    thread = threading.Thread(target=lambda: passed.append(gate.enter(0, 1)))
    thread.start()
    late.end()
    late.end()
    thread.join(WITHIN_S)
    assert passed == [False]
    assert gate.times.all.count == 1
    memory.close()
    file.close()
