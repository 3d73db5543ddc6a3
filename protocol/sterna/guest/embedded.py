"""A guest inside of the embedder's own process: one buffer of memory and a few bytes of state.

For an emulator, a unikernel host or a test that has its guest's memory at hand. Subclass `EmbeddedGuest`,
call `wrote()` wherever the guest's memory is written, and override four small methods:

- `stop()` and `start()`: the guest stands still, the guest runs. Called with nothing else going on;
- `save()` and `load(state)`: everything that is not memory, as bytes of one's own layout.

The same class serves both sides. Such a guest needs no holder, and dies with its process.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription, StateSection, WithoutPostCopy
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
    """

    tracker = "told by the guest"

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

    # ---- for the subclass ----

    def wrote(self, offset: int, length: int) -> None:
        """The guest has written `length` bytes at `offset`: say it after each write, from any thread."""
        if length:
            first = offset // PAGE_BYTES
            with self._marking:  # or a page could be marked in a bitmap that has been collected already
                self._dirty.set(first, (offset + length - 1) // PAGE_BYTES - first + 1)

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
        with self._marking:
            self._dirty.clear_all()

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
        state = self.save()
        self._description = replace(self._description, expected_state_bytes=len(state))
        return [StateSection(StateKind.OPAQUE, STATE_VERSION, state)]

    async def mark_granted(self, epoch: int) -> None:
        """From now on `resume` is refused. As durable as the process, which is all that this guest is."""
        self._granted = epoch

    async def revoke_grant(self, epoch: int) -> None:
        """The grant of `epoch` was not used."""
        if epoch == self._granted:
            self._granted = None

    async def release(self) -> None:
        """The guest has left; its memory is the embedder's to free, or for the guest when it comes back."""
        self._has_left = True

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

    async def run(self, epoch: int, runner: Runner) -> None:
        """`start()`."""
        del epoch, runner
        self._granted = None  # that was when it left, if it is back
        self.start()

    async def discard(self) -> None:
        """The guest did not come; whoever comes next finds zeros again, not half of another."""
        self._clear()

    def _clear(self) -> None:
        np.frombuffer(self._memory, np.uint8)[:] = 0
