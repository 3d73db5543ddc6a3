"""/dev/kvm: virtual machines and their memory. x86-64; the processors are in `sterna.linux.kvm_vcpu`.

Three kinds of descriptor: of the device, of a machine, of a vCPU of it. Each method here is one ioctl of one
of them, or several that only make sense together, and names its kernel structure beside the layout.

Dirty pages: a slot with `log` has each page write-protected until its first write. `dirty_log` tells which
were written; with manual protection (Linux 5.2) it changes nothing, and `clear_dirty_log` forgets and
protects again. A write between the two is to a page that is told already, and is read by whoever copies
it afterwards; one after it faults, and is told the next time. So none is lost. Without manual protection
`dirty_log` does both at once. What the kernel itself writes to guest memory is noted as well; what this
process writes through its own mapping is not.
"""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.linux.descriptor import Descriptor
from sterna.linux.errors import CapabilityMissing
from sterna.linux.ioctl import io, ior, iow, iowr
from sterna.linux.kvm_vcpu import CPUID_ENTRIES, CpuidEntry, Vcpu, pack_cpuid, unpack_cpuid

DEVICE: Final = "/dev/kvm"
API_VERSION: Final = 12  # the only one since Linux 2.6.22
_KVMIO: Final = 0xAE
_MSRS: Final = 1024
_VCPUS_MAX: Final = 4  # of a kernel that does not say
_PAGES_OF_A_CLEAR: Final = 64  # first page and number are multiples of it, but for the end of the slot

# struct kvm_userspace_memory_region { u32 slot, flags; u64 guest_phys_addr, memory_size, userspace_addr }
_MEMORY_REGION: Final = struct.Struct("=2I3Q")
_MEM_LOG_DIRTY_PAGES: Final = 1
# struct kvm_dirty_log { u32 slot, padding; void *dirty_bitmap }
_DIRTY_LOG: Final = struct.Struct("=2IQ")
# struct kvm_clear_dirty_log { u32 slot, num_pages; u64 first_page; void *dirty_bitmap }
_CLEAR_DIRTY_LOG: Final = struct.Struct("=2I2Q")
# struct kvm_enable_cap { u32 cap, flags; u64 args[4]; u8 pad[64] }
_ENABLE_CAP: Final = struct.Struct("=2I4Q64x")
_MANUAL_PROTECT_ENABLE: Final = 1
# struct kvm_clock_data { u64 clock; u32 flags, pad; u64 realtime, host_tsc; u32 pad[4] }
_CLOCK: Final = struct.Struct("=Q2I2Q16x")
# Four pages of guest addresses for the kernel itself, where no region of a guest of ours is. Older processors
# of Intel need an address map and a task state segment there to be in real mode, as they are after a reset.
_IDENTITY_MAP_ADDRESS: Final = 0x7FFBC000
_TSS_ADDRESS: Final = _IDENTITY_MAP_ADDRESS + 0x1000
_ADDRESS: Final = struct.Struct("=Q")
# struct kvm_msr_list { u32 nmsrs; u32 indices[] }
_MSR_LIST: Final = struct.Struct("=I")

_GET_API_VERSION: Final = io(_KVMIO, 0x00)
_CREATE_VM: Final = io(_KVMIO, 0x01)
_GET_MSR_INDEX_LIST: Final = iowr(_KVMIO, 0x02, _MSR_LIST.size)
_CHECK_EXTENSION: Final = io(_KVMIO, 0x03)
_GET_VCPU_MMAP_SIZE: Final = io(_KVMIO, 0x04)
_GET_SUPPORTED_CPUID: Final = iowr(_KVMIO, 0x05, 8)
_SET_TSS_ADDR: Final = io(_KVMIO, 0x47)
_SET_IDENTITY_MAP_ADDR: Final = iow(_KVMIO, 0x48, _ADDRESS.size)
_CREATE_VCPU: Final = io(_KVMIO, 0x41)
_GET_DIRTY_LOG: Final = iow(_KVMIO, 0x42, _DIRTY_LOG.size)
_SET_USER_MEMORY_REGION: Final = iow(_KVMIO, 0x46, _MEMORY_REGION.size)
_SET_CLOCK: Final = iow(_KVMIO, 0x7B, _CLOCK.size)
_GET_CLOCK: Final = ior(_KVMIO, 0x7C, _CLOCK.size)
_ENABLE_CAPABILITY: Final = iow(_KVMIO, 0xA3, _ENABLE_CAP.size)
_CLEAR_LOG: Final = iowr(_KVMIO, 0xC0, _CLEAR_DIRTY_LOG.size)

REMEDY: Final = "load kvm_intel or kvm_amd, or switch on nested virtualisation; give this user /dev/kvm"


