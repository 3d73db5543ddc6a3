"""How long a KVM guest waits for pages that come later, as the guest itself has measured.

No exit tells of such a wait: the kernel holds the vCPU inside of KVM_RUN, and another process lets it go. But
the guest looks at its time stamp counter around its first access to each page that it writes, and notes what
took long. That says nothing of why. Here, at each doorbell, is looked which of the pages that the guest will
write next are missing; what it has noted of others at the next doorbell tells of a processor that was taken
away, or of a kernel that was slow to map a page, and does not count.

All of it happens in the vCPUs' threads.
"""

from __future__ import annotations

import threading
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from sterna.guest.guest_thread import GRANT_PAGES
from sterna.guest.kvm.layout import RAM
from sterna.guest.kvm.machine import KvmMachine
from sterna.guest.late_pages import LatePages
from sterna.guest.process_gate import PageTimes
from sterna.guest.schedule import COUNT_END, Schedule

Pages: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

_NS_PER_TICK_OF_A_KHZ: Final = 1_000_000


class PageWaits:
    """Of all vCPUs.

    Args:
        machine: has the guest's state by now.
        late: which pages come later.

    Attributes:
        times: of the waits.
        over: no page is missing any more: what was noted by now is taken, and that is all.
    """

    def __init__(self, machine: KvmMachine, late: LatePages) -> None:
        self.over = False
        self.machine = machine
        self._stale, self._installed, self._early = late.stale(RAM), late.installed(RAM), late.early(RAM)
        self.times = PageTimes(len(self._stale) * 64)
        self._lock = threading.Lock()  # the vCPUs' threads have one count of times

    def stale(self, pages: Pages) -> Mask:
        """Which of these came later, or still have to."""
        return _bits(self._stale, pages)

    def missing(self, pages: Pages) -> Mask:
        """Which of these still have to."""
        return _bits(self._stale, pages) & ~_bits(self._installed, pages) & ~_bits(self._early, pages)

    def end(self) -> None:
        """No page is missing any more; what the bitmaps are views of may go."""
        self._stale, self._installed = self._stale.copy(), self._installed.copy()
        self._early = self._early.copy()
        self.over = True

    def add(self, page: int, ns: int) -> None:
        """One more, for this page."""
        with self._lock:
            self.times.add(page, ns)


class VcpuWaits:
    """Of one vCPU, in whose thread it is called.

    Args:
        of: where they are counted.
        number: the vCPU's.
        count: of its writes when it came here. The next one may have begun before.
    """

    def __init__(self, of: PageWaits, number: int, count: int) -> None:
        self._of = of
        self._number = number
        self._arrived = self._begin = count
        self._khz = of.machine.vcpus[number].tsc_khz()
        self._schedule: Schedule | None = None
        self._first_page = 0
        # The pages of its next writes, since its last doorbell, and which of them were missing then.
        self._next: tuple[Pages, Mask] | None = None

    def at_doorbell(self, count: int) -> bool:
        """The guest has come to its doorbell, with so many writes; whether to be called the next time too."""
        over = self._of.over  # before the notes are read: then these are the last
        begin, self._begin = self._begin, count
        if not begin <= count <= min(begin + GRANT_PAGES, COUNT_END):
            return False  # not our program
        try:
            pages, missing = self._next or self._first(begin, count)
            following = self._pages(count, count + GRANT_PAGES)
            self._next = following, self._of.missing(following)
        except ValueError:
            return False  # the guest's memory makes no sense
        for write, ticks in self._of.machine.waits(self._number):
            if max(begin, self._arrived + 1) <= write < count and missing[write - begin]:
                self._of.add(int(pages[write - begin]), ticks * _NS_PER_TICK_OF_A_KHZ // self._khz)
        return not over

    def _first(self, begin: int, end: int) -> tuple[Pages, Mask]:
        """The same of the writes before the first doorbell; which came later counts as missing."""
        pages = self._pages(begin, end)
        return pages, self._of.stale(pages)

    def _pages(self, begin: int, end: int) -> Pages:
        """The pages of region 0 that the writes number begin to end - 1 go to, in this order."""
        if self._schedule is None:
            area = self._of.machine.area(self._number)
            self._schedule, self._first_page = Schedule(area.parameters), area.first_page
        size = self._schedule.parameters.block_pages
        first_slot = begin // size
        starts, _ = self._schedule.slots(first_slot, -(-end // size) - first_slot)
        places = np.arange(begin - first_slot * size, end - first_slot * size, dtype=np.int64)
        return starts.astype(np.int64)[places // size] + places % size + self._first_page


def _bits(words: npt.NDArray[np.uint64], pages: Pages) -> Mask:
    found: Mask = words[pages >> 6] >> (pages & 63).astype(np.uint64) & np.uint64(1) != 0
    return found
