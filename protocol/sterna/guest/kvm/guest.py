"""The KVM guest: real vCPUs that run the workload on memory files, held for an endpoint.

What a holder is asked for is the same as of a process guest. What differs is what runs (vCPUs, each in a
thread), how writes are followed (KVM's dirty log) and what the state is (all registers, spec/x86.md).
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription, StateSection
from sterna.guest.guest_thread import holder_cpu_s
from sterna.guest.holder_backend import HeldGuest
from sterna.guest.holder_frames import JsonObject
from sterna.guest.journal import GuestJournal, boottime_ns
from sterna.guest.kvm import features, sections
from sterna.guest.kvm.audit import audit
from sterna.guest.kvm.description import check_description, check_host
from sterna.guest.kvm.layout import COUNT, RAM, Area
from sterna.guest.kvm.machine import KvmMachine
from sterna.guest.kvm.runner import VcpuRunner
from sterna.guest.kvm.waits import PageWaits, VcpuWaits
from sterna.guest.late_pages import LatePages, why_no_late_pages
from sterna.guest.process import ProcessSettings
from sterna.guest.process_gate import PageTimes
from sterna.guest.schedule import PAGE_BYTES, WorkloadParameters
from sterna.guest.stale_pages import check_stale
from sterna.guest.workload import Audit
from sterna.linux.kvm_probe import try_machine
from sterna.linux.kvm_vcpu import KICK, REGISTERS
from sterna.linux.memfd import MemoryFile
from sterna.linux.userfaultfd import supported
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import Runner


class KvmGuest(HeldGuest):
    """Holds a machine. See `HeldGuest` for what may be called when. To be made in the main thread.

    Raises:
        CapabilityMissing: there is no KVM here, or none whose vCPUs run.
    """

    kind = "kvm"
    tracker = "dirty_log"

    def __init__(self, settings: ProcessSettings, available_bytes: Callable[[], int] | None = None) -> None:
        self._settings = settings
        self._available_bytes = available_bytes
        self._journal = GuestJournal(settings.journal, self._count)
        self._description: GuestDescription | None = None
        self._machine: KvmMachine | None = None
        self._runners: tuple[VcpuRunner, ...] = ()
        self._areas: tuple[Area, ...] = ()
        self._late: LatePages | None = None
        self._waits: PageWaits | None = None
        self._fault_times: PageTimes | None = None
        self._saved: tuple[StateSection, ...] | None = None
        self._registers_checked = 0
        self._sections = 0
        self._jumps_ns: dict[int, int] = {}  # of the guest's time while it came here, by vCPU
        self._all_ran_ns = 0
        self._paused = False
        try_machine()  # or a guest would be on its way here, or here, before anybody finds out
        if signal.getsignal(KICK) in {signal.SIG_DFL, signal.SIG_IGN, None}:
            signal.signal(
                KICK, lambda number, frame: None
            )  # a signal ends a system call if somebody handles it

    def create(self, guest: GuestDescription, parameters: WorkloadParameters) -> None:
        """A new guest, filled, not yet running.

        Args:
            guest: as `sterna.guest.kvm.description.describe` makes it.
            parameters: of one workload on all of the memory, which the vCPUs share.

        Raises:
            GuestError: no KVM, no memory.
            ValueError: there is no share for each vCPU.
        """
        machine = self._make(guest)
        try:
            machine.ram.wait_populated()
            machine.begin(parameters)
            self._areas = machine.areas()
        except BaseException:
            machine.close()
            raise
        self._machine, self._description = machine, guest

    @property
    def description(self) -> GuestDescription:
        """The guest."""
        assert self._description is not None
        return self._description

    def memory(self) -> Mapping[int, MemoryFile]:
        """Both regions."""
        return self._here.files

    def start_tracking(self) -> None:
        """By the dirty log."""
        self._here.start_tracking()

    def collect(self) -> Mapping[int, PageBitmap]:
        """While the vCPUs write on."""
        return self._here.collect()

    def stop_tracking(self) -> None:
        """Legal always."""
        if self._machine is not None:
            self._machine.stop_tracking()

    def pause(self) -> None:
        """Between any two instructions."""
        self._park()
        self._paused = True
        self._saved = None
        self._journal.note("pause")

    def resume(self) -> None:
        """With the next instruction."""
        self._go("resume")
        self._paused = False

    def throttle(self, share: float) -> None:
        """At once."""
        for runner in self._runners:
            runner.throttle(share)

    def save_state(self) -> Sequence[StateSection]:
        """All sections; what counts on is as it was when they were asked for first."""
        if self._saved is None:
            self._saved = sections.to_sections(self._here.save())
        return self._saved

    def mark_granted(self, epoch: int) -> None:
        """A line in the journal, the last one from here unless the guest is won back."""
        self._journal.grant()

    def revoke_grant(self, epoch: int) -> None:
        """A line in the journal."""
        self._journal.grant(revoked=True)

    def reserve(self, description: GuestDescription) -> None:
        """Check the guest against what this host's processors are, and make its machine."""
        check_description(description)
        limit, size = self._settings.memory_limit_bytes, description.regions[RAM].size_bytes
        if limit and size > limit:
            raise GuestError(f"{size} bytes, the limit is {limit}", ErrorCode.FULL)
        check_host(description)
        self._machine, self._description = self._make(description), description

    def prepare(self) -> None:
        """Wait until every page is there: its first touch would be in the blackout."""
        try:
            self._here.ram.wait_populated()
        except MemoryError as error:
            raise GuestError(str(error), ErrorCode.FULL) from error

    def load_state(self, sections_: Sequence[StateSection]) -> None:
        """Checked whole, then set and compared."""
        state = sections.from_sections(sections_, self.description.vcpus)
        for number, vcpu in enumerate(state.vcpus):
            if lacking := features.unnamed(self.description.cpu_features, vcpu.cpuid):
                raise GuestError(
                    f"vCPU {number} has CPU features that the guest was not announced with: "
                    f"{', '.join(lacking)}",
                    ErrorCode.STATE_REJECTED,
                )
        self._registers_checked = self._here.load(state)
        self._sections = len(sections_)

    def run(self, epoch: int, runner: Runner) -> None:
        """Start the threads, or let those go on that were stopped here."""
        with self._journal.running(epoch, runner):
            self._here.attach()
            if not self._runners:
                rate = self._settings.rate_bytes_s / PAGE_BYTES / len(self._here.vcpus)
                tables = None
                if self._late is not None:
                    tables, self._waits = self._here.wait_for_tables, PageWaits(self._here, self._late)
                    self._fault_times = self._waits.times
                self._runners = self._start(rate, tables)
            self._go("run")
        self._paused = False
        self._look_if_whole()

    @property
    def can_post_copy(self) -> bool:
        """Where our owner lets us, and the kernel lets us hold its own accesses, as a vCPU's are."""
        return self._settings.post_copy and not why_no_late_vcpus()

    @property
    def late_pages(self) -> LatePages | None:
        """From `expect` until the last page is there."""
        return self._late

    def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        """What is still being populated comes first: it would put the entries back."""
        if not self.can_post_copy:
            super().expect(stale)
        self.prepare()
        if self._late is None:
            check_stale(stale, self.description.regions)
            if not any(bitmap.any() for bitmap in stale.values()):
                return
            self._late = LatePages(self.description.regions, self._here.maps, stale)
        else:
            self._late.replace(stale)
        if not self._late.missing():
            self.complete()

    def complete(self) -> None:
        """Every page is there, and may be touched here too."""
        late, self._late = self._late, None
        if self._waits is not None:
            self._waits.end()
        if late is not None:
            late.end()
        if self._runners:
            self._look_if_whole()

    def discard(self) -> None:
        """Free the machine."""
        self.complete()
        machine, self._machine = self._machine, None
        self._description, self._registers_checked, self._sections = None, 0, 0
        if machine is not None:
            machine.close()

    def release(self) -> None:
        """The threads end; their figures stay."""
        self._end()

    def status(self) -> JsonObject:
        """Counts, rates and the times that the blackout is measured from. Touches no guest memory."""
        status: JsonObject = {"journal_failure": self._journal.failure}
        if self._machine is not None:
            status["memory_bytes"] = self._machine.memory_bytes
            status["tracker_reason"] = ""
        status["holder_cpu_s"] = holder_cpu_s(self._runners)
        if self._sections:
            status |= {"sections": self._sections, "registers_checked": self._registers_checked}
        if self._runners:
            status |= self._figures()
        if self._fault_times is not None:
            status |= self._fault_times.figures()
        return status

    def _figures(self) -> JsonObject:
        runners = self._runners
        figures: JsonObject = {
            "writes": self._count(),
            "errors": sum(runner.errors for runner in runners),
            "hot_set_bytes": sum(area.parameters.hot_pages for area in self._areas) * PAGE_BYTES,
            "vcpus": len(runners),
            "paused": self._paused,
            "rate_requested_bytes_s": self._settings.rate_bytes_s,
            "running_s": round(min(runner.running_s for runner in runners), 6),
            "first_write_ns": _first(runner.first_write_ns for runner in runners),
            "last_write_ns": max(runner.last_write_ns for runner in runners),
            # The guest's time may jump by no more than from the one at the source to the other here.
            "idle_since_ns": min(runner.last_write_ns for runner in runners),
            "all_ran_ns": self._all_ran_ns,
            "failure": next((str(one.failure) for one in runners if one.failure is not None), ""),
        }
        rate = distinct = 0.0
        for number, runner in enumerate(runners):
            (start, first), (end, last) = runner.samples
            if end > start:
                rate += (last - first) * PAGE_BYTES / (end - start)
                if self._areas:
                    pages = self._areas[number].parameters.distinct_pages(first, last)
                    distinct += pages * PAGE_BYTES / (end - start)
        return figures | {"rate_bytes_s": round(rate), "distinct_bytes_s": round(distinct)}

    def audit(self) -> JsonObject:
        """Every page and register, between two instructions of each vCPU; not while pages are missing."""
        if self._late is not None and self._late.missing():
            raise GuestError("pages are missing", ErrorCode.NOT_READY)
        if self._runners and not self._paused:
            self._park()
        try:
            return self._audit()
        finally:
            if self._runners and not self._paused:
                self._go("")

    def _audit(self) -> JsonObject:
        machine = self._here
        self._areas = self._look_at_areas()
        found: list[Audit] = []
        for area, vcpu in zip(self._areas, machine.vcpus, strict=True):
            first, pages = area.first_page * PAGE_BYTES, area.parameters.pages * PAGE_BYTES
            share = machine.ram.map.array[first : first + pages]
            try:
                found.append(audit(area.parameters, share, REGISTERS.unpack(vcpu.registers())))
            except ValueError as error:
                raise GuestError(f"the guest's registers make no sense: {error}") from error
        mismatches = sum(area.mismatches for area in self._areas)
        return {
            "pages_checked": sum(one.pages_checked for one in found),
            "errors": sum(one.errors for one in found) + mismatches,
            "writes": sum(one.count for one in found),
            "generations": sum(one.generations for one in found),
            "registers_good": all(one.registers_good for one in found) and not mismatches,
            "errors_while_running": sum(runner.errors for runner in self._runners),
            "registers_looked_at": sum(area.checked for area in self._areas),
            "register_mismatches": mismatches,
            "time_backwards": sum(area.backwards for area in self._areas),
            "time_jump_ns": max(self._jumps_ns.values(), default=0),
        }

    def close(self) -> None:
        """End the threads, then free the machine."""
        had = bool(self._runners)
        for runner in self._runners:
            runner.tell_to_stop()
        self.complete()  # lets the threads go where they wait; a guest that has gone on does no harm any more
        self._end()
        if had:
            self._journal.end()
        self._journal.close()

    @property
    def _here(self) -> KvmMachine:
        assert self._machine is not None
        return self._machine

    def _count(self) -> int:
        return sum(runner.count for runner in self._runners)

    def _make(self, description: GuestDescription) -> KvmMachine:
        # Before it is touched: where memory runs out, the kernel kills somebody.
        size = description.regions[RAM].size_bytes
        if self._available_bytes is not None and size > self._available_bytes():
            raise GuestError(f"{size} bytes are not available", ErrorCode.FULL)
        return KvmMachine(size, description.vcpus)

    def _start(self, rate: float, tables: Callable[[], None] | None) -> tuple[VcpuRunner, ...]:
        """A thread for each vCPU, or none."""
        with contextlib.ExitStack() as stack:
            found = []
            for number, vcpu in enumerate(self._here.vcpus):
                waits = None
                if self._waits is not None:
                    count = REGISTERS.unpack(vcpu.registers())[COUNT]
                    waits = VcpuWaits(self._waits, number, count).at_doorbell
                runner = VcpuRunner(
                    *(vcpu, rate, self._journal.progress),
                    wait_for_tables=tables,
                    at_first_exit=functools.partial(self._note_jump, number) if self._sections else None,
                    at_doorbell=waits,
                )
                found.append(runner)
                stack.callback(found[-1].stop)
            stack.pop_all()
        return tuple(found)

    def _note_jump(self, number: int) -> None:
        """How much time has passed for a vCPU from its last instruction there to its first one here."""
        before, after = self._here.stamps(number)
        ticks = max(after - before, 0)  # backwards is what the guest itself counts
        self._jumps_ns[number] = ticks * 1_000_000 // self._here.vcpus[number].tsc_khz()
        self._all_ran_ns = boottime_ns()

    def _look_at_areas(self) -> tuple[Area, ...]:
        try:
            return self._here.areas()
        except ValueError as error:
            raise GuestError(f"the guest's memory makes no sense: {error}") from error

    def _look_if_whole(self) -> None:
        """Take the figures' parameters out of guest memory, unless somebody would wait for it."""
        if self._late is None and self._machine is not None:
            with contextlib.suppress(GuestError):  # a guest whose memory makes no sense has no such figures
                self._areas = self._look_at_areas()

    def _park(self) -> None:
        """Every vCPU, or none."""
        for runner in self._runners:
            runner.tell_to_park()
        try:
            for runner in self._runners:
                runner.wait_parked()
        except GuestError:
            for runner in self._runners:
                if runner.failure is None:
                    runner.run()
            raise

    def _go(self, event: str) -> None:
        self._journal.expect(event)
        for runner in self._runners:
            runner.run(event)

    def _end(self) -> None:
        for runner in self._runners:
            runner.tell_to_park()
        for runner in self._runners:
            runner.stop()
        # Its mappings, and their descriptors, go with the last that knows of it.
        machine, self._machine, self._waits = self._machine, None, None
        if machine is not None:
            machine.close()


@functools.cache
def why_no_late_vcpus() -> str:
    """Why this machine cannot hold a vCPU's accesses to memory; empty if it can."""
    reason = why_no_late_pages()
    if not reason and supported()[2]:
        return "userfaultfd: for accesses in user mode only, and a vCPU's are the kernel's"
    return reason


def _first(times: Iterable[int]) -> int:
    """The earliest of those that there are; 0 if there is none."""
    return min((each for each in times if each), default=0)
