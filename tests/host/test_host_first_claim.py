"""A guest's first epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.abc import Clock

from records_support import GUEST, IMAGE, OTHERS
from sterna.core.records import RunnerRecord
from sterna.errors import ConfigError
from sterna.host.first_claim import claim_first
from sterna.host.lease_memory import MemoryLeaseStore
from sterna.host.records_shelf import RecordsShelf
from sterna.testing.faulty_store import Fault, FaultyStore


async def test_it_is_recorded_then_claimed_and_repeated(tmp_path: Path, autojump_clock: Clock) -> None:
    """[ONE-5] [ONE-7] [ONE-54]"""
    store, shelf, silences = MemoryLeaseStore(), RecordsShelf(tmp_path), []
    faulty = FaultyStore(store, [Fault.OUTAGE, Fault.LOST_REPLY])
    runner = await claim_first(shelf, faulty, GUEST, "here", IMAGE, silent=silences.append)
    assert await store.read(GUEST, 1) == runner
    assert len(silences) == 2
    async with shelf.opened(GUEST) as keeper:
        assert keeper is not None
        (record,) = keeper.history.each(RunnerRecord)
        assert (record.epoch, record.runner, record.image) == (1, runner, IMAGE)
    assert await claim_first(shelf, store, GUEST, "here", IMAGE) == runner


async def test_an_id_is_one_guest_s(tmp_path: Path) -> None:
    store = MemoryLeaseStore()
    await store.claim(GUEST, 1, OTHERS)
    with pytest.raises(ConfigError, match="'there' has claimed its first epoch"):
        await claim_first(RecordsShelf(tmp_path), store, GUEST, "here", IMAGE)
