"""The simulated guest: numpy memory, the workload, and time that only moves when it is told to.

Nothing here awaits, sleeps or looks at a clock: `advance(seconds)` does the writes that the requested rate
gives for that time, so a test decides to the page what happens between two calls of an endpoint. Dirty
tracking is exact, by the schedule: the pages of the writes between two counts are known.

At a stale page that was not installed the guest stops, and the rest of that `advance` is lost to it, as to a
vCPU that is held in a fault. Only `faults` waits for something, and only while the guest waits for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sterna.errors import GuestError
from sterna.guest.api import (
    NO_VCPU,
    DestinationGuest,
    GuestDescription,
    PageRange,
    SourceGuest,
    StateSection,
)
from sterna.guest.simulated_machine import JournalEntry, SimulatedMachine, region_memory
from sterna.guest.stale_pages import StalePages, notes_limit
from sterna.guest.workload import (
    PAGE_BYTES,
    STATE_BYTES,
    STATE_VERSIONS,
    Workload,
    WorkloadParameters,
)
from sterna.memory.bitmap import PageBitmap
from sterna.registry import Architecture, ErrorCode, RegionKind, StateKind, Transfer
from sterna.wire.records import Region, Runner

__all__ = ["JournalEntry", "SimulatedDestinationGuest", "SimulatedMachine", "SimulatedSourceGuest"]

THROTTLE_MAX: Final = 0.99
_PAGE_LOG2: Final = PAGE_BYTES.bit_length() - 1
_REGION_STEP: Final = 1 << 40  # guest addresses of the regions: far apart, so that a mixed-up one is noticed


class _Faults:
    """What both sides share: a log of calls, and faults to order.

    Attributes:
        calls: names of the methods called so far.
        fail_on: method name to the exception that it shall raise, before it has done anything.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail_on: dict[str, Exception] = {}

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail_on:
            raise self.fail_on[name]


