"""What a source's process that has died has left in its holder, for the one that is started after it."""

from __future__ import annotations

from sterna.core.departure import Departure
from sterna.guest.holder_guests import HolderSourceGuest
from sterna.memory.regions import RegionTable


async def departure_of(guest: HolderSourceGuest, session: bytes) -> Departure | None:
    """By what this process can serve on a guest that was handed over in this session [RES-19].

    Args:
        guest: frozen in its holder, which nobody else controls.
        session: as the records have it. Notes of another one say nothing of this one.

    Returns:
        None if nothing was kept.

    Raises:
        GuestError: the notes make no sense.
    """
    place = await guest.notes()
    found = Departure.read(place, RegionTable(guest.description.regions))
    if found is None or found.ticket.session != session:
        return None
    return found.next_process(place)
