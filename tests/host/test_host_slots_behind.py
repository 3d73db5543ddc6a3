"""What a judgement is told of a store."""

from __future__ import annotations

import pytest

from records_support import GUEST, ONE, OTHERS, OURS, SENDING, STORED
from sterna.core.history import History
from sterna.core.records import Decided, Record, Resolved
from sterna.core.verdict import Store
from sterna.errors import StoreDamaged
from sterna.host.lease_memory import MemoryLeaseStore
from sterna.host.slots_behind import slots_behind
from sterna.registry import Owner
from sterna.testing.faulty_store import Fault, FaultyStore
from sterna.wire.records import Runner

FIRST = Runner("there", b"1" * 16)
NOTHING = History(GUEST)


async def test_two_slots_behind_the_session_s() -> None:
    """[ONE-65] What counts is whether the session had a store, and not whether there is one now."""
    store = MemoryLeaseStore()
    for at_hand in None, store:
        assert await slots_behind(at_hand, NOTHING, SENDING) is None
        with pytest.raises(StoreDamaged, match="with a lease store"):
            await slots_behind(at_hand, NOTHING, STORED)
    seen = []
    for epoch, runner in enumerate((FIRST, OURS, OTHERS), 1):
        await store.claim(GUEST, epoch, runner)
        seen.append(await slots_behind(store, NOTHING, STORED))
    assert seen == [Store(), Store(next=OURS), Store(next=OURS, after=OTHERS)]
    assert await slots_behind(store, NOTHING, SENDING) is None


async def test_silence_is_no_empty_slot() -> None:
    """[ONE-8] [ONE-31]"""
    store = MemoryLeaseStore()
    await store.claim(GUEST, 1, FIRST)
    await store.claim(GUEST, 2, OURS)
    for faults in ([Fault.OUTAGE], [Fault.NONE, Fault.LOST_REPLY]):
        assert await slots_behind(FaultyStore(store, faults), NOTHING, STORED) == Store(answers=False)


@pytest.mark.parametrize("store", [None, MemoryLeaseStore()])
async def test_what_is_decided_for_the_destination_needs_no_store(store: MemoryLeaseStore | None) -> None:
    """[ONE-65] Of one decided for the source it says still under which epoch that runs the guest."""

    def decided(record: Record) -> History:
        return NOTHING.after(STORED).after(record)

    for record in Decided(ONE, 2, Owner.DESTINATION), Resolved(ONE, 2, Owner.DESTINATION):
        assert await slots_behind(store, decided(record), STORED) == Store(answers=False)
    with pytest.raises(StoreDamaged):
        await slots_behind(store, decided(Resolved(ONE, 2, Owner.SOURCE, "there")), STORED)
