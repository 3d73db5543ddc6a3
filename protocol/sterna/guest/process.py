"""The process guest: a workload in a thread of its own over a memory file, held for an endpoint.

``python -m sterna.guest.process --socket PATH --role source|destination ...`` is the holder. The source's
makes, fills and starts a guest at once; the destination's waits for one. When the socket exists and answers,
one line of JSON on standard output says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription, StateSection
from sterna.guest.guest_thread import holder_cpu_s
from sterna.guest.holder_backend import HeldGuest
from sterna.guest.holder_frames import JsonObject
from sterna.guest.journal import GuestJournal
from sterna.guest.late_pages import LatePages, why_no_late_pages
from sterna.guest.process_gate import FaultGate, PageTimes
from sterna.guest.process_memory import GuestMemory
from sterna.guest.process_runner import WorkloadRunner
from sterna.guest.schedule import WorkloadParameters
from sterna.guest.stale_pages import check_stale
from sterna.guest.workload import PAGE_BYTES, STATE_BYTES, STATE_VERSIONS, Workload
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import MemoryFile
from sterna.memory.bitmap import PageBitmap
from sterna.registry import Architecture, ErrorCode, RegionKind, StateKind, Transfer
from sterna.wire.records import Region, Runner

REGION: Final = 0
_GRANULE_LOG2: Final = PAGE_BYTES.bit_length() - 1


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What a process guest does here, on this host.

    Attributes:
        rate_bytes_s: requested write rate; 0 for as fast as it goes.
        tracker: ``auto``, ``userfaultfd`` or ``compare``.
        memory_limit_bytes: what a guest that comes here may take; 0 for what the system has.
        journal: file for the journal, None for none.
        post_copy: whether a controller may have what a guest needs that runs before its pages are there; it
            reaches all of this process's memory with it.
    """

    rate_bytes_s: int = 0
    tracker: str = "auto"
    memory_limit_bytes: int = 0
    journal: str | None = None
    post_copy: bool = True


