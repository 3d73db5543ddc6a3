"""The controller's part of pages that come later: spec/holder.md, section 6.1.

Faults are read from the holder's userfaultfd and resolved by it here, in another process, which no access of
the guest can hold up. The bitmap of installed pages is the holder's memory: a bit set there stays set when
this process dies, and it is set before the guest can see the page.

A pager, forked from this process, may read the faults instead and let the guest have pages early (section
6.2). It tells through a pipe of those that it leaves to the endpoint. When the pipe ends, the faults are read
here again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import trio

from sterna.errors import GuestError
from sterna.guest.api import FAULT
from sterna.guest.early_pages import EarlyPages
from sterna.guest.holder_bitmaps import bits_of, read_bitmaps, set_bits
from sterna.guest.holder_fields import integer, objects, word
from sterna.guest.holder_frames import Frame
from sterna.guest.late_entries import LateEntries, LateRegion
from sterna.guest.late_pager import LatePager
from sterna.linux.memfd import MemoryMap, has_fixed_size
from sterna.linux.userfaultfd import FaultDescriptor
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import PageRange, Region

_RECORDS: Final = 256  # of one read of the pipe; more are there at the next


@dataclass(slots=True)
class _Lacking:
    """What a region lacks.

    Attributes:
        missing: what is not installed.
        told: of the missing pages, those that somebody was told of.
    """

    missing: PageBitmap
    told: PageBitmap


class LateEndpoint:
    """Reads faults and installs pages. Whoever makes it closes it. An `EarlyRoom` if `early` is not None.

    Args:
        answer: to `faults`, with its descriptors, which are this object's from now on.
        regions: the guest's.
        maps: mappings of the guest's memory, writable.

    Attributes:
        early: what came, or may come, before it counts as installed; None if the holder has no room to note
            it.

    Raises:
        GuestError: the answer makes no sense; BUSY, a process of the last endpoint's still lives.
    """

    def __init__(self, answer: Frame, regions: Sequence[Region], maps: Mapping[int, MemoryMap]) -> None:
        self._pipe: int | None = None
        self.early: EarlyPages | None = None
        try:
            descriptor, file = answer.descriptors
            found = _regions(answer, file, {region.id: region for region in regions}, maps)
            self.early = _early(found, file)
            self._uffd = FaultDescriptor(os.dup(descriptor))
        except (ValueError, OSError) as error:
            if self.early is not None:
                self.early.close()
            raise GuestError(f"the holder's missing pages make no sense: {error}") from error
        finally:
            answer.close()
        self._entries: Final = LateEntries(self._uffd, found)
        self._lacking = {
            number: _Lacking(_missing(one.words, one.region.pages), PageBitmap(one.region.pages))
            for number, one in found.items()
        }
        self._left = self._count()

    def renew(self) -> None:
        """Other pages are missing now: the holder has noted them in its bitmap, and no guest has run."""
        for number, lacking in self._lacking.items():
            one = self._entries.regions[number]
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
        self._entries.wake()

    async def faults(self) -> list[PageRange]:
        """Wait for accesses to missing pages that were not told yet.

        Raises:
            trio.ClosedResourceError: by `close`: the last page was installed, or others are expected.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._is_closed:
                raise trio.ClosedResourceError
            if found := self.news():
                return found
            with suppress(trio.ClosedResourceError):  # by `close`, or something else is to be waited for
                await trio.lowlevel.wait_readable(self._told_by)

    def installed(self, region: int, first: int, count: int) -> None:
        """These pages were verified and written: note them, then let go who waits for them.

        Raises:
            GuestError: there are no such pages, or the holder is gone.
        """
        one = self._entries.regions.get(region)
        if one is None or not 0 <= first <= first + count <= one.region.pages:
            raise GuestError(f"there are no pages {first}+{count} of region {region}", ErrorCode.BAD_VALUE)
        set_bits(one.words, first, count)
        self._entries.resolve(region, first, count)  # before the rest, for which nobody waits
        lacking = self._lacking[region]
        self._left -= bits_of(lacking.missing.words, first, count).bit_count()
        lacking.missing.clear(first, count)
        lacking.told.clear(first, count)

    def close(self) -> None:
        """Give everything back. Legal twice."""
        if not self._is_closed:
            self._listen(None)
            trio.lowlevel.notify_closing(self._uffd.fileno())
        self._uffd.close()
        if self.early is not None:
            self.early.close()

    @property
    def _is_closed(self) -> bool:
        return self._uffd.fileno() < 0

    def news(self) -> list[PageRange]:
        """Accesses to missing pages that were not told yet; does not wait.

        Raises:
            GuestError: the holder is gone, or tells nonsense.
        """
        found: list[PageRange] = []
        for number, page in self._faults():
            lacking = self._lacking[number]
            if page not in lacking.missing:
                self._entries.resolve_around(number, page)
            elif self.early is not None and self.early.is_early(number, page):
                self._entries.resolve(number, page, 1)
            elif page not in lacking.told:
                lacking.told.set(page)
                found.append(PageRange(number, page, 1))
        return _joined(found)

    # ---- early pages ----

    @property
    def claims(self) -> EarlyPages:
        """See `EarlyRoom`."""
        assert self.early is not None
        return self.early

    @property
    def on_stuck(self) -> Callable[[], None]:
        """See `EarlyRoom`."""
        return self.claims.on_stuck

    @on_stuck.setter
    def on_stuck(self, end: Callable[[], None]) -> None:
        self.claims.on_stuck = end

    def descriptors(self) -> list[int]:
        """See `EarlyRoom`."""
        return [self._uffd.fileno(), self.claims.fileno()]

    def pager(self) -> LatePager:
        """See `EarlyRoom`."""
        return LatePager(self._entries, self.claims)

    def hear(self, descriptor: int) -> None:
        """See `EarlyRoom`."""
        if self._is_closed:
            os.close(descriptor)
            return
        self.hear_kernel()  # what another pager has read of is lost with it
        self._listen(descriptor)

    def any_unread(self) -> bool:
        """See `EarlyRoom`."""
        return not self._is_closed and self._uffd.any_unread()

    def hear_kernel(self) -> None:
        """See `EarlyRoom`."""
        if self._pipe is not None:
            self._listen(None)
            self.repeat()

    @property
    def _told_by(self) -> int:
        return self._uffd.fileno() if self._pipe is None else self._pipe

    def _listen(self, pipe: int | None) -> None:
        """Wait for this pipe, or for the kernel, from now on; also who is waiting already."""
        trio.lowlevel.notify_closing(self._told_by)
        if self._pipe is not None:
            os.close(self._pipe)
        self._pipe = pipe

    def _faults(self) -> list[tuple[int, int]]:
        """Region and page of what the pager, or the kernel, tells by now."""
        if self._pipe is not None:
            try:
                data = os.read(self._pipe, _RECORDS * FAULT.size)
            except BlockingIOError:
                return []
            if data and not len(data) % FAULT.size:
                found = [(region, page) for region, page in FAULT.iter_unpack(data)]
                if all(self._exists(*place) for place in found):
                    return found
            self.hear_kernel()  # the pager has ended, or makes no sense
        return self._entries.faults()

    def _exists(self, region: int, page: int) -> bool:
        one = self._entries.regions.get(region)
        return one is not None and page < one.region.pages


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
