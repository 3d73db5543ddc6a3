"""What a source's process has left in its holder: a real one, in a thread."""

from __future__ import annotations

from pathlib import Path

import pytest

from departure_support import SESSION, departure
from holder_support import holder
from sterna.core.departure import GENERATIONS_A_PROCESS
from sterna.errors import GuestError
from sterna.guest.holder_client import connect_holder
from sterna.guest.holder_guests import HolderSourceGuest
from sterna.host.departures import departure_of
from sterna.memory.regions import RegionTable
from sterna.registry import Style


async def test_the_next_process_finds_what_this_one_has_noted(tmp_path: Path) -> None:
    """[RES-19] [HOL-45] Behind a holder that has seen its controller die, and with a mark."""
    path = tmp_path / "here"
    with holder(path, with_guest=True):
        async with await connect_holder(path) as connection:
            guest = await HolderSourceGuest.open(connection)
            assert await departure_of(guest, SESSION) is None  # nothing was kept
            noted = departure(RegionTable(guest.description.regions))
            await guest.pause()
            place = await guest.notes(noted.size_bytes)
            noted.prepare(place)
            assert await departure_of(guest, SESSION) is None  # nor is that a note yet
            noted.write(place)
            await guest.mark_granted(2)
        for generation in (GENERATIONS_A_PROCESS, 2 * GENERATIONS_A_PROCESS):
            async with await connect_holder(path, epoch=2) as connection:
                guest = await HolderSourceGuest.open(connection)
                assert await departure_of(guest, b"o" * 16) is None  # it is of another session
                found = await departure_of(guest, SESSION)
                assert found is not None
                assert found.ticket.hello == noted.ticket.hello
                assert (found.ticket.generation % GENERATIONS_A_PROCESS, found.ticket.streams) == (0, 2)
                assert found.ticket.generation >= generation
                assert found.image.stale == noted.image.stale
                assert (found.image.sealed, found.image.style) == (b"d" * 16, Style.POST_COPY)


async def test_notes_that_are_damaged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "here"
    with holder(path, with_guest=True):
        async with await connect_holder(path) as connection:
            guest = await HolderSourceGuest.open(connection)
            noted = departure(RegionTable(guest.description.regions), Style.STOP_AND_COPY)
            place = await guest.notes(noted.size_bytes)
            noted.write(place)
            place[16] ^= 0xFF
            with pytest.raises(GuestError):
                await departure_of(guest, SESSION)
