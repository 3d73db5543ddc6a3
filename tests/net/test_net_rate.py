"""The bandwidth cap, in virtual time."""

import math

import pytest
import trio
import trio.testing

from sterna.net.rate import BURST_S, RateLimiter


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


async def test_an_idle_time_earns_one_burst_at_most(autojump_clock):
    limiter = RateLimiter(1000)
    await limiter.wait(1000)
    await trio.sleep(3600)
    start = trio.current_time()
    await limiter.wait(1000)
    assert trio.current_time() - start == pytest.approx(1.0 - BURST_S)


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
    assert trio.current_time() - start == pytest.approx(1.5 - BURST_S)


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
