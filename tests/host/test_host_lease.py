from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from sterna.errors import StoreDamaged, StoreUnavailable
from sterna.host.lease import Slot, claim_until_named
from sterna.host.lease_memory import MemoryLeaseStore
from sterna.testing.faulty_store import Fault, FaultyStore
from sterna.wire.records import Runner

GUEST = bytes(range(16))
OURS, THEIRS = Runner("ours", b"o" * 16), Runner("theirs", b"t" * 16)


@pytest.mark.parametrize("fault", Fault)
async def test_a_claim_survives_every_fault(fault: Fault, autojump_clock: trio.testing.MockClock) -> None:
    """[ONE-7]"""
    store = MemoryLeaseStore()
    faulty = FaultyStore(store, [fault] * 5)
    assert await claim_until_named(faulty, GUEST, 1, OURS) == OURS
    await faulty.land()
    assert await store.newest(GUEST) == Slot(1, OURS)


async def test_a_claimant_that_heard_nothing_may_own_the_slot(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The first answer is lost, and another claims meanwhile: the repeated claim finds its own [ONE-8]."""
    store = MemoryLeaseStore()
    faulty = FaultyStore(store, [Fault.LOST_REPLY])
    with pytest.raises(StoreUnavailable):
        await faulty.claim(GUEST, 1, OURS)
    assert await store.claim(GUEST, 1, THEIRS) == OURS
    assert await claim_until_named(faulty, GUEST, 1, OURS) == OURS


async def test_a_claim_lands_after_its_claimant_has_died() -> None:
    """Before anybody else's it wins for the dead; behind it, it changes nothing [ONE-8]."""
    for others_first in (False, True):
        store = MemoryLeaseStore()
        faulty = FaultyStore(store, [Fault.LATE])
        with pytest.raises(StoreUnavailable):
            await faulty.claim(GUEST, 1, OURS)
        assert await store.read(GUEST, 1) is None  # which decides nothing
        if others_first:
            assert await store.claim(GUEST, 1, THEIRS) == THEIRS
        await faulty.land()
        winner = THEIRS if others_first else OURS
        assert await store.claim(GUEST, 1, THEIRS) == winner
        assert await store.newest(GUEST) == Slot(1, winner)


async def test_an_early_claim_waits_for_the_predecessor(autojump_clock: trio.testing.MockClock) -> None:
    """And the operator hears why: it may be another store than the one before [ONE-2]."""
    store, said = MemoryLeaseStore(), list[str]()
    named: list[Runner] = []

    async def claim_second() -> None:
        named.append(await claim_until_named(store, GUEST, 2, OURS, unnamed=said.append))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim_second)
        await trio.testing.wait_all_tasks_blocked()
        assert await store.newest(GUEST) is None
        await store.claim(GUEST, 1, THEIRS)
    assert named == [OURS]
    assert "slot 2 is empty still" in said[0]


async def test_the_operator_hears_of_the_silence(autojump_clock: trio.testing.MockClock) -> None:
    said: list[str] = []
    faulty = FaultyStore(MemoryLeaseStore(), [Fault.OUTAGE] * 20)
    start = trio.current_time()
    await claim_until_named(faulty, GUEST, 1, OURS, silent=lambda error: said.append(str(error)))
    assert len(said) == 20
    assert "ask again" in said[0]
    assert trio.current_time() - start < 20 * 2.1  # pauses grow, and stay short


async def test_damage_is_not_waited_out() -> None:
    class Damaged(MemoryLeaseStore):
        async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
            raise StoreDamaged("slot 1 has two runners")

    with pytest.raises(StoreDamaged, match="two runners"):
        await claim_until_named(Damaged(), GUEST, 1, OURS)


steps = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(Fault), st.booleans()), min_size=1, max_size=24)


@given(steps)
def test_claimants_agree_whatever_befalls_them(steps: list[tuple[int, Fault, bool]]) -> None:
    """Three claimants of one slot, any faults, late claims landing at any moment: once somebody is named,
    nobody is ever told anything else, and all are told in the end [ONE-3, ONE-7, ONE-8]."""

    async def play() -> None:
        store = MemoryLeaseStore()
        plans: list[list[Fault]] = [[], [], []]
        faulty = [FaultyStore(store, iter(plan.pop, None)) for plan in plans]
        runners = [Runner(f"host{number}", bytes([number + 1]) * 16) for number in range(3)]
        told: set[Runner] = set()
        for who, fault, land in steps:
            plans[who].append(fault)
            try:
                named = await faulty[who].claim(GUEST, 1, runners[who])
            except StoreUnavailable:
                named = None
            if named is not None:
                told.add(named)
            if land:
                await faulty[who].land()
        for who in range(3):
            await faulty[who].land()
            told.add(await claim_until_named(store, GUEST, 1, runners[who]))
        assert len(told) == 1
        assert told <= set(runners)

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))
