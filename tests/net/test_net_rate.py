"""The bandwidth cap, in virtual time."""

import math
from itertools import combinations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from sterna.core.events import Outcome
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.net.destination import Destination
from sterna.net.memory import memory_transport_pair
from sterna.net.options import Options
from sterna.net.rate import BURST_S, CREDIT_S, PEAK, RateLimiter
from sterna.net.source import Source
from sterna.testing import run_workload


async def test_the_rate_is_exact(autojump_clock):
    limiter = RateLimiter(200_000)
    start = trio.current_time()
    for _ in range(200):
        await limiter.wait(10_000)
    assert trio.current_time() - start == pytest.approx(10.0, abs=1e-6)
    assert limiter.waited_s == pytest.approx(10.0, abs=1e-6)


async def test_waking_late_costs_no_rate(autojump_clock):
    limiter = RateLimiter(200_000)
    start = trio.current_time()
    for _ in range(200):
        await limiter.wait(10_000)
        await trio.sleep(0.015)  # the send itself
    assert trio.current_time() - start == pytest.approx(10.0, abs=0.02)


async def test_a_stall_now_and_then_costs_no_rate(autojump_clock):
    """As on a machine where all processors have other work: a fifth of the time nothing is sent."""
    limiter = RateLimiter(200_000)
    start = trio.current_time()
    for number in range(200):
        await limiter.wait(10_000)
        await trio.sleep(0.18 if number % 20 == 0 else 0.001)
    assert trio.current_time() - start == pytest.approx(10.0, rel=0.02)


async def test_an_idle_time_earns_a_bounded_credit(autojump_clock):
    limiter = RateLimiter(1000)
    await limiter.wait(1000)
    await trio.sleep(3600)
    start = trio.current_time()
    await limiter.wait(25)
    assert trio.current_time() - start == pytest.approx(0, abs=1e-9)
    await limiter.wait(1225)  # what a second may be behind an idle time
    assert trio.current_time() - start == pytest.approx(1.0)
    await limiter.wait(1000)
    assert trio.current_time() - start == pytest.approx(2.0)


STALLS_S = [0, 0, 0, 0.01, 0.1, 0.3, 2.0]


@given(st.lists(st.tuples(st.integers(1, 2000), st.sampled_from(STALLS_S)), max_size=40))
def test_what_passes_in_any_time_is_bounded(sends):
    passed = [(0.0, 0)]

    async def send_all():
        limiter = RateLimiter(1000)
        for count, stalls_s in sends:
            await limiter.wait(count)
            passed.append((trio.current_time(), passed[-1][1] + count))
            await trio.sleep(stalls_s)

    trio.run(send_all, clock=trio.testing.MockClock(autojump_threshold=0))
    begin = passed[1][0] - sends[0][0] / 1000 if sends else 0.0
    passed[0] = (begin, 0)
    slack = 1e-6
    for (since, before), (until, after) in combinations(passed, 2):
        seconds = until - since
        assert after - before <= 1000 * (seconds + CREDIT_S) + slack
        assert after - before <= 1000 * PEAK * (seconds + BURST_S) + slack


async def test_several_tasks_share_it_in_order(autojump_clock):
    limiter = RateLimiter(1000)
    order = []

    async def send(number):
        await limiter.wait(500)
        order.append((number, trio.current_time() - start))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(send, number)
            await trio.testing.wait_all_tasks_blocked()
    assert [number for number, _ in order] == [0, 1, 2, 3]
    assert [time for _, time in order] == pytest.approx([0.5, 1.0, 1.5, 2.0])


async def test_a_cancelled_wait_is_paid_back(autojump_clock):
    limiter = RateLimiter(1000)
    start = trio.current_time()
    with trio.move_on_after(0.5):
        await limiter.wait(100_000)
    await limiter.wait(1000)
    assert trio.current_time() - start == pytest.approx(0.5 + 1.0 / PEAK - BURST_S)


async def test_the_cap_can_be_changed_and_lifted(autojump_clock):
    limiter = RateLimiter()
    start = trio.current_time()
    await limiter.wait(10**12)
    assert trio.current_time() == start
    limiter.rate_bytes_s = 1000
    await limiter.wait(1000)
    limiter.rate_bytes_s = 10
    await limiter.wait(100)
    assert trio.current_time() - start == pytest.approx(11.0)
    assert limiter.rate_bytes_s == 10
    limiter.rate_bytes_s = None
    with trio.CancelScope() as scope:
        scope.cancel()
        await limiter.wait(1)
    assert scope.cancelled_caught


@pytest.mark.parametrize("wrong", [0, -1, math.inf, math.nan])
def test_senseless_rates_are_refused(wrong):
    with pytest.raises(ValueError, match="positive"):
        RateLimiter(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("cap", [1e6, 25e6, 400e6])
@pytest.mark.parametrize("writes_bytes_s", [0, 0.4])
async def test_a_migration_keeps_to_its_cap_and_makes_use_of_it(autojump_clock, cap, writes_bytes_s):
    """Within 5 %: every long round, whatever is a batch there, and of a guest that writes, too."""
    size = 64 << 20 if cap > 1e6 else 4 << 20
    guest = SimulatedSourceGuest(
        WorkloadParameters.for_memory(size, size // 4), rate_bytes_s=writes_bytes_s * cap
    )
    room = SimulatedDestinationGuest()
    ends = memory_transport_pair(capacity_bytes=64 << 20)
    results = []

    async def send():
        options = Options(clock=trio.current_time, bandwidth_bytes_s=cap)
        results.append(await Source(guest, ends[0], options=options).run())
        nursery.cancel_scope.cancel()

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_workload, guest, 0.005)
        nursery.start_soon(send)
        await Destination(lambda _: room, ends[1], options=Options(clock=trio.current_time)).run()
    (result,) = results
    assert result.outcome is Outcome.COMPLETED
    long = [stats for stats in result.rounds if stats.bulk_bytes > size / 4]
    assert long
    for stats in long:
        assert stats.bulk_bytes / stats.seconds == pytest.approx(cap, rel=0.05)
    assert ends[0].bytes_sent <= cap * (trio.current_time() - start + CREDIT_S)
