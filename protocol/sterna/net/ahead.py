"""What a source is about to read: all memory in the first round, but for what was never written.

A thread makes the page table entries for it (sterna.linux.entries), from the beginning of that round on. It
spares time and is needed for nothing: where there is no thread for it, or no processor, it goes without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.linux.entries import AROUND_BYTES, EntriesAhead, Place
from sterna.memory.bitmap import PageBitmap
from sterna.memory.pages import RegionPages

# Looked at without letting go of the interpreter's lock, some 20 microseconds: 16 MiB of the smallest pages.
_WORDS: Final = 64
_WORD_PAGES: Final = 64


class ReadAhead:
    """One source's. `unwritten` is what the guest tells of itself, by region; anything else tells nothing."""

    def __init__(self, pages: RegionPages, unwritten: object) -> None:
        told = unwritten if isinstance(unwritten, Mapping) else {}
        # Sets of its own: those that were told change while the guest writes.
        self._regions = [
            (pages.memory(region.id), _without(region.pages, told.get(region.id)), region.granule_log2)
            for region in pages.table.copied
        ]
        self._entries: EntriesAhead | None = None

    def start(self) -> None:
        """Begin, if there is another processor for it: else it would take from the reader's time."""
        regions, self._regions = self._regions, []
        if len(os.sched_getaffinity(0)) > 1:
            with suppress(RuntimeError):
                self._entries = EntriesAhead(chain.from_iterable(places(*each) for each in regions))

    def close(self) -> None:
        """Nothing is read, and no memory is held, after this."""
        self._regions = []
        if self._entries is not None:
            self._entries.stop()


def _without(pages: int, unwritten: object) -> PageBitmap:
    left = PageBitmap.full(pages)
    if isinstance(unwritten, PageBitmap) and unwritten.bits == pages:
        left -= unwritten
    return left


def places(memory: npt.NDArray[np.uint8], pages: PageBitmap, granule_log2: int) -> Iterator[Place]:
    """A byte of each `AROUND_BYTES` in which there is one of these pages, in portions."""
    together = AROUND_BYTES >> granule_log2  # no granule is larger than that, and no word ends within
    for first in range(0, len(pages.words), _WORDS):
        words = pages.words[first : first + _WORDS].astype("<u8")
        bits = np.unpackbits(words.view(np.uint8), bitorder="little").reshape(-1, together)
        some = np.flatnonzero(bits.any(axis=1))
        found = first * _WORD_PAGES + some * together + bits[some].argmax(axis=1)
        yield memory, found << granule_log2
