"""A KVM guest's machine: memory in memory files, slots, vCPUs, dirty log. It has no threads; runners do.

A state goes into processors that were never used: what a state does not name, a register of another host's
for example, has the value of a reset there and not of a state that was tried before. So processors that have
had a state are replaced for the next one, with the machine that they are of; and a state that is refused has
touched nothing of the one before.

A machine gets its memory when its guest is about to run. Until then the kernel has none to touch: some
registers make it write to guest memory when they are set, and a state that comes from elsewhere could have it
wait for a page that comes later, in the thread that everybody waits for.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from sterna.errors import GuestError
from sterna.guest.kvm import features, layout, sections, state
from sterna.guest.kvm.layout import RAM, SYSTEM
from sterna.guest.process_memory import GuestMemory
from sterna.guest.schedule import WorkloadParameters
from sterna.guest.workload import Workload
from sterna.linux.errors import CapabilityMissing
from sterna.linux.kvm import Kvm, Machine, MemorySlot
from sterna.linux.kvm_vcpu import CpuidEntry, Vcpu
from sterna.linux.memfd import MemoryFile, MemoryMap
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode

_PAGE: Final = mmap.PAGESIZE
_GAPS_S: Final = 1000  # a gap of so many parts of a second is one
_SLOW_S: Final = 50_000  # an access that takes so many parts of a second has waited; by itself none does
_XCR0_AVX: Final = 7  # x87, SSE, AVX
# What KVM_GET_MSR_INDEX_LIST leaves out: memory types, and the banks of the machine check.
_UNLISTED: Final = (
    *range(0x200, 0x210),
    0x250,
    0x258,
    0x259,
    *range(0x268, 0x270),
    0x2FF,
    *range(0x400, 0x480),
)
_APIC_ID: Final = 24  # its first bit in EBX of leaf 1


class _Hardware:
    """A machine of the kernel's with its processors, as after a reset.

    Raises:
        CapabilityMissing: the kernel makes none.
        OSError: no room for it.
    """

    def __init__(self, kvm: Kvm, vcpus: int) -> None:
        with contextlib.ExitStack() as stack:
            self.machine = stack.enter_context(kvm.create_machine())
            self.vcpus = tuple(
                stack.enter_context(self.machine.create_vcpu(number)) for number in range(vcpus)
            )
            self._resources = stack.pop_all()

    def close(self) -> None:
        """Free it; no vCPU runs. Legal twice."""
        self._resources.close()


class KvmMachine:
    """Made whole, or not at all.

    Args:
        memory_bytes: of region 0.
        vcpus: how many.

    Attributes:
        ram: region 0. Its pages come in a thread.

    Raises:
        CapabilityMissing: no KVM, or not one that can do this.
        GuestError: FULL, no memory.
    """

    def __init__(self, memory_bytes: int, vcpus: int) -> None:
        self.memory_bytes = memory_bytes
        self.regions = layout.regions(memory_bytes)
        with contextlib.ExitStack() as stack:
            self._kvm = stack.enter_context(Kvm())
            try:
                self.ram = GuestMemory(memory_bytes, "compare")
                stack.callback(self.ram.free)
                self.ram.start_populating()
                self._system_file = stack.enter_context(
                    MemoryFile("sterna-guest", self.regions[SYSTEM].size_bytes)
                )
                self._system = self._system_file.map()
                stack.callback(self._free_system)
                self._system.populate(0, self._system.size_bytes)
                self._slots = {
                    number: MemorySlot(number, region.address, region.size_bytes, self.maps[number].address)
                    for number, region in enumerate(self.regions)
                }
                self._supported = self._kvm.supported_cpuid()
                self._hardware = _Hardware(self._kvm, vcpus)
                stack.callback(self._close_hardware)
                self._listed = frozenset(self._kvm.msr_indices())
                self._at_rest = self._resting(self.vcpus[0])
            except CapabilityMissing:
                raise
            except (MemoryError, OSError, RuntimeError) as error:  # the last one: no thread
                raise GuestError(f"no machine: {error}", ErrorCode.FULL) from error
            self._cpuid = [_numbered(self._supported, number) for number in range(vcpus)]
            self._sent: list[frozenset[int]] = [self._listed] * vcpus
            self._used = False  # the processors have had a state
            self._attached = False
            self._resources = stack.pop_all()

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        """The processors. Whoever uses them sees to it that they do not run."""
        return self._hardware.vcpus

    @property
    def maps(self) -> Mapping[int, MemoryMap]:
        """This process's mapping of each region, which is the guest's memory."""
        return {RAM: self.ram.map, SYSTEM: self._system}

    @property
    def files(self) -> Mapping[int, MemoryFile]:
        """The memory files."""
        return {RAM: self.ram.file, SYSTEM: self._system_file}

    def begin(self, parameters: WorkloadParameters) -> None:
        """Make a new guest of it: memory filled, vCPUs before their first instruction.

        Args:
            parameters: as if there were one workload; each vCPU gets its share.

        Raises:
            ValueError: there is not a share for each.
        """
        work = layout.shares(parameters, len(self.vcpus))
        gap, slow = (self.vcpus[0].tsc_khz() * 1000 // parts for parts in (_GAPS_S, _SLOW_S))
        wide = {"xsave", "avx"} <= set(features.features(self._supported))
        layout.fill_system(self._system.array, self.memory_bytes, work, gap, slow, wide=wide)
        for first, share in work:
            Workload(share, self.ram.map.array[first * _PAGE : (first + share.pages) * _PAGE]).fill()
        self._used = True
        for number, vcpu in enumerate(self.vcpus):
            vcpu.set_cpuid(self._cpuid[number])
            reset = vcpu.system_registers()
            vcpu.set_system_registers(layout.first_system_registers(number, reset, wide=wide))
            if wide:
                vcpu.set_extended_control([(0, _XCR0_AVX)])
            vcpu.set_registers(layout.first_registers(number, work[number][1].seed))
        self.attach()

    def attach(self) -> None:
        """Give the machine its memory; legal twice.

        Raises:
            GuestError: FULL.
        """
        if self._attached:
            return
        try:
            for slot in self._slots.values():
                self._machine.set_memory(slot)
        except OSError as error:
            self._detach()
            raise GuestError(f"no memory slots: {error.strerror}", ErrorCode.FULL) from error
        self._attached = True

    def _detach(self) -> None:
        for slot in self._slots.values():
            with contextlib.suppress(OSError):  # there is none
                self._machine.remove_memory(slot)
        self._attached = False

    def areas(self) -> tuple[layout.Area, ...]:
        """What the vCPUs' areas say. Touches guest memory.

        Raises:
            ValueError: they make no sense.
        """
        return tuple(self.area(number) for number in range(len(self.vcpus)))

    def area(self, number: int) -> layout.Area:
        """What one of them says. Likewise."""
        return layout.read_area(self._system.array, self.memory_bytes, number)

    def stamps(self, number: int) -> tuple[int, int]:
        """See `layout.read_stamps`. Waits, without the interpreter lock, until that memory is there."""
        self._system.touch(layout.area_at(number))
        return layout.read_stamps(self._system.array, number)

    def waits(self, number: int) -> list[tuple[int, int]]:
        """See `layout.read_waits`. Likewise."""
        self._system.touch(layout.area_at(number))
        return layout.read_waits(self._system.array, number)

    def wait_for_tables(self) -> None:
        """Wait, without the interpreter lock, until what the kernel reads for the guest is there."""
        for offset in layout.read_for_the_guest(self.memory_bytes):
            self._system.touch(offset)

    def start_tracking(self) -> None:
        """Protect every page; what was written before is forgotten."""
        self.stop_tracking()
        for slot in self._slots.values():
            self._machine.set_memory(slot, log=True)

    def collect(self) -> Mapping[int, PageBitmap]:
        """Pages written since the last collect or the start, which are forgotten."""
        found = {}
        for number, slot in self._slots.items():
            words = self._machine.dirty_log(slot, _PAGE)
            if self._machine.manual_protection:
                self._machine.clear_dirty_log(slot, _PAGE, words)
            found[number] = PageBitmap.from_words(words, slot.size_bytes // _PAGE)
        return found

    def stop_tracking(self) -> None:
        """Legal when there is none."""
        if self._attached:
            for slot in self._slots.values():
                self._machine.set_memory(slot)

    def _resting(self, vcpu: Vcpu) -> dict[int, int]:
        """Model-specific registers after a reset, those that the kernel's list leaves out among them."""
        vcpu.set_cpuid(self._supported)
        return vcpu.msrs(sorted(self._listed.union(_UNLISTED)))

    def save(self) -> sections.MachineState:
        """The state; no vCPU runs."""
        whole = state.save(self._machine, self.vcpus, self._cpuid, sorted(self._listed.union(_UNLISTED)))
        vcpus = (
            replace(vcpu, msrs=tuple(self._worth_sending(vcpu.msrs, sent)))
            for vcpu, sent in zip(whole.vcpus, self._sent, strict=True)
        )
        return replace(whole, vcpus=tuple(vcpus))

    def _worth_sending(
        self, values: Iterable[tuple[int, int]], sent: frozenset[int]
    ) -> Iterator[tuple[int, int]]:
        """Those that the guest was offered, and what else it has changed: all others are as after a reset."""
        for index, value in values:
            if index in sent or self._at_rest.get(index) != value:
                yield index, value

    def load(self, wanted: sections.MachineState) -> int:
        """Set the state of processors that have had none; how many registers were compared with it.

        Raises:
            GuestError: with STATE_REJECTED, and what was loaded before, if anything was, still is.
        """
        for number, vcpu in enumerate(wanted.vcpus):
            # The kernel takes any answer of CPUID, and the description may not have named them all.
            if lacking := features.missing(features.names(vcpu.cpuid), features.names(self._supported)):
                raise GuestError(
                    f"vCPU {number} has CPU features that are missing here: {', '.join(lacking)}",
                    ErrorCode.STATE_REJECTED,
                )
        hardware = self._fresh(len(wanted.vcpus))
        try:
            checked = state.load(wanted, hardware.machine, hardware.vcpus)
        except BaseException:
            if hardware is not self._hardware:
                hardware.close()
            raise
        if hardware is not self._hardware:
            self._hardware.close()
            self._hardware, self._attached = hardware, False
        self._cpuid = [vcpu.cpuid for vcpu in wanted.vcpus]
        self._sent = [frozenset(index for index, _ in vcpu.msrs) for vcpu in wanted.vcpus]
        return checked

    def _fresh(self, vcpus: int) -> _Hardware:
        if not self._used and not self._attached:
            self._used = True
            return self._hardware
        try:
            return _Hardware(self._kvm, vcpus)
        except CapabilityMissing:
            raise
        except OSError as error:
            raise GuestError(f"no machine: {error.strerror}", ErrorCode.FULL) from error

    def _close_hardware(self) -> None:
        self._hardware.close()

    def close(self) -> None:
        """Free everything; no vCPU runs. Legal twice."""
        self._resources.close()

    @property
    def _machine(self) -> Machine:
        return self._hardware.machine

    def _free_system(self) -> None:
        self._system.free_pages()
        self._system.close()


def _numbered(cpuid: Sequence[CpuidEntry], number: int) -> tuple[CpuidEntry, ...]:
    """As a vCPU has it: the kernel has answered for the processor that happened to ask."""
    return tuple(_of_vcpu(entry, number) for entry in cpuid)


def _of_vcpu(entry: CpuidEntry, number: int) -> CpuidEntry:
    if entry.leaf == 1:
        return entry._replace(ebx=entry.ebx & (1 << _APIC_ID) - 1 | number << _APIC_ID)
    if (entry.leaf, entry.subleaf) in {(0xB, 0), (0x1F, 0)}:
        return entry._replace(edx=number)
    return entry._replace(eax=number) if entry.leaf == 0x8000001E else entry
