"""A lease store in the memory of one process: for simulation and tests, and as the rules in plain words."""

from __future__ import annotations

import trio

from sterna.core.verdict import Slot
from sterna.host.slots import check_guest_id, check_place, check_runner
from sterna.wire.records import Runner


class SlotTable:
    """The rules of a lease store [ONE-1 to ONE-3] without time, processes or failures."""

    def __init__(self) -> None:
        self._chains: dict[bytes, list[Runner]] = {}

    def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        """Fill the slot if it is the next one; the runner that it holds afterwards."""
        check_place(guest, epoch)
        check_runner(runner)
        chain = self._chains.setdefault(guest, [])
        if epoch == len(chain) + 1:
            chain.append(runner)
        return self.read(guest, epoch)

    def read(self, guest: bytes, epoch: int) -> Runner | None:
        """The slot's runner, None if it is empty."""
        check_place(guest, epoch)
        chain = self._chains.get(guest, [])
        return chain[epoch - 1] if epoch <= len(chain) else None

    def newest(self, guest: bytes) -> Slot | None:
        """The filled slot with the highest epoch."""
        chain = self._chains.get(check_guest_id(guest))
        return Slot(len(chain), chain[-1]) if chain else None


class MemoryLeaseStore:
    """A `LeaseStore` for everybody in this process: all claimants share the one object.

    Attributes:
        table: the slots.
    """

    def __init__(self) -> None:
        self.table = SlotTable()
        self._filled = trio.lowlevel.ParkingLot()

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        """Fill the slot if it is the next one."""
        named = self.table.claim(guest, epoch, runner)
        self._filled.unpark_all()
        await trio.lowlevel.checkpoint()  # behind the deed: a cancelled claim may have been made
        return named

    async def read(self, guest: bytes, epoch: int) -> Runner | None:
        """The slot's runner."""
        await trio.lowlevel.checkpoint()
        return self.table.read(guest, epoch)

    async def newest(self, guest: bytes) -> Slot | None:
        """The filled slot with the highest epoch."""
        await trio.lowlevel.checkpoint()
        return self.table.newest(guest)

    async def watch(self, guest: bytes, epoch: int) -> Runner:
        """Wait until the slot is filled."""
        while (runner := self.table.read(guest, epoch)) is None:
            await self._filled.park()
        await trio.lowlevel.checkpoint()
        return runner

    async def aclose(self) -> None:
        """Nothing to let go of."""
        await trio.lowlevel.checkpoint()
