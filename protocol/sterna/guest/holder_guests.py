"""A held guest as the two interfaces of `sterna.guest.api`.

Memory is mapped here a second time, from the descriptors that the holder passes: page bytes go from this
process's mapping to its network socket and never cross the holder's.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from sterna.errors import GuestError
from sterna.guest import holder_fields as fields_of
from sterna.guest.api import GuestDescription, PageRange, StateSection
from sterna.guest.holder_bitmaps import BitmapFile, read_bitmaps
from sterna.guest.holder_client import SLOW_ANSWER_WITHIN_S, HolderConnection
from sterna.guest.holder_frames import Frame, JsonObject
from sterna.guest.late_endpoint import LateEndpoint
from sterna.guest.populating import Ahead, populate
from sterna.guest.stale_pages import check_stale
from sterna.guest.unwritten import pages_inside
from sterna.linux.holes import file_holes
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap, has_fixed_size, read_shared
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode, Transfer
from sterna.wire.records import NO_ID, Region, Runner

_MARK_BYTES: Final = 8  # with so many notes begin, see `PreparesNotes`
_UNKNOWN: Final = ""  # a request was sent that changes the holder's state; its answer has not come


async def _map_memory(
    connection: HolderConnection, description: GuestDescription, *, writable: bool
) -> dict[int, MemoryMap]:
    """Map every copied region; whatever does not fit the description is the holder's failure."""
    answer = await connection.call("memory")
    maps: dict[int, MemoryMap] = {}
    try:
        wanted = {region.id: region for region in description.regions if region.transfer is Transfer.COPY}
        entries = fields_of.objects(answer.fields, "regions", len(wanted))
        for entry, descriptor in zip(entries, answer.descriptors, strict=True):
            number = fields_of.integer(entry, "region")
            region = wanted.pop(number)
            if not has_fixed_size(descriptor) or os.fstat(descriptor).st_size != region.size_bytes:
                raise GuestError(f"the holder's memory of region {number} has another size, or may get one")
            maps[number] = MemoryMap(descriptor, region.size_bytes, writable=writable)
        if wanted:
            raise GuestError(f"the holder passes no memory for regions {sorted(wanted)}")
    except (KeyError, ValueError, OSError) as error:
        raise GuestError(f"the holder's memory does not fit its description: {error}") from error
    finally:
        answer.close()
    return maps


def _fixed_size(descriptor: int) -> int:
    if not has_fixed_size(descriptor):
        raise ValueError("the file may shrink")
    return os.fstat(descriptor).st_size


class _Bitmaps:
    """The controller's view of the shared bitmap file."""

    def __init__(self, answer: Frame) -> None:
        try:
            (descriptor,) = answer.descriptors
            self._map = MemoryMap(descriptor, _fixed_size(descriptor), writable=False)
            self._bitmaps = read_bitmaps(answer.fields, self._map.array.view("<u8"))
        except (ValueError, OSError) as error:
            raise GuestError(f"the holder's bitmaps make no sense: {error}") from error
        finally:
            answer.close()

    def read(self) -> dict[int, PageBitmap]:
        """A copy of every bitmap."""
        return {region: PageBitmap.from_words(*bitmap) for region, bitmap in self._bitmaps.items()}


async def _notes_in(connection: HolderConnection, size_bytes: int | None) -> MemoryMap | None:
    """New notes of that size, or those that there are; None for none."""
    answer = await connection.call("notes", {} if size_bytes is None else {"bytes": size_bytes})
    try:
        if not answer.descriptors:
            return None
        (descriptor,) = answer.descriptors
        return MemoryMap(descriptor, _fixed_size(descriptor))
    except (ValueError, OSError) as error:
        raise GuestError(f"the holder's notes make no sense: {error}") from error
    finally:
        answer.close()


