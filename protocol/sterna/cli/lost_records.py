"""A guest that may have left in a session of which no record is left: an operator decides, by its mark.

The mark says under which epoch HANDOVER may have left, and not to whom [ONE-61]. So nobody can be asked, and
only an operator's word lets the guest run again [ONE-47]. With that word the records begin anew, with a
session of which nothing is known but its epoch; what is left of the old ones stays, renamed [LOG-6].
"""

from __future__ import annotations

import secrets
from pathlib import Path

from sterna.core.records import SessionRecord, Side
from sterna.errors import ConfigError
from sterna.guest.holder_client import connect_holder
from sterna.host.records_keeper import set_aside
from sterna.host.records_log import RecordsMissing
from sterna.host.records_shelf import RecordsShelf
from sterna.host.recovery import Tell, guest_in
from sterna.wire.records import NO_ID, NO_TOKEN


async def begin_anew(shelf: RecordsShelf, guest: bytes, holder: Path, *, store: bool, tell: Tell) -> None:
    """Have a session on record for the mark of the guest's holder [ONE-59]; nothing where there is one.

    Args:
        shelf: where the records were.
        guest: its id.
        holder: the socket of its holder.
        store: whether the guest has slots, as the operator says.
        tell: told of what is done, for people.

    Raises:
        ConfigError: the holder has no such guest, or none that may have left.
        GuestError: the holder is not there, or does not answer.
        RecordError: BUSY, RECORD_FAILED.
    """
    async with await connect_holder(holder, role="observer") as connection:
        mark = connection.attached.granted_epoch if await guest_in(connection) == guest else 0
    if not mark:
        raise ConfigError(f"--records-lost: in {holder} is no such guest that may have left")
    try:
        async with shelf.opened(guest) as keeper:
            assert keeper is not None
            sessions = keeper.history.each(SessionRecord)
            if not any((each.side, each.epoch + 1) == (Side.SOURCE, mark) for each in sessions):
                made = secrets.token_bytes(len(NO_ID))
                await keeper.append(SessionRecord(made, mark - 1, Side.SOURCE, NO_TOKEN, "", store=store))
                tell(f"records begin anew: the guest may have left under epoch {mark}, nobody knows to whom")
    except RecordsMissing:
        assert shelf.directory is not None
        moved = await set_aside(shelf.directory, guest, purpose="sterna resolve")
        tell(f"records that do not count any more stay as {', '.join(moved)}")
        await begin_anew(shelf, guest, holder, store=store, tell=tell)
