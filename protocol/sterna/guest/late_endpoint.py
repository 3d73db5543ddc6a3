"""The controller's part of pages that come later: spec/holder.md, section 6.1.

Faults are read from the holder's userfaultfd and resolved by it here, in another process, which no access of
the guest can hold up. The bitmap of installed pages is the holder's memory: a bit set there stays set when
this process dies, and it is set before the guest can see the page.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import trio

from sterna.errors import GuestError
from sterna.guest.early_pages import EarlyPages
from sterna.guest.holder_bitmaps import bits_of, read_bitmaps, set_bits
from sterna.guest.holder_fields import integer, objects, word
from sterna.guest.holder_frames import Frame
from sterna.guest.late_entries import LateEntries, LateRegion
from sterna.guest.late_faults import LateFaults
from sterna.linux.memfd import MemoryMap, has_fixed_size
from sterna.linux.userfaultfd import FaultDescriptor
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import PageRange, Region


@dataclass(slots=True)
class _Lacking:
    """What a region lacks.

    Attributes:
        missing: what is not installed.
        told: of the missing pages, those that somebody was told of.
    """

    missing: PageBitmap
    told: PageBitmap


class LateEndpoint(LateFaults):
    """Reads faults and installs pages. Whoever makes it closes it.

    Args:
        answer: to `faults`, with its descriptors, which are this object's from now on.
        regions: the guest's.
        maps: mappings of the guest's memory, writable.

    Raises:
        GuestError: the answer makes no sense; BUSY, a process of the last endpoint's still lives.
    """

    def __init__(self, answer: Frame, regions: Sequence[Region], maps: Mapping[int, MemoryMap]) -> None:
        early: EarlyPages | None = None
        try:
            descriptor, file = answer.descriptors
            found = _regions(answer, file, {region.id: region for region in regions}, maps)
            early = _early(found, file)
            uffd = FaultDescriptor(os.dup(descriptor))
        except (ValueError, OSError) as error:
            if early is not None:
                early.close()
            raise GuestError(f"the holder's missing pages make no sense: {error}") from error
        finally:
            answer.close()
        super().__init__(LateEntries(uffd, found), early)
        self._lacking = {
            number: _Lacking(_missing(one.words, one.region.pages), PageBitmap(one.region.pages))
            for number, one in found.items()
        }
        self._left = self._count()

    def renew(self) -> None:
        """Other pages are missing now: the holder has noted them in its bitmap, and no guest has run."""
        for number, lacking in self._lacking.items():
            one = self.entries.regions[number]
            lacking.missing = _missing(one.words, one.region.pages)
            lacking.told.clear_all()
        if self.early is not None:
            self.early.renew()
        self._left = self._count()

    def _count(self) -> int:
        """Counted once, and then along: to look for a last page would cost more than to install one."""
        return sum(lacking.missing.count() for lacking in self._lacking.values())

    @property
    def any_missing(self) -> bool:
        """Whether a page was not installed yet."""
        return self._left > 0

    def missing(self) -> dict[int, PageBitmap]:
        """What was not installed, by region id."""
        return {number: lacking.missing.copy() for number, lacking in self._lacking.items()}

    def repeat(self) -> None:
        """Have every access that waits told again: another process may have read of it, and died."""
        for lacking in self._lacking.values():
            lacking.told.clear_all()
        super().repeat()

    async def faults(self) -> list[PageRange]:
        """Wait for accesses to missing pages that were not told yet.

        Raises:
            trio.ClosedResourceError: by `close`: the last page was installed, or others are expected.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self.is_closed:
                raise trio.ClosedResourceError
            if found := self.news():
                return found
            await self.wait()

    def installed(self, region: int, first: int, count: int) -> None:
        """These pages were verified and written: note them, then let go who waits for them.

        Raises:
            GuestError: there are no such pages, or the holder is gone.
        """
        one = self.entries.regions.get(region)
        if one is None or not 0 <= first <= first + count <= one.region.pages:
            raise GuestError(f"there are no pages {first}+{count} of region {region}", ErrorCode.BAD_VALUE)
        set_bits(one.words, first, count)
        self.entries.resolve(region, first, count)  # before the rest, for which nobody waits
        lacking = self._lacking[region]
        self._left -= bits_of(lacking.missing.words, first, count).bit_count()
        lacking.missing.clear(first, count)
        lacking.told.clear(first, count)

    def news(self) -> list[PageRange]:
        """Accesses to missing pages that were not told yet; does not wait.

        Raises:
            GuestError: the holder is gone, or tells nonsense.
        """
        found: list[PageRange] = []
        for number, page in self.read():
            lacking = self._lacking[number]
            if page not in lacking.missing:
                self.entries.resolve_around(number, page)
            elif self.early is not None and self.early.is_early(number, page):
                self.entries.resolve(number, page, 1)
            elif page not in lacking.told:
                lacking.told.set(page)
                found.append(PageRange(number, page, 1))
        return _joined(found)


def _regions(
    answer: Frame, file: int, regions: Mapping[int, Region], maps: Mapping[int, MemoryMap]
) -> dict[int, LateRegion]:
    if not has_fixed_size(file):
        raise ValueError("the file may shrink")
    words = MemoryMap(file, os.fstat(file).st_size).array.view("<u8")
    bitmaps = read_bitmaps(answer.fields, words, "regions")
    early = read_bitmaps(answer.fields, words, "early")  # [HOL-47]
    found = {}
    for entry in objects(answer.fields, "regions", len(bitmaps)):
        number = integer(entry, "region")
        installed, bits = bitmaps[number]
        if number not in maps or bits != regions[number].pages:
            raise ValueError(f"region {number} has another size, or is not copied")
        early_words, early_bits = early.get(number, (None, bits))
        if early_bits != bits or (early and early_words is None):
            raise ValueError(f"the early pages of region {number} do not fit it")
        if early_words is not None and np.may_share_memory(installed, early_words):
            raise ValueError(f"region {number} has one bitmap for two purposes")
        place = regions[number], maps[number], word(entry, "address")
        found[number] = LateRegion(*place, installed, early_words)
    if set(found) != set(maps) or not early.keys() <= maps.keys():
        raise ValueError("a copied region is not among them, or another one is")
    return found


def _early(regions: Mapping[int, LateRegion], file: int) -> EarlyPages | None:
    early = {number: one.early for number, one in regions.items() if one.early is not None}
    if not early:
        return None
    installed = {number: one.words for number, one in regions.items()}
    return EarlyPages(file, early, installed, {number: one.region.pages for number, one in regions.items()})


def _missing(installed: npt.NDArray[np.uint64], bits: int) -> PageBitmap:
    missing = PageBitmap.full(bits)
    missing -= PageBitmap.from_words(installed, bits)
    return missing


def _joined(pages: Sequence[PageRange]) -> list[PageRange]:
    """One range where pages follow each other, in the order of the faults."""
    found: list[PageRange] = []
    for page in pages:
        last = found[-1] if found else None
        if last is not None and (last.region, last.first + last.count) == (page.region, page.first):
            found[-1] = PageRange(last.region, last.first, last.count + page.count)
        else:
            found.append(page)
    return found
