"""The bitmaps that a holder and its controller share, a bit a page: spec/holder.md, section 6."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sterna.guest.holder_fields import REGIONS, bad_value, integer, objects
from sterna.guest.holder_frames import Json, JsonObject
from sterna.linux.memfd import MemoryFile
from sterna.memory.bitmap import PageBitmap
from sterna.registry import Transfer
from sterna.wire.records import Region

_WORD_BYTES = 8
_ONES = (1 << 64) - 1


def words_of(pages: int) -> int:
    """64-bit words that hold one bit a page."""
    return (pages + 63) // 64


def bitmap_bytes(regions: Sequence[Region], sets: int = 1) -> int:
    """The size of a file with so many bitmaps a copied region; of at least a word: no file may be empty."""
    words = sum(words_of(region.pages) for region in regions if region.transfer is Transfer.COPY)
    return max(words * sets, 1) * _WORD_BYTES


class BitmapFile:
    """One bitmap a copied region, one after the other, in a memory file; or several such sets of bitmaps."""

    def __init__(self, regions: Sequence[Region], name: str = "sterna-dirty", sets: int = 1) -> None:
        self._places: dict[int, tuple[int, int]] = {}  # region id -> first word of the first set, pages
        position = 0
        for region in regions:
            if region.transfer is Transfer.COPY:
                self._places[region.id] = (position, region.pages)
                position += words_of(region.pages)
        self._set_words = position
        self.file = MemoryFile(name, bitmap_bytes(regions, sets))
        self._map = self.file.map()
        self._words = self._map.array.view("<u8")

    def layout(self, which: int = 0) -> list[Json]:
        """Where each region's bitmap of a set is."""
        before = which * self._set_words
        return [
            {"region": region, "offset": (before + first) * _WORD_BYTES, "bits": pages}
            for region, (first, pages) in self._places.items()
        ]

    def put(self, bitmaps: Mapping[int, PageBitmap], which: int = 0) -> int:
        """Replace a set's bitmaps; a region without one has no pages there. Returns the number of pages."""
        total = 0
        for region in self._places:
            target = self.words(region, which)
            bitmap = bitmaps.get(region)
            if bitmap is None:
                target[:] = 0
                continue
            np.copyto(target, bitmap.words)
            total += bitmap.count()
        return total

    def words(self, region: int, which: int = 0) -> npt.NDArray[np.uint64]:
        """A region's bitmap of a set, live. It stays what it was when the file is closed."""
        first, pages = self._places[region]
        first += which * self._set_words
        return self._words[first : first + words_of(pages)]

    def close(self) -> None:
        """Give the memory back."""
        self._words = np.empty(0, dtype="<u8")
        self._map.close()
        self.file.close()


def read_bitmaps(
    fields: JsonObject, words: npt.NDArray[np.uint64], name: str = "bitmaps"
) -> dict[int, tuple[npt.NDArray[np.uint64], int]]:
    """The bitmaps that a layout speaks of, live, by region id: words, and the number of bits.

    Raises:
        GuestError: with BAD_VALUE for a region that is named twice or a bitmap outside of the words.
    """
    found: dict[int, tuple[npt.NDArray[np.uint64], int]] = {}
    for entry in objects(fields, name, REGIONS):
        region, bits = integer(entry, "region"), integer(entry, "bits")
        first, rest = divmod(integer(entry, "offset"), _WORD_BYTES)
        if region in found or rest or first + words_of(bits) > len(words):
            raise bad_value(f"the bitmap of region {region} is outside of its file, or there are two")
        found[region] = words[first : first + words_of(bits)], bits
    return found


def bits_of(words: npt.NDArray[np.uint64], first: int, count: int) -> int:
    """Some neighbouring bits as one number, the first of them its lowest."""
    part = words[first >> 6 : (first + count + 63) >> 6]
    return int.from_bytes(part.tobytes(), "little") >> (first & 63) & (1 << count) - 1


def bit_runs(bits: int) -> Iterator[tuple[int, int]]:
    """The runs of set bits, ascending: first and count."""
    at = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        count = (bits + 1 & ~bits).bit_length() - 1
        bits >>= count
        yield at + skip, count
        at += skip + count


def set_bits(words: npt.NDArray[np.uint64], first: int, count: int) -> None:
    """Set bits in words that others read meanwhile; nobody else writes them."""
    if count <= 0:
        return
    low, high = first >> 6, first + count - 1 >> 6
    head = _ONES << (first & 63) & _ONES
    tail = _ONES >> (63 - (first + count - 1 & 63))
    if low == high:
        words[low] |= np.uint64(head & tail)
        return
    words[low] |= np.uint64(head)
    words[low + 1 : high] = np.uint64(_ONES)
    words[high] |= np.uint64(tail)
