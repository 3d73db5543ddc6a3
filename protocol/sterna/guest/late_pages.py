"""The holder's part of pages that come later: spec/holder.md, section 6.1.

A guest's mapping of its memory is registered with a userfaultfd, and the stale pages have no page table
entries there. Their memory exists and stays: nothing is freed, so no page can read as zeros by mistake. The
controller, another process, has the userfaultfd and the bitmap of installed pages; here is only looked at.
"""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sterna.guest.holder_bitmaps import BitmapFile
from sterna.guest.holder_frames import Json
from sterna.guest.stale_pages import check_stale
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap
from sterna.linux.userfaultfd import LATE_PAGES, Mode, Userfaultfd
from sterna.memory.bitmap import PageBitmap
from sterna.wire.records import Region


@functools.cache
def why_no_late_pages() -> str:
    """Why this machine cannot hold accesses to pages of shared memory; empty if it can."""
    with contextlib.closing(MemoryFile("sterna-probe", PAGE_BYTES)) as file:
        memory = file.map()
        try:
            with Userfaultfd(LATE_PAGES) as uffd:
                uffd.register(memory.address, memory.size_bytes, Mode.MISSING | Mode.MINOR)
        except CapabilityMissing as missing:
            return str(missing)
        finally:
            memory.close()
    return ""


class LatePages:
    """Holds every access through `maps` to a stale page that was not installed.

    Args:
        regions: the guest's; those in `maps` are copied.
        maps: the guest's own mappings, by region id.
        stale: by region id.

    Attributes:
        uffd: for the controller.

    Raises:
        CapabilityMissing: not on this machine.
        GuestError: with BAD_VALUE, the bitmaps do not fit.
    """

    def __init__(
        self, regions: Sequence[Region], maps: Mapping[int, MemoryMap], stale: Mapping[int, PageBitmap]
    ) -> None:
        self._regions = {region.id: region for region in regions if region.id in maps}
        self._maps = dict(maps)
        self._stale, self._bitmaps = self._note(stale)
        try:
            self.uffd = Userfaultfd(LATE_PAGES)
            try:
                for memory in self._maps.values():
                    self.uffd.register(memory.address, memory.size_bytes, Mode.MISSING | Mode.MINOR)
                self._hold(self._stale)
            except BaseException:
                self.uffd.close()  # which ends all registrations
                raise
        except BaseException:
            self._bitmaps.close()
            raise

    def _note(self, stale: Mapping[int, PageBitmap]) -> tuple[dict[int, PageBitmap], BitmapFile]:
        """A bitmap of stale pages for every region, and the shared one of those that are there."""
        regions = tuple(self._regions.values())
        check_stale(stale, regions)
        noted = {region.id: PageBitmap(region.pages) for region in regions}
        installed = {region.id: PageBitmap.full(region.pages) for region in regions}
        for number, bitmap in stale.items():
            noted[number] |= bitmap
            installed[number] -= bitmap
        bitmaps = BitmapFile(regions, "sterna-installed")
        bitmaps.put(installed)
        return noted, bitmaps

    def _hold(self, stale: Mapping[int, PageBitmap]) -> None:
        for number, bitmap in stale.items():
            log2 = self._regions[number].granule_log2
            starts, counts = bitmap.runs()
            self._maps[number].unmap_ranges(starts << log2, counts << log2)

    def replace(self, stale: Mapping[int, PageBitmap]) -> None:
        """Another set in the place of this one. Nothing may have been installed, nor the guest have run."""
        noted, bitmaps = self._note(stale)
        try:
            self._hold(noted)
        except BaseException:
            bitmaps.close()
            raise
        self._bitmaps.close()
        before, self._stale, self._bitmaps = self._stale, noted, bitmaps
        for number, fresh in before.items():  # what is not stale any more gets its entries back
            fresh -= noted[number]  # noqa: PLW2901 - in place, and nobody else has it
            memory, log2 = self._maps[number], self._regions[number].granule_log2
            for start, count in zip(*(part.tolist() for part in fresh.runs()), strict=True):
                try:
                    self.uffd.resolve(memory.address + (start << log2), count << log2)
                except OSError as error:
                    if error.errno != errno.EFAULT:
                        raise
                    # Nobody has touched that memory yet; the controller resolves faults there [HOL-40].

    @property
    def file(self) -> MemoryFile:
        """The bitmap of installed pages, for the controller."""
        return self._bitmaps.file

    def layout(self) -> list[Json]:
        """What the answer to `faults` says: where a region is, and its bitmap."""
        places = self._bitmaps.layout()
        for place in places:
            assert isinstance(place, dict)
            number = place["region"]
            assert isinstance(number, int)
            place["address"] = f"0x{self._maps[number].address:x}"
        return places

    def missing(self) -> int:
        """How many stale pages were not installed."""
        left = (self.stale(number) & ~self.installed(number) for number in self._stale)
        return sum(int(np.bitwise_count(words).sum()) for words in left)

    def stale(self, region: int) -> npt.NDArray[np.uint64]:
        """The bitmap's words of pages that came later, or still have to."""
        return self._stale[region].words

    def installed(self, region: int) -> npt.NDArray[np.uint64]:
        """The words of what was installed, live, also when this has ended."""
        return self._bitmaps.words(region)

    def end(self) -> None:
        """Hold nothing any more, and let go who waits. Legal twice."""
        if self.uffd.fileno() < 0:
            return
        for memory in self._maps.values():
            # Closing alone would not do: the controller has a descriptor of the same userfaultfd.
            self.uffd.unregister(memory.address, memory.size_bytes)
        self.uffd.close()
        self._bitmaps.close()