class Extension(IntEnum):
    """KVM_CAP_*, as far as Sterna has a use for them."""

    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    MAX_VCPUS = 66
    MP_STATE = 14
    SET_IDENTITY_MAP_ADDR = 37
    ADJUST_CLOCK = 39
    VCPU_EVENTS = 41
    DEBUGREGS = 50
    XSAVE = 55
    XCRS = 56
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    SYNC_REGS = 74
    CHECK_EXTENSION_VM = 105
    IMMEDIATE_EXIT = 136
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    SREGS2 = 200
    XSAVE2 = 208


# Without these a guest's state could not be had whole, or it could not be stopped.
_NEEDED: Final = (
    Extension.USER_MEMORY,
    Extension.EXT_CPUID,
    Extension.MP_STATE,
    Extension.ADJUST_CLOCK,
    Extension.VCPU_EVENTS,
    Extension.DEBUGREGS,
    Extension.XSAVE,
    Extension.XCRS,
    Extension.GET_TSC_KHZ,
    Extension.SYNC_REGS,
    Extension.IMMEDIATE_EXIT,
    Extension.SREGS2,
)


@dataclass(frozen=True, slots=True)
class MemorySlot:
    """Guest memory: part of this process's address space, seen by the guest at an address of its own."""

    number: int
    guest_address: int
    size_bytes: int
    host_address: int


class Kvm(Descriptor):
    """The device.

    Raises:
        CapabilityMissing: there is none, it is not ours, or it lacks what a migration needs.
    """

    def __init__(self, path: str = DEVICE) -> None:
        if platform.machine() != "x86_64":
            raise CapabilityMissing("kvm", f"a {platform.machine()} machine", "use an x86-64 host")
        try:
            super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise CapabilityMissing("kvm", f"{path}: {error.strerror}", REMEDY) from error
        try:
            self._check(path)
        except BaseException:
            self.close()
            raise

    def _check(self, path: str) -> None:
        try:
            version = fcntl.ioctl(self._fd, _GET_API_VERSION, 0)
        except OSError as error:
            raise CapabilityMissing("kvm", f"{path}: {error.strerror}", REMEDY) from error
        if version != API_VERSION:
            raise CapabilityMissing(
                "kvm", f"API version {version} instead of {API_VERSION}", "use a kernel from this century"
            )
        missing = [one.name for one in _NEEDED if not self.extension(one)]
        if missing:
            raise CapabilityMissing("kvm", f"no KVM_CAP_{', KVM_CAP_'.join(missing)}", "Linux 5.14 or newer")

    def extension(self, which: Extension) -> int:
        """What KVM_CHECK_EXTENSION says: 0 if the kernel lacks it."""
        return fcntl.ioctl(self._fd, _CHECK_EXTENSION, int(which))

    @property
    def vcpus_max(self) -> int:
        """How many processors a machine can have."""
        return self.extension(Extension.MAX_VCPUS) or _VCPUS_MAX

    def supported_cpuid(self) -> tuple[CpuidEntry, ...]:
        """Everything that a vCPU here can be told to be (KVM_GET_SUPPORTED_CPUID)."""
        argument = pack_cpuid((), CPUID_ENTRIES)
        fcntl.ioctl(self._fd, _GET_SUPPORTED_CPUID, argument)
        return unpack_cpuid(argument)

    def msr_indices(self) -> tuple[int, ...]:
        """The model-specific registers of which a guest's state consists (KVM_GET_MSR_INDEX_LIST)."""
        argument = bytearray(_MSR_LIST.size + 4 * _MSRS)
        _MSR_LIST.pack_into(argument, 0, _MSRS)
        fcntl.ioctl(self._fd, _GET_MSR_INDEX_LIST, argument)
        (count,) = _MSR_LIST.unpack_from(argument)
        return struct.unpack_from(f"={count}I", argument, _MSR_LIST.size)

    def create_machine(self) -> Machine:
        """A machine without memory and processors.

        Raises:
            CapabilityMissing: the kernel makes none; another hypervisor may have the processor's extensions.
        """
        run_bytes = fcntl.ioctl(self._fd, _GET_VCPU_MMAP_SIZE, 0)
        try:
            fd = fcntl.ioctl(self._fd, _CREATE_VM, 0)
        except OSError as error:
            raise CapabilityMissing("kvm", f"KVM_CREATE_VM: {error.strerror}", REMEDY) from error
        # What a machine can do may be less, or more, than what the device says of all.
        ask = fd if self.extension(Extension.CHECK_EXTENSION_VM) else self._fd
        can = functools.partial(fcntl.ioctl, ask, _CHECK_EXTENSION)
        machine = Machine(
            fd,
            run_bytes=run_bytes,
            xsave_bytes=can(Extension.XSAVE2),
            manual=bool(can(Extension.MANUAL_DIRTY_LOG_PROTECT2) & _MANUAL_PROTECT_ENABLE),
            scales_tsc=bool(can(Extension.TSC_CONTROL)),
        )
        try:
            if can(Extension.SET_IDENTITY_MAP_ADDR):
                fcntl.ioctl(fd, _SET_IDENTITY_MAP_ADDR, _ADDRESS.pack(_IDENTITY_MAP_ADDRESS))
            if can(Extension.SET_TSS_ADDR):
                fcntl.ioctl(fd, _SET_TSS_ADDR, _TSS_ADDRESS)
        except BaseException:
            machine.close()
            raise
        return machine


