"""What the workload's own tests leave out; the schedule itself is compared with the reference there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.guest.schedule import Schedule, Sweep, WorkloadParameters


@given(st.integers(1, 500), st.integers(1, 4), st.integers(0, 2**64 - 1))
def test_a_sweep_visits_every_block_once(blocks, block_pages, seed):
    sweep = Sweep.over(7, blocks * block_pages, block_pages, seed)
    visits = sweep.first_pages(np.arange(3 * blocks, dtype=np.uint64)).tolist()
    everything = [7 + block * block_pages for block in range(blocks)]
    assert sorted(visits[:blocks]) == everything
    assert visits[blocks:] == visits[:blocks] * 2


def test_the_largest_parameters_stay_inside_64_bits():
    p = WorkloadParameters(2**64 - 1, 2**32 - 1, 2**31, cold_every=2, block_pages=1)
    schedule = Schedule(p)
    count = (1 << 62) - 3
    starts, counts = schedule.runs(count - 10, count)
    assert counts.sum() == p.distinct_pages(count - 10, count) == 10
    hot, cold = p.split(count)
    generations = schedule.generations(starts, count).tolist()
    for page, generation in zip(starts.tolist(), generations, strict=True):
        size, writes = (p.hot_pages, hot) if page < p.hot_pages else (p.cold_pages, cold)
        assert generation in (writes // size, writes // size + 1)
    # The same from the other side: the last write went to a page with one generation less.
    slot_page, before = schedule.slots(count - 1, 1)
    assert schedule.generations(slot_page, count).tolist() == [int(before[0]) + 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 64}, "seed"),
        ({"pages": 0}, "pages"),
        ({"pages": 1 << 32}, "pages"),
        ({"block_pages": 0}, "block_pages"),
        ({"block_pages": 1025}, "block_pages"),
        ({"zero_pages": -1}, "zero_pages"),
        ({"hot_pages": 2}, "less than a block"),
        ({"hot_pages": 44}, "exceed"),
        ({"hot_pages": 18}, "whole blocks"),
        ({"pages": 41}, "whole blocks"),
        ({"cold_every": 1}, "cold_every"),
        ({"cold_every": -2}, "cold_every"),
        ({"hot_pages": 40, "cold_every": 2}, "no cold set"),
    ],
)
def test_contradictions_are_refused(changes, message):  # [WKL-1]
    good = {"seed": 1, "pages": 40, "hot_pages": 16, "cold_every": 2, "block_pages": 4, "zero_pages": 0}
    WorkloadParameters(**good)
    with pytest.raises(ValueError, match=message):
        WorkloadParameters(**(good | changes))


@pytest.mark.parametrize(
    ("memory_pages", "hot_bytes", "expected"),
    [
        (1024, 256 * 4096, (256, 5, 0)),
        (1030, 256 * 4096, (256, 5, 6)),
        (1024, 100 * 4096 - 1, (96, 5, 0)),
        (1024, 0, (32, 5, 0)),
        (1024, 1 << 40, (1024, 0, 0)),
        (1030, 1 << 40, (1024, 0, 6)),
        (32, 1, (32, 0, 0)),
    ],
)
def test_parameters_for_a_memory(memory_pages, hot_bytes, expected):
    p = WorkloadParameters.for_memory(memory_pages * 4096, hot_bytes, cold_every=5)
    assert (p.hot_pages, p.cold_every, p.zero_pages) == expected
    assert p.pages == memory_pages
    assert not p.heads_only
    assert WorkloadParameters.for_memory(memory_pages * 4096, hot_bytes, heads_only=True).heads_only


@pytest.mark.parametrize("memory_bytes", [0, 31 * 4096, 64 * 4096 + 1])
def test_no_parameters_for_less_than_a_block_or_parts_of_pages(memory_bytes):
    with pytest.raises(ValueError, match="bytes"):
        WorkloadParameters.for_memory(memory_bytes, 4096)
