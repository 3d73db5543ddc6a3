"""What a machine's requests mean for a guest and its host: the one place where they become calls.

Whoever drives a machine hands its requests to `serve_source` or `serve_destination`, and keeps for itself
what depends on where it stands: admission, the room for a new guest, and when its memory may be let go of.
"""

from __future__ import annotations

from typing import Protocol

from sterna.core.events import (
    Claim,
    CollectDirty,
    Discard,
    LoadState,
    MarkGranted,
    Pause,
    Persist,
    Prepare,
    RecordKind,
    ReleaseImage,
    Request,
    RollBack,
    RunGuest,
    SaveState,
    StartTracking,
    Throttle,
)
from sterna.errors import GuestError
from sterna.guest.api import DestinationGuest, GuestDescription, SourceGuest
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.wire.records import Runner


class Records(Protocol):
    """What a host writes down, and claims, for a session."""

    async def persist(self, kind: RecordKind, epoch: int, runner: Runner) -> None:
        """Write a record; durable when it returns."""
        ...

    async def void(self, kind: RecordKind, epoch: int) -> None:
        """Take back a record whose permission has certainly not been used."""
        ...

    async def claim(self, epoch: int, runner: Runner) -> bool:
        """Claim an epoch; whether the claim was won."""
        ...


class NoRecords:
    """Nothing outlives the process, and every claim is won: there is nobody else to claim.

    A process that dies between HANDOVER and RUNNING leaves the guest undecided.
    """

    async def persist(self, kind: RecordKind, epoch: int, runner: Runner) -> None:
        """Nothing is kept."""

    async def void(self, kind: RecordKind, epoch: int) -> None:
        """Nothing was kept."""

    async def claim(self, epoch: int, runner: Runner) -> bool:
        """Won."""
        del epoch, runner
        return True


def pages_of(guest: SourceGuest | DestinationGuest, description: GuestDescription) -> RegionPages:
    """The guest's memory as the core reads and fills it.

    Raises:
        GuestError, ValueError: the description or the memory makes no sense.
    """
    table = RegionTable(description.regions)
    return RegionPages(table, {region.id: guest.memory(region.id) for region in table.copied})


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
        case CollectDirty():
            return await guest.collect_dirty()
        case Throttle(share=share):
            await guest.throttle(share)
        case Pause():
            await guest.pause()
        case SaveState():
            return await guest.save_state()
        case MarkGranted(epoch=epoch):
            await guest.mark_granted(epoch)
        case Persist(kind=kind, epoch=epoch, runner=runner):
            await records.persist(kind, epoch, runner)
        case RollBack(granted=granted):
            await _roll_back(guest, records, granted)
        case ReleaseImage():
            await guest.release()
        case _:
            raise GuestError(f"{type(request).__name__} is not for a source")
    return None


async def _roll_back(guest: SourceGuest, records: Records, granted: int | None) -> None:
    """First the record, then the mark, then the guest itself [ONE-19]."""
    if granted is not None:
        await records.void(RecordKind.GRANTED, granted)
        await guest.revoke_grant(granted)
    await guest.stop_tracking()
    await guest.throttle(0.0)
    await guest.resume()


async def serve_destination(guest: DestinationGuest, records: Records, request: Request) -> object:
    """Carry out one request of a destination that has room for the guest, and return the answer to it.

    Raises:
        GuestError: the guest could not do it, or it is no request of a destination with such a room.
    """
    match request:
        case Prepare():
            await guest.prepare()
        case LoadState(sections=sections):
            await guest.load_state(sections)
        case Persist(kind=kind, epoch=epoch, runner=runner):
            await records.persist(kind, epoch, runner)
        case Claim(epoch=epoch, runner=runner):
            return await records.claim(epoch, runner)
        case RunGuest(epoch=epoch, runner=runner):
            await guest.run(epoch, runner)
        case Discard():
            await guest.discard()
        case _:
            raise GuestError(f"{type(request).__name__} is not for a destination")
    return None
