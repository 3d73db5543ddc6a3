from __future__ import annotations

import numpy as np
import pytest

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription
from sterna.guest.simulated_machine import SimulatedMachine, region_memory
from sterna.guest.stale_pages import StalePages
from sterna.guest.workload import PAGE_BYTES, Workload, WorkloadParameters
from sterna.memory.bitmap import PageBitmap
from sterna.wire.records import Region

PARAMETERS = WorkloadParameters(seed=11, pages=64, hot_pages=32, cold_every=2, block_pages=8)
REGION = Region(0, 0, 64 * PAGE_BYTES)


def machine() -> SimulatedMachine:
    memory = np.zeros(64 * PAGE_BYTES, np.uint8)
    made = SimulatedMachine(memory, Workload(PARAMETERS, memory), 100 * PAGE_BYTES, running=True)
    made.workload.fill()
    return made


def test_what_a_missing_page_costs_is_lost_time() -> None:
    """The writes before it are done, the ones after it are not made up for when it comes."""
    one, other = machine(), machine()
    start, count = (int(part[0]) for part in one.workload.schedule.runs(8, 16))  # the second block
    missing = PageBitmap(64)
    missing.set(start + 5, 3)
    one.stale = StalePages((REGION,), {0: missing})
    assert one.incomplete
    assert count == 8
    assert one.advance(0.20) == 8 + 5
    assert one.advance(1.00) == 0
    one.stale.installed(0, start + 5, 1)
    assert one.advance(0.011) == 1
    assert one.advance(0.011) == 0
    one.stale.installed(0, start, 8)
    assert not one.incomplete
    assert one.advance(0.10) == 10
    assert other.advance(0.24) == 24
    assert one.workload.count == other.workload.count
    assert (one.memory == other.memory).all()
    assert [entry.count for entry in one.journal] == [13, 14, 24]


def test_regions_follow_each_other() -> None:
    memory = np.arange(3 * PAGE_BYTES, dtype=np.uint64).astype(np.uint8)
    regions = (Region(5, 1 << 40, 2 * PAGE_BYTES), Region(2, 0, PAGE_BYTES))
    description = GuestDescription(bytes(16), "two", regions)
    assert bytes(region_memory(memory, description, 2)) == memory[2 * PAGE_BYTES :].tobytes()
    assert len(region_memory(memory, description, 5)) == 2 * PAGE_BYTES
    with pytest.raises(GuestError, match="no region 0"):
        region_memory(memory, description, 0)
