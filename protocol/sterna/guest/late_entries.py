"""Page table entries of a guest whose pages come later, made over its holder's userfaultfd [HOL-40].

For whoever serves its faults: the endpoint, or a process that was forked from it.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.errors import GuestError
from sterna.guest.holder_bitmaps import bit_runs, bits_of
from sterna.linux.memfd import MemoryMap
from sterna.linux.userfaultfd import FaultDescriptor
from sterna.registry import ErrorCode
from sterna.wire.records import Region

_HUGE_BYTES: Final = 2 << 20  # what one entry may have mapped; another size only makes for more faults


@dataclass(frozen=True, slots=True, eq=False)
class LateRegion:
    """A region here and in the holder.

    Attributes:
        address: in the holder.
        words: the shared bitmap of installed pages, live.
        early: that of early pages; None if the holder has none.
    """

    region: Region
    memory: MemoryMap
    address: int
    words: npt.NDArray[np.uint64]
    early: npt.NDArray[np.uint64] | None


class LateEntries:
    """Faults, and the entries that end them.

    Args:
        uffd: the holder's; it stays its owner's.
        regions: by id.
    """

    def __init__(self, uffd: FaultDescriptor, regions: Mapping[int, LateRegion]) -> None:
        self.uffd: Final = uffd
        self.regions: Final = regions

    def faults(self) -> list[tuple[int, int]]:
        """Accesses that wait and that nobody has read of yet: region id and page. A bounded number; no wait.

        Raises:
            GuestError: the holder tells nonsense.
        """
        return [self._place(fault.address) for fault in self.uffd.read_faults()]

    def _place(self, address: int) -> tuple[int, int]:
        for number, one in self.regions.items():
            if one.address <= address < one.address + one.region.size_bytes:
                return number, address - one.address >> one.region.granule_log2
        raise GuestError("a fault outside of the guest's memory")

    def wake(self) -> None:
        """Have every access that waits repeated."""
        for one in self.regions.values():
            self.uffd.wake(one.address, one.region.size_bytes)

    def resolve_around(self, number: int, page: int) -> None:
        """Give a page that is installed its entry back, and then its neighbours.

        Where the guest's memory was mapped by huge pages, taking one page away has taken the entries of all
        that were mapped with it: some hundred faults for each stale page, if they came one by one.

        Raises:
            GuestError: as `resolve`.
        """
        self.resolve(number, page, 1)
        one = self.regions[number]
        pages = max(_HUGE_BYTES >> one.region.granule_log2, 1)
        first = page - page % pages
        there = bits_of(one.words, first, min(pages, one.region.pages - first))
        for start, count in bit_runs(there):
            self.resolve(number, first + start, count)

    def resolve(self, number: int, first: int, count: int) -> None:
        """Have entries made for pages that the guest may touch.

        Raises:
            GuestError: the holder is gone; with FULL, there is no memory for them.
        """
        one = self.regions[number]
        log2 = one.region.granule_log2
        offset, length = first << log2, count << log2
        try:
            try:
                self.uffd.resolve(one.address + offset, length)
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                one.memory.populate(offset, length)  # never touched before: it is there now, as zeros
                self.uffd.resolve(one.address + offset, length)
        except OSError as error:
            if error.errno == errno.ENOENT and self._all_are_noted():
                return  # the holder has seen so, and has let everybody go before we heard of it [HOL-42]
            raise GuestError(f"pages cannot be installed, the holder is gone: {error.strerror}") from error
        except MemoryError as error:
            raise GuestError(f"pages cannot be installed: {error}", ErrorCode.FULL) from error

    def _all_are_noted(self) -> bool:
        """In what the holder reads, which may be ahead of what is counted here."""
        return all(
            int(np.bitwise_count(one.words).sum()) == one.region.pages for one in self.regions.values()
        )
