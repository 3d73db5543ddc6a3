"""The public conformance check of guests, in the manner of `trio.testing.check_two_way_stream`.

It plays an endpoint: two migrations of one guest within this process, the first given up in the blackout,
the second carried through, and, of a guest that can, one of another whose pages come when it runs already. On
the way it looks for every law of `sterna.guest.api` that can be seen
from outside. A guest that passes has not been proven right (a tracker that loses one page in a million gets
through), but every law was given an occasion to be broken.

The laws, in the words of the messages:

1. every page that was written is reported by this collect or the next, or is in no answer of `unwritten`
2. a paused guest's memory does not change
3. saving state has no side effects
4. a granted guest stays paused; so does one whose grant is revoked, until `resume`
5. loading state runs nothing; bad state is refused with STATE_REJECTED or UNKNOWN_STATE and changes nothing
6. after `run` the guest runs
7. `discard` is legal at any moment before `run`
8. where the guest can post-copy: what is expected and missing is neither read nor written by the guest
9. what it waits for comes out of `faults`, and installed pages let it go on
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import trio

from sterna.errors import GuestError
from sterna.guest.api import DestinationGuest, GuestDescription, KnowsUnwritten, SourceGuest, StateSection
from sterna.limits import ADDRESS_SPACE, GRANULE_MAX_LOG2, GRANULE_MIN_LOG2
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.testing.check_post_copy import EPOCH, PostCopyCheck, refuses_post_copy
from sterna.testing.laws import copied, memory_hash, memory_pages, require
from sterna.wire.records import Runner

RunFor: TypeAlias = Callable[[float], Awaitable[object]]
Audit: TypeAlias = Callable[[SourceGuest | DestinationGuest], Awaitable[int]]
Image: TypeAlias = dict[int, bytearray]

_ROUNDS: Final = 5
_SMALL_SHARE: Final = 1 / 64  # of all pages: few enough to pause
_PATIENCE_STEPS: Final = 40  # a loaded machine may give a real-time guest nothing for a while
_UNKNOWN: Final = 0xFFFE  # a kind and a version that no registry has
_REFUSALS: Final = frozenset({ErrorCode.STATE_REJECTED, ErrorCode.UNKNOWN_STATE})


async def check_guest(
    make_source: Callable[[], Awaitable[SourceGuest]],
    make_destination: Callable[[], Awaitable[DestinationGuest]],
    *,
    run_for: RunFor = trio.sleep,
    step_s: float = 0.05,
    audit: Audit | None = None,
) -> None:
    """Check that a guest keeps the laws of `sterna.guest.api`.

    ::

        async def test_my_guest() -> None:
            await check_guest(MyGuest.start, MyRoom.open)

    Makes a source and several destinations, and another source for a guest that can post-copy. Whoever calls
    this ends what the guests are made of; the first source has been released and one destination runs when it
    returns, or two, the last one after post-copy.

    Args:
        make_source: makes a guest that runs, writes to its memory, and is not tracked yet.
        make_destination: makes room that nothing has been reserved in.
        run_for: lets this many seconds pass for all guests; a simulated one is advanced here.
        step_s: the time between two looks.
        audit: if a guest can verify itself: lets it, and returns the number of errors that it found.

    Raises:
        AssertionError: a law is broken; the message names it. Exceptions of the guest itself pass through.
    """
    check = _Check(await make_source(), run_for, step_s, audit)
    check.description()
    await check.legal_at_any_time()
    await check.abandoned_migration()
    await _check_discard(make_destination, check.source.description)
    await check.migration(await make_destination())
    await _check_post_copy(make_source, make_destination, check)


@dataclass(slots=True)
class _Check:
    """The source under check and how time passes for it."""

    source: SourceGuest
    run_for: RunFor
    step_s: float
    audit: Audit | None

    def description(self) -> None:
        """The description is one that an endpoint can put into a GUEST frame."""
        guest, law = self.source.description, "description"
        require(len(guest.id) == 16, law, f"the id has {len(guest.id)} bytes instead of 16")
        require(bool(guest.regions), law, "there are no regions")
        ids = [region.id for region in guest.regions]
        require(len(set(ids)) == len(ids), law, "a region id appears twice")
        end = 0
        for region in sorted(guest.regions, key=lambda region: region.address):
            name = f"region {region.id}"
            log2, granule = region.granule_log2, 1 << region.granule_log2
            require(GRANULE_MIN_LOG2 <= log2 <= GRANULE_MAX_LOG2, law, f"{name}: granule 2**{log2}")
            require(region.size_bytes > 0, law, f"{name} is empty")
            require(not (region.address | region.size_bytes) % granule, law, f"{name} is not aligned")
            require(end <= region.address, law, f"{name} overlaps another")
            end = region.address + region.size_bytes
            require(end <= ADDRESS_SPACE, law, f"{name} ends outside of the address space")
        for region in copied(guest):
            size = self.source.memory(region.id).nbytes
            require(size == region.size_bytes, law, f"region {region.id} has {size} bytes")
        require(bool(self.source.tracker), law, "the tracker has no name")

    async def legal_at_any_time(self) -> None:
        """Calls that an endpoint may make of a guest that just runs."""
        await self.source.stop_tracking()
        await self.source.resume()
        for share in (0.5, 0.99, 0.0):
            await self.source.throttle(share)
        await self.runs(self.source, "law 2", "the guest writes nothing while it runs")

    async def abandoned_migration(self) -> None:
        """As far as the state, and back: the guest runs on, and can be migrated again."""
        await self.source.start_tracking()
        await self.copy_rounds()
        await self.source.pause()
        await self.saved_state()
        await self.source.mark_granted(EPOCH)
        await self.source.revoke_grant(EPOCH)
        await self.source.revoke_grant(EPOCH)  # as after a mark_granted that failed
        await self.stays(self.source, "law 4", "revoke_grant made the guest run")
        await self.source.resume()
        await self.source.resume()
        await self.runs(self.source, "law 3", "after save_state and resume the guest does not run on")
        await self.audited(self.source, "law 3: after save_state and resume")
        await self.source.stop_tracking()

    async def migration(self, destination: DestinationGuest) -> None:
        """All of it, into `destination`."""
        guest = self.source.description
        await destination.reserve(guest)
        await self.source.start_tracking()
        shadow = await self.copy_rounds()
        await destination.prepare()
        await self.source.pause()
        await self.source.pause()
        await self.last_collect(shadow)
        sections = await self.saved_state()
        _copy_to(destination, guest, shadow)
        image = memory_hash(self.source, guest)
        require(
            memory_hash(destination, guest) == image,
            "memory",
            "the destination's reads differently from what was written",
        )
        await self.loads(destination, sections)
        await self.source.mark_granted(EPOCH)
        await self.stays(self.source, "law 4", "memory changed after mark_granted")
        await destination.run(EPOCH, Runner("check", bytes(range(16))))
        await self.runs(destination, "law 6", "after run the guest does not run")
        await self.audited(destination, "law 6: at the destination")
        require(memory_hash(self.source, guest) == image, "law 4", "the source's memory changed after run")
        await self.source.stop_tracking()
        require(self.source.description == guest, "description", "it changed during the migration")
        await self.source.release()

    async def copy_rounds(self) -> Image:
        """Rounds of a running guest until little is left; what was copied."""
        guest = self.source.description
        shadow: Image = {region.id: bytearray(region.size_bytes) for region in copied(guest)}
        total = sum(region.pages for region in copied(guest))
        everything = {region.id: PageBitmap.full(region.pages) for region in copied(guest)}
        if isinstance(self.source, KnowsUnwritten):  # what is not zero then is a page that nobody copies
            for number, unwritten in (await self.source.unwritten()).items():
                everything[number] -= unwritten
        self.copy_pages(shadow, everything)
        for _ in range(_ROUNDS):
            await self.run_for(self.step_s)
            dirty = await self.collect()
            self.copy_pages(shadow, dirty)
            if sum(bitmap.count() for bitmap in dirty.values()) <= total * _SMALL_SHARE:
                break
        await self.run_for(self.step_s)
        return shadow

    async def collect(self) -> dict[int, PageBitmap]:
        """What the tracker answers, by copied region."""
        answer = await self.source.collect_dirty()
        sizes = {region.id: region.pages for region in self.source.description.regions}
        for number, bitmap in answer.items():
            require(number in sizes, "law 1", f"collect_dirty reports region {number}, which does not exist")
            right = bitmap.bits == sizes[number]
            require(right, "law 1", f"collect_dirty has {bitmap.bits} bits for region {number}")
        return {
            region.id: answer[region.id] for region in copied(self.source.description) if region.id in answer
        }

    def copy_pages(self, shadow: Image, pages: Mapping[int, PageBitmap]) -> None:
        """Copy these pages as they are at this moment."""
        regions = {region.id: region for region in self.source.description.regions}
        for number, bitmap in pages.items():
            granule = 1 << regions[number].granule_log2
            memory = self.source.memory(number)
            starts, counts = bitmap.runs()
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
                run = slice(start * granule, (start + count) * granule)
                shadow[number][run] = memory[run]

    async def last_collect(self, shadow: Image) -> None:
        """Of the paused guest: whatever is not reported now must have been copied as it is."""
        dirty = await self.collect()
        for region in copied(self.source.description):
            live = memory_pages(self.source.memory(region.id), region)
            stale = (live != memory_pages(shadow[region.id], region)).any(axis=1)
            missed = PageBitmap.from_mask(stale)
            if region.id in dirty:
                missed -= dirty[region.id]
            first = missed.runs()[0][:1].tolist()
            what = (
                f"{missed.count()} pages of region {region.id} were written and never reported, first {first}"
            )
            require(not first, "law 1", what)
        self.copy_pages(shadow, dirty)

    async def saved_state(self) -> Sequence[StateSection]:
        """The state of the paused guest, and that neither time nor saving changes anything."""
        guest = self.source.description
        await self.stays(self.source, "law 2", "memory changed while the guest was paused")
        before = memory_hash(self.source, guest)
        sections = tuple(await self.source.save_state())
        again = tuple(await self.source.save_state())
        require(sections == again, "law 3", "saving the state twice gives two different states")
        require(memory_hash(self.source, guest) == before, "law 3", "save_state changed memory")
        await self.stays(self.source, "law 3", "save_state made the guest run")
        after = tuple(await self.source.save_state())
        require(sections == after, "law 2", "the state changed while the guest was paused")
        keys = {(s.architecture, s.vcpu, s.kind, s.version, s.instance) for s in sections}
        require(len(keys) == len(sections), "law 3", "two state sections have the same name")
        size = sum(len(section.data) for section in sections)
        what = f"{size} bytes of state, but the description says at most {guest.state_bytes}"
        require(size <= guest.state_bytes, "description", what)
        return sections

    async def loads(self, destination: DestinationGuest, sections: Sequence[StateSection]) -> None:
        """Bad states are refused, then the good one is taken; nothing runs meanwhile."""
        guest = self.source.description
        image = memory_hash(destination, guest)
        for what, bad in _bad_states(sections):
            await _refuses(destination, bad, what)
            require(
                memory_hash(destination, guest) == image,
                "law 5",
                f"memory changed by a refused state ({what})",
            )
        # Twice: the attempt may be given up after LOADED, and the next one loads again.
        for _ in range(2):
            await destination.load_state(sections)
            require(memory_hash(destination, guest) == image, "law 5", "load_state changed memory")
            await self.stays(destination, "law 5", "load_state made the guest run")

    async def runs(self, guest: SourceGuest | DestinationGuest, law: str, what: str) -> None:
        """Memory changes within a few steps."""
        description = self.source.description
        before = memory_hash(guest, description)
        for _ in range(_PATIENCE_STEPS):
            await self.run_for(self.step_s)
            if memory_hash(guest, description) != before:
                return
        raise AssertionError(f"{law}: {what}")

    async def stays(self, guest: SourceGuest | DestinationGuest, law: str, what: str) -> None:
        """Memory does not change in a step."""
        before = memory_hash(guest, self.source.description)
        await self.run_for(self.step_s)
        require(memory_hash(guest, self.source.description) == before, law, what)

    async def audited(self, guest: SourceGuest | DestinationGuest, where: str) -> None:
        """The guest finds nothing wrong with itself."""
        if self.audit is not None:
            errors = await self.audit(guest)
            require(errors == 0, where, f"the guest's own audit finds {errors} errors")


def _copy_to(destination: DestinationGuest, guest: GuestDescription, shadow: Image) -> None:
    for region in copied(guest):
        memory = destination.memory(region.id)
        what = f"region {region.id}: not writable, or of the wrong size, at the destination"
        require(not memory.readonly and memory.nbytes == region.size_bytes, "memory", what)
        require(
            not memory_pages(memory, region).any(), "memory", f"region {region.id} does not read as zeros"
        )
        memory[:] = shadow[region.id]


def _bad_states(sections: Sequence[StateSection]) -> Iterator[tuple[str, tuple[StateSection, ...]]]:
    """States that no destination can accept, made from a good one."""
    stranger = StateSection(_UNKNOWN, 1, b"\0" * 16, instance=_UNKNOWN)
    yield "only a section of unknown kind", (stranger,)
    yield "a section of unknown kind beside the good ones", (*sections, stranger)
    if not sections:
        return
    first, rest = sections[0], tuple(sections[1:])
    yield "no section at all", ()
    yield "the first section missing", rest
    yield "a section twice", (first, first, *rest)
    yield "a section of unknown version", (replace(first, version=_UNKNOWN), *rest)
    yield "an empty section", (replace(first, data=b""), *rest)
    yield "half a section", (replace(first, data=first.data[: len(first.data) // 2]), *rest)


async def _refuses(destination: DestinationGuest, sections: Sequence[StateSection], what: str) -> None:
    try:
        await destination.load_state(sections)
    except GuestError as error:
        require(error.code in _REFUSALS, "law 5", f"{what}: refused with {error.code.name}")
    except Exception as error:
        raise AssertionError(f"law 5: {what}: {type(error).__name__} instead of a GuestError") from error
    else:
        raise AssertionError(f"law 5: {what} was accepted")


async def _check_discard(make: Callable[[], Awaitable[DestinationGuest]], guest: GuestDescription) -> None:
    """A destination may be given up before it has anything, when it has memory, and when it is prepared."""
    for steps in range(3):
        destination = await make()
        if steps >= 1:
            await destination.reserve(guest)
        if steps >= 2:
            await destination.prepare()
        try:
            await destination.discard()
        except Exception as error:
            after = ("nothing", "reserve", "prepare")[steps]
            raise AssertionError(f"law 7: discard after {after} failed") from error


async def _check_post_copy(
    make_source: Callable[[], Awaitable[SourceGuest]],
    make_destination: Callable[[], Awaitable[DestinationGuest]],
    check: _Check,
) -> None:
    room = await make_destination()
    await room.reserve(check.source.description)
    can = room.can_post_copy
    if not can:
        await refuses_post_copy(room)
    await room.discard()
    if can:
        room = await make_destination()
        await PostCopyCheck(await make_source(), room, check.run_for, check.step_s).run()
        await check.audited(room, "law 9: after post-copy")