class HolderSourceGuest:
    """`SourceGuest` over a holder. Make it with `open`."""

    def __init__(
        self,
        connection: HolderConnection,
        description: GuestDescription,
        maps: Mapping[int, MemoryMap],
        tracker: str,
    ) -> None:
        self.connection = connection
        self._description = description
        self._tracker = tracker
        self._maps = maps
        self._bitmaps: _Bitmaps | None = None
        self._collected = True  # the last collect's answer has come; what it told is not lost
        self._collects_along = False  # it had come when the newest was sent along with another request
        self._notes: MemoryMap | None = None

    @classmethod
    async def open(cls, connection: HolderConnection) -> HolderSourceGuest:
        """The guest that an attached holder has.

        Raises:
            GuestError: it has none.
        """
        answer = await connection.call("describe")
        description = fields_of.description_from_json(fields_of.an_object(answer.fields, "description"))
        maps = await _map_memory(connection, description, writable=False)
        return cls(connection, description, maps, (await connection.status()).tracker)

    @property
    def description(self) -> GuestDescription:
        """The guest."""
        return self._description

    @property
    def tracker(self) -> str:
        """The holder's tracker."""
        return self._tracker

    def memory(self, region: int) -> memoryview:
        """The guest's live memory, read-only."""
        return self._maps[region].view

    async def start_tracking(self) -> None:
        """The bitmap's descriptor comes with the answer."""
        self._bitmaps = _Bitmaps(await self.connection.call("track_start"))
        self._collected = True

    async def unwritten(self) -> Mapping[int, PageBitmap]:
        """What the kernel knows of the files: a look through our mapping would allocate their pages."""
        answer = await self.connection.call("memory")
        try:
            entries = fields_of.objects(answer.fields, "regions", len(self._maps))
            numbers = [fields_of.integer(entry, "region") for entry in entries]
            return {
                region.id: pages_inside(
                    file_holes(descriptor, 0, region.size_bytes), 1 << region.granule_log2, region.pages
                )
                for number, descriptor in zip(numbers, answer.descriptors, strict=True)
                for region in self._description.regions
                if region.id == number
            }
        except (ValueError, OSError) as error:
            raise GuestError(f"the holder's memory makes no sense: {error}") from error
        finally:
            answer.close()

    async def collect_dirty(self) -> Mapping[int, PageBitmap]:
        """From the shared bitmap; all, if a collect was cut off after which the holder may have forgotten."""
        along = self.connection.has_along("track_collect")
        complete = self._collected or (self._collects_along and along)
        self._collected = self._collects_along = False
        answer = await self.connection.call("track_collect", promptly=along)
        self._collected = True
        if self._bitmaps is None or not complete or answer.fields.get("all") is not False:
            return {
                region.id: PageBitmap.full(region.pages)
                for region in self._description.regions
                if region.id in self._maps
            }
        return self._bitmaps.read()

    async def stop_tracking(self) -> None:
        """Legal when none was started."""
        await self.connection.call("track_stop")
        self._bitmaps = None

    async def pause(self) -> None:
        """Between two of the guest's blocks of work. What it has written is asked for next, and its state."""
        self._collects_along, self._collected = self._collected, False
        await self.connection.call("pause", along=("track_collect", "save_state"), promptly=True)

    async def resume(self) -> None:
        """Refused with TOO_LATE once the guest was granted."""
        await self.connection.call("resume")

    async def throttle(self, share: float) -> None:
        """At once."""
        await self.connection.call("throttle", {"share": share})

    async def save_state(self) -> Sequence[StateSection]:
        """Through a memory file."""
        answer = await self.connection.call("save_state", promptly=True)
        try:
            (descriptor,) = answer.descriptors
            data = read_shared(descriptor, fields_of.STATE_BYTES)
            return fields_of.sections_from_json(answer.fields, data)
        except ValueError as error:
            raise GuestError(f"the holder's state makes no sense: {error}") from error
        finally:
            answer.close()

    async def mark_granted(self, epoch: int) -> None:
        """Durable for every endpoint to come: the holder remembers it, and the guest lives no longer."""
        await self.connection.call("grant", {"epoch": epoch}, promptly=True)

    async def revoke_grant(self, epoch: int) -> None:
        """Only over the connection that granted it."""
        await self.connection.call("revoke", {"epoch": epoch})

    async def notes(self, size_bytes: int | None = None) -> memoryview:
        """A memory file that the holder keeps; empty for a holder that knows of no such thing."""
        try:
            self._notes = await _notes_in(self.connection, size_bytes)
        except GuestError as error:
            if error.code is not ErrorCode.UNSUPPORTED:
                raise
            self._notes = None
        return memoryview(bytearray()) if self._notes is None else self._notes.view

    async def release(self) -> None:
        """Free the image; views of it read as zeros from then on."""
        await self.connection.call("release")


