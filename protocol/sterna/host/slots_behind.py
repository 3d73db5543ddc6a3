"""What a lease store says of a session, as a judgement takes it."""

from __future__ import annotations

from sterna.core.verdict import Store
from sterna.errors import StoreUnavailable
from sterna.host.lease import LeaseStore


async def slots_behind(store: LeaseStore | None, guest: bytes, epoch: int) -> Store | None:
    """The two slots behind `epoch`, the n of a session. None where the session had no store.

    Records do not say whether a session had one. But where the guest has a slot, no session goes without
    [ONE-55], and without a slot none goes with a store [ONE-54]. A store that does not answer may have one.

    Raises:
        StoreDamaged: an operator has to look.
    """
    if store is None:
        return None
    try:
        newest = await store.newest(guest)
        if newest is None:
            return None
        following = await store.read(guest, epoch + 1) if newest.epoch > epoch else None
        after = await store.read(guest, epoch + 2) if newest.epoch > epoch + 1 else None
    except StoreUnavailable:
        return Store(answers=False)
    return Store(next=following, after=after)
