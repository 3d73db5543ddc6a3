"""The kit's guest as Sterna's endpoints see one: memory, a script of writes, and switches for misfortune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription, StateSection, WithoutPostCopy
from sterna.memory.bitmap import PageBitmap
from sterna.memory.regions import RegionTable
from sterna.registry import Architecture, ErrorCode, StateKind
from sterna.wire.records import Runner
from sterna_interop.contract import Do, Order
from sterna_interop.guest import GuestSpec, memory_hash, state_hash

_KNOWN_STATE: Final = {(Architecture.SYNTHETIC, StateKind.OPAQUE, 1)}


class ScriptedSource:
    """A guest that runs here, and is written to by the script alone.

    An entry is written whenever the writes are collected, just before; what is left of the script is written
    before the guest is paused.

    Attributes:
        running: whether it runs.
    """

    tracker = "script"

    def __init__(self, spec: GuestSpec) -> None:
        self.running = True
        self._spec = spec
        self._written = 0
        self._memory = {number: bytearray(data) for number, data in spec.image(0).items()}
        self._dirty: dict[int, PageBitmap] = {}
        self._granted: int | None = None

    @property
    def description(self) -> GuestDescription:
        """Of the parameters."""
        return self._spec.description

    def memory(self, region: int) -> memoryview:
        """The region's bytes."""
        return memoryview(self._memory[region])

    async def start_tracking(self) -> None:
        """Forget what was written."""
        self._dirty = {region.id: PageBitmap(region.pages) for region in self._spec.copied}

    async def collect_dirty(self) -> Mapping[int, PageBitmap]:
        """Write the next entry, if the guest runs, and tell what was written."""
        if self.running:
            self._write()
        dirty = self._dirty
        await self.start_tracking()
        return dirty

    async def stop_tracking(self) -> None:
        """Nothing to stop."""

    async def pause(self) -> None:
        """Write the rest of the script, then stand still."""
        while self.running and self._written < len(self._spec.writes):
            self._write()
        self.running = False

    async def resume(self) -> None:
        """Run on, unless the guest may be running elsewhere."""
        if self._granted is not None:
            raise GuestError(f"epoch {self._granted} has been granted to the destination")
        self.running = True

    async def throttle(self, share: float) -> None:
        """A script has no speed."""

    async def save_state(self) -> Sequence[StateSection]:
        """Of the parameters."""
        return self._spec.state

    async def mark_granted(self, epoch: int) -> None:
        """From now on `resume` is refused."""
        self._granted = epoch

    async def revoke_grant(self, epoch: int) -> None:
        """The grant was not used."""
        self._granted = None

    async def release(self) -> None:
        """The memory is kept for its hash in the report."""

    def hashes(self) -> tuple[str, str]:
        """Of memory and state, for the report."""
        return memory_hash([data for _, data in sorted(self._memory.items())]), state_hash(self._spec.state)

    def _write(self) -> None:
        if self._written == len(self._spec.writes):
            return
        entry = self._spec.writes[self._written]
        self._written += 1
        regions = {region.id: region for region in self._spec.copied}
        for write in entry:
            region = regions[write.region]
            for page in range(write.first, write.first + write.count):
                at = page << region.granule_log2
                content = self._spec.page(region, page, self._written)
                self._memory[region.id][at : at + len(content)] = content
            if region.id in self._dirty:
                self._dirty[region.id].set(write.first, write.count)


class RoomForGuest(WithoutPostCopy):
    """Room at the destination, which does what the order says.

    Attributes:
        running: whether the guest runs here.
    """

    def __init__(self, order: Order) -> None:
        self.running = False
        self._order = order
        self._not_ready = order.times if order.do == Do.NOT_READY else 0
        self._memory: dict[int, bytearray | memoryview] = {}
        self._sections: Sequence[StateSection] | None = None

    async def reserve(self, description: GuestDescription) -> None:
        """Zeros, or the refusal that was ordered."""
        if self._order.do == Do.REFUSE:
            raise GuestError("refused as ordered", ErrorCode[self._order.code.upper()])
        self._memory = {r.id: bytearray(r.size_bytes) for r in RegionTable(description.regions).copied}

    def memory(self, region: int) -> memoryview:
        """The region's bytes."""
        return memoryview(self._memory[region])

    async def prepare(self) -> None:
        """Fail as often as was ordered."""
        if self._not_ready:
            self._not_ready -= 1
            raise GuestError("not ready as ordered", ErrorCode.NOT_READY)

    async def load_state(self, sections: Sequence[StateSection]) -> None:
        """Take state of the kit's guests, or none if that was ordered."""
        for section in sections:
            if (section.architecture, section.kind, section.version) not in _KNOWN_STATE:
                raise GuestError(f"kind {section.kind:#06x} is not known here", ErrorCode.UNKNOWN_STATE)
        if self._order.do == Do.REJECT_STATE:
            raise GuestError("rejected as ordered", ErrorCode.STATE_REJECTED)
        self._sections = tuple(sections)

    async def take_storage(self) -> None:
        """It has none, and lives in this process."""

    async def run(self, epoch: int, runner: Runner) -> None:
        """It runs; it writes nothing, so that its memory can be compared."""
        self.running = True

    async def discard(self) -> None:
        """Nothing of the guest is here."""
        self._memory, self._sections = {}, None

    def close(self) -> None:
        """Give back what is not memory of this process. Called when the report is made, or cannot be."""

    def hashes(self) -> tuple[str | None, str | None]:
        """Of memory and state, for the report; None for what is not here."""
        memory = memory_hash([data for _, data in sorted(self._memory.items())]) if self._memory else None
        return memory, None if self._sections is None else state_hash(self._sections)