class SimulatedSourceGuest(_Faults):
    """A guest that runs here. It is running when it is made.

    Args:
        parameters: what its workload does; the memory is filled.
        rate_bytes_s: requested rate of page writes.
        region_pages: pages of each region, together all pages; one region if empty.
        precise: False makes the tracker answer *all* every time.
        machine: a machine to take over as it is (from a destination) instead of a new one.
    """

    def __init__(
        self,
        parameters: WorkloadParameters,
        *,
        rate_bytes_s: float = 0.0,
        region_pages: Sequence[int] = (),
        id: bytes = bytes(range(16)),  # noqa: A002 - the description's name for it
        name: str = "simulated",
        precise: bool = True,
        machine: SimulatedMachine | None = None,
    ) -> None:
        super().__init__()
        sizes = tuple(region_pages) or (parameters.pages,)
        if sum(sizes) != parameters.pages or min(sizes) < 1:
            raise ValueError("region_pages do not add up to the memory")
        if machine is None:
            memory = np.zeros(parameters.pages * PAGE_BYTES, np.uint8)
            machine = SimulatedMachine(memory, Workload(parameters, memory), rate_bytes_s, running=True)
            machine.workload.fill()
        self.machine: Final = machine
        self.precise = precise
        self.granted_epoch: int | None = None
        self.released = False
        regions = (Region(i, i * _REGION_STEP, size << _PAGE_LOG2) for i, size in enumerate(sizes))
        self.description: Final = GuestDescription(
            id, name, tuple(regions), Architecture.SYNTHETIC, state_bytes=STATE_BYTES
        )
        self._first_pages: Final = dict(enumerate(np.cumsum((0, *sizes[:-1])).tolist()))
        self._collected_at: int | None = None  # count at the last collect; None: no tracking

    @property
    def workload(self) -> Workload:
        """The workload, for tests to look at."""
        return self.machine.workload

    @property
    def running(self) -> bool:
        """Whether `advance` writes."""
        return self.machine.running

    def advance(self, seconds: float) -> int:
        """Let this much time pass; returns the number of writes done in it."""
        return self.machine.advance(seconds)

    @property
    def tracker(self) -> str:
        """Name of the dirty tracking in use."""
        return "simulated" if self.precise else "simulated (all)"

    def memory(self, region: int) -> memoryview:
        """The region's live bytes.

        Raises:
            GuestError: there is no such region, or the guest has been released.
        """
        if self.released:
            raise GuestError("the guest has been released")
        return region_memory(self.machine.memory, self.description, region)

    async def start_tracking(self) -> None:
        """Follow writes from now on.

        Raises:
            GuestError: NOT_READY, as long as a page is missing.
        """
        self._called("start_tracking")
        self._check_complete()
        self._collected_at = self.workload.count

    async def collect_dirty(self) -> Mapping[int, PageBitmap]:
        """Exactly the pages written since the last collect, or all of them.

        Raises:
            GuestError: tracking was not started.
        """
        self._called("collect_dirty")
        if self._collected_at is None:
            raise GuestError("dirty tracking was not started")
        since, self._collected_at = self._collected_at, self.workload.count
        pages = PageBitmap(self.workload.parameters.pages)
        if self.precise:
            pages.set_runs(*self.workload.schedule.runs(since, self._collected_at))
        else:
            pages.fill()
        dirty = {}
        for region in self.description.regions:
            first = self._first_pages[region.id]
            starts, counts = pages.runs_between(first, region.pages)
            dirty[region.id] = PageBitmap(region.pages)
            dirty[region.id].set_runs(starts - first, counts)
        return dirty

    async def stop_tracking(self) -> None:
        """End of tracking."""
        self._called("stop_tracking")
        self._collected_at = None

    async def pause(self) -> None:
        """Stop the guest."""
        self._called("pause")
        self.machine.running = False

    async def resume(self) -> None:
        """Run on.

        Raises:
            GuestError: the guest has been released, or granted to another host.
        """
        self._called("resume")
        if self.released or self.granted_epoch is not None:
            raise GuestError("the guest does not belong here any more")
        self.machine.running = True

    async def throttle(self, share: float) -> None:
        """Take away this share of the running time.

        Raises:
            GuestError: the share is not in 0.0 to 0.99.
        """
        self._called("throttle")
        if not 0.0 <= share <= THROTTLE_MAX:
            raise GuestError(f"throttle to {share}")
        self.machine.throttle = share

    async def save_state(self) -> Sequence[StateSection]:
        """The workload's state, as one section.

        Raises:
            GuestError: the guest is not paused.
        """
        self._called("save_state")
        self._check_complete()
        if self.running:
            raise GuestError("the guest is not paused")
        state = self.workload.state
        return (StateSection(StateKind.WORKLOAD, state.version, state.to_bytes()),)

    async def mark_granted(self, epoch: int) -> None:
        """Remember the epoch in `granted_epoch`."""
        self._called("mark_granted")
        self._check_complete()
        self.granted_epoch = epoch

    async def revoke_grant(self, epoch: int) -> None:
        """Forget the epoch; the guest stays paused.

        Raises:
            GuestError: another epoch was granted.
        """
        self._called("revoke_grant")
        if self.granted_epoch not in {None, epoch}:
            raise GuestError(f"epoch {epoch} was not granted")
        self.granted_epoch = None

    async def release(self) -> None:
        """The guest has left.

        Raises:
            GuestError: it runs here.
        """
        self._called("release")
        if self.running:
            raise GuestError("the guest is not paused")
        self.released = True

    def _check_complete(self) -> None:
        if self.machine.incomplete:
            raise GuestError("pages of the guest are still missing", ErrorCode.NOT_READY)


