from __future__ import annotations

import pytest
import trio

from sterna.errors import StoreUnavailable
from sterna.host.lease import Slot
from sterna.host.lease_memory import MemoryLeaseStore
from sterna.testing import Fault, FaultyStore
from sterna.wire.records import Runner

GUEST = bytes(range(16))
RUNNER = Runner("host", b"r" * 16)


@pytest.mark.parametrize(
    ("fault", "silent", "filled"),
    [
        (Fault.NONE, False, True),
        (Fault.OUTAGE, True, False),
        (Fault.LOST_REPLY, True, True),
        (Fault.LATE, True, False),
        (Fault.DOUBLED, False, True),
        (Fault.SLOW, False, True),
    ],
)
async def test_each_fault(
    fault: Fault, silent: bool, filled: bool, autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryLeaseStore()
    faulty = FaultyStore(store, [fault], slow_s=3600)
    if silent:
        with pytest.raises(StoreUnavailable, match="ask again"):
            await faulty.claim(GUEST, 1, RUNNER)
    else:
        assert await faulty.claim(GUEST, 1, RUNNER) == RUNNER
    assert (await store.read(GUEST, 1) == RUNNER) is filled
    assert trio.current_time() == (3600 if fault is Fault.SLOW else 0)
    await faulty.land()
    assert (await store.read(GUEST, 1) == RUNNER) is (filled or fault is Fault.LATE)


async def test_faults_end_and_befall_reads_too() -> None:
    faulty = FaultyStore(MemoryLeaseStore(), [Fault.OUTAGE, Fault.LOST_REPLY])
    with pytest.raises(StoreUnavailable):
        await faulty.read(GUEST, 1)
    with pytest.raises(StoreUnavailable):
        await faulty.newest(GUEST)
    await faulty.claim(GUEST, 1, RUNNER)
    assert await faulty.newest(GUEST) == Slot(1, RUNNER)
    assert await faulty.watch(GUEST, 1) == RUNNER
    assert faulty.calls == 4
    await faulty.aclose()


async def test_what_lands_into_an_outage_is_gone() -> None:
    class Down(MemoryLeaseStore):
        async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
            raise StoreUnavailable("down")

    faulty = FaultyStore(Down(), [Fault.LATE])
    with pytest.raises(StoreUnavailable, match="no answer yet"):
        await faulty.claim(GUEST, 1, RUNNER)
    await faulty.land()
