"""A guest inside of the embedder's own process: one buffer of memory and a few bytes of state.

For an emulator, a unikernel host or a test that has its guest's memory at hand. Subclass `EmbeddedGuest`,
call `wrote()` wherever the guest's memory is written, and override four small methods:

- `stop()` and `start()`: the guest stands still, the guest runs. Called with nothing else going on;
- `save()` and `load(state)`: everything that is not memory, as bytes of one's own layout.

The same class serves both sides. Such a guest needs no holder, and dies with its process.

A guest that can wait for its own pages can also run before they are there. It sets `asks` to true and asks
`present()` before each access, reading or writing; where the answer is no, it does not make the access, and
asks again later, at the latest when `arrived()` is called.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import trio

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription, PageRange, StateSection, WithoutPostCopy
from sterna.guest.stale_pages import check_stale, notes_limit
from sterna.guest.unwritten import pages_inside
from sterna.linux.holes import memory_holes
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode, StateKind
from sterna.wire.records import Region, Runner

REGION = 1
PAGE_BYTES = 4096
STATE_VERSION = 1

# What `save` is expected to give before it has been called; afterwards, what it gave last.
EXPECTED_STATE_BYTES: Final = 4096
STATE_BYTES_MAX: Final = 1 << 20


class EmbeddedGuest(WithoutPostCopy):
    """Both sides of a guest with one region. Implements `SourceGuest` and `DestinationGuest`.

    Args:
        memory: the guest's memory, a writable buffer of whole pages. At the destination it must read as
            zeros: a new `bytearray` or `mmap` does.
        name: for people.
        guest_id: 16 bytes, the same on every host; random if left out.
        state_bytes: the most that `save` gives.

    Attributes:
        asks: whether the guest asks `present` before every access; of the subclass.
    """

    tracker = "told by the guest"
    asks = False

    def __init__(
        self,
        memory: bytearray | memoryview,
        name: str = "embedded",
        *,
        guest_id: bytes | None = None,
        state_bytes: int = STATE_BYTES_MAX,
    ) -> None:
        self._memory = memoryview(memory).cast("B")
        if not self._memory.nbytes or self._memory.nbytes % PAGE_BYTES:
            raise ValueError(f"{self._memory.nbytes} bytes are not whole pages of {PAGE_BYTES}")
        region = Region(REGION, 0, self._memory.nbytes)
        self._description = GuestDescription(
            secrets.token_bytes(16) if guest_id is None else guest_id,
            name,
            (region,),
            state_bytes=state_bytes,
            expected_state_bytes=min(EXPECTED_STATE_BYTES, state_bytes),
        )
        self._dirty = PageBitmap(region.pages)
        self._marking = threading.Lock()  # of `_dirty`: the guest may write in a thread of its own
        self._granted: int | None = None
        self._has_left = False
        self._missing = PageBitmap(region.pages)
        self._wanted = PageBitmap(region.pages)  # of the missing pages, those that the guest has asked for
        self._untold: list[PageRange] = []
        self._told = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None  # of whoever waits in `faults`
        self._notes = bytearray()

    # ---- for the subclass ----

    def wrote(self, offset: int, length: int) -> None:
        """The guest has written `length` bytes at `offset`: say it after each write, from any thread."""
        if length:
            first = offset // PAGE_BYTES
            with self._marking:  # or a page could be marked in a bitmap that has been collected already
                self._dirty.set(first, (offset + length - 1) // PAGE_BYTES - first + 1)

    def present(self, offset: int, length: int) -> bool:
        """Whether the guest may access these bytes; if not, their pages are asked for. From any thread."""
        if not length:
            return True
        first = offset // PAGE_BYTES
        with self._marking:
            starts, counts = self._missing.runs_between(
                first, (offset + length - 1) // PAGE_BYTES - first + 1
            )
            if not len(starts):
                return True
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
                self._want(start, count)
        return False

    def arrived(self) -> None:
        """Pages that the guest has asked for are there, some or all of them: it may ask again."""

    def stop(self) -> None:
        """Stand still; return when nothing of the guest runs. Legal when stopped."""

    def start(self) -> None:
        """Run on. Legal when running."""

    def save(self) -> bytes:
        """Everything but the memory."""
        return b""

    def load(self, state: bytes) -> None:
        """The inverse of `save`, at the destination; `ValueError` for what makes no sense."""
        if state:
            raise ValueError(f"{len(state)} bytes of state for a guest that has none")

    # ---- both sides ----

    @property
    def description(self) -> GuestDescription:
        """The guest, constant but for what its state is expected to have."""
        return self._description

    def memory(self, region: int) -> memoryview:
        """The guest's memory."""
        if region != REGION:
            raise GuestError(f"there is no region {region}")
        return self._memory

    # ---- source ----

    async def start_tracking(self) -> None:
        """Forget what was written so far."""
        self._check_complete()
        with self._marking:
            self._dirty.clear_all()

    async def unwritten(self) -> Mapping[int, PageBitmap]:
        """What the kernel knows of the memory."""
        memory = np.frombuffer(self._memory, np.uint8)
        holes = memory_holes(int(memory.ctypes.data), len(memory))
        return {REGION: pages_inside(holes, PAGE_BYTES, self._dirty.bits)}

    async def collect_dirty(self) -> Mapping[int, PageBitmap]:
        """What `wrote` was told since the last time."""
        with self._marking:
            dirty, self._dirty = self._dirty, PageBitmap(self._dirty.bits)
        return {REGION: dirty}

    async def stop_tracking(self) -> None:
        """Nothing to stop: `wrote` costs the same either way."""

    async def pause(self) -> None:
        """`stop()`."""
        self.stop()

    async def resume(self) -> None:
        """`start()`, unless the guest may be running elsewhere."""
        if self._granted is not None:
            raise GuestError(f"epoch {self._granted} has been granted to the destination")
        self.start()

    async def throttle(self, share: float) -> None:
        """Ignored: override it if the guest can be slowed down."""

    async def save_state(self) -> Sequence[StateSection]:
        """`save()` as one section."""
        self._check_complete()
        state = self.save()
        self._description = replace(self._description, expected_state_bytes=len(state))
        return [StateSection(StateKind.OPAQUE, STATE_VERSION, state)]

    async def mark_granted(self, epoch: int) -> None:
        """From now on `resume` is refused. As durable as the process, which is all that this guest is."""
        self._check_complete()
        self._granted = epoch

    async def revoke_grant(self, epoch: int) -> None:
        """The grant of `epoch` was not used."""
        if epoch == self._granted:
            self._granted = None

    async def release(self) -> None:
        """The guest has left; its memory is the embedder's to free, or for the guest when it comes back."""
        self._has_left = True

    def _check_complete(self) -> None:
        with self._marking:
            if self._missing.any():
                raise GuestError("pages of the guest are still missing", ErrorCode.NOT_READY)

    # ---- destination ----

    async def reserve(self, description: GuestDescription) -> None:
        """Check that the guest that comes fits this one's memory."""
        regions = description.regions
        if len(regions) != 1 or (regions[0].id, regions[0].size_bytes) != (REGION, self._memory.nbytes):
            size = sum(region.size_bytes for region in regions)
            detail = f"{len(regions)} regions of {size} bytes; there is room for one of {self._memory.nbytes}"
            raise GuestError(detail, ErrorCode.REFUSED)
        if description.architecture != self._description.architecture:
            raise GuestError(f"architecture {description.architecture}", ErrorCode.ARCHITECTURE)
        if self._has_left:
            self._clear()
            self._has_left = False

    async def prepare(self) -> None:
        """Nothing is slow here."""

    async def load_state(self, sections: Sequence[StateSection]) -> None:
        """`load()` of the one section."""
        kinds = [(section.kind, section.version) for section in sections]
        if kinds != [(StateKind.OPAQUE, STATE_VERSION)]:
            raise GuestError(f"state sections {kinds}", ErrorCode.UNKNOWN_STATE)
        try:
            self.load(sections[0].data)
        except ValueError as error:
            raise GuestError(str(error), ErrorCode.STATE_REJECTED) from error

    async def take_storage(self) -> None:
        """It has none, and lives in this process."""

    async def run(self, epoch: int, runner: Runner) -> None:
        """`start()`."""
        del epoch, runner
        self._granted = None  # that was when it left, if it is back
        self.start()

    async def discard(self) -> None:
        """The guest did not come; whoever comes next finds zeros again, not half of another."""
        self._clear()
        self._notes = bytearray()
        with self._marking:
            self._missing.clear_all()

    @property
    def can_post_copy(self) -> bool:
        """If the guest asks before it touches a page."""
        return self.asks

    async def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        """From now on `present` says no to these."""
        if not self.asks:
            await super().expect(stale)
        check_stale(stale, self._description.regions)
        with self._marking:
            self._missing = stale[REGION].copy() if REGION in stale else PageBitmap(self._missing.bits)
            self._wanted.clear_all()
            self._untold.clear()

    async def faults(self) -> Sequence[PageRange]:
        """What `present` was asked for in vain."""
        if not self.asks:
            return await super().faults()
        await trio.lowlevel.checkpoint()
        while True:
            with self._marking:
                found, self._untold = self._untold, []
                self._told, self._token = trio.Event(), trio.lowlevel.current_trio_token()
            if found:
                return found
            await self._told.wait()

    async def installed(self, region: int, first: int, count: int) -> None:
        """`present` says yes to these; as durable as the process."""
        if not self.asks:
            await super().installed(region, first, count)
        if region != REGION or not 0 <= first <= first + count <= self._missing.bits:
            raise GuestError(f"there are no pages {first}+{count} of region {region}", ErrorCode.BAD_VALUE)
        with self._marking:
            self._missing.clear(first, count)
            waited = len(self._wanted.runs_between(first, count)[0]) > 0
            self._wanted.clear(first, count)
        if waited:
            self.arrived()

    async def missing(self) -> Mapping[int, PageBitmap]:
        """What `present` says no to."""
        with self._marking:
            return {REGION: self._missing.copy()}

    async def notes(self, size_bytes: int | None = None) -> memoryview:
        """As durable as the process."""
        if size_bytes is not None:
            if size_bytes > notes_limit(self._description.regions):
                raise GuestError(f"{size_bytes} bytes of notes", ErrorCode.FULL)
            self._notes = bytearray(size_bytes)
        return memoryview(self._notes)

    def _want(self, first: int, count: int) -> None:
        """Tell of missing pages that were not told yet."""
        new = PageBitmap(self._missing.bits)
        new.set(first, count)
        new -= self._wanted
        for start, length in zip(*(part.tolist() for part in new.runs()), strict=True):
            self._untold.append(PageRange(REGION, start, length))
        self._wanted |= new
        if self._untold and self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):  # nobody is there to ask
                self._token.run_sync_soon(self._told.set)

    def _clear(self) -> None:
        np.frombuffer(self._memory, np.uint8)[:] = 0