class SimulatedDestinationGuest(_Faults):
    """Room for a simulated guest.

    Args:
        memory_limit_bytes: more than this does not fit (FULL).
        cpu_features: features that the host has.
        rate_bytes_s: rate of page writes once it runs.
        journal: the guest's journal, if the source's is to be continued.
        can_post_copy: whether it can run before all of its pages are there.
    """

    def __init__(
        self,
        *,
        memory_limit_bytes: int = 1 << 30,
        cpu_features: Sequence[str] = (),
        rate_bytes_s: float = 0.0,
        journal: list[JournalEntry] | None = None,
        can_post_copy: bool = True,
    ) -> None:
        super().__init__()
        self._can_post_copy = can_post_copy
        self.memory_limit_bytes = memory_limit_bytes
        self.cpu_features = frozenset(cpu_features)
        self.rate_bytes_s = rate_bytes_s
        self.journal: list[JournalEntry] = [] if journal is None else journal
        self.description: GuestDescription | None = None
        self.prepared = False
        self.discarded = False
        self.has_run = False
        self.machine: SimulatedMachine | None = None
        self._memory: npt.NDArray[np.uint8] | None = None
        self._stale: StalePages | None = None
        self._notes = bytearray()

    @property
    def workload(self) -> Workload:
        """The workload that was loaded.

        Raises:
            GuestError: none was.
        """
        return self._loaded().workload

    @property
    def running(self) -> bool:
        """Whether `advance` writes."""
        return self.machine is not None and self.machine.running

    def advance(self, seconds: float) -> int:
        """Let this much time pass; returns the number of writes done in it."""
        return 0 if self.machine is None else self.machine.advance(seconds)

    async def reserve(self, description: GuestDescription) -> None:
        """Allocate the memory.

        Raises:
            GuestError: with ARCHITECTURE, CPU_FEATURES, PAGE_SIZE, REGION_KIND or FULL.
        """
        self._called("reserve")
        self._check(description)
        size_bytes = sum(region.size_bytes for region in description.regions)
        if size_bytes > self.memory_limit_bytes:
            raise GuestError(f"{size_bytes} bytes do not fit", ErrorCode.FULL)
        self.description, self.discarded = description, False
        self._stale = StalePages(description.regions, {})
        self._memory = np.zeros(size_bytes, np.uint8)

    def _check(self, description: GuestDescription) -> None:
        if description.architecture != Architecture.SYNTHETIC:
            raise GuestError(f"architecture {description.architecture}", ErrorCode.ARCHITECTURE)
        if missing := set(description.cpu_features) - self.cpu_features:
            raise GuestError(f"no {', '.join(sorted(missing))}", ErrorCode.CPU_FEATURES)
        for region in description.regions:
            if region.granule_log2 != _PAGE_LOG2:
                raise GuestError(f"granule 2**{region.granule_log2}", ErrorCode.PAGE_SIZE)
            if (region.kind, region.transfer) != (RegionKind.RAM, Transfer.COPY):
                raise GuestError(f"region {region.id} is not copied RAM", ErrorCode.REGION_KIND)

    def memory(self, region: int) -> memoryview:
        """The reserved region's bytes, writable.

        Raises:
            GuestError: nothing is reserved, or there is no such region.
        """
        memory, description = self._reserved()
        return region_memory(memory, description, region)

    async def prepare(self) -> None:
        """Touch every page, so that the blackout does not wait for the kernel."""
        self._called("prepare")
        memory, _ = self._reserved()
        memory[::PAGE_BYTES] |= 0
        self.prepared = True

    async def load_state(self, sections: Sequence[StateSection]) -> None:
        """Take the workload's state.

        Raises:
            GuestError: UNKNOWN_STATE for an architecture, kind or version that it does not know,
                STATE_REJECTED if it is not exactly one good section for this memory.
        """
        self._called("load_state")
        memory, _ = self._reserved()
        if self.has_run:
            raise GuestError("the guest has run already")
        for section in sections:
            name = (section.architecture, section.kind, section.version)
            known = name[:2] == (Architecture.SYNTHETIC, StateKind.WORKLOAD)
            if not known or section.version not in STATE_VERSIONS:
                raise GuestError(f"not a workload's state: {name}", ErrorCode.UNKNOWN_STATE)
        if [(section.vcpu, section.instance) for section in sections] != [(NO_VCPU, 0)]:
            raise GuestError("not exactly one state section, of no vCPU", ErrorCode.STATE_REJECTED)
        (section,) = sections
        try:
            workload = Workload.from_state(section.data, memory, section.version)
        except ValueError as error:
            raise GuestError(str(error), ErrorCode.STATE_REJECTED) from error
        self.machine = SimulatedMachine(
            memory, workload, self.rate_bytes_s, journal=self.journal, stale=self._stale
        )

    async def take_storage(self) -> None:
        """It has none, and lives in this process."""

    async def run(self, epoch: int, runner: Runner) -> None:
        """Start the workload where it was paused.

        Raises:
            GuestError: no state was loaded, or it runs already.
        """
        self._called("run")
        machine = self._loaded()
        if self.has_run:
            raise GuestError("the guest has run already")
        machine.epoch, machine.runner = epoch, runner
        machine.running = self.has_run = True

    async def discard(self) -> None:
        """Free everything.

        Raises:
            GuestError: the guest has run here.
        """
        self._called("discard")
        if self.has_run:
            raise GuestError("the guest has run and cannot be discarded")
        self.machine = self._memory = self.description = self._stale = None
        self._notes = bytearray()
        self.prepared, self.discarded = False, True

    @property
    def can_post_copy(self) -> bool:
        """Whatever was said when it was made."""
        return self._can_post_copy

    @property
    def waits_for(self) -> PageRange | None:
        """The missing page at which the guest stands: what `faults` tells, for a test without a loop."""
        stale = self._stale
        return None if stale is None or stale.waits_for is None else stale.range_of(stale.waits_for)

    async def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        """Stop at these pages.

        Raises:
            GuestError: it cannot, nothing is reserved, the bitmaps do not fit, or the guest has run.
        """
        self._called("expect")
        self._expected()
        _, description = self._reserved()
        if self.has_run:
            raise GuestError("the guest has run already")
        self._stale = StalePages(description.regions, stale)
        if self.machine is not None:
            self.machine.stale = self._stale

    async def faults(self) -> Sequence[PageRange]:
        """The page that the guest stands at; waits only if there is none."""
        self._called("faults")
        return await self._expected().faults()

    async def installed(self, region: int, first: int, count: int) -> None:
        """The guest goes on with the next `advance`."""
        self._called("installed")
        self._expected().installed(region, first, count)

    async def missing(self) -> Mapping[int, PageBitmap]:
        """What was not installed."""
        return {} if self._stale is None else self._stale.missing()

    async def notes(self, size_bytes: int | None = None) -> memoryview:
        """As durable as this object.

        Raises:
            GuestError: nothing is reserved, or they are too large.
        """
        self._called("notes")
        self._expected()
        _, description = self._reserved()
        if size_bytes is not None:
            if size_bytes > notes_limit(description.regions):
                raise GuestError(f"{size_bytes} bytes of notes", ErrorCode.FULL)
            self._notes = bytearray(size_bytes)
        return memoryview(self._notes)

    def _expected(self) -> StalePages:
        if not self.can_post_copy:
            raise GuestError("this guest runs only when all of its pages are there", ErrorCode.UNSUPPORTED)
        if self._stale is None:
            raise GuestError("nothing is reserved")
        return self._stale

    def _reserved(self) -> tuple[npt.NDArray[np.uint8], GuestDescription]:
        if self._memory is None or self.description is None:
            raise GuestError("nothing is reserved")
        return self._memory, self.description

    def _loaded(self) -> SimulatedMachine:
        if self.machine is None:
            raise GuestError("no state is loaded")
        return self.machine


if TYPE_CHECKING:

    def _conform(
        source: SimulatedSourceGuest, destination: SimulatedDestinationGuest
    ) -> tuple[SourceGuest, DestinationGuest]:
        return source, destination
