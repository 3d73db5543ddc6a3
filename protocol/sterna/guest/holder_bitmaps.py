"""The dirty bitmaps that a holder and its controller share: spec/holder.md, section 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sterna.guest.holder_frames import Json
from sterna.linux.memfd import MemoryFile
from sterna.memory.bitmap import PageBitmap
from sterna.registry import Transfer
from sterna.wire.records import Region

_WORD_BYTES = 8


def words_of(pages: int) -> int:
    """64-bit words that hold one bit a page."""
    return (pages + 63) // 64


class BitmapFile:
    """One bitmap a copied region, one after the other, in a memory file."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._places: dict[int, tuple[int, int]] = {}  # region id -> first word, pages
        position = 0
        for region in regions:
            if region.transfer is Transfer.COPY:
                self._places[region.id] = (position, region.pages)
                position += words_of(region.pages)
        self.file = MemoryFile("sterna-dirty", max(position, 1) * _WORD_BYTES)
        self._map = self.file.map()
        self._words = self._map.array.view("<u8")

    def layout(self) -> list[Json]:
        """Where each region's bitmap is."""
        return [
            {"region": region, "offset": first * _WORD_BYTES, "bits": pages}
            for region, (first, pages) in self._places.items()
        ]

    def put(self, bitmaps: Mapping[int, PageBitmap]) -> int:
        """Replace all bitmaps; a region without one has no dirty pages. Returns the number of dirty pages."""
        total = 0
        for region, (first, pages) in self._places.items():
            target = self._words[first : first + words_of(pages)]
            bitmap = bitmaps.get(region)
            if bitmap is None:
                target[:] = 0
                continue
            np.copyto(target, bitmap.words)
            total += bitmap.count()
        return total

    def close(self) -> None:
        """Give the memory back."""
        self._words = np.empty(0, dtype="<u8")
        self._map.close()
        self.file.close()
