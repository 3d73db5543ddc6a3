from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sterna.core.verdict import Slot
from sterna.host.lease_memory import MemoryLeaseStore, SlotTable
from sterna.testing.check_store import check_store
from sterna.wire.records import Runner

GUESTS = [bytes([number]) * 16 for number in (1, 2)]


async def test_it_passes_the_check() -> None:
    """[ONE-1, ONE-2, ONE-3, ONE-7]"""
    store = MemoryLeaseStore()

    async def connect() -> MemoryLeaseStore:
        return store

    await check_store(connect)


class Chains(RuleBasedStateMachine):
    """Whatever is claimed in whatever order, slots are filled one after the other, and never change."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable()
        self.filled: dict[tuple[bytes, int], Runner] = {}

    @rule(
        guest=st.sampled_from(GUESTS),
        epoch=st.integers(1, 6),
        host=st.sampled_from("ab"),
        number=st.integers(1, 3),
    )
    def claim(self, guest: bytes, epoch: int, host: str, number: int) -> None:
        runner = Runner(host, bytes([number]) * 16)
        before = self.filled.get((guest, epoch))
        reachable = epoch == 1 or (guest, epoch - 1) in self.filled
        named = self.table.claim(guest, epoch, runner)
        assert named == (before or (runner if reachable else None))
        if named is not None:
            self.filled[guest, epoch] = named

    @invariant()
    def nothing_else_is_filled(self) -> None:
        for guest in GUESTS:
            epochs = [epoch for one, epoch in self.filled if one == guest]
            assert sorted(epochs) == list(range(1, len(epochs) + 1))
            newest = Slot(len(epochs), self.filled[guest, len(epochs)]) if epochs else None
            assert self.table.newest(guest) == newest
            for epoch in range(1, 8):
                assert self.table.read(guest, epoch) == self.filled.get((guest, epoch))


TestChains = pytest.mark.slow(Chains.TestCase)
