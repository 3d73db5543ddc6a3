"""The part of `check_guest` for guests that can run before all of their pages are there.

The destination gets a state and no page. What stands in the pages' places is nonsense, so a guest that looks
at one is caught by its own audit, and one that writes to one is caught here: the nonsense is gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import trio

from sterna.errors import GuestError
from sterna.guest.api import DestinationGuest, SourceGuest
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.testing.laws import copied, memory_hash, memory_pages, require
from sterna.wire.records import PageRange, Runner

RunFor: TypeAlias = Callable[[float], Awaitable[object]]

EPOCH: Final = 2
_GROUP_PAGES: Final = 16
_NONSENSE: Final = b"\xee"
_NONSENSE_WORD: Final = int.from_bytes(_NONSENSE * 8, "little")
_PATIENCE_STEPS: Final = 200  # a step may bring one page, and a guest may wait for many before it writes
_NOTES: Final = b"what the next endpoint must know"


async def refuses_post_copy(room: DestinationGuest) -> None:
    """A guest that cannot says so to everything."""
    asked: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: room.expect({}),
        room.faults,
        lambda: room.installed(0, 0, 1),
    )
    for ask in asked:
        try:
            await ask()
        except GuestError as error:
            require(error.code is ErrorCode.UNSUPPORTED, "law 8", f"it cannot, and says {error.code.name}")
        else:
            raise AssertionError("law 8: it cannot run without its pages, and does not refuse to")


@dataclass(slots=True)
class PostCopyCheck:
    """One migration of which every page comes after the guest runs.

    Attributes:
        source: runs, and is not tracked.
        room: nothing was reserved in it.
        run_for: lets this many seconds pass.
        step_s: the time between two looks.
    """

    source: SourceGuest
    room: DestinationGuest
    run_for: RunFor
    step_s: float
    image: dict[int, bytes] = field(default_factory=dict)
    left: dict[int, PageBitmap] = field(default_factory=dict)  # what we have not installed
    failure: Exception | None = None  # of the task that serves

    async def run(self) -> None:
        """All of it.

        Raises:
            AssertionError: a law is broken; the message names it.
        """
        await self.arrive()
        await self.holds()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.serve)
            went_on = await self.goes_on()
            nursery.cancel_scope.cancel()
        if self.failure is not None:
            raise self.failure
        require(went_on, "law 9", "it does not go on when the pages that it waits for are installed")
        self.untouched()
        await self.notes()
        await self.push()
        missing = await self.room.missing()
        require(
            not any(map(PageBitmap.any, missing.values())), "law 9", "pages are missing after the last one"
        )
        await self.runs_on()

    async def arrive(self) -> None:
        """The state is there, and nonsense for pages."""
        source, room = self.source, self.room
        guest = source.description
        await source.pause()
        self.image = {region.id: bytes(source.memory(region.id)) for region in copied(guest)}
        sections = await source.save_state()
        await room.reserve(guest)
        require(room.can_post_copy, "law 8", "can_post_copy is not the same in every room")
        await room.prepare()
        notes = await room.notes(len(_NOTES))
        require(bytes(notes) == bytes(len(_NOTES)), "notes", "they are not full of zeros at first")
        notes[:] = _NOTES
        await self.refuses_nonsense()
        full = {region.id: PageBitmap.full(region.pages) for region in copied(guest)}
        first = next(copied(guest))
        some = PageBitmap(first.pages)
        some.set(0)
        before = memory_hash(room, guest)
        for stale in (full, {}, {first.id: some}, full):  # attempts that were given up, and the last one
            await room.expect(stale)
        self.left = {number: bitmap.copy() for number, bitmap in full.items()}
        require(_same(await room.missing(), self.left), "law 8", "missing does not tell what is expected")
        await room.load_state(sections)
        require(memory_hash(room, guest) == before, "law 8", "expect or load_state changed memory")
        for number, data in self.image.items():
            room.memory(number)[:] = _NONSENSE * len(data)
        await source.mark_granted(EPOCH)
        await room.run(EPOCH, Runner("check", bytes(range(16))))

    async def refuses_nonsense(self) -> None:
        """Bitmaps of other regions, and of another size."""
        region = next(copied(self.source.description))
        strange = max(each.id for each in self.source.description.regions) + 1
        for bad in ({strange: PageBitmap(1)}, {region.id: PageBitmap(region.pages + 1)}):
            try:
                await self.room.expect(bad)
            except GuestError as error:
                require(error.code is ErrorCode.BAD_VALUE, "law 8", f"bad bitmaps give {error.code.name}")
            else:
                raise AssertionError("law 8: bitmaps that do not fit the regions were taken")

    async def holds(self) -> None:
        """Without a page it does nothing."""
        await self.run_for(self.step_s)
        self.untouched()

    async def serve(self) -> None:
        """By demand, until cancelled. A failure is kept: out of a nursery it would come wrapped."""
        try:
            while True:
                await self.serve_once()
        except Exception as error:  # noqa: BLE001 - raised by the other task
            self.failure = error

    async def serve_once(self) -> None:
        """Every group of which the guest waits for a page."""
        found = await self.room.faults()
        require(bool(found), "law 9", "faults returned without one")
        for each in found:  # all of them first: two vCPUs may wait for pages of one group
            require(self.has(each), "law 9", f"faults tells {each}, which is not missing")
        for each in found:
            for page in range(each.first, each.first + each.count):
                await self.install(each.region, page - page % _GROUP_PAGES)

    def has(self, pages: PageRange) -> bool:
        """Whether all of these are missing, as far as we know."""
        left = self.left.get(pages.region)
        if left is None or not 0 < pages.count <= left.bits - pages.first:
            return False
        return all(page in left for page in range(pages.first, pages.first + pages.count))

    async def install(self, region: int, first: int) -> None:
        """What is left of a group, in pieces."""
        left = self.left[region]
        count = min(_GROUP_PAGES, left.bits - first)
        granule = len(self.image[region]) // left.bits
        starts, counts = left.runs_between(first, count)
        for start, length in zip(starts.tolist(), counts.tolist(), strict=True):
            part = slice(start * granule, (start + length) * granule)
            self.room.memory(region)[part] = self.image[region][part]
            left.clear(start, length)
            await self.room.installed(region, start, length)
            await self.room.installed(region, start, 1)  # once more does no harm

    async def push(self) -> None:
        """What nobody has asked for."""
        for region, left in self.left.items():
            for first in range(0, left.bits, _GROUP_PAGES):
                await self.install(region, first)
        await self.room.installed(region, 0, 1)  # where it was the last one, that may have been cut off

    async def notes(self) -> None:
        """They are what they were."""
        require(bytes(await self.room.notes()) == _NOTES, "notes", "they have changed")
        require(not len(await self.room.notes(0)), "notes", "they are there after they were given up")
        require(not len(await self.room.notes()), "notes", "they are there after they were given up")

    def untouched(self) -> None:
        """No missing page was written by anybody."""
        for region in copied(self.source.description):
            pages = memory_pages(self.room.memory(region.id), region)
            written = PageBitmap.from_mask((pages != _NONSENSE_WORD).any(axis=1))
            written &= self.left[region.id]
            first = written.runs()[0][:1].tolist()
            what = f"{written.count()} missing pages of region {region.id} were written, first {first}"
            require(not first, "law 8", what)

    def wrote(self) -> bool:
        """Whether a page that was installed is not any more what it was then."""
        for region in copied(self.source.description):
            live = memory_pages(self.room.memory(region.id), region)
            changed = PageBitmap.from_mask((live != memory_pages(self.image[region.id], region)).any(axis=1))
            changed -= self.left[region.id]
            if changed.any():
                return True
        return False

    async def goes_on(self) -> bool:
        """Whether it writes, while it is served."""
        for _ in range(_PATIENCE_STEPS):
            await self.run_for(self.step_s)
            await trio.lowlevel.checkpoint()  # simulated time passes without one, and nobody would serve
            if self.failure is not None or self.wrote():
                return True
        return False

    async def runs_on(self) -> None:
        """It writes, and nobody else does."""
        before = memory_hash(self.room, self.source.description)
        for _ in range(_PATIENCE_STEPS):
            await self.run_for(self.step_s)
            if memory_hash(self.room, self.source.description) != before:
                return
        raise AssertionError("law 9: with all of its pages there it does not run on")


def _same(some: Mapping[int, PageBitmap], others: Mapping[int, PageBitmap]) -> bool:
    """Regions without a page may be left out."""
    return {number: bitmap for number, bitmap in some.items() if bitmap.any()} == {
        number: bitmap for number, bitmap in others.items() if bitmap.any()
    }
