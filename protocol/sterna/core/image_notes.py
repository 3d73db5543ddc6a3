"""What is kept beside the memory of a guest whose pages follow it, for the next endpoint of either side.

The entries of its pages cannot be made again once the guest writes [PCY-16], and the groups in which pages
come follow from all that were stale, not from those that still are [PCY-7]. So both lie where the memory is,
with the place in the session that PAGES have to name. The holder does not look into it. What was sent by
stop-and-copy has no such pages: then the place in the session and the digest are all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from sterna.errors import GuestError
from sterna.memory.bitmap import PageBitmap
from sterna.memory.digest import ENTRY_BYTES, MemoryDigest
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import Style

# Where it was, and behind it the stale pages, a bit each, and the entries of all pages.
_HEAD: Final = struct.Struct("<8sQQQ16s16x")
_MAGIC: Final = b"sterna-1"


def notes_bytes(table: RegionTable) -> int:
    """Bytes that the notes of a guest take of which pages are to follow."""
    words = sum((region.pages + 63) // 64 for region in table.copied)
    return _HEAD.size + 8 * words + ENTRY_BYTES * table.pages


def keep_entries(digest: MemoryDigest, place: memoryview | bytearray) -> None:
    """Keep the entries from now on where notes of pages that are to follow will have them.

    Raises:
        ValueError: it has fewer than `notes_bytes` bytes.
    """
    digest.move_to(memoryview(place)[notes_bytes(digest.table) - digest.size_bytes :])


@dataclass(frozen=True, slots=True)
class ImageNotes:
    """What is known of a sealed image of which pages are to follow, as it is kept beside the memory [PCY-16].

    Attributes:
        digest: the entries of all pages; those of a page that is installed are newer than SEAL.
        stale: the pages that DIRTY_BITMAP declared.
        attempt: of HANDOVER.
        round: number of the blackout round.
        style: of the switchover.
        sealed: digest of SEAL.
    """

    digest: MemoryDigest
    stale: PageSets
    attempt: int
    round: int
    style: Style
    sealed: bytes

    @property
    def size_bytes(self) -> int:
        """Bytes that they take."""
        return notes_bytes(self.digest.table) if self._follows else _HEAD.size

    @property
    def _follows(self) -> bool:
        return self.style is not Style.STOP_AND_COPY

    def move_entries_to(self, place: memoryview) -> None:
        """Keep the entries there from now on, where `move_to` is to write the rest.

        Raises:
            ValueError: it has fewer than `size_bytes` bytes.
        """
        if self._follows:
            keep_entries(self.digest, place)

    def move_to(self, place: memoryview | bytearray) -> None:
        """Write them there; the entries are kept there from now on.

        Raises:
            ValueError: it has fewer than `size_bytes` bytes.
        """
        view, at = memoryview(place), _HEAD.size
        for region in self.stale if self._follows else ():
            data = self.stale[region].words.tobytes()
            view[at : at + len(data)] = data
            at += len(data)
        self.move_entries_to(view)
        _HEAD.pack_into(view, 0, _MAGIC, self.attempt, self.round, self.style, self.sealed)

    @staticmethod
    def lie_in(place: memoryview) -> bool:
        """Whether notes of an image were written there, and nothing else since."""
        return bytes(place[: len(_MAGIC)]) == _MAGIC

    @classmethod
    def read(cls, place: memoryview, table: RegionTable, *, hashed: bool) -> Self:
        """What another process has written there; the entries stay there.

        Args:
            place: where.
            table: the guest's regions.
            hashed: whether chunks have hashes in that session [MEM-20].

        Raises:
            GuestError: it was not written, or for other regions.
        """
        if not cls.lie_in(place):
            raise GuestError("there are no notes of the image")
        try:
            _, attempt, number, style, sealed = _HEAD.unpack_from(place)
            if Style(style) is Style.STOP_AND_COPY:
                return cls(MemoryDigest(table), PageSets(table), attempt, number, Style(style), sealed)
            stale, at = {}, _HEAD.size
            for region in table.copied:
                words = np.frombuffer(place, "<u8", (region.pages + 63) // 64, at)
                stale[region.id] = PageBitmap.from_words(words, region.pages)
                at += 8 * len(words)
            digest = MemoryDigest.kept_in(place[at:], table, hashed=hashed)
            digest.move_to(place[at:])
            return cls(digest, PageSets.collected(table, stale), attempt, number, Style(style), sealed)
        except (ValueError, struct.error) as error:
            raise GuestError(f"the notes of the image make no sense: {error}") from error
