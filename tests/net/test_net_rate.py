"""The bandwidth cap, in virtual time."""

import math
from itertools import accumulate

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from net_support import tcp_pair
from resume_net_support import NAMES, Resuming

from sterna.core.events import Outcome
from sterna.guest.workload import WorkloadParameters
from sterna.net.options import Options, batch_bytes
from sterna.net.rate import CREDIT_S, GRANT_S, RateLimiter
from sterna.net.tcp import TcpTransport
from sterna.net.transport import Transport


async def test_the_rate_is_exact(autojump_clock):
    limiter = RateLimiter(200_000)
    start = trio.current_time()
    for _ in range(200):
        await limiter.wait(10_000)
    assert trio.current_time() - start == pytest.approx(10.0, abs=1e-6)


async def test_who_always_has_something_to_send_loses_nothing_by_waking_late(autojump_clock):
    limiter = RateLimiter(200_000)
    start = trio.current_time()
    for number in range(1000):
        await limiter.wait(2000, start)
        await trio.sleep(0.035 if number % 10 == 0 else 0.004)  # late, and then the send itself
    assert trio.current_time() - start == pytest.approx(10.0, abs=CREDIT_S)


async def test_who_shares_a_busy_process_gets_all_of_its_cap_nevertheless(autojump_clock):
    """Each turn of the others takes longer than a grant; to wake for one takes two of them at the most."""
    limiter, rate = RateLimiter(100_000), 100_000
    start = trio.current_time()

    async def others():
        while True:
            await trio.lowlevel.checkpoint()
            autojump_clock.jump(0.4 * CREDIT_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        for _ in range(1000):
            await limiter.wait(int(rate * GRANT_S), start)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - start == pytest.approx(1000 * GRANT_S, rel=0.02)


async def test_a_long_stall_is_not_made_up_for(autojump_clock):
    limiter = RateLimiter(1000)
    start = trio.current_time()
    await limiter.wait(10, start)
    await trio.sleep(5)
    again = trio.current_time()
    for _ in range(100):
        await limiter.wait(10, start)
    assert trio.current_time() - again == pytest.approx(1.0 - CREDIT_S)


@pytest.mark.parametrize("idle_s", [0.01, 0.3, 3600.0])
async def test_an_idle_time_earns_nothing(autojump_clock, idle_s):
    limiter = RateLimiter(1000)
    await limiter.wait(1000)
    await trio.sleep(idle_s)
    start = trio.current_time()
    for _ in range(100):
        await limiter.wait(10, start)
    assert trio.current_time() - start == pytest.approx(1.0)


STALLS_S = [0, 0, 0, 0.001, 0.01, 0.03, 0.1, 0.3, 2.0]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 1000), st.sampled_from(STALLS_S), st.booleans()), max_size=8),
        min_size=1,
        max_size=4,
    )
)
def test_what_passes_in_any_time_is_bounded(lanes):
    """Whatever several connections have to send, however late they are, whether or not they idle."""
    rate = 10_000
    passed = []

    async def send_all(limiter, sends):
        busy_since = trio.current_time()
        for count, stalls_s, idles in sends:
            for part in limiter.grants([bytes(count)]):
                await limiter.wait(sum(map(len, part)), busy_since)
                passed.append((trio.current_time(), sum(map(len, part))))
                await trio.sleep(stalls_s)
            if idles:
                busy_since = trio.current_time()

    async def run():
        limiter = RateLimiter(rate)
        async with trio.open_nursery() as nursery:
            for sends in lanes:
                nursery.start_soon(send_all, limiter, sends)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    check_cap(passed, rate)


def check_cap(passed, rate):
    """From each grant to each later one, both of them counted."""
    sums = list(accumulate((count for _, count in passed), initial=0))
    for first, (since, _) in enumerate(passed):
        for last in range(first, len(passed)):
            seconds = passed[last][0] - since
            count = sums[last + 1] - sums[first]
            assert count <= rate * (seconds + CREDIT_S + GRANT_S) + 1e-6
            assert count <= rate * max(seconds * 1.05, seconds + 0.05) + 1e-6


async def test_all_that_was_due_in_a_stall_of_the_process_does_not_leave_behind_it(autojump_clock):
    """Several connections wait, and none of them has its turn for a while."""
    limiter = RateLimiter(1000)
    passed = []

    async def send():
        while True:
            await limiter.wait(10, 0)
            passed.append((trio.current_time(), 10))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(send)
        for _ in range(20):
            await trio.sleep(0.25)
            autojump_clock.jump(0.2)
        nursery.cancel_scope.cancel()
    check_cap(passed, 1000)
    assert sum(count for _, count in passed) == pytest.approx(20 * 1000 * (0.25 + CREDIT_S), rel=0.02)


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