class HolderDestinationGuest:
    """`DestinationGuest` over an attached holder.

    Args:
        connection: of a controller.
        image: the id that the image will have [HOL-46]; None for a random one each time.

    Attributes:
        description: of the guest that was reserved, or taken over; None if there is none.
    """

    def __init__(self, connection: HolderConnection, image: bytes | None = None) -> None:
        self.connection = connection
        self._image = image
        self._maps: Mapping[int, MemoryMap] = {}
        self._state = connection.attached.state
        self._has_run = False
        self.description: GuestDescription | None = None
        self._late: LateEndpoint | None = None
        self._is_late = trio.Event()
        self._has_expected = False  # or may have: a request was sent
        self._notes: MemoryMap | None = None
        self._spare_notes: MemoryMap | None = None  # nobody has written there yet
        self._ahead: Ahead | None = None

    @classmethod
    async def take_over(cls, connection: HolderConnection) -> HolderDestinationGuest:
        """The guest that runs in the holder and lacks pages, of which the last controller has died [HOL-41].

        Raises:
            GuestError: there is none.
        """
        guest = cls(connection)
        answer = await connection.call("describe")
        description = fields_of.description_from_json(fields_of.an_object(answer.fields, "description"))
        guest.description = description
        status = await connection.status()
        guest._has_expected = True
        guest._state, guest._has_run = status.state, status.state not in {"reserved", "loaded"}
        writable = not guest._has_run or status.missing > 0
        guest._maps = await _map_memory(connection, description, writable=writable)
        await guest._open_late()
        if guest._late is not None:
            guest._late.repeat()
        return guest

    async def reserve(self, description: GuestDescription) -> None:
        """Begin anew: what an earlier endpoint may have left half-way is discarded."""
        if await self._is_occupied():
            await self.discard()
        self._state = _UNKNOWN
        await self.connection.call(
            "reserve",
            {
                "description": fields_of.description_to_json(description),
                "image": (self._image or secrets.token_bytes(len(NO_ID))).hex(),
            },
            within_s=SLOW_ANSWER_WITHIN_S,
        )
        self._state, self._has_run, self.description = "reserved", False, description
        self._has_expected = False
        self._maps = await _map_memory(self.connection, description, writable=True)
        self._ahead = Ahead(self._maps.values())

    def memory(self, region: int) -> memoryview:
        """The guest's memory to be, writable; read-only from `run` on, or when no page is missing any more.

        Raises:
            GuestError: nothing is reserved.
        """
        if region not in self._maps:
            raise GuestError(f"there is no memory of region {region}")
        view = self._maps[region].view
        return view.toreadonly() if self._has_run and self._late is None else view

    async def prepare(self) -> None:
        """Every page is there when this returns.

        Raises:
            GuestError: with FULL, there is not enough memory.
        """
        await self.connection.call("prepare", within_s=SLOW_ANSWER_WITHIN_S, promptly=True)

    async def load_state(self, sections: Sequence[StateSection]) -> None:
        """Through a memory file."""
        table, data = fields_of.sections_to_json(sections)
        file = MemoryFile.of_bytes("sterna-state", data)
        try:
            await self.connection.call("load_state", {"sections": table}, (file.fileno(),), promptly=True)
        finally:
            file.close()
        self._state = "loaded"

    async def take_storage(self) -> None:
        """Whether the holder still has it; there are no locks yet.

        It is not asked: nobody else can change it, it has answered a moment ago, and the guest stands still.

        Raises:
            GuestError: it is gone, or has something else.
        """
        if self._state != "loaded":
            raise GuestError("its holder has not loaded it")
        if self.connection.is_over:
            raise GuestError("its holder was loaded, and is gone")
        await trio.lowlevel.checkpoint()

    async def run(self, epoch: int, runner: Runner) -> None:
        """First instruction; nobody writes to its memory from here on [HOL-33]."""
        self._has_run, self._state = True, _UNKNOWN
        fields: JsonObject = {"epoch": epoch, "runner": fields_of.runner_to_json(runner)}
        await self.connection.call("run", fields, promptly=True)

    async def discard(self) -> None:
        """Free everything; legal when there is nothing."""
        if await self._is_occupied():
            self._state = _UNKNOWN
            self._stop_ahead()
            await self.connection.call("discard")
        self._state, self.description = "empty", None
        self.close()

    def close(self) -> None:
        """Give back what this process has of the guest; in the holder nothing changes. Legal twice."""
        self._stop_ahead()
        self._maps = {}
        self._close_late()
        self._notes = self._spare_notes = None

    def _stop_ahead(self) -> None:
        """Memory that the holder gives back must not come again."""
        if self._ahead is not None:
            self._ahead.stop()

    @property
    def can_post_copy(self) -> bool:
        """What the holder says."""
        return self.connection.attached.post_copy

    async def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        """The holder holds accesses, and passes what lets them go."""
        self._check_can()
        check_stale(stale, self._regions())
        if not self._has_expected:
            if not any(bitmap.any() for bitmap in stale.values()):
                return  # as in every migration that stops and copies: not a question more in its blackout
            await self._populate(stale)
        self._has_expected = True
        file = BitmapFile(self._regions(), "sterna-stale")
        try:
            file.put(stale)
            fields: JsonObject = {"bitmaps": file.layout()}
            answer = (await self.connection.call("expect", fields, (file.file.fileno(),))).fields
        except BaseException:
            self._close_late()  # whether it is the holder's still is not known
            raise
        finally:
            file.close()
        if not fields_of.integer(answer, "missing"):
            self._close_late()
        elif self._late is None:
            await self._open_late()
        else:
            self._late.renew()  # through what the holder has passed before [HOL-39]

    async def _populate(self, stale: Mapping[int, PageBitmap]) -> None:
        """What will be written here, from the first of these pages to the last."""
        for number, bitmap in stale.items():
            starts, counts = bitmap.runs()
            if len(starts):
                memory, pages = self._maps[number], bitmap.bits
                page_bytes = memory.size_bytes // pages
                first, end = int(starts[0]), int(starts[-1] + counts[-1])
                await populate(memory, first * page_bytes, (end - first) * page_bytes)

    async def faults(self) -> Sequence[PageRange]:
        """Straight from the kernel; the holder has no part in it."""
        self._check_can()
        while True:
            if self._late is None:
                await self._is_late.wait()
                continue
            try:
                return await self._late.faults()
            except trio.ClosedResourceError:
                pass  # nothing is missing any more, or something else is

    async def installed(self, region: int, first: int, count: int) -> None:
        """In shared memory, then by the kernel; the holder hears of the last one only."""
        self._check_can()
        if self._late is None:
            return
        self._late.installed(region, first, count)
        if not self._late.any_missing:
            await self.connection.call("installed")
            self._close_late()
        else:
            await trio.lowlevel.checkpoint()

    def waited_for(self) -> Sequence[PageRange]:
        """What the kernel tells by now."""
        return () if self._late is None else self._late.news()

    def let_go(self, region: int, first: int, count: int) -> bool:
        """All but what the holder has to hear."""
        if self._late is None:
            return False
        self._late.installed(region, first, count)
        return self._late.any_missing

    def early_pages(self) -> LateEndpoint | None:
        """What the holder has passed, if it has room to note them."""
        return None if self._late is None or self._late.early is None else self._late

    async def missing(self) -> Mapping[int, PageBitmap]:
        """As the shared bitmap has it."""
        return {} if self._late is None else self._late.missing()

    async def prepare_notes(self, size_bytes: int) -> memoryview:
        """The holder's memory file, with its pages."""
        self._spare_notes = spare = await _notes_in(self.connection, size_bytes)
        if spare is None:
            return memoryview(b"")
        await populate(spare, 0, -(-size_bytes // PAGE_BYTES) * PAGE_BYTES)
        return spare.view

    async def notes(self, size_bytes: int | None = None) -> memoryview:
        """A memory file that the holder keeps: the one that was prepared, or a new one."""
        spare, self._spare_notes = self._spare_notes, None
        if spare is not None and spare.size_bytes == size_bytes:
            self._notes = spare
        elif spare is not None and size_bytes == 0 and not any(spare.view[:_MARK_BYTES]):
            self._notes = None  # nobody takes that for notes: not a question more in the blackout
        else:
            self._notes = await _notes_in(self.connection, size_bytes)
        return memoryview(bytearray()) if self._notes is None else self._notes.view

    def _regions(self) -> tuple[Region, ...]:
        if self.description is None:
            raise GuestError("nothing is reserved")
        return self.description.regions

    def _check_can(self) -> None:
        if not self.can_post_copy:
            raise GuestError("the holder's guest runs only with all of its pages", ErrorCode.UNSUPPORTED)

    async def _open_late(self) -> None:
        """Whatever the holder holds now, in the place of what it held."""
        self._close_late()
        answer = await self.connection.call("faults")
        if not answer.descriptors:
            return
        self._late = LateEndpoint(answer, self._regions(), self._maps)
        self._is_late.set()

    def _close_late(self) -> None:
        late, self._late = self._late, None
        if late is not None:
            self._is_late = trio.Event()
            late.close()

    async def _is_occupied(self) -> bool:
        """Whether the holder keeps a guest that never ran; asked where an answer may have been lost."""
        if self._state == _UNKNOWN:
            self._state = (await self.connection.status()).state
        return self._state in {"reserved", "loaded"}
