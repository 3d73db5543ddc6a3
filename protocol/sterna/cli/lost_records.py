"""A guest that may have left in a session of which no record is left: an operator decides, by its mark.

The mark says under which epoch HANDOVER may have left, and not to whom [ONE-61]. So nobody can be asked, and
only an operator's word lets the guest run again [ONE-47]. With that word the records begin anew, with a
session of which nothing is known but its epoch; what is left of the old ones stays, renamed [LOG-6].
"""

from __future__ import annotations

import secrets
from pathlib import Path

from sterna.core.records import SessionRecord, Side
from sterna.core.verdict import Judgement, Step
from sterna.errors import ConfigError
from sterna.guest.holder_client import connect_holder
from sterna.host.lease import LeaseStore
from sterna.host.records_keeper import peek, set_aside
from sterna.host.records_log import RecordsMissing
from sterna.host.records_shelf import RecordsShelf
from sterna.host.recovery import Tell, guest_in
from sterna.registry import Owner
from sterna.wire.records import NO_ID, NO_TOKEN


async def begin_anew(
    shelf: RecordsShelf, guest: bytes, holder: Path, *, store: LeaseStore | None, tell: Tell
) -> None:
    """Have a session on record for the mark of the guest's holder [ONE-59]; nothing where there is one.

    Args:
        shelf: where the records were.
        guest: its id.
        holder: the socket of its holder.
        store: in which the guest has slots; None where it has none, as the operator says.
        tell: told of what is done, for people.

    Raises:
        ConfigError: the holder has no such guest, or none that may have left.
        GuestError: the holder is not there, or does not answer.
        RecordError: BUSY, RECORD_FAILED.
        StoreUnavailable: the store does not answer, and nothing is begun.
        StoreDamaged: an operator has to look into it.
    """
    async with await connect_holder(holder, role="observer") as connection:
        mark = connection.attached.granted_epoch if await guest_in(connection) == guest else 0
    if not mark:
        raise ConfigError(
            f"--records-lost: in {holder} is no such guest that may have left. At a destination nothing is "
            f"begun anew: decide it at its source, then move {shelf.directory}/{guest.hex()} away"
        )
    await _check_slots(store, guest, mark - 1)
    try:
        async with shelf.opened(guest) as keeper:
            assert keeper is not None
            sessions = keeper.history.each(SessionRecord)
            if not any((each.side, each.epoch + 1) == (Side.SOURCE, mark) for each in sessions):
                made = secrets.token_bytes(len(NO_ID))
                stored = store is not None
                await keeper.append(SessionRecord(made, mark - 1, Side.SOURCE, NO_TOKEN, "", store=stored))
                tell(f"records begin anew: the guest may have left under epoch {mark}, nobody knows to whom")
    except RecordsMissing:
        await _clear(shelf, guest, tell)
        await begin_anew(shelf, guest, holder, store=store, tell=tell)


async def cleared(shelf: RecordsShelf, guest: bytes, holder: Path, tell: Tell) -> Judgement | None:
    """Set aside records that do not count, of a guest that runs here: without a mark it cannot have left.

    Returns:
        What is certain of it then; None if it does not run in this holder, or its records count.

    Raises:
        GuestError: the holder is not there, or does not answer.
        RecordError: BUSY, RECORD_FAILED.
    """
    async with await connect_holder(holder, role="observer") as connection:
        status, held = connection.attached, await guest_in(connection)
    assert shelf.directory is not None
    try:
        await peek(shelf.directory, guest)
    except RecordsMissing:
        if held != guest or status.state != "running" or status.granted_epoch:
            return None
        await _clear(shelf, guest, tell)
        why = "it runs in the holder, and has no mark by which it could have left"
        return Judgement(Owner.SOURCE, why, "ONE-22", Step.NONE, status.epoch)
    return None


async def _clear(shelf: RecordsShelf, guest: bytes, tell: Tell) -> None:
    assert shelf.directory is not None
    moved = await set_aside(shelf.directory, guest, purpose="sterna resolve")
    tell(f"records that do not count any more stay as {', '.join(moved)}")


async def _check_slots(store: LeaseStore | None, guest: bytes, epoch: int) -> None:
    """What is recorded of a store binds whoever comes later [ONE-65]: a wrong one would for ever."""
    newest = None if store is None else await store.newest(guest)
    if store is not None and (newest is None or newest.epoch < epoch):
        raise ConfigError(
            f"--store: the guest has run under epoch {epoch}, and has no slot of it there: name the one that "
            "it had, or none, if its holder was started without"
        )
