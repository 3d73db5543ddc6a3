from __future__ import annotations

import pytest
import trio

from sterna.guest.simulated import SimulatedSourceGuest
from sterna.guest.workload import PAGE_BYTES, WorkloadParameters
from sterna.testing import run_workload


@pytest.mark.parametrize("tick_s", [0.001, 0.3])
async def test_a_guest_writes_at_its_rate_in_virtual_time(autojump_clock, tick_s):
    parameters = WorkloadParameters(seed=1, pages=64, hot_pages=32)
    guest = SimulatedSourceGuest(parameters, rate_bytes_s=1000 * PAGE_BYTES)
    with trio.move_on_after(3.0001):
        await run_workload(guest, tick_s)
    assert guest.workload.count in (2999, 3000)  # the sum of many small floats
    assert guest.workload.errors == 0


async def test_no_time_is_lost_when_a_tick_is_late(autojump_clock):
    given = []

    class Late:
        def advance(self, seconds):
            given.append(seconds)
            autojump_clock.jump(1.0)
            return 0

    with trio.move_on_after(10):
        await run_workload(Late(), 0.5)
    assert given[0] == 0.5
    assert set(given[1:]) == {1.5}
