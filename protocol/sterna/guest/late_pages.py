"""The holder's part of pages that come later: spec/holder.md, section 6.1.

A guest's mapping of its memory is registered with a userfaultfd, and the stale pages have no page table
entries there. Their memory exists and stays: nothing is freed, so no page can read as zeros by mistake. The
controller, another process, has the userfaultfd and the bitmap of installed pages; here is only looked at.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sterna.guest.holder_bitmaps import BitmapFile
from sterna.guest.holder_frames import Json
from sterna.guest.restoring import Restoring
from sterna.guest.stale_pages import check_stale
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap
from sterna.linux.userfaultfd import LATE_PAGES, Mode, Userfaultfd
from sterna.memory.bitmap import PageBitmap
from sterna.wire.records import Region

_INSTALLED, _EARLY, _SETS = range(3)  # bitmaps of a region in the shared file


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
        # Pages that are not stale and have no entry all the same.
        self._bare = {number: PageBitmap(region.pages) for number, region in self._regions.items()}
        self._stale, installed = self._noted(stale)
        self._bitmaps = BitmapFile(tuple(self._regions.values()), "sterna-installed", _SETS)
        self._bitmaps.put(installed)
        try:
            self.uffd = Userfaultfd(LATE_PAGES)
            try:
                for memory in self._maps.values():
                    self.uffd.register(memory.address, memory.size_bytes, Mode.MISSING | Mode.MINOR)
                self._take(self._stale)
                log2 = {number: region.granule_log2 for number, region in self._regions.items()}
                self._restoring = Restoring(self.uffd, self._maps, log2)
            except BaseException:
                self.uffd.close()  # which ends all registrations
                raise
        except BaseException:
            self._bitmaps.close()
            raise

    def _noted(self, stale: Mapping[int, PageBitmap]) -> tuple[dict[int, PageBitmap], dict[int, PageBitmap]]:
        """For every region its stale pages, and those that are there."""
        check_stale(stale, tuple(self._regions.values()))
        noted = {number: PageBitmap(region.pages) for number, region in self._regions.items()}
        installed = {number: PageBitmap.full(region.pages) for number, region in self._regions.items()}
        for number, bitmap in stale.items():
            noted[number] |= bitmap
            installed[number] -= bitmap
        return noted, installed

    def _take(self, stale: Mapping[int, PageBitmap]) -> None:
        """The entries of these pages."""
        for number, bitmap in stale.items():
            log2 = self._regions[number].granule_log2
            starts, counts = bitmap.runs()
            self._maps[number].unmap_ranges(starts << log2, counts << log2)

    def replace(self, stale: Mapping[int, PageBitmap]) -> None:
        """Another set in the place of this one. Nothing may have been installed, nor the guest have run.

        The blackout waits for this, so little is done here. Beside it entries are taken from pages that are
        stale now and were not before, and those that are stale no more get theirs back: `hold` waits for
        the former.

        Raises:
            GuestError: with BAD_VALUE, the bitmaps do not fit.
            OSError: as `hold`, of the set before.
        """
        noted, installed = self._noted(stale)
        self._restoring.stop()
        new = {number: _without(bitmap, self._stale[number]) for number, bitmap in noted.items()}
        for number, bitmap in noted.items():
            self._bare[number] |= self._stale[number]
            self._bare[number] -= bitmap
        self._stale = noted
        self._bitmaps.put({}, _EARLY)
        self._bitmaps.put(installed)
        self._restoring.begin(self._bare, lambda: self._take(new))

    def hold(self) -> None:
        """Return when every access to a stale page is held; the guest may run then.

        Raises:
            OSError: the kernel leaves a page its entry.
        """
        self._restoring.taken()

    @property
    def file(self) -> MemoryFile:
        """The bitmaps of installed and of early pages, for the controller."""
        return self._bitmaps.file

    def layout(self) -> list[Json]:
        """What the answer to `faults` says: where a region is, and its bitmap of installed pages."""
        places = self._bitmaps.layout(_INSTALLED)
        for place in places:
            assert isinstance(place, dict)
            number = place["region"]
            assert isinstance(number, int)
            place["address"] = f"0x{self._maps[number].address:x}"
        return places

    def early_layout(self) -> list[Json]:
        """And where its bitmap of early pages is [HOL-47]."""
        return self._bitmaps.layout(_EARLY)

    def missing(self) -> int:
        """How many stale pages were not installed; early ones are among them."""
        left = (self.stale(number) & ~self.installed(number) for number in self._stale)
        return sum(int(np.bitwise_count(words).sum()) for words in left)

    def stale(self, region: int) -> npt.NDArray[np.uint64]:
        """The bitmap's words of pages that came later, or still have to."""
        return self._stale[region].words

    def installed(self, region: int) -> npt.NDArray[np.uint64]:
        """The words of what was installed, live, also when this has ended."""
        return self._bitmaps.words(region, _INSTALLED)

    def early(self, region: int) -> npt.NDArray[np.uint64]:
        """The words of what the guest has without being counted as installed, likewise."""
        return self._bitmaps.words(region, _EARLY)

    def end(self) -> None:
        """Hold nothing any more, and let go who waits. Legal twice."""
        if self.uffd.fileno() < 0:
            return
        self._restoring.end()
        for memory in self._maps.values():
            # Closing alone would not do: the controller has a descriptor of the same userfaultfd.
            self.uffd.unregister(memory.address, memory.size_bytes)
        self.uffd.close()
        self._bitmaps.close()


def _without(pages: PageBitmap, others: PageBitmap) -> PageBitmap:
    rest = pages.copy()
    rest -= others
    return rest
