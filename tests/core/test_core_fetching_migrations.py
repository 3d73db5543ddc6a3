"""Whole migrations in which pages follow the guest, with the simulated guest and without an event loop."""

from __future__ import annotations

from itertools import pairwise

import pytest
from arrival import completed
from core_support import EPOCH, HERE
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.core.events import Expect, Installed, Outcome, PagesFollow, PagesFollowed
from sterna.core.image_notes import ImageNotes
from sterna.core.policy import PolicySettings
from sterna.core.tables import DestinationState, SourceState
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.registry import ErrorCode, Style
from sterna.testing.pair import Pair, source_config_of

MIB = 1 << 20
PARAMETERS = WorkloadParameters(seed=7, pages=1024, hot_pages=256, cold_every=4, block_pages=8, zero_pages=64)
BOTH = pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])


def migration(
    switchover: str,
    *,
    parameters: WorkloadParameters = PARAMETERS,
    rate_bytes_s: float = 400 * MIB,
    step_s: float = 0.01,
    can_post_copy: bool = True,
) -> Pair:
    """Guests that write while they run."""
    journal: list = []
    source = SimulatedSourceGuest(parameters, rate_bytes_s=rate_bytes_s)
    source.machine.journal = journal
    destination = SimulatedDestinationGuest(
        rate_bytes_s=rate_bytes_s, journal=journal, can_post_copy=can_post_copy
    )

    def between(pair: Pair) -> None:
        pair.now += step_s
        source.advance(step_s)
        destination.advance(step_s)

    policy = PolicySettings(switchover=switchover, max_rounds=6)
    config = source_config_of(source.description, epoch=EPOCH, runner=HERE, policy=policy)
    return Pair(source, destination, source_config=config, between=between)


def run(pair: Pair, chunk: int | None = 100_000) -> Pair:
    pair.run(chunk=chunk, steps=200_000)
    return pair


def in_order(pair: Pair) -> None:
    """It has arrived, and no write was lost."""
    completed(pair)
    journal = pair.destination_guest.machine.journal
    assert all(before.count < after.count for before, after in pairwise(journal))


def events(pair: Pair, name: str, kind: type) -> list:
    return [event for event in pair.events[name] if isinstance(event, kind)]


@BOTH
def test_the_guest_runs_before_its_pages_are_there_and_arrives_whole(switchover):
    """[same-memory] [PCY-1] [PCY-2] [PCY-3] [PCY-13] [PCY-14] [MEM-10] [MEM-16] [CMP-1]"""
    pair = run(migration(switchover))
    in_order(pair)
    here, there = pair.source.result, pair.destination.result
    assert here.style is (Style.BITMAP if switchover == "bitmap" else Style.POST_COPY)
    assert len(here.rounds) == len(there.rounds) == (1 if switchover == "post-copy" else len(here.rounds))
    assert here.rounds[-1].pages == 0
    assert here.after.stale == there.after.stale > 0
    if switchover == "post-copy":
        assert here.after.stale == PARAMETERS.pages
    assert here.after.demanded + here.after.pushed == here.after.stale
    assert there.after.demanded + there.after.pushed == there.after.stale
    assert there.after.requests == here.after.requests > 0
    assert here.after.seconds > 0
    for name in ("source", "destination"):
        (follow,), (followed,) = events(pair, name, PagesFollow), events(pair, name, PagesFollowed)
        assert follow.pages == followed.stats.stale


@BOTH
def test_accesses_are_held_before_the_destination_says_that_it_is_ready(switchover):
    """[PCY-5] And pages are installed after they were verified [PCY-12]."""
    pair = run(migration(switchover))
    performed = pair.performed["destination"]
    kinds = [type(request).__name__ for request in performed]
    assert (
        kinds.index("Expect") < kinds.index("LoadState") < kinds.index("RunGuest") < kinds.index("Installed")
    )
    (expect,) = [request for request in performed if isinstance(request, Expect)]
    ranges = [pages for request in performed if isinstance(request, Installed) for pages in request.pages]
    assert sum(bitmap.count() for bitmap in expect.stale.values()) == sum(pages.count for pages in ranges)


