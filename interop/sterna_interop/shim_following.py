"""Room for the kit's guest at a destination where it may run before its pages are there [13].

Its memory, the notes of its pages, and the pager that is forked from this process are as with any guest. Only
who waits is no vCPU: the guest reads its pages one after the other, as interop/README.md says, and that is
computed wherever somebody asks what it waits for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import trio

from sterna.errors import GuestError
from sterna.guest.api import EarlyRoom, GuestDescription
from sterna.guest.early_pages import EarlyPages
from sterna.guest.holder_bitmaps import BitmapFile, bits_of, set_bits
from sterna.guest.late_entries import LateEntries, LateRegion
from sterna.guest.late_faults import LateFaults
from sterna.guest.late_pager import LatePager
from sterna.linux.memfd import MemoryFile
from sterna.linux.userfaultfd import FaultDescriptor
from sterna.memory.bitmap import PageBitmap
from sterna.memory.regions import RegionTable
from sterna.wire.records import PageRange, Runner
from sterna_interop.contract import Order
from sterna_interop.shim_guest import RoomForGuest

_INSTALLED, _EARLY = range(2)  # the sets of bitmaps


class _Reading(LateEntries):
    """A guest that reads every page once, from the last one to the first, and waits at each that is missing.

    Which process looks does not matter: how far it has come follows from the bitmaps that they share.
    """

    def __init__(self, regions: Mapping[int, LateRegion]) -> None:
        super().__init__(FaultDescriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)), regions)
        self._left = [(number, page) for number, one in regions.items() for page in range(one.region.pages)]
        self._told: tuple[int, int] | None = None

    def faults(self) -> list[tuple[int, int]]:
        """The page that it waits for, once."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.uffd.fileno())
        while self._left and self._is_there(*self._left[-1]):
            self._left.pop()
        if not self._left or self._left[-1] == self._told:
            return []
        self._told = self._left[-1]
        return [self._told]

    def wake(self) -> None:
        """Have what it waits for told again."""
        self._told = None
        os.eventfd_write(self.uffd.fileno(), 1)

    def resolve_around(self, number: int, page: int) -> None:
        """See `resolve`."""
        self.resolve(number, page, 1)

    def resolve(self, number: int, first: int, count: int) -> None:
        """It may have got on."""
        os.eventfd_write(self.uffd.fileno(), 1)

    def _is_there(self, number: int, page: int) -> bool:
        one = self.regions[number]
        assert one.early is not None
        return bool(bits_of(one.words, page, 1) | bits_of(one.early, page, 1))


class _Told(LateFaults):
    """Its faults."""

    def pager(self) -> LatePager:
        """See `EarlyRoom`. It asks, too, for what the endpoint was told that the guest waits for."""
        self.repeat()
        return super().pager()


class FollowedRoom(RoomForGuest):
    """Room whose pages may come later, and early. Whoever makes it closes it."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._late: LateFaults | None = None
        self._files: list[MemoryFile] = []
        self._bitmaps: BitmapFile | None = None
        self._notes = memoryview(b"")

    @property
    def can_post_copy(self) -> bool:
        """It can."""
        return True

    async def reserve(self, description: GuestDescription) -> None:
        """Zeros in memory that a forked process shares, or the refusal that was ordered."""
        await super().reserve(description)
        copied = RegionTable(description.regions).copied
        self._bitmaps = bitmaps = BitmapFile(copied, "sterna-interop", sets=2)
        installed = {region.id: bitmaps.words(region.id, _INSTALLED) for region in copied}
        early = {region.id: bitmaps.words(region.id, _EARLY) for region in copied}
        regions = {}
        for region in copied:
            self._files.append(file := MemoryFile("sterna-interop", region.size_bytes))
            memory = file.map()
            self._memory[region.id] = memory.view
            words = installed[region.id], early[region.id]
            regions[region.id] = LateRegion(region, memory, 0, *words)
        pages = {region.id: region.pages for region in copied}
        notes = EarlyPages(bitmaps.file.fileno(), early, installed, pages)
        self._late = _Told(_Reading(regions), notes)
        await self.expect({})

    async def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        """What is not stale is installed."""
        for number, one in self._faults.entries.regions.items():
            there = PageBitmap.full(one.region.pages)
            if number in stale:
                there -= stale[number]
            np.copyto(one.words, there.words)
        self._faults.claims.renew()

    async def run(self, epoch: int, runner: Runner) -> None:
        """It reads."""
        await super().run(epoch, runner)
        self._faults.repeat()

    async def faults(self) -> Sequence[PageRange]:
        """What it waits for, if no pager is there to see to it, or what that leaves to the endpoint."""
        while True:
            await trio.lowlevel.checkpoint()
            if self.running and (found := self._faults.read()):
                return [PageRange(region, page, 1) for region, page in found]
            await self._faults.wait()

    async def installed(self, region: int, first: int, count: int) -> None:
        """Noted; the guest may have got on."""
        entries = self._faults.entries
        set_bits(entries.regions[region].words, first, count)
        entries.resolve(region, first, count)

    async def missing(self) -> Mapping[int, PageBitmap]:
        """What is not installed."""
        found = {}
        for number, one in self._faults.entries.regions.items():
            found[number] = PageBitmap.full(one.region.pages)
            found[number] -= PageBitmap.from_words(one.words, one.region.pages)
        return found

    async def notes(self, size_bytes: int | None = None) -> memoryview:
        """For this process alone: no other goes on with this guest."""
        if size_bytes is not None:
            self._notes = memoryview(bytearray(size_bytes))
        return self._notes

    def close(self) -> None:
        """See `RoomForGuest.close`. Nothing is told any more."""
        for each in (self._late, self._bitmaps, *self._files):
            if each is not None:
                each.close()

    def early_pages(self) -> EarlyRoom | None:
        """While it lacks pages."""
        regions = () if self._late is None else self._late.entries.regions.values()
        lacks = any(int(np.bitwise_count(one.words).sum()) < one.region.pages for one in regions)
        return self._late if lacks else None

    @property
    def _faults(self) -> LateFaults:
        if self._late is None:
            raise GuestError("no room was reserved")
        return self._late
