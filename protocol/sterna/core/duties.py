"""What a machine's requests mean for a guest and its host: the one place where they become calls.

Whoever drives a machine hands its requests to `serve_source` or `serve_destination`, and keeps for itself
what depends on where it stands: admission, the room for a new guest, and when its memory may be let go of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from sterna.core.events import (
    AnswerVerdict,
    Claim,
    CollectDirty,
    Discard,
    Expect,
    Installed,
    KeepNotes,
    LoadState,
    MarkGranted,
    Pause,
    Persist,
    Prepare,
    ProbeStore,
    ReleaseImage,
    Request,
    RollBack,
    RunGuest,
    RunOn,
    SaveState,
    StartTracking,
    TakeStorage,
    Throttle,
)
from sterna.core.records import Record, Voided
from sterna.errors import GuestError
from sterna.guest.api import (
    DestinationGuest,
    GuestDescription,
    KeepsNotes,
    KnowsUnwritten,
    PreparesNotes,
    SourceGuest,
)
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.registry import ErrorCode, Owner, Style
from sterna.wire.records import Hello, Runner, Verdict


class Records(Protocol):
    """What a host writes down, claims and holds for a session."""

    async def persist(self, record: Record) -> None:
        """Make a record durable; it is when this returns.

        Raises:
            RecordConflict: another record stands against it.
            RecordError: RECORD_FAILED. It may be durable or not.
        """
        ...

    async def claim(self, epoch: int, runner: Runner) -> Runner:
        """Claim an epoch until its slot is filled; the runner that it holds."""
        ...

    async def probe(self, epoch: int, runner: Runner) -> None:
        """Have an answer of the store.

        Raises:
            StoreUnavailable: there is none.
            SternaError: STALE_EPOCH, the newest slot is another.
        """
        ...

    async def verdict(self, hello: Hello) -> Verdict:
        """Who owns the guest, for a HELLO that asks about a session.

        Raises:
            SternaError: this process cannot tell, and refuses.
        """
        ...


class NoRecords:
    """Nothing outlives the process, and every claim is won: there is nobody else to claim.

    A process that dies between HANDOVER and RUNNING leaves the guest undecided.
    """

    async def persist(self, record: Record) -> None:
        """Nothing is kept."""

    async def claim(self, epoch: int, runner: Runner) -> Runner:
        """Won."""
        del epoch
        return runner

    async def probe(self, epoch: int, runner: Runner) -> None:
        """There is no store."""

    async def verdict(self, hello: Hello) -> Verdict:
        """Nothing is known of any session [ONE-46]."""
        return Verdict(Owner.UNDECIDED, hello.epoch, hello.runner)


Make: TypeAlias = Callable[[RegionTable, Mapping[int, memoryview]], RegionPages]
"""What pages are made by: `RegionPages` of new memory, `sterna.core.reopening.pages_left` of another's."""


def pages_of(
    guest: SourceGuest | DestinationGuest, description: GuestDescription, make: Make = RegionPages
) -> RegionPages:
    """The guest's memory as the core reads and fills it.

    Raises:
        GuestError, ValueError: the description or the memory makes no sense.
    """
    table = RegionTable(description.regions)
    return make(table, {region.id: guest.memory(region.id) for region in table.copied})


async def reserve(guest: DestinationGuest, description: GuestDescription) -> RegionPages:
    """Make room for a guest.

    Raises:
        GuestError, ValueError: it cannot be had, or it makes no sense.
    """
    await guest.reserve(description)
    pages = pages_of(guest, description)
    if not pages.is_writable:
        raise GuestError("the memory that it has reserved is read-only")
    return pages


async def serve_source(guest: SourceGuest, records: Records, request: Request) -> object:
    """Carry out one request of a source, and return the answer to it.

    Raises:
        GuestError: the guest could not do it, or it is no request of a source.
    """
    match request:
        case StartTracking():
            await guest.start_tracking()
            return await guest.unwritten() if isinstance(guest, KnowsUnwritten) else None
        case CollectDirty():
            return await guest.collect_dirty()
        case Throttle(share=share):
            await guest.throttle(share)
        case Pause():
            await guest.pause()
        case SaveState():
            return await guest.save_state()
        case KeepNotes(size_bytes=size_bytes):
            return await _room_for_notes(guest, size_bytes)
        case MarkGranted(epoch=epoch):
            await guest.mark_granted(epoch)
        case Persist(record=record):
            await records.persist(record)
        case ProbeStore(epoch=epoch, runner=runner):
            await records.probe(epoch, runner)
        case RollBack(voided=voided):
            await _roll_back(guest, voided)
        case RunOn():
            await guest.throttle(0.0)
            await guest.resume()
        case ReleaseImage():
            await guest.release()
        case _:
            raise GuestError(f"{type(request).__name__} is not for a source")
    return None


async def _room_for_notes(guest: SourceGuest, size_bytes: int) -> memoryview | None:
    return _place(await guest.notes(size_bytes)) if isinstance(guest, KeepsNotes) else None


def _place(room: memoryview) -> memoryview | None:
    return room or None


async def _roll_back(guest: SourceGuest, voided: Voided | None) -> None:
    """The record is void; now the mark, then the guest itself [ONE-19]."""
    if voided is not None:
        await guest.revoke_grant(voided.epoch)
    await guest.stop_tracking()
    await guest.throttle(0.0)
    await guest.resume()


async def serve_destination(guest: DestinationGuest, records: Records, request: Request) -> object:
    """Carry out one request of a destination that has room for the guest, and return the answer to it.

    Raises:
        GuestError: the guest could not do it, or it is no request of a destination with such a room.
    """
    match request:
        case Prepare(style=style, likely=likely, notes_bytes=notes_bytes):
            if style is not Style.STOP_AND_COPY and not guest.can_post_copy:
                detail = "this guest runs only when all of its pages are there"
                raise GuestError(detail, ErrorCode.UNSUPPORTED)
            await guest.prepare()
            if likely:
                await guest.expect(likely)
            if notes_bytes and isinstance(guest, PreparesNotes):
                return _place(await guest.prepare_notes(notes_bytes))
        case Expect(stale=stale, notes=notes, ahead=ahead):
            if stale or guest.can_post_copy:
                await guest.expect(stale)
            if stale:
                place = await guest.notes(notes.size_bytes)
                if not ahead:
                    notes.move_to(place)
            elif guest.can_post_copy:
                await guest.notes(0)  # those of an attempt before are of another image
        case Installed(pages=ranges):
            for pages in ranges:
                await guest.installed(pages.region, pages.first, pages.count)
        case LoadState(sections=sections):
            await guest.load_state(sections)
        case Persist(record=record):
            await records.persist(record)
        case ProbeStore(epoch=epoch, runner=runner):
            await records.probe(epoch, runner)
        case Claim(epoch=epoch, runner=runner):
            return await records.claim(epoch, runner)
        case TakeStorage():
            await guest.take_storage()
        case AnswerVerdict(hello=hello):
            return await records.verdict(hello)
        case RunGuest(epoch=epoch, runner=runner):
            await guest.run(epoch, runner)
        case Discard():
            await guest.discard()
        case _:
            raise GuestError(f"{type(request).__name__} is not for a destination")
    return None
