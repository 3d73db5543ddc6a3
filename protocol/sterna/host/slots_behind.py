"""What a lease store says of a session, as a judgement takes it."""

from __future__ import annotations

from sterna.core.history import History
from sterna.core.records import SessionRecord
from sterna.core.verdict import Store
from sterna.errors import StoreDamaged, StoreUnavailable
from sterna.host.lease import LeaseStore
from sterna.registry import Owner


async def slots_behind(store: LeaseStore | None, history: History, session: SessionRecord) -> Store | None:
    """The two slots behind the session's epoch; None where it had no store [ONE-65].

    What is at hand by now does not count: whoever has started this process may have left it out.

    A source's session that is decided for the destination asks no store, which may be gone for good. That is
    safe: the record excludes the other decision for ever, and whatever the slots hold, nothing is run here by
    this session any more. The answer is that of a silent store, from which nobody concludes anything.

    Args:
        store: the one at hand.
        history: of the guest.
        session: of that history.

    Raises:
        StoreDamaged: an operator has to look: the session had a store, and it is not this one.
    """
    if not session.store:
        return None
    decision = history.decision(session.session)  # only a source's session has one
    if decision is not None and decision.owner is Owner.DESTINATION:
        return Store(answers=False)
    guest, epoch = history.guest, session.epoch
    told = f"guest {guest.hex()} was sent under epoch {epoch} with a lease store"
    if store is None:
        raise StoreDamaged(f"{told}, and only that can tell who owns it: name it with --store")
    try:
        newest = await store.newest(guest)
        if newest is None:
            raise StoreDamaged(f"{told}, and there is no slot of it in this one: name the one that it had")
        following = await store.read(guest, epoch + 1) if newest.epoch > epoch else None
        after = await store.read(guest, epoch + 2) if newest.epoch > epoch + 1 else None
    except StoreUnavailable:
        return Store(answers=False)
    return Store(next=following, after=after)