def test_a_bitmap_switchover_with_nothing_left_is_like_stop_and_copy():
    pair = run(migration("bitmap", rate_bytes_s=0.0))
    in_order(pair)
    assert pair.source.result.style is Style.BITMAP
    assert pair.source.result.after is None
    assert pair.destination.result.after is None


def test_auto_takes_the_bitmap_where_rounds_lead_nowhere():
    """[CON-36]"""
    pair = run(migration("auto", rate_bytes_s=4000 * MIB, step_s=0.05), chunk=None)
    in_order(pair)
    assert pair.source.result.style in {Style.BITMAP, Style.STOP_AND_COPY}


@BOTH
def test_a_connection_lost_while_pages_follow_leaves_the_guest_there(switchover):
    """[CON-64] It runs, and waits for what it lacks; the source keeps the image [ONE-38].

    What is known of every page is where the guest is, for whoever goes on with it [PCY-16].
    """
    pair = migration(switchover)
    pair.start()
    while pair.destination.state is not DestinationState.FETCHING:
        assert pair.step(chunk=100_000)
    pair.cut()
    while pair.step():
        pass
    here, there = pair.source.result, pair.destination.result
    assert (there.outcome, there.code) == (Outcome.STRANDED, ErrorCode.CONNECTION_LOST)
    assert there.epoch == EPOCH + 1
    assert there.after.demanded + there.after.pushed < there.after.stale
    place = memoryview(pair.destination_guest._notes)
    kept = ImageNotes.read(place, pair.destination._regions, hashed=True).digest
    assert kept.stale_pages == there.after.stale - there.after.demanded - there.after.pushed
    assert here.outcome in {Outcome.UNDECIDED, Outcome.MOVED}
    assert pair.destination_guest.running
    assert not pair.source_guest.running
    assert not pair.source_guest.released


def test_a_source_that_loses_the_connection_while_it_serves_keeps_the_image():
    """[CON-64] [ONE-38]"""
    pair = migration("post-copy")
    pair.start()
    while pair.source.state is not SourceState.MOVED:
        assert pair.step(chunk=100_000)
    pair.cut()
    assert pair.source.result.outcome is Outcome.MOVED
    assert pair.source.result.after.stale == PARAMETERS.pages
    assert pair.source.result.after.seconds is None
    assert not pair.source_guest.released


@BOTH
def test_a_guest_that_cannot_is_not_made_to(switchover):
    """[CON-40] [CON-43]"""
    pair = run(migration(switchover, can_post_copy=False))
    assert pair.source.result.outcome is Outcome.ROLLED_BACK
    assert pair.source.result.code is ErrorCode.NOT_READY
    assert pair.source_guest.running


@st.composite
def workloads(draw) -> WorkloadParameters:
    block = draw(st.sampled_from([1, 4, 16]))
    hot, cold = draw(st.integers(1, 12)) * block, draw(st.integers(0, 12)) * block
    zero = draw(st.integers(0, 40))
    every = draw(st.sampled_from([0, 2, 5])) if cold else 0
    return WorkloadParameters(draw(st.integers(0, 99)), hot + cold + zero, hot, every, block, zero)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    workloads(),
    st.sampled_from(["bitmap", "post-copy", "auto"]),
    st.floats(0, 200 * MIB),
    st.none() | st.integers(500, 100_000),
)
def test_a_guest_arrives_whole(parameters, switchover, rate_bytes_s, chunk):
    """[same-memory] [no-stale-page] [converges] Whatever it writes, however fast, over whatever link."""
    in_order(run(migration(switchover, parameters=parameters, rate_bytes_s=rate_bytes_s), chunk))