class ProcessGuest(HeldGuest):
    """Holds a workload. See `HeldGuest` for what may be called when."""

    kind = "process"

    def __init__(self, settings: ProcessSettings, available_bytes: Callable[[], int] | None = None) -> None:
        self._settings = settings
        self._available_bytes = available_bytes
        self._journal = GuestJournal(settings.journal, self._count)
        self._description: GuestDescription | None = None
        self._image: GuestMemory | None = None
        self._room: GuestMemory | None = None  # for the first guest of just this size
        self._workload: Workload | None = None
        self._runner: WorkloadRunner | None = None
        self._ready: WorkloadRunner | None = None  # whose thread waits for `run`
        self._late: LatePages | None = None
        self._gate: FaultGate | None = None
        self._fault_times: PageTimes | None = None
        self._paused = False

    def create(self, guest: GuestDescription, parameters: WorkloadParameters) -> None:
        """A new guest, filled, not yet running.

        Raises:
            GuestError: with FULL.
        """
        self._check_available(guest.regions[0].size_bytes)
        self._image = GuestMemory(guest.regions[0].size_bytes, self._settings.tracker)
        self._image.start_populating()
        self._image.wait_populated()
        self._description = guest
        self._workload = Workload(parameters, self._image.map.array)
        self._workload.fill()

    def make_room(self, size_bytes: int) -> None:
        """Have memory for a guest of this size, every page of it, before one comes.

        Raises:
            GuestError: with FULL.
        """
        self._room = self._new_memory(size_bytes)
        self._room.wait_populated()

    @property
    def tracker(self) -> str:
        """The tracker's name; ``none`` while there is no memory to try one on."""
        return "none" if self._image is None else self._image.tracker.name

    @property
    def description(self) -> GuestDescription:
        """The guest."""
        assert self._description is not None
        return self._description

    def memory(self) -> Mapping[int, MemoryFile]:
        """One region."""
        return {REGION: self._here.file}

    def start_tracking(self) -> None:
        """By the tracker that works here; comparing takes as much memory again."""
        try:
            self._here.tracker.start()
        except MemoryError as error:
            raise GuestError("no memory for a copy to compare with", ErrorCode.FULL) from error

    def collect(self) -> Mapping[int, PageBitmap]:
        """While the workload writes on; if it is stopped, mostly for the last time: nothing is protected."""
        return {REGION: self._here.tracker.collect(keep=self._paused)}

    def stop_tracking(self) -> None:
        """Legal always."""
        if self._image is not None:
            self._image.tracker.stop()

    def pause(self) -> None:
        """Between two blocks of writes."""
        self._running.park()
        self._paused = True
        self._journal.note("pause")

    def resume(self) -> None:
        """With the next block."""
        self._journal.expect("resume")
        self._running.run("resume")
        self._paused = False

    def throttle(self, share: float) -> None:
        """At once."""
        self._running.throttle(share)

    def save_state(self) -> Sequence[StateSection]:
        """One section, the workload's."""
        assert self._workload is not None
        state = self._workload.state
        return (StateSection(StateKind.WORKLOAD, state.version, state.to_bytes()),)

    def mark_granted(self, epoch: int) -> None:
        """A line in the journal, the last one from here unless the guest is won back."""
        self._journal.grant()

    def revoke_grant(self, epoch: int) -> None:
        """A line in the journal."""
        self._journal.grant(revoked=True)

    def reserve(self, description: GuestDescription) -> None:
        """Check the guest against what a workload can be, and make its memory; its pages come meanwhile."""
        _check_description(description)
        size = description.regions[0].size_bytes
        limit = self._settings.memory_limit_bytes
        if limit and size > limit:
            raise GuestError(f"{size} bytes, the limit is {limit}", ErrorCode.FULL)
        room, self._room = self._room, None
        if room is not None and room.map.size_bytes != size:
            room.free()
            room = None
        self._image = self._new_memory(size) if room is None else room
        self._description = description

    def prepare(self) -> None:
        """Have every page, and a thread: to touch the one and to start the other would be in the blackout."""
        try:
            self._here.wait_populated()
            self._ready = self._ready or self._new_runner()
        except (MemoryError, RuntimeError) as error:
            raise GuestError(str(error), ErrorCode.FULL) from error

    def load_state(self, sections: Sequence[StateSection]) -> None:
        """Exactly one section, good in itself and for this memory."""
        for section in sections:
            name = (section.architecture, section.kind, section.version)
            known = name[:2] == (Architecture.SYNTHETIC, StateKind.WORKLOAD)
            if not known or section.version not in STATE_VERSIONS:
                raise GuestError(f"not a workload's state: {name}", ErrorCode.UNKNOWN_STATE)
        if len(sections) != 1:
            raise GuestError(f"{len(sections)} sections instead of one", ErrorCode.STATE_REJECTED)
        try:
            self._workload = Workload.from_state(sections[0].data, self._here.map.array, sections[0].version)
        except ValueError as error:
            raise GuestError(str(error), ErrorCode.STATE_REJECTED) from error

    def run(self, epoch: int, runner: Runner) -> None:
        """Start the thread, or let the one go on that was stopped here."""
        assert self._workload is not None
        with self._journal.running(epoch, runner):
            if self._runner is None:
                self._fault_times = None if self._gate is None else self._gate.times
                self._runner = self._ready or self._new_runner()
                self._ready, self._runner.workload, self._runner.gate = None, self._workload, self._gate
            self._journal.expect("run")
            self._runner.run("run")
        self._paused = False

    def _new_runner(self) -> WorkloadRunner:
        return WorkloadRunner(None, self._settings.rate_bytes_s, self._journal.progress)

    def _stop_ready(self) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.stop()

    @property
    def can_post_copy(self) -> bool:
        """Where our owner lets us, and the kernel lets us hold accesses to shared memory."""
        return self._settings.post_copy and not why_no_late_pages()

    @property
    def late_pages(self) -> LatePages | None:
        """From `expect` until the last page is there."""
        return self._late

    def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        """What is still being populated comes first: it would put the entries back."""
        if not self._settings.post_copy:
            super().expect(stale)
        image = self._here
        self.prepare()
        try:
            if self._late is None:
                check_stale(stale, self.description.regions)
                if not any(bitmap.any() for bitmap in stale.values()):
                    return
                self._late = LatePages(self.description.regions, {REGION: image.map}, stale)
            else:
                self._late.replace(stale)
        except CapabilityMissing as missing:
            raise GuestError(str(missing), ErrorCode.UNSUPPORTED) from missing
        if not self._late.missing():
            self.complete()
        else:
            there = self._late.installed(REGION), self._late.early(REGION)
            self._gate = FaultGate(image.map, self._late.stale(REGION), there)

    def complete(self) -> None:
        """The workload need not look at its pages any more."""
        if self._runner is not None:
            self._runner.gate = None
        self._gate = None
        late, self._late = self._late, None
        if late is not None:
            late.end()

    def discard(self) -> None:
        """Free the memory."""
        self.complete()
        self._stop_ready()
        self._workload = None
        self._description = None
        image, self._image = self._image, None
        if image is not None:
            image.free()

    def release(self) -> None:
        """The thread ends; its figures stay."""
        self._running.stop()
        image, self._image = self._image, None
        if image is not None:
            image.free()

    def status(self) -> JsonObject:
        """Counts, rates and the times that the blackout is measured from."""
        status: JsonObject = {"journal_failure": self._journal.failure}
        if self._image is not None:
            status["memory_bytes"] = self._image.map.size_bytes
            status["tracker_reason"] = self._image.tracker_reason
        workload, runner = self._workload, self._runner
        status["holder_cpu_s"] = holder_cpu_s([] if runner is None else [runner])
        if workload is not None:
            status |= {
                "writes": workload.count,
                "errors": workload.errors,
                "hot_set_bytes": workload.parameters.hot_pages * PAGE_BYTES,
            }
        if runner is not None:
            rate, distinct = runner.rates()
            status |= {
                "paused": self._paused,
                "rate_requested_bytes_s": self._settings.rate_bytes_s,
                "rate_bytes_s": round(rate),
                "distinct_bytes_s": round(distinct),
                "running_s": round(runner.running_s, 6),
                "first_write_ns": runner.first_write_ns,
                "last_write_ns": runner.last_write_ns,
                "failure": "" if runner.failure is None else type(runner.failure).__name__,
            }
        if runner is not None and self._fault_times is not None:
            status |= self._fault_times.figures()
        return status

    def audit(self) -> JsonObject:
        """Every page, between two blocks of writes; it would wait for those that are missing."""
        if self._late is not None and self._late.missing():
            raise GuestError("pages are missing", ErrorCode.NOT_READY)
        runner = self._runner
        if runner is not None:
            runner.park()
        try:
            assert self._workload is not None
            found = self._workload.audit()
        finally:
            if runner is not None and not self._paused:
                runner.run()
        return {
            "pages_checked": found.pages_checked,
            "errors": found.errors,
            "writes": found.count,
            "generations": found.generations,
            "registers_good": found.registers_good,
            "errors_while_running": self._workload.errors,
        }

    def close(self) -> None:
        """End the thread, then free the memory."""
        if self._runner is not None:
            self._runner.tell_to_stop()
        self.complete()  # lets the thread go where it waits; it does nothing with what it finds
        self._stop_ready()
        if self._runner is not None:
            self._runner.stop()
            self._journal.end()
        self._journal.close()
        images = self._image, self._room
        self._image = self._room = None
        for image in images:
            if image is not None:
                image.free()

    @property
    def _here(self) -> GuestMemory:
        assert self._image is not None
        return self._image

    @property
    def _running(self) -> WorkloadRunner:
        assert self._runner is not None
        return self._runner

    def _new_memory(self, size_bytes: int) -> GuestMemory:
        """Whose pages are on their way."""
        self._check_available(size_bytes)
        try:
            image = GuestMemory(size_bytes, self._settings.tracker)
            try:
                image.start_populating()
            except BaseException:
                image.free()
                raise
        except (MemoryError, OSError, RuntimeError) as error:  # the last one: no thread
            raise GuestError(f"no memory: {error}", ErrorCode.FULL) from error
        return image

    def _check_available(self, size_bytes: int) -> None:
        # Before it is touched: where memory runs out, the kernel kills somebody.
        if self._available_bytes is not None and size_bytes > self._available_bytes():
            raise GuestError(f"{size_bytes} bytes are not available", ErrorCode.FULL)

    def _count(self) -> int:
        return 0 if self._workload is None else self._workload.count