class Machine(Descriptor):
    """A machine. What was made of it goes with the last of its descriptors.

    Attributes:
        manual_protection: `clear_dirty_log` is what forgets dirty pages, not `dirty_log`.
        scales_tsc: `Vcpu.set_tsc_khz` changes how fast the guest's counter counts. Where it does not, a
            kernel takes a higher frequency all the same, and has the counter catch up at exits, if at all.
    """

    def __init__(self, fd: int, *, run_bytes: int, xsave_bytes: int, manual: bool, scales_tsc: bool) -> None:
        super().__init__(fd)
        self._run_bytes = run_bytes
        self._xsave_bytes = xsave_bytes
        self.manual_protection = manual
        self.scales_tsc = scales_tsc
        if manual:
            argument = _ENABLE_CAP.pack(
                Extension.MANUAL_DIRTY_LOG_PROTECT2, 0, _MANUAL_PROTECT_ENABLE, 0, 0, 0
            )
            try:
                fcntl.ioctl(fd, _ENABLE_CAPABILITY, argument)
            except BaseException:
                self.close()
                raise

    def set_memory(self, slot: MemorySlot, *, log: bool = False) -> None:
        """Give it this memory, or follow writes to it from now on, or follow them no more.

        Raises:
            OSError: the kernel does not like it: not aligned, or over other memory.
        """
        flags = _MEM_LOG_DIRTY_PAGES if log else 0
        argument = _MEMORY_REGION.pack(
            slot.number, flags, slot.guest_address, slot.size_bytes, slot.host_address
        )
        fcntl.ioctl(self._fd, _SET_USER_MEMORY_REGION, argument)

    def remove_memory(self, slot: MemorySlot) -> None:
        """Take this memory away again; what the kernel has mapped of it goes too."""
        argument = _MEMORY_REGION.pack(slot.number, 0, slot.guest_address, 0, slot.host_address)
        fcntl.ioctl(self._fd, _SET_USER_MEMORY_REGION, argument)

    def dirty_log(self, slot: MemorySlot, page_bytes: int) -> npt.NDArray[np.uint64]:
        """A bit for each page that was written since it was last forgotten; the slot has `log`."""
        words = np.zeros(-(-slot.size_bytes // page_bytes // 64), dtype=np.uint64)
        fcntl.ioctl(self._fd, _GET_DIRTY_LOG, _DIRTY_LOG.pack(slot.number, 0, words.ctypes.data))
        return words

    def clear_dirty_log(self, slot: MemorySlot, page_bytes: int, words: npt.NDArray[np.uint64]) -> None:
        """Forget these pages and protect them again; of others nothing changes."""
        pages = slot.size_bytes // page_bytes
        # Protecting again takes time for every word that is passed, so those without a page are left out.
        for first, last in _runs_of_words(words):
            start = first * _PAGES_OF_A_CLEAR
            count = min(last * _PAGES_OF_A_CLEAR, pages) - start
            address = words.ctypes.data + first * words.itemsize
            argument = bytearray(_CLEAR_DIRTY_LOG.pack(slot.number, count, start, address))
            fcntl.ioctl(self._fd, _CLEAR_LOG, argument)

    def create_vcpu(self, number: int) -> Vcpu:
        """Another processor, in its state after a reset.

        Raises:
            OSError: one too many.
        """
        return Vcpu(fcntl.ioctl(self._fd, _CREATE_VCPU, number), self._run_bytes, self._xsave_bytes)

    def clock_ns(self) -> int:
        """The machine's clock (KVM_GET_CLOCK), nanoseconds since about its creation."""
        argument = bytearray(_CLOCK.size)
        fcntl.ioctl(self._fd, _GET_CLOCK, argument)
        return int(_CLOCK.unpack(argument)[0])

    def set_clock_ns(self, clock_ns: int) -> None:
        """Have the clock go on from here."""
        fcntl.ioctl(self._fd, _SET_CLOCK, _CLOCK.pack(clock_ns, 0, 0, 0, 0))


def _runs_of_words(words: npt.NDArray[np.uint64]) -> list[list[int]]:
    """First and end of each run of words that are not zero."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], words != 0, [False])).astype(np.int8)))
    found: list[list[int]] = edges.reshape(-1, 2).tolist()
    return found
