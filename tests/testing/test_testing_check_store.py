"""The check is checked: every law is broken by some store, and the message names that law."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import pytest
import trio

from sterna.host.lease import LeaseStore, Slot
from sterna.host.lease_memory import MemoryLeaseStore, SlotTable
from sterna.host.slots import check_guest_id, check_place
from sterna.testing import check_store
from sterna.testing import check_store as public
from sterna.wire.records import Runner


def shared(store: LeaseStore) -> Callable[[], Awaitable[LeaseStore]]:
    async def connect() -> LeaseStore:
        return store

    return connect


class LastWins(MemoryLeaseStore):
    """A claim replaces what is there."""

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        await super().claim(guest, epoch, runner)
        chain = self.table._chains[guest]
        if epoch <= len(chain):
            chain[epoch - 1] = runner
        return self.table.read(guest, epoch)


class CheckThenAct(MemoryLeaseStore):
    """Looks first, and fills a moment later."""

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        named = self.table.read(guest, epoch)
        await trio.lowlevel.checkpoint()
        if named is None and self.table.claim(guest, epoch, runner) is not None:
            self.table._chains[guest][epoch - 1] = runner
            self._filled.unpark_all()
            return runner
        return named


class AnyOrder(MemoryLeaseStore):
    """Fills any slot."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[tuple[bytes, int], Runner] = {}

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        check_place(guest, epoch)
        return self.slots.setdefault((guest, epoch), runner)


class LiesInWait(MemoryLeaseStore):
    """Keeps a claim that came too early, and makes it when its time has come."""

    def __init__(self) -> None:
        super().__init__()
        self.early: dict[tuple[bytes, int], Runner] = {}

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        named = await super().claim(guest, epoch, runner)
        if named is None:
            self.early[guest, epoch] = runner
        elif (waiting := self.early.get((guest, epoch + 1))) is not None:
            await super().claim(guest, epoch + 1, waiting)
        return named


class OneChain(MemoryLeaseStore):
    """One chain for all guests."""

    async def newest(self, guest: bytes) -> Slot | None:
        check_guest_id(guest)
        chains = [each for each in self.table._chains if self.table.newest(each)]
        own = self.table.newest(guest)
        return (
            own
            if own or not chains or guest == chains[0] or len(chains) > 1
            else self.table.newest(chains[0])
        )


class TellsOnlyWinners(MemoryLeaseStore):
    """Answers a lost claim with nothing."""

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        named = await super().claim(guest, epoch, runner)
        return named if named == runner else None


class TellsWhatYouLike(MemoryLeaseStore):
    """Answers every claim with its own runner."""

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        return await super().claim(guest, epoch, runner) and runner


class KnowsHostsOnly(MemoryLeaseStore):
    """Forgets the ids."""

    async def read(self, guest: bytes, epoch: int) -> Runner | None:
        named = await super().read(guest, epoch)
        return named and Runner(named.host, b"x" * 16)


class Expires(MemoryLeaseStore):
    """Forgets a slot when the next one is filled."""

    async def read(self, guest: bytes, epoch: int) -> Runner | None:
        newest = self.table.newest(guest)
        check_place(guest, epoch)
        return newest.runner if newest and newest.epoch == epoch else None


class RepeatsFail(MemoryLeaseStore):
    """Takes a repeated claim for a lost one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Runner] = set()

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        named = await super().claim(guest, epoch, runner)
        again = runner in self.seen
        if named == runner:
            self.seen.add(runner)
        return Runner("somebody else", b"x" * 16) if again else named


class WatchesNothing(MemoryLeaseStore):
    """A watch that ends at once."""

    async def watch(self, guest: bytes, epoch: int) -> Runner:
        await trio.lowlevel.checkpoint()
        return self.table.read(guest, epoch) or Runner("nobody", b"x" * 16)


class TakesAnything(MemoryLeaseStore):
    """Checks nothing."""

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        try:
            return await super().claim(guest, epoch, runner)
        except ValueError:
            return runner


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (LastWins, "repeating a claim changes nothing|a claim is answered"),
        (CheckThenAct, "a slot is filled once"),
        (AnyOrder, "slot n [+] 1 is filled only if slot n is"),
        (LiesInWait, "slot n [+] 1 is filled only if slot n is: slot 2 was filled by a claim that came too"),
        (OneChain, "chains of different guests"),
        (TellsOnlyWinners, "a claim is answered with the slot's runner"),
        (TellsWhatYouLike, "a claim is answered with the slot's runner"),
        (KnowsHostsOnly, "whoever was named is named ever after"),
        (Expires, "whoever was named is named ever after"),
        (RepeatsFail, "repeating a claim changes nothing"),
        (WatchesNothing, "a watch ends with the slot's runner"),
        (TakesAnything, "what can be in no slot is refused"),
    ],
)
async def test_a_broken_store_is_found(
    broken: type[MemoryLeaseStore], law: str, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(AssertionError, match=law):
        await check_store(shared(broken()))


@pytest.mark.slow
async def test_processes_that_were_told_different_things() -> None:
    """A claimant whose store is its own, as with a mount that is missing on one host."""
    program = """if True:
        import sys
        print("ready", flush=True)
        sys.stdin.readline()
        guest, host, epochs = sys.argv[1:]
        for epoch in range(1, int(epochs) + 1):
            print(epoch, host, f"{epoch:032x}")
        """
    with pytest.raises(AssertionError, match="a slot is filled once"):
        await check_store(shared(MemoryLeaseStore()), claimant=[sys.executable, "-c", program], processes=2)


def test_the_table_is_the_reference() -> None:
    assert isinstance(MemoryLeaseStore().table, SlotTable)
    assert public is check_store