def _check_description(description: GuestDescription) -> None:
    if description.architecture != Architecture.SYNTHETIC:
        raise GuestError(f"architecture {description.architecture}", ErrorCode.ARCHITECTURE)
    if description.cpu_features:
        raise GuestError("a workload has no CPU features", ErrorCode.CPU_FEATURES)
    if len(description.regions) != 1 or description.vcpus != 1:
        raise GuestError("a workload has one region and one vCPU", ErrorCode.REFUSED)
    if description.disks or description.nics:
        raise GuestError("a workload has neither disks nor network interfaces", ErrorCode.REFUSED)
    if description.state_bytes < STATE_BYTES:
        raise GuestError("less state than a workload has", ErrorCode.REFUSED)
    region = description.regions[0]
    if (region.kind, region.transfer) != (RegionKind.RAM, Transfer.COPY):
        raise GuestError("a workload's region is copied RAM", ErrorCode.REGION_KIND)
    if region.granule_log2 != _GRANULE_LOG2:
        raise GuestError(f"granule 2**{region.granule_log2}", ErrorCode.PAGE_SIZE)
    if region.id != REGION or region.size_bytes % PAGE_BYTES:
        raise GuestError("a workload's region is number 0 and whole pages", ErrorCode.REFUSED)


def describe(name: str, guest_id: bytes, memory_bytes: int) -> GuestDescription:
    """The description of a new process guest."""
    return GuestDescription(
        id=guest_id,
        name=name,
        regions=(Region(id=REGION, address=0, size_bytes=memory_bytes),),
        architecture=Architecture.SYNTHETIC,
        state_bytes=STATE_BYTES,
    )


if __name__ == "__main__":
    import sys

    from sterna.guest.process_holder import main

    sys.exit(main())
