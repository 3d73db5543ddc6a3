"""A lease store behind everything that a network and a dying claimant do to claims and answers.

::

    faulty = FaultyStore(store, [Fault.LOST_REPLY, Fault.LATE])
    await claim_until_named(faulty, guest, 1, runner)
    await faulty.land()  # what was late arrives now, whoever has given up or died meanwhile

Faults befall the calls in order, one each; after the last of them nothing happens any more. No fault needs
time: a late claim lands when the test says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from enum import Enum
from typing import TypeVar

import trio

from sterna.errors import StoreUnavailable
from sterna.host.lease import LeaseStore, Slot
from sterna.wire.records import Runner

T = TypeVar("T")


class Fault(Enum):
    """What befalls one call."""

    NONE = "the answer comes"
    OUTAGE = "the call does not reach the store"
    LOST_REPLY = "it reaches the store, the answer is lost"
    LATE = "the caller hears nothing, and the call reaches the store when `land` is called"
    DOUBLED = "it reaches the store twice, the second time when `land` is called"
    SLOW = "it reaches the store, and the answer comes after a while"


class FaultyStore:
    """A `LeaseStore` in front of another.

    Args:
        store: the real one.
        faults: what befalls each call.
        slow_s: how long a slow answer takes.

    Attributes:
        calls: how many calls were made.
    """

    def __init__(self, store: LeaseStore, faults: Iterable[Fault] = (), *, slow_s: float = 1.0) -> None:
        self._store = store
        self._faults: Iterator[Fault] = iter(faults)
        self._slow_s = slow_s
        self._on_the_way: list[Callable[[], Awaitable[object]]] = []
        self.calls = 0

    async def land(self) -> None:
        """What was late reaches the store, in the order in which it was sent. Nobody reads the answers."""
        landing, self._on_the_way = self._on_the_way, []
        for call in landing:
            with suppress(StoreUnavailable):
                await call()

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        """A claim, with what befalls it."""
        return await self._befall(lambda: self._store.claim(guest, epoch, runner))

    async def read(self, guest: bytes, epoch: int) -> Runner | None:
        """A read, with what befalls it."""
        return await self._befall(lambda: self._store.read(guest, epoch))

    async def newest(self, guest: bytes) -> Slot | None:
        """Likewise."""
        return await self._befall(lambda: self._store.newest(guest))

    async def watch(self, guest: bytes, epoch: int) -> Runner:
        """As the store does it: silence does not end it anyway."""
        return await self._store.watch(guest, epoch)

    async def aclose(self) -> None:
        """Let go of the store. What is late stays on its way."""
        await self._store.aclose()

    async def _befall(self, call: Callable[[], Awaitable[T]]) -> T:
        self.calls += 1
        fault = next(self._faults, Fault.NONE)
        if fault is Fault.OUTAGE:
            raise StoreUnavailable("nothing was sent: the store is out of reach; ask again")
        if fault is Fault.LATE:
            self._on_the_way.append(call)
            raise StoreUnavailable("no answer yet; ask again")
        answer = await call()
        if fault is Fault.LOST_REPLY:
            raise StoreUnavailable("the answer was lost; ask again")
        if fault is Fault.DOUBLED:
            self._on_the_way.append(call)
        if fault is Fault.SLOW:
            await trio.sleep(self._slow_s)
        return answer