async def test_a_cancelled_wait_counts_for_nothing(autojump_clock):
    limiter = RateLimiter(1000)
    await limiter.wait(1)
    start = trio.current_time()
    with trio.move_on_after(0.5):
        await limiter.wait(100_000)
    await limiter.wait(1000, start)
    assert trio.current_time() - start == pytest.approx(1.5 - CREDIT_S)


@pytest.mark.parametrize(("rate", "most"), [(1, 1), (65536, 655), (10e6, 98304)])
def test_grants_are_parts_of_what_was_given_and_whole_records_where_that_is_little(rate, most):
    buffers = [b"", bytes(range(256)) * 300, memoryview(b"x" * 1000), bytearray(b"y" * 30_000)]
    parts = (
        list(RateLimiter(rate).grants(buffers)) if rate > 1 else list(RateLimiter(1).grants([b"ab", b"c"]))
    )
    sizes = [sum(map(len, part)) for part in parts]
    assert b"".join(b"".join(part) for part in parts) == (b"".join(buffers) if rate > 1 else b"abc")
    assert sizes[:-1] == [most] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= most


@pytest.mark.parametrize("wrong", [0, -1, math.inf, math.nan])
def test_senseless_rates_are_refused(wrong):
    with pytest.raises(ValueError, match="positive"):
        RateLimiter(wrong)


class Capped(Resuming):
    """A migration whose source has a cap, and when how many bytes left there."""

    def __init__(self, cap: float, **changes) -> None:
        self.passed: list[tuple[float, int]] = []
        self.cap = cap
        changes = {"link": {"identities": NAMES, "capacity_bytes": 64 << 20}} | changes
        changes["source_options"] = {"bandwidth_bytes_s": cap} | changes.get("source_options", {})
        super().__init__(**changes)
        self.watch(self.near)

    def watch(self, near: Transport) -> None:
        send = near.send

        async def watched(buffers, on_sent=None):
            def sent(count):
                self.passed.append((trio.current_time(), count))
                on_sent(count)

            await send(buffers, sent)

        near.send = watched

    async def connection(self):
        near, far = await self.ends_of_connection()
        self.watch(near)
        return near, far

    async def ends_of_connection(self):
        return await super().connection()

    @property
    def sent_bytes(self) -> int:
        return sum(near.bytes_sent for near in (self.near, *self.nears))


@pytest.mark.slow
@pytest.mark.parametrize("streams", [0, 1, 4])
@pytest.mark.parametrize("cap", [65536, 1e6, 25e6, 400e6])
@pytest.mark.parametrize("writes_bytes_s", [0, 0.4])
async def test_a_migration_keeps_to_its_cap_and_makes_use_of_it(autojump_clock, streams, cap, writes_bytes_s):
    """Within 5 %: over any second and each long round, whatever is a batch there, of a writing guest, too."""
    size = {65536: 512 << 10, 1e6: 2 << 20, 25e6: 32 << 20, 400e6: 64 << 20}[cap]
    options = {"streams": streams}
    moved = Capped(
        cap,
        parameters=WorkloadParameters.for_memory(size, size // 4),
        rate_bytes_s=writes_bytes_s * cap,
        tick_s=0.005 if cap > 1e6 else 0.05,
        source_options=dict(options),
        destination_options=dict(options),
    )
    await moved.run()
    assert moved.outcomes == (Outcome.COMPLETED, Outcome.COMPLETED)
    assert moved.guest.image == moved.room.image != b""
    long = [stats for stats in moved.results["source"].rounds if stats.bulk_bytes > size / 4]
    assert long
    for stats in long:
        assert stats.bulk_bytes / stats.seconds == pytest.approx(cap, rel=0.05)
    assert len(moved.nears) == streams
    check_cap(moved.passed, cap)


@pytest.mark.slow
@pytest.mark.parametrize("streams", [0, 2])
async def test_over_tcp_no_more_passes_than_the_cap_lets_through(streams):
    """However late this process is: it can only send less."""

    class OverTcp(Capped):
        async def ends_of_connection(self):
            near, far = tcp_pair()
            return TcpTransport(near), TcpTransport(far)

    cap, size = 16e6, 24 << 20
    near, far = tcp_pair()
    options = {"streams": streams}
    moved = OverTcp(
        cap,
        parameters=WorkloadParameters.for_memory(size, size // 4),
        rate_bytes_s=0,
        virtual=False,
        ends=(TcpTransport(near), TcpTransport(far)),
        source_options=dict(options),
        destination_options=dict(options),
    )
    with trio.fail_after(120):
        await moved.run()
    moved.check_moved()
    assert len(moved.nears) == streams
    batch = batch_bytes(Options(bandwidth_bytes_s=cap), plain=True)
    assert size < moved.sent_bytes <= cap * moved.seconds * 1.05 + batch
    for stats in moved.results["source"].rounds:
        assert stats.bulk_bytes <= cap * stats.seconds * 1.05 + batch
