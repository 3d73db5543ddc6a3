"""A guest's first claim: whoever starts one that is to have slots in a lease store claims epoch 1 before."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from sterna.core.records import NO_SESSION, RunnerRecord
from sterna.errors import ConfigError, StoreUnavailable
from sterna.host.lease import LeaseStore, claim_until_named
from sterna.host.records_shelf import RecordsShelf
from sterna.wire.records import NO_ID, Runner


async def claim_first(
    shelf: RecordsShelf,
    store: LeaseStore,
    guest: bytes,
    host: str,
    image: bytes,
    *,
    silent: Callable[[StoreUnavailable], None] = lambda _: None,
) -> Runner:
    """The runner under which the guest may begin its life here [ONE-54] [ONE-10].

    A claim of the same image that an earlier process has on record is repeated [ONE-7].

    Args:
        shelf: this host's records.
        store: the lease store.
        guest: its id.
        host: this host's name.
        image: what will run, in whose holder it is.
        silent: told of each time that the store did not answer.

    Raises:
        ConfigError: the guest exists already.
        RecordError: BUSY, RECORD_FAILED.
        StoreDamaged: an operator has to look.
    """
    async with shelf.opened(guest) as keeper:
        assert keeper is not None
        made = keeper.history.runners(1, image)
        runner = next(iter(made), None) or Runner(host, secrets.token_bytes(len(NO_ID)))
        if not made:
            await keeper.append(RunnerRecord(NO_SESSION, 1, runner, image))
        named = await claim_until_named(store, guest, 1, runner, silent=silent)
        if named != runner:
            raise ConfigError(
                f"guest {guest.hex()} exists: {named.host!r} has claimed its first epoch; "
                "an id is one guest's for ever"
            )
        return runner
