"""The controller's part of pages that come later: spec/holder.md, section 6.1.

Faults are read from the holder's userfaultfd and resolved by it here, in another process, which no access of
the guest can hold up. The bitmap of installed pages is the holder's memory: a bit set there stays set when
this process dies, and it is set before the guest can see the page.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import trio

from sterna.errors import GuestError
from sterna.guest.holder_bitmaps import bits_of, read_bitmaps, set_bits
from sterna.guest.holder_fields import integer, objects, word
from sterna.guest.holder_frames import Frame
from sterna.linux.memfd import MemoryMap, has_fixed_size
from sterna.linux.userfaultfd import FaultDescriptor
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import PageRange, Region

_HUGE_BYTES: Final = 2 << 20  # what one entry may have mapped; another size only makes for more faults


@dataclass(slots=True)
class _LateRegion:
    """A region here and in the holder.

    Attributes:
        address: in the holder.
        words: the shared bitmap of installed pages.
        missing: what is not set there.
        told: of the missing pages, those that somebody was told of.
    """

    region: Region
    memory: MemoryMap
    address: int
    words: npt.NDArray[np.uint64]
    missing: PageBitmap
    told: PageBitmap


class LateEndpoint:
    """Reads faults and installs pages. Whoever makes it closes it.

    Args:
        answer: to `faults`, with its descriptors, which are this object's from now on.
        regions: the guest's.
        maps: mappings of the guest's memory, writable.

    Raises:
        GuestError: the answer makes no sense.
    """

    def __init__(self, answer: Frame, regions: Sequence[Region], maps: Mapping[int, MemoryMap]) -> None:
        try:
            descriptor, file = answer.descriptors
            self._regions = _regions(answer, file, {region.id: region for region in regions}, maps)
            self._uffd = FaultDescriptor(os.dup(descriptor))
        except (ValueError, OSError) as error:
            raise GuestError(f"the holder's missing pages make no sense: {error}") from error
        finally:
            answer.close()
        self._left = self._count()

    def renew(self) -> None:
        """Other pages are missing now: the holder has noted them in its bitmap, and no guest has run."""
        for one in self._regions.values():
            one.missing = _missing(one.words, one.region.pages)
            one.told.clear_all()
        self._left = self._count()

    def _count(self) -> int:
        """Counted once, and then along: to look for a last page would cost more than to install one."""
        return sum(one.missing.count() for one in self._regions.values())

    @property
    def any_missing(self) -> bool:
        """Whether a page was not installed yet."""
        return self._left > 0

    def missing(self) -> dict[int, PageBitmap]:
        """What was not installed, by region id."""
        return {number: one.missing.copy() for number, one in self._regions.items()}

    def repeat(self) -> None:
        """Have every access that waits told again: another process may have read of it, and died."""
        for one in self._regions.values():
            one.told.clear_all()
            self._uffd.wake(one.address, one.region.size_bytes)

    async def faults(self) -> list[PageRange]:
        """Wait for accesses to missing pages that were not told yet.

        Raises:
            trio.ClosedResourceError: by `close`: the last page was installed, or others are expected.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._uffd.fileno() < 0:
                raise trio.ClosedResourceError
            if found := self.news():
                return found
            await trio.lowlevel.wait_readable(self._uffd.fileno())

    def installed(self, region: int, first: int, count: int) -> None:
        """These pages were verified and written: note them, then let go who waits for them.

        Raises:
            GuestError: there are no such pages, or the holder is gone.
        """
        one = self._regions.get(region)
        if one is None or not 0 <= first <= first + count <= one.region.pages:
            raise GuestError(f"there are no pages {first}+{count} of region {region}", ErrorCode.BAD_VALUE)
        set_bits(one.words, first, count)
        self._resolve(one, first, count)  # before the rest, for which nobody waits
        self._left -= bits_of(one.missing.words, first, count).bit_count()
        one.missing.clear(first, count)
        one.told.clear(first, count)

    def close(self) -> None:
        """Give everything back. Legal twice."""
        if self._uffd.fileno() >= 0:
            trio.lowlevel.notify_closing(self._uffd.fileno())
        self._uffd.close()

    def news(self) -> list[PageRange]:
        """Accesses to missing pages that were not told yet; does not wait.

        Raises:
            GuestError: the holder is gone, or tells nonsense.
        """
        found: list[PageRange] = []
        for fault in self._uffd.read_faults():
            one = self._region_at(fault.address)
            page = fault.address - one.address >> one.region.granule_log2
            if page not in one.missing:
                self._resolve_around(one, page)
            elif page not in one.told:
                one.told.set(page)
                found.append(PageRange(one.region.id, page, 1))
        return _joined(found)

    def _region_at(self, address: int) -> _LateRegion:
        for one in self._regions.values():
            if one.address <= address < one.address + one.region.size_bytes:
                return one
        raise GuestError("a fault outside of the guest's memory")

    def _resolve_around(self, one: _LateRegion, page: int) -> None:
        """Give a page that is there its entry back, and then its neighbours.

        Where the guest's memory was mapped by huge pages, taking one page away has taken the entries of all
        that were mapped with it: some hundred faults for each stale page, if they came one by one.
        """
        self._resolve(one, page, 1)
        pages = max(_HUGE_BYTES >> one.region.granule_log2, 1)
        first = page - page % pages
        end = min(first + pages, one.region.pages)
        for start, count in zip(
            *(part.tolist() for part in one.missing.runs_between(first, end - first)), strict=True
        ):
            self._resolve(one, first, start - first)
            first = start + count
        self._resolve(one, first, end - first)

    def _resolve(self, one: _LateRegion, first: int, count: int) -> None:
        log2 = one.region.granule_log2
        offset, length = first << log2, count << log2
        try:
            try:
                self._uffd.resolve(one.address + offset, length)
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                one.memory.populate(offset, length)  # never touched before: it is there now, as zeros
                self._uffd.resolve(one.address + offset, length)
        except OSError as error:
            if error.errno == errno.ENOENT and self._all_are_noted():
                return  # the holder has seen so, and has let everybody go before we heard of it [HOL-42]
            raise GuestError(f"pages cannot be installed, the holder is gone: {error.strerror}") from error
        except MemoryError as error:
            raise GuestError(f"pages cannot be installed: {error}", ErrorCode.FULL) from error

    def _all_are_noted(self) -> bool:
        """In what the holder reads, which may be ahead of what is counted here."""
        return not any(_missing(one.words, one.region.pages).any() for one in self._regions.values())


def _regions(
    answer: Frame, file: int, regions: Mapping[int, Region], maps: Mapping[int, MemoryMap]
) -> dict[int, _LateRegion]:
    if not has_fixed_size(file):
        raise ValueError("the file may shrink")
    words = MemoryMap(file, os.fstat(file).st_size).array.view("<u8")
    bitmaps = read_bitmaps(answer.fields, words, "regions")
    found = {}
    for entry in objects(answer.fields, "regions", len(bitmaps)):
        number, (installed, bits) = integer(entry, "region"), bitmaps[integer(entry, "region")]
        if number not in maps or bits != regions[number].pages:
            raise ValueError(f"region {number} has another size, or is not copied")
        place = regions[number], maps[number], word(entry, "address")
        found[number] = _LateRegion(*place, installed, _missing(installed, bits), PageBitmap(bits))
    if set(found) != set(maps):
        raise ValueError("a copied region is not among them")
    return found


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
