"""Lease stores: who may run a guest, as a chain of slots that are written once.

A store maps (guest, epoch) to a runner. Slot e + 1 is filled only if slot e is filled and e + 1 is empty, in
one atomic step; a filled slot never changes and never expires. There is no lease time and no renewal: *lease*
is the field's word for what such a store keeps, and time plays no part in it (spec/protocol.md, chapter 11).

What makes that safe over a network that loses answers is that a claim can be repeated. It always ends in the
name of the slot's runner, whoever's that is, so a claimant does not ask "did my claim succeed?" but "whose is
the slot?", as often as it likes. An exception never means that the slot is not filled: the claim may have
arrived, or may still be on its way. Therefore the one thing to do with `StoreUnavailable` is to ask again,
which is what `claim_until_named` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from sterna.core.verdict import Slot
from sterna.errors import StoreUnavailable
from sterna.net.pauses import Pauses
from sterna.wire.records import Runner

__all__ = ["LeaseStore", "Slot", "claim_until_named"]

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0  # an operator who brings a store back does not wait longer than that


class LeaseStore(Protocol):
    """A lease store, or a connection to one. Calls may be concurrent, and cancelled.

    All calls raise `StoreUnavailable` if there is no answer within the store's deadline, `StoreDamaged` if
    there is one that no store can give, and ValueError for a guest, epoch or runner that can be in no slot.
    A cancelled claim may take effect at any later time, as one that failed may.
    """

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        """Fill the slot if it is empty and its predecessor filled; the runner that it holds afterwards.

        None if it is still empty, because the predecessor is. That decides nothing [ONE-2, ONE-8].
        """
        ...

    async def read(self, guest: bytes, epoch: int) -> Runner | None:
        """The slot's runner, None if it is empty now. Whoever is named stays named [ONE-3]."""
        ...

    async def newest(self, guest: bytes) -> Slot | None:
        """The filled slot with the highest epoch; None if the guest has none."""
        ...

    async def watch(self, guest: bytes, epoch: int) -> Runner:
        """Wait until the slot is filled; its runner. Cancel it to stop; silence of the store does not."""
        ...

    async def aclose(self) -> None:
        """Let go of connections. What is on its way may still arrive."""
        ...


async def claim_until_named(
    store: LeaseStore,
    guest: bytes,
    epoch: int,
    runner: Runner,
    *,
    silent: Callable[[StoreUnavailable], None] = lambda _: None,
    unnamed: Callable[[str], None] = lambda _: None,
) -> Runner:
    """Repeat this claim, identically, until the store names the slot's runner [ONE-7].

    There is no deadline here on purpose: whoever has sent a claim is a claimant until the slot is filled
    [ONE-8], and a deadline that turned into "it failed" would be a lie.

    Args:
        store: the store.
        guest: its id, 16 bytes.
        epoch: the slot's number.
        runner: recorded before this is called [ONE-5].
        silent: told of each time that the store did not answer, for the operator's log.
        unnamed: told why, each time that it did, and the slot is empty still [ONE-2]. With the store that
            others have claimed in that does not happen: somebody has to look which one this is.

    Raises:
        StoreDamaged: repeating does not help; an operator has to look.
    """
    pauses = Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
    while True:
        try:
            named = await store.claim(guest, epoch, runner)
        except StoreUnavailable as error:
            silent(error)
        else:
            if named is not None:
                return named
            unnamed(f"slot {epoch} is empty still, for slot {epoch - 1} is: is it the store of before?")
        await pauses.next()
