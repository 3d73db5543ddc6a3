"""A destination that is slower than its source for ten minutes, and a guest that is faster than both.

What is held for it is counted, at any time: it is a few batches. The migration ends as its policy says.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import tracemalloc
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
import trio
from endpoint_support import at_once
from many_support import Processor
from trio.testing import MockClock

from sterna.core.events import Decided, Event, Outcome
from sterna.core.policy import Action, Decision, PolicySettings
from sterna.core.rounds import ROUND_BATCHES
from sterna.guest.embedded import PAGE_BYTES, EmbeddedGuest
from sterna.net import packing
from sterna.net.destination import Destination
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.options import Compress, Options
from sterna.net.source import Source
from sterna.registry import ErrorCode, Style

pytestmark = pytest.mark.slow

MIB: Final = 1 << 20
SLOW_BYTES_S: Final = MIB / 4
WRITES_BYTES_S: Final = 2.0 * MIB
SIZE_BYTES: Final = 6 * MIB
TEN_MINUTES_S: Final = 600.0
CAPACITY_BYTES: Final = 64 * 1024
TICK_S: Final = 0.25
PATIENCE: Final = 25  # rounds of all memory, of 24 s each
# Of each page a half cannot be packed.
HALF_PAGES: Final = Random(1).randbytes(SIZE_BYTES // 2)
CONTENT: Final = b"".join(
    HALF_PAGES[at : at + PAGE_BYTES // 2] + bytes(b"\1" * (PAGE_BYTES // 2))
    for at in range(0, len(HALF_PAGES), PAGE_BYTES // 2)
)
VERSIONS_BYTES: Final = SIZE_BYTES // 4


@pytest.fixture
def virtual_time(autojump_clock: MockClock) -> MockClock:
    return autojump_clock


class Writing(EmbeddedGuest):
    """Goes round and round its memory, and says in each page how often it was there."""

    asks = True

    def __init__(self, *, runs: bool) -> None:
        super().__init__(bytearray(CONTENT if runs else SIZE_BYTES), guest_id=bytes(16))
        self.runs = runs
        self.share = 1.0
        self.began = b""

    def start(self) -> None:
        self.began, self.runs = self.image(), True

    def stop(self) -> None:
        self.runs = False

    async def throttle(self, share: float) -> None:
        self.share = 1.0 - share

    async def live(self) -> None:
        """Until it is cancelled."""
        pages = np.frombuffer(self.memory(1), np.uint32).reshape(-1, PAGE_BYTES // 4)[:, 1]
        written = 0.0
        for times in itertools.count(2):
            await trio.sleep(TICK_S)
            first = int(written) % len(pages)
            count = min(int(WRITES_BYTES_S * self.share * TICK_S) // PAGE_BYTES, len(pages) - first)
            if self.runs and self.present(first * PAGE_BYTES, count * PAGE_BYTES):
                pages[first : first + count] = times
                self.wrote(first * PAGE_BYTES, count * PAGE_BYTES)
                written += count

    def image(self) -> bytes:
        """What its memory is now, in short."""
        return hashlib.sha256(self.memory(1)).digest()


@dataclass
class Slow:
    """A migration to a slow destination.

    Attributes:
        decisions: of the policy.
        unsent_bytes: the most that the source had encoded and not sent.
        growth_bytes: the most by which the memory of the process has grown, guests left out.
    """

    policy: PolicySettings
    compress: Compress = Compress.OFF
    decisions: list[Decision] = field(default_factory=list)
    unsent_bytes: int = 0
    growth_bytes: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.here, self.there = Writing(runs=True), Writing(runs=False)
        self.near, self.far = memory_transport_pair(capacity_bytes=CAPACITY_BYTES)
        options: dict[str, Any] = {"clock": trio.current_time}
        of_source = {"policy": self.policy, "on_event": self._on_event, "compress": self.compress}
        self.source = Source(
            self.here, self.near, options=Options(**options, **of_source, versions_bytes=VERSIONS_BYTES)
        )
        self.destination = Destination(
            lambda _: self.there, self.far, options=Options(**options, post_copy=True)
        )

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Decided):
            self.decisions.append(event.decision)

    @property
    def actions(self) -> list[Action]:
        """Of the decisions that rest on a round."""
        return [each.action for each in self.decisions[1:]]

    async def _watch(self) -> None:
        await trio.sleep(1.0)
        before, _ = tracemalloc.get_traced_memory()
        while True:
            lanes = self.source._machine._lanes
            self.unsent_bytes = max(self.unsent_bytes, sum(lane.outbox.unsent_bytes for lane in lanes))
            self.growth_bytes = max(self.growth_bytes, tracemalloc.get_traced_memory()[1] - before)
            await trio.sleep(0.5)

    async def run(self) -> Slow:
        """Until both have ended."""
        tracemalloc.start()
        try:
            async with trio.open_nursery() as nursery:
                for task in (self.here.live, self.there.live, self._watch):
                    nursery.start_soon(task)
                async with trio.open_nursery() as ends:
                    ends.start_soon(self.destination.run)
                    await self.source.run()
                self.seconds = trio.current_time()
                nursery.cancel_scope.cancel()
        finally:
            tracemalloc.stop()
        return self

    def check_moved(self) -> None:
        """The guest runs there, with all of its memory."""
        here, there = self.source.result, self.destination.result
        assert here.outcome is there.outcome is Outcome.COMPLETED
        assert here.digest == there.digest != b""
        assert self.there.runs
        assert not self.here.runs

    def check_bounded(self, least_s: float = TEN_MINUTES_S) -> None:
        """It has lasted, and what was held meanwhile has nothing to do with how long it did."""
        assert self.seconds > least_s
        assert self.near.bytes_sent > 0.9 * SLOW_BYTES_S * least_s
        batch_bytes = SIZE_BYTES // ROUND_BATCHES
        assert 0 < self.unsent_bytes <= 1.5 * batch_bytes
        assert self.growth_bytes <= 2 * batch_bytes + CAPACITY_BYTES


def reads_slowly(transport: MemoryTransport) -> None:
    """So many bytes a second, and not more; now and then all that has come."""
    receive = transport._receive_into
    owed = 0

    async def received(view: memoryview) -> int:
        nonlocal owed
        if owed >= CAPACITY_BYTES:
            await trio.sleep(owed / SLOW_BYTES_S)
            owed = 0
        count = await receive(view)
        owed += count
        return count

    transport._receive_into = received  # type: ignore[method-assign]


def slow(virtual_time: MockClock, how: str, compress: Compress = Compress.OFF, /, **policy: Any) -> Slow:
    """How it is slow: it seldom reads, or has so much to do with what it has read."""
    moving = Slow(PolicySettings(**{"patience": PATIENCE, "max_rounds": 60} | policy), compress)
    if how == "reads":
        reads_slowly(moving.far)
    else:
        Processor(virtual_time, SLOW_BYTES_S).takes_in(moving.far)
    return moving


@pytest.mark.parametrize("how", ["reads", "applies"])
async def test_a_guest_that_can_be_slowed_down_moves(virtual_time: MockClock, how: str) -> None:
    """After as many rounds without success as the policy has patience for [converges]."""
    moved = await slow(virtual_time, how).run()
    moved.check_bounded()
    actions = moved.actions
    first = actions.index(Action.THROTTLE)
    assert first >= PATIENCE - 1
    assert actions[:first] == [Action.CONTINUE] * first
    assert actions[-1] is Action.SWITCHOVER
    moved.check_moved()
    assert moved.here.image() == moved.there.began
    blackout_s = moved.source.result.blackout_s
    assert blackout_s <= moved.policy.allowed_downtime_s


@pytest.mark.parametrize("how", ["reads", "applies"])
async def test_a_guest_that_can_run_before_its_pages_are_there(virtual_time: MockClock, how: str) -> None:
    """It is not slowed down, and its pages follow it."""
    moved = await slow(virtual_time, how, switchover="auto").run()
    moved.check_bounded()
    assert moved.actions == [Action.CONTINUE] * (PATIENCE - 1) + [Action.SWITCHOVER]
    assert moved.decisions[-1].style is not Style.STOP_AND_COPY
    moved.check_moved()


async def test_packed_pages_wait_as_others_do(
    virtual_time: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is packed beforehand is a few batches, too; versions that were sent have room of their own."""
    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)  # a worker's time would not be virtual
    clock = map(operator.truediv, itertools.count(), itertools.repeat(1000))
    monkeypatch.setattr(
        packing, "time", SimpleNamespace(perf_counter=clock.__next__, thread_time=clock.__next__)
    )
    monkeypatch.setattr(packing, "thread_ns", lambda: (0, 0))
    moved = await slow(virtual_time, "reads", Compress.ALWAYS).run()
    moved.check_bounded(PATIENCE * 8.0)  # rounds of 9 s each
    assert moved.seconds < 0.6 * len(moved.actions) * SIZE_BYTES / SLOW_BYTES_S  # or nothing was packed
    assert moved.actions[-1] is Action.SWITCHOVER
    moved.check_moved()
    assert moved.here.image() == moved.there.began


@pytest.mark.parametrize("on_exhausted", ["abort", "switch"])
async def test_a_guest_that_cannot(virtual_time: MockClock, on_exhausted: str) -> None:
    """All rounds that the policy has are made, and then it stays, or stands still for as long as it takes."""
    limits = {"max_throttle": 0.0, "on_exhausted": on_exhausted, "max_rounds": 30}
    moved = await slow(virtual_time, "reads", **limits).run()
    moved.check_bounded()
    *before, last = moved.actions
    assert before == [Action.CONTINUE] * 29
    if on_exhausted == "abort":
        assert last is Action.GIVE_UP
        assert moved.source.result.code is ErrorCode.NOT_CONVERGING
        assert moved.source.result.outcome is moved.destination.result.outcome is Outcome.ROLLED_BACK
        assert moved.here.runs
        assert not moved.there.runs
    else:
        assert last is Action.SWITCHOVER
        moved.check_moved()
        assert moved.here.image() == moved.there.began
        assert moved.source.result.blackout_s == pytest.approx(SIZE_BYTES / SLOW_BYTES_S, rel=0.05)
