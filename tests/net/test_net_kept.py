"""Who has a kept session, at any time. How endpoints use it: test_net_endpoint_resume.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from resume_net_support import Resuming
from trio.abc import Clock

from sterna.errors import LocalProtocolError, RemoteProtocolError
from sterna.net.kept import KeptSession, Sessions
from sterna.net.transport import Peer
from sterna.registry import ErrorCode

BYTES = 64 * 4096


@pytest.fixture
def virtual_time(autojump_clock: Clock) -> Clock:
    return autojump_clock


async def while_lost(migration: Resuming) -> KeptSession:
    """The session, when its first connection is gone."""
    await migration.called.wait()
    (kept,) = migration.sessions._kept.values()
    return kept


async def test_a_resumption_that_is_refused_touches_nothing(virtual_time: Clock) -> None:
    """[RES-1] [RES-2] [RES-3] [RES-4] Neither the carry nor the connection that has it by then."""
    migration = Resuming(cuts=(BYTES // 2,), link={"identities": ("host-s", "host-d"), "rate_bytes_s": 2e5})

    async def attack() -> None:
        kept = await while_lost(migration)
        good = kept.ticket.next_hello()
        for hello in (
            replace(good, token=bytes(32)),
            replace(good, generation=0),
            replace(good, epoch=good.epoch + 1),
        ):
            with pytest.raises(RemoteProtocolError):
                await kept.hand_over(hello)
        await migration.back.wait()
        with pytest.raises(RemoteProtocolError) as error:
            await kept.hand_over(good)  # its generation has come once
        assert error.value.code is ErrorCode.BAD_TOKEN
        with pytest.raises(LocalProtocolError):
            migration.sessions.find(good, Peer("memory", "host-x"))
        assert migration.sessions.find(replace(good, session=b"x" * 16), kept.peer) is None
        assert migration.sessions.find(good, kept.peer) is kept

    await migration.run(attack)
    migration.check_moved()
    assert migration.results["source"].resumed == 1


async def test_a_newer_connection_ends_the_older_one_first(virtual_time: Clock) -> None:
    """[RES-4] The source's own connection is lost by that, and it comes back with a higher generation."""
    migration = Resuming(cuts=(BYTES // 2,), link={"identities": ("host-s", "host-d"), "rate_bytes_s": 2e5})

    async def another() -> None:
        kept = await while_lost(migration)
        await migration.back.wait()
        carry = await kept.hand_over(kept.ticket.next_hello())
        assert carry is not None
        kept._carry = carry  # and it is not used
        kept._change()

    await migration.run(another)
    migration.check_moved()
    assert migration.results["source"].resumed == 2


async def test_a_session_that_is_past_that_is_not_handed_over(virtual_time: Clock) -> None:
    """[RES-15]"""
    migration = Resuming(cuts=(100 * BYTES,))
    await migration.run()
    far = migration.destination
    kept = KeptSession(
        migration.far.peer,
        far._machine.ticket,
        far._machine,
        far._pump,
        perform=far._perform,
        on_event=lambda _: None,
    )
    kept.detach(far._machine)
    assert await kept.hand_over(kept.ticket.next_hello()) is None
    sessions = Sessions()
    sessions.add(kept)
    sessions.remove(kept)
    sessions.remove(kept)
    assert sessions.find(kept.ticket.next_hello(), kept.peer) is None


async def test_nobody_comes(virtual_time: Clock) -> None:
    """[RES-14] It is kept for the seconds that were agreed on, and no longer."""
    migration = Resuming(cuts=(BYTES // 2,), refuse=10_000, source_options={"resume_s": 7})
    await migration.run()
    assert 7 <= migration.seconds < 12
    assert trio.current_time() > 0


async def test_one_connection_at_a_time_looks_for_a_session(nursery: trio.Nursery) -> None:
    """However many come, and also while the turn goes from one to the next."""
    sessions, inside, most = Sessions(), 0, 0
    leave, entered = [trio.Event() for _ in range(4)], [trio.Event() for _ in range(4)]

    async def look(number: int) -> None:
        nonlocal inside, most
        async with sessions.turn(b"s"):
            inside += 1
            most = max(most, inside)
            entered[number].set()
            await leave[number].wait()
            inside -= 1

    nursery.start_soon(look, 0)
    await entered[0].wait()
    for number in (1, 2, 3):
        nursery.start_soon(look, number)  # it waits, or finds the turn with the one before
        await trio.testing.wait_all_tasks_blocked()
        leave[number - 1].set()
        await entered[number].wait()
    assert most == 1
    leave[3].set()
    await trio.testing.wait_all_tasks_blocked()
    assert not sessions._turns
