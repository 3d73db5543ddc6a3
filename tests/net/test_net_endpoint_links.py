"""Links that are slow, far, capped or break: guests move over them if they can, and stay unharmed if not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio
from endpoint_support import MOVED_HERE, Migration
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.abc import Clock, Instrument
from trio.testing import MockClock

from sterna.core.deadlines import Deadlines
from sterna.core.events import Event, Outcome, RoundFinished
from sterna.core.policy import PolicySettings
from sterna.core.rounds import ROUND_BATCHES
from sterna.guest.api import GuestDescription
from sterna.guest.embedded import EmbeddedGuest
from sterna.guest.workload import PAGE_BYTES, WorkloadParameters
from sterna.net.destination import Destination
from sterna.net.memory import memory_transport_pair
from sterna.net.options import Options
from sterna.net.pump import FLUSH_STALL_S
from sterna.net.source import Source
from sterna.registry import ErrorCode

PATIENT = PolicySettings(allowed_downtime_s=2.0)


@pytest.fixture
def virtual_time(autojump_clock: Clock) -> Clock:
    """Every test takes it: pytest-trio looks for a clock among a test's arguments only."""
    return autojump_clock


def memory(mebibytes: float, hot: float = 0.25) -> WorkloadParameters:
    pages = int(mebibytes * 32) * 8
    return WorkloadParameters(seed=5, pages=pages, hot_pages=int(pages * hot) // 8 * 8, block_pages=8)


# ---- bandwidth ----


@pytest.mark.parametrize("cap", [65536.0, 1e6, 30e6])
async def test_a_cap_is_kept_and_used(virtual_time: Clock, cap: float) -> None:
    """Within 5 %, and heartbeats pass: with a second's patience a late one would end the session."""
    patience = Deadlines(heartbeat_s=0.25, silence_s=1.5, stall_s=1.5)
    migration = Migration(
        parameters=memory(max(0.5, cap / 4e6)),
        rate_bytes_s=0,
        source_options={"bandwidth_bytes_s": cap, "policy": PATIENT, "deadlines": patience},
        destination_options={"deadlines": patience},
    )
    await migration.run()
    migration.check_moved()
    result = migration.results["source"]
    assert result.bytes_sent / result.seconds == pytest.approx(cap, rel=0.05)


async def test_a_destination_keeps_its_own_cap(virtual_time: Clock) -> None:
    migration = Migration(destination_options={"bandwidth_bytes_s": 65536.0})
    await migration.run()
    migration.check_moved()


async def test_both_directions_have_their_turn_on_a_slow_link(virtual_time: Clock) -> None:
    """A batch takes half a minute, and the heartbeats of the destination come all the time."""
    migration = Migration(
        parameters=memory(4), rate_bytes_s=0, link={"rate_bytes_s": 100e3}, tick_s=1.0,
        source_options={"policy": PolicySettings(allowed_downtime_s=60)},
    )  # fmt: skip
    await migration.run()
    migration.check_moved()


@pytest.mark.parametrize("share", [0.2, 0.8, 3.0])
@pytest.mark.parametrize("rate_bytes_s", [1e6, 10e6])
async def test_a_hot_guest_on_a_slow_link(virtual_time: Clock, rate_bytes_s: float, share: float) -> None:
    """It rewrites its hot pages while they wait: one batch is rejected at most, and it moves in the end.

    `share` is its write rate by that of the link; above 1 it has to be slowed down.
    """
    finished: list[RoundFinished] = []

    def on_event(event: Event) -> None:
        if isinstance(event, RoundFinished):
            finished.append(event)

    migration = Migration(
        parameters=memory(rate_bytes_s / 1e6, 0.5),
        rate_bytes_s=rate_bytes_s * share,
        link={"rate_bytes_s": rate_bytes_s, "capacity_bytes": 64 * 1024},
        source_options={"on_event": on_event},
        tick_s=0.02,
    )
    await migration.run()
    migration.check_moved()
    rejected = sum(event.stats.rejected_pages for event in finished)
    assert rejected <= finished[0].stats.pages // ROUND_BATCHES
    assert (max(event.stats.throttle for event in finished) > 0) == (share > 1)


class Small(EmbeddedGuest):
    """Has no more state than a few registers, and writes a page now and then."""

    running = False

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    def save(self) -> bytes:
        return b"registers"

    def load(self, state: bytes) -> None:
        assert state == b"registers"

    async def live(self) -> None:
        for page in itertools.cycle(range(64)):
            if self.running:
                self.wrote(page * PAGE_BYTES, 1)
            await trio.sleep(0.05)


async def test_a_guest_of_little_state_on_a_slow_link(virtual_time: Clock) -> None:
    """The most that its state may have would take a second; what it has is nothing."""
    here, there = Small(bytearray(b"\1" * (512 * PAGE_BYTES))), Small(bytearray(512 * PAGE_BYTES))
    here.start()
    near, far = memory_transport_pair(rate_bytes_s=1e6)
    options = Options(clock=trio.current_time)
    source = Source(here, near, options=options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.live)
        async with trio.open_nursery() as ends:
            ends.start_soon(Destination(lambda _: there, far, options=options).run)
            result = await source.run()
        nursery.cancel_scope.cancel()
    assert result.outcome is Outcome.COMPLETED
    assert there.running
    assert not here.running
    assert result.blackout_s is not None
    assert result.blackout_s < PolicySettings().allowed_downtime_s


@pytest.mark.parametrize("latency_s", [0.001, 0.1, 1.0])
async def test_a_far_destination(virtual_time: Clock, latency_s: float) -> None:
    migration = Migration(
        link={"latency_s": latency_s, "rate_bytes_s": 20e6},
        rate_bytes_s=40e3,
        source_options={"policy": PolicySettings(allowed_downtime_s=10)},
    )
    await migration.run()
    migration.check_moved()
    blackout_s = migration.results["source"].blackout_s
    assert blackout_s is not None
    assert 4 * latency_s <= blackout_s < 4 * latency_s + 1


# ---- last words ----


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_cancellation_arrives_behind_a_batch_on_a_slow_link(virtual_time: Clock, side: str) -> None:
    """[CON-65]: a frame that has begun is finished first, even if it takes seconds."""
    migration = Migration(parameters=memory(4), rate_bytes_s=0, link={"rate_bytes_s": 1e6}, tick_s=0.5)

    async def cancel() -> None:
        await trio.sleep(1)
        getattr(migration, side).cancel("enough")
        assert migration.guest.running

    await migration.run(cancel)
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert {result.code for result in migration.results.values()} == {ErrorCode.CANCELLED}
    assert {result.by_peer for result in migration.results.values()} == {True, False}


async def test_who_was_told_to_end_sends_nothing_more(virtual_time: Clock) -> None:
    """A source that hears ABORT in the middle of a batch does not finish the batch for nobody."""
    migration = Migration(parameters=memory(4), rate_bytes_s=0, link={"rate_bytes_s": 1e6}, tick_s=0.5)

    async def cancel() -> None:
        await trio.sleep(0.5)
        migration.destination.cancel("enough")

    await migration.run(cancel)
    assert migration.seconds < 1


async def test_last_words_wait_for_nobody_who_does_not_read(virtual_time: Clock) -> None:
    migration = Migration(parameters=memory(4), rate_bytes_s=0, tick_s=0.5)

    async def source() -> None:
        result = await migration.source.run()
        assert result.code is ErrorCode.CANCELLED
        assert trio.current_time() < 1 + 2 * FLUSH_STALL_S

    reserve = migration.room.reserve

    async def reserve_and_stall(description: GuestDescription) -> None:
        await reserve(description)
        migration.far.stall()  # type: ignore[attr-defined]

    migration.room.reserve = reserve_and_stall  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(migration.destination.run)
        nursery.start_soon(source)
        await trio.sleep(1)
        assert migration.near.bytes_sent > 1 << 20
        migration.source.cancel("enough")


# ---- faults ----


LINKS = st.fixed_dictionaries(
    {
        "latency_s": st.sampled_from((0.0, 0.003, 0.05)),
        "rate_bytes_s": st.sampled_from((1e6, 50e6)),
        "capacity_bytes": st.sampled_from((1000, 1 << 20)),
    }
)


@settings(max_examples=60)
@given(
    side=st.sampled_from(("near", "far")),
    fault=st.sampled_from(("cut", "stall", "vanish", "ragged", "abort")),
    moment=st.floats(0, 1),
    link=LINKS,
)
def test_one_fault_at_any_moment(side: str, fault: str, moment: float, link: dict[str, Any]) -> None:
    """[CON-62] [CON-63] [CON-64] [CON-69] [ONE-49]: the two sides never contradict each other."""
    migration: Migration

    async def strike() -> None:
        reached = min(link["rate_bytes_s"], link["capacity_bytes"] / (link["latency_s"] or 1e-9))
        await trio.sleep(moment * (20 * link["latency_s"] + 300_000 / reached))
        end = getattr(migration, side)
        match fault:
            case "cut":
                end.cut_after(0)
            case "stall":
                end.stall()
            case "vanish":
                end.vanish()
            case "ragged":
                end.end_ragged()
            case _:
                end.abort()

    async def main() -> None:
        nonlocal migration
        options = {"policy": PolicySettings(allowed_downtime_s=20)}
        migration = Migration(link=link, rate_bytes_s=20e3, source_options=options, tick_s=0.5)
        await migration.run(strike)
        assert migration.seconds < 120

    trio.run(main, clock=MockClock(autojump_threshold=0))


# ---- idle ----


class Steps(Instrument):
    """Counts how often a task is run."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_waiting_costs_nothing(virtual_time: Clock) -> None:
    """A guest needs half an hour to be reserved: both sides wait, and only heartbeats wake them."""
    seconds = 1800.0
    patience = Deadlines(describe_s=3600)
    migration = Migration(source_options={"deadlines": patience}, rate_bytes_s=0, tick_s=seconds)
    reserve = migration.room.reserve
    steps = Steps()

    async def slow_reserve(description: GuestDescription) -> None:
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(seconds)
        trio.lowlevel.remove_instrument(steps)
        await reserve(description)

    migration.room.reserve = slow_reserve  # type: ignore[method-assign]
    await migration.run()
    assert migration.outcomes[1] in MOVED_HERE
    assert 2 * seconds < steps.count < 60 * seconds  # two heartbeats a second and their answers
