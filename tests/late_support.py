"""Pages that come later, with holder, guest and endpoint in the test's process, and pagers forked from it."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import trio

from sterna.guest.early_pages import EarlyPages
from sterna.guest.holder_bitmaps import BitmapFile
from sterna.guest.holder_frames import Frame
from sterna.guest.late_endpoint import LateEndpoint
from sterna.guest.late_pages import LatePages
from sterna.guest.schedule import PAGE_BYTES
from sterna.linux.byte_locks import ByteLocks
from sterna.linux.memfd import MemoryFile
from sterna.memory.bitmap import PageBitmap, expand_runs
from sterna.wire.records import PageRange, Region

REGION = Region(3, 1 << 40, 8 * PAGE_BYTES)
WITHIN_S = 30.0


class Rig:
    """Pages of which some are held, and both ends of them."""

    def __init__(self, *stale: int, region: Region = REGION) -> None:
        self.region = region
        self.file = MemoryFile("test", self.region.size_bytes)
        self.theirs, self.ours = self.file.map(), self.file.map()
        self.theirs.array[:] = 1
        bitmap = PageBitmap(self.region.pages)
        for page in stale:
            bitmap.set(page)
        self.late = LatePages((self.region,), {3: self.theirs}, {3: bitmap})
        self.threads: list[threading.Thread] = []
        self.endpoint = self.attach()

    def attach(self) -> LateEndpoint:
        return LateEndpoint(self.answer(), (self.region,), {3: self.ours})

    def answer(self, **changes: object) -> Frame:
        place = {**self.late.layout()[0], **changes}
        descriptors = os.dup(self.late.uffd.fileno()), os.dup(self.late.file.fileno())
        return Frame({"regions": [place], "early": self.late.early_layout()}, descriptors)

    def touch(self, page: int) -> threading.Thread:
        thread = threading.Thread(target=self.theirs.touch, args=(page * PAGE_BYTES,))
        thread.start()
        self.threads.append(thread)
        return thread

    async def served(self, thread: threading.Thread | None = None) -> None:
        """Serve what needs nobody else, until the thread (the newest, if not said) has gone on."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.endpoint.faults)
            await self.went_on(thread or self.threads[-1])
            nursery.cancel_scope.cancel()

    def entries(self) -> list[bool]:
        """Which pages have an entry in the guest's mapping, as the kernel tells."""
        with open("/proc/self/pagemap", "rb") as pagemap:
            pagemap.seek(self.theirs.address // PAGE_BYTES * 8)
            return [bool(top & 0x80) for top in pagemap.read(self.region.pages * 8)[7::8]]

    async def went_on(self, thread: threading.Thread) -> None:
        with trio.fail_after(WITHIN_S):
            await trio.to_thread.run_sync(thread.join)


@contextlib.asynccontextmanager
async def rigs() -> AsyncIterator[Callable[..., Rig]]:
    """Makes rigs, and ends them."""
    made: list[Rig] = []

    def make(*stale: int, region: Region = REGION) -> Rig:
        made.append(Rig(*stale, region=region))
        return made[-1]

    yield make
    for rig in made:
        rig.late.end()
        rig.endpoint.close()
        for thread in rig.threads:
            thread.join(WITHIN_S)
            assert not thread.is_alive()
        for each in (rig.theirs, rig.ours, rig.file):
            each.close()


async def told(endpoint: LateEndpoint, pages: int) -> list[PageRange]:
    """Faults until so many pages were told."""
    found: list[PageRange] = []
    with trio.fail_after(WITHIN_S):
        while sum(each.count for each in found) < pages:
            found += await endpoint.faults()
    return found


class Forked:
    """A process forked from the test's, which does something and ends.

    Args:
        do: in the child. Its end is the process' end: 0, or 1 after an exception.
    """

    def __init__(self, do: Callable[[], None]) -> None:
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                do()
                status = 0
            finally:
                os._exit(status)

    def ended(self) -> int:
        """Its exit code, once it has ended; negative for the signal that has killed it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        """Kill it, and wait for that."""
        os.kill(self.pid, 9)
        assert self.ended() == -9


def die() -> None:
    """End this process as if it had been killed."""
    os.kill(os.getpid(), 9)


def beside(early: EarlyPages) -> EarlyPages:
    """What a forked process has of it, in this one: the same shared memory, and descriptors of its own."""
    pager = copy.copy(early)
    pager._locks = ByteLocks(os.dup(early.fileno()))
    return pager


class Bitmaps:
    """The holder's bitmaps of some regions, and both processes' views of early pages, without a guest.

    The "pager" is in this process, but has what a forked one has: the endpoint's shared memory, and locks of
    its own.

    Args:
        regions: those that there are.
        stale: runs (region, first, count) that are not installed.
    """

    def __init__(self, regions: Sequence[Region], *stale: tuple[int, int, int]) -> None:
        self.regions = {region.id: region for region in regions}
        self.file = BitmapFile(regions, "test", 2)
        installed = {number: PageBitmap.full(region.pages) for number, region in self.regions.items()}
        for number, first, count in stale:
            installed[number].clear(first, count)
        self.file.put(installed)
        self.endpoint = self.attach()

    def attach(self) -> EarlyPages:
        """As an endpoint does that takes over."""
        early = {number: self.file.words(number, 1) for number in self.regions}
        installed = {number: self.file.words(number) for number in self.regions}
        pages = {number: region.pages for number, region in self.regions.items()}
        return EarlyPages(self.file.file.fileno(), early, installed, pages)

    def fork(self) -> EarlyPages:
        """A pager."""
        pager = beside(self.endpoint)
        pager.after_fork()
        return pager

    def early(self, region: int) -> list[int]:
        """The pages that are early."""
        starts, counts = PageBitmap.from_words(self.file.words(region, 1), self.regions[region].pages).runs()
        return expand_runs(starts, counts).tolist()

    def close(self) -> None:
        self.endpoint.close()
        self.file.close()
