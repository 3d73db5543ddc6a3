"""What is kept beside a guest's memory for the next endpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_support import PAGE

from sterna.core.image_notes import ImageNotes
from sterna.errors import GuestError
from sterna.memory.bitmap import PageBitmap
from sterna.memory.digest import MemoryDigest
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import Style
from sterna.wire.records import PageRange, Region

TABLE = RegionTable((Region(2, 0, 70 * PAGE), Region(5, 1 << 30, 3 * PAGE)))
SEALED = bytes(range(16))


def notes() -> ImageNotes:
    stale = PageSets(TABLE)
    stale.add_ranges([PageRange(2, 60, 10), PageRange(5, 1, 1)])
    return ImageNotes(MemoryDigest(TABLE), stale, 3, 7, Style.BITMAP, SEALED)


def test_another_process_finds_what_was_left():
    """[PCY-16]"""
    here = notes()
    place = bytearray(here.size_bytes)
    here.move_to(place)
    here.digest.mark_stale(2, [0], [70])
    there = ImageNotes.read(memoryview(place), TABLE, hashed=True)
    assert (there.attempt, there.round, there.style, there.sealed) == (3, 7, Style.BITMAP, SEALED)
    assert {each: there.stale[each].words.tolist() for each in (2, 5)} == {
        each: here.stale[each].words.tolist() for each in (2, 5)
    }
    assert there.digest.value() == here.digest.value()
    assert there.size_bytes == len(place)


def test_the_entries_stay_where_they_are():
    """[PCY-16] Whatever the next process learns of a page, the one after that finds."""
    here = notes()
    place = bytearray(here.size_bytes)
    here.move_to(place)
    here.digest._indexes[2][4] = 1  # what a page that is installed does
    second = ImageNotes.read(memoryview(place), TABLE, hashed=True)
    assert second.digest.held(2) == PageBitmap.from_mask(here.digest._indexes[2] == 1)
    second.digest._indexes[5][0] = 0
    third = ImageNotes.read(memoryview(place), TABLE, hashed=True)
    assert third.digest.held_pages == 2


@pytest.mark.parametrize("change", ["nothing", "another", "short", "style", "bits"])
def test_what_makes_no_sense_is_found(change):
    here = replace(notes(), stale=PageSets.full(TABLE))
    place = bytearray(here.size_bytes)
    here.move_to(place)
    match change:
        case "nothing":
            place = bytearray()
        case "another":
            place[0] ^= 1
        case "short":
            place = bytearray(place[:-1])
        case "style":
            place[24] = 9
        case "bits":
            place[64 + 15] = 0xFF
    with pytest.raises(GuestError, match="notes of the image"):
        ImageNotes.read(memoryview(place), TABLE, hashed=True)
