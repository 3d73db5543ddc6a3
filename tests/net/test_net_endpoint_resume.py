"""Endpoints whose link is lost and comes back, in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from resume_net_support import Resuming
from trio.abc import Clock
from trio.testing import MockClock

from sterna.core.events import Outcome, SessionResumed, Suspended
from sterna.core.policy import PolicySettings
from sterna.core.records import Record, Released, SessionRecord
from sterna.errors import LocalProtocolError
from sterna.net.hosting import LocalHost
from sterna.net.redial import LONGEST_WAIT_S
from sterna.registry import ErrorCode

BYTES = 64 * 4096


@pytest.fixture
def virtual_time(autojump_clock: Clock) -> Clock:
    """Every test takes it: pytest-trio looks for a clock among a test's arguments only."""
    return autojump_clock


async def test_a_link_that_is_cut_twice(virtual_time: Clock) -> None:
    """[RES-1] [RES-4] [RES-8] [RES-9]"""
    migration = Resuming(cuts=(BYTES // 2, BYTES // 2))
    await migration.run()
    migration.check_moved()
    assert [result.resumed for result in migration.results.values()] == [2, 2]
    assert [each.times for each in migration.events if isinstance(each, Suspended)] == [1, 2]
    assert [each.times for each in migration.events if isinstance(each, SessionResumed)] == [1, 2]
    assert [each.took_up for each in migration.others] == [True, True]
    assert migration.sessions._kept == {}


async def test_a_host_that_does_not_answer_at_once(virtual_time: Clock) -> None:
    migration = Resuming(cuts=(BYTES // 2,), refuse=5)
    await migration.run()
    migration.check_moved()
    assert migration.calls == 6


async def test_a_host_that_does_not_come_back(virtual_time: Clock) -> None:
    """[CON-62] [RES-14] The guest runs on here, and the room there is freed."""
    migration = Resuming(cuts=(BYTES // 2,), refuse=10_000)
    await migration.run()
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    source, destination = migration.results["source"], migration.results["destination"]
    assert source.code is destination.code is ErrorCode.CONNECTION_LOST
    assert "nothing listens there" in str(source.error)
    assert 60 <= migration.seconds < 60 + 2 * LONGEST_WAIT_S
    assert migration.sessions._kept == {}


class Noting(LocalHost):
    """A host that keeps what is recorded in mind, and whose link breaks over the first record."""

    def __init__(self) -> None:
        super().__init__("destination")
        self.records: list[Record] = []
        self.cut: Callable[[], None] = lambda: None

    async def persist(self, record: Record) -> None:
        self.records.append(record)
        self.cut()


async def test_a_session_that_nobody_takes_up_keeps_nobody_out(virtual_time: Clock) -> None:
    """[ONE-56] [ONE-12] It was noted early, and nobody can have granted in it."""
    host = Noting()
    migration = Resuming(refuse=10_000, destination_host=host)
    host.cut = migration.far.abort
    await migration.run()
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    noted, released = host.records
    assert isinstance(noted, SessionRecord)
    assert released == Released(noted.session)


async def test_another_host_at_the_same_address(virtual_time: Clock) -> None:
    """[RES-1] [SEC-5] It is not shown the token."""
    migration = Resuming(cuts=(BYTES // 2,), callee="host-x")
    await migration.run()
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert not any(each.took_up for each in migration.others)


async def test_another_peer_with_the_right_token(virtual_time: Clock) -> None:
    """[RES-3] [RES-4]"""
    migration = Resuming(cuts=(BYTES // 2,), caller="host-x")
    await migration.run()
    source, destination = migration.results["source"], migration.results["destination"]
    assert (source.outcome, source.code, source.by_peer) == (Outcome.ROLLED_BACK, ErrorCode.BAD_TOKEN, True)
    assert (destination.outcome, destination.code) == (Outcome.ROLLED_BACK, ErrorCode.CONNECTION_LOST)


async def test_a_destination_that_has_forgotten_everything(virtual_time: Clock) -> None:
    """[RES-3] [CON-62] A new process: the session is in no list."""
    migration = Resuming(cuts=(BYTES // 2,))

    async def forget() -> None:
        await migration.called.wait()
        migration.sessions._kept.clear()

    await migration.run(forget)
    source = migration.results["source"]
    assert (source.outcome, source.code) == (Outcome.ROLLED_BACK, ErrorCode.BAD_TOKEN)


async def test_cancelled_while_there_is_no_link(virtual_time: Clock) -> None:
    """[CON-71]"""
    migration = Resuming(cuts=(BYTES // 2,), refuse=10_000)

    async def cancel() -> None:
        await migration.called.wait()
        migration.source.cancel("enough")
        migration.destination.cancel("enough")

    await migration.run(cancel)
    assert [result.code for result in migration.results.values()] == [ErrorCode.CANCELLED] * 2
    assert migration.seconds < 5


async def test_cancelled_on_a_later_connection(virtual_time: Clock) -> None:
    """[CON-71] The session's first endpoint asks whoever has it."""
    migration = Resuming(cuts=(BYTES // 2,), link={"identities": ("host-s", "host-d"), "rate_bytes_s": 2e5})

    async def cancel() -> None:
        await migration.back.wait()
        migration.destination.cancel("enough")

    await migration.run(cancel)
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert migration.results["source"].code is ErrorCode.CANCELLED
    assert migration.results["destination"].code is ErrorCode.CANCELLED


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_an_endpoint_that_is_cancelled_from_outside_while_there_is_no_link(
    virtual_time: Clock, side: str
) -> None:
    """[CON-62] [CON-63] What was kept is undone all the same."""
    migration = Resuming(cuts=(BYTES // 2,), refuse=10_000)
    endpoint = getattr(migration, side)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as migration.nursery:
            migration.nursery.start_soon(migration.source.run)
            migration.nursery.start_soon(migration.destination.run)
            await migration.called.wait()
            scope.cancel()
    assert endpoint.result.outcome is Outcome.ROLLED_BACK
    assert migration.guest.machine.running
    assert migration.destination.guest is None


CUTS = st.lists(st.integers(1, 3 * BYTES), min_size=1, max_size=6)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(CUTS)
def test_wherever_it_is_cut_the_guest_is_in_one_place_and_whole(cuts: list[int]) -> None:
    """[RES-8] [RES-9] [RES-11]"""

    async def migrate() -> None:
        migration = Resuming(cuts=tuple(cuts))
        await migration.run()
        assert migration.outcomes[0] in {
            Outcome.COMPLETED,
            Outcome.MOVED,
            Outcome.ROLLED_BACK,
            Outcome.UNDECIDED,
        }

    trio.run(migrate, clock=MockClock(autojump_threshold=0))


# ---- while pages follow the guest ----


def following(cuts: tuple[int, ...], **changes: object) -> Resuming:
    """A post-copy migration over a slow link: what is cut after some pages is cut while they follow."""
    migration = Resuming(
        cuts=cuts,
        link={"identities": ("host-s", "host-d"), "rate_bytes_s": 1e6},
        source_options={"policy": PolicySettings(switchover="post-copy")},
        destination_options={"post_copy": True},
        **changes,
    )
    migration.check = lambda: None  # it looks at all pages when the guest begins to run
    return migration


def check_whole(migration: Resuming) -> None:
    """The guest runs there with all of its pages, and each side says so."""
    assert migration.outcomes == (Outcome.COMPLETED, Outcome.COMPLETED)
    source, destination = migration.results["source"], migration.results["destination"]
    assert source.digest == destination.digest != b""
    for after in (source.after, destination.after):
        assert after.stale == after.demanded + after.pushed == 64
    assert migration.guest.released
    assert not migration.guest.running
    assert migration.room.running
    assert migration.room.workload.audit().errors == migration.room.workload.errors == 0


async def test_a_link_that_is_cut_while_pages_follow_comes_back(virtual_time: Clock) -> None:
    """[RES-13] [RES-4] Twice, and the second time on a connection that took it up again."""
    migration = following((BYTES // 3, BYTES // 3))
    await migration.run()
    check_whole(migration)
    assert [result.resumed for result in migration.results.values()] == [2, 2]
    assert [each.took_up for each in migration.others] == [True, True]
    assert migration.sessions._kept == {}


async def test_what_the_guest_waits_for_meanwhile_is_asked_for_again(virtual_time: Clock) -> None:
    """[RES-13] [PCY-9] No fault is lost, however long the link is away."""
    migration = following((BYTES // 5,), refuse=4)  # inside of the first group, at which it stands
    await migration.run()
    check_whole(migration)
    assert migration.results["source"].after.requests > 0
    assert migration.results["destination"].after.demanded > 0


async def test_a_source_that_does_not_come_back_strands_the_guest(virtual_time: Clock) -> None:
    """[CON-64] [ONE-38] [RES-14] It runs on where it is, and the image is kept."""
    migration = following((BYTES // 3,), refuse=10_000)

    async def cancel() -> None:
        await migration.called.wait()
        for endpoint in (migration.source, migration.destination):
            with pytest.raises(LocalProtocolError) as caught:
                endpoint.cancel("enough")
            assert caught.value.code is ErrorCode.TOO_LATE

    await migration.run(cancel)
    assert migration.outcomes == (Outcome.MOVED, Outcome.STRANDED)
    source, destination = migration.results["source"], migration.results["destination"]
    assert source.code is destination.code is ErrorCode.CONNECTION_LOST
    assert 60 <= migration.seconds < 60 + 2 * LONGEST_WAIT_S
    assert not migration.guest.released
    assert not migration.guest.running
    assert migration.room.running
    assert destination.after.demanded + destination.after.pushed < destination.after.stale


async def test_a_destination_that_forgets_the_session_gets_no_guest_back(virtual_time: Clock) -> None:
    """[RES-3] [ONE-20] Nothing that it says makes the guest run here again."""
    migration = following((BYTES // 3,))

    async def forget() -> None:
        await migration.called.wait()
        migration.sessions._kept.clear()

    await migration.run(forget)
    source = migration.results["source"]
    assert (source.outcome, source.code, source.by_peer) == (Outcome.MOVED, ErrorCode.BAD_TOKEN, True)
    assert not migration.guest.running
    assert not migration.guest.released


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_an_endpoint_that_is_cancelled_while_the_guest_waits(virtual_time: Clock, side: str) -> None:
    """[CON-64] Nothing is freed, and nothing run twice."""
    migration = following((BYTES // 3,), refuse=10_000)
    endpoint = getattr(migration, side)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as migration.nursery:
            migration.nursery.start_soon(migration.source.run)
            migration.nursery.start_soon(migration.destination.run)
            await migration.called.wait()
            scope.cancel()
    assert endpoint.result.outcome is (Outcome.MOVED if side == "source" else Outcome.STRANDED)
    assert not migration.guest.running
    assert migration.room.running
