"""A vCPU of /dev/kvm: running it, and every part of its state. x86-64.

Parts of the state that have a fixed layout are passed on as the kernel's structure has them; that layout is
part of the kernel's promise to programs.

`run` lets the guest run in the calling thread, without the interpreter lock. `kick` ends that from another
thread: the flag `immediate_exit` has the next entry return at once, and a signal ends the present one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from sterna.linux.descriptor import Descriptor
from sterna.linux.ioctl import io, ior, iow, iowr

_KVMIO: Final = 0xAE
# A signal that does nothing but end system calls: whoever runs vCPUs installs a handler for it.
KICK: Final = signal.SIGUSR1

# struct kvm_cpuid2 { u32 nent, padding; struct kvm_cpuid_entry2 entries[] }
_CPUID_HEAD: Final = struct.Struct("=2I")
CPUID_ENTRIES: Final = 256
# struct kvm_cpuid_entry2 { u32 function, index, flags, eax, ebx, ecx, edx, padding[3] }
_CPUID_ENTRY: Final = struct.Struct("=7I12x")
# struct kvm_msrs { u32 nmsrs, pad; struct kvm_msr_entry { u32 index, reserved; u64 data } entries[] }
_MSRS_HEAD: Final = struct.Struct("=2I")
_MSR: Final = struct.Struct("=2IQ")
# struct kvm_regs { u64 rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, ..., r15, rip, rflags }
REGISTERS: Final = struct.Struct("=18Q")
# struct kvm_sregs2: eight struct kvm_segment of 24 bytes, two struct kvm_dtable of 16, 8 words, pdptrs[4]
SYSTEM_BYTES: Final = 320
_SYSTEM_CR8: Final = slice(256, 264)
# struct kvm_xcrs { u32 nr_xcrs, flags; struct kvm_xcr { u32 xcr, reserved; u64 value } xcrs[16]; ... }
_XCRS_HEAD: Final = struct.Struct("=2I")
_XCR: Final = struct.Struct("=2IQ")
_XCRS_BYTES: Final = 392
XCRS: Final = 16
# struct kvm_debugregs { u64 db[4], dr6, dr7, flags, reserved[9] }
DEBUG_BYTES: Final = 128
# struct kvm_vcpu_events
EVENTS_BYTES: Final = 64
# struct kvm_mp_state { u32 mp_state }
_MP_STATE: Final = struct.Struct("=I")
_TSC_KHZ_MAX: Final = (1 << 31) - 1  # what the call takes as a number
_XSAVE_BYTES: Final = 4096  # struct kvm_xsave of kernels without KVM_CAP_XSAVE2

# struct kvm_run
_IMMEDIATE_EXIT: Final = 1
_CR8_AT: Final = 16
_EXIT_REASON: Final = struct.Struct("=8xI")
_EXIT_IO: Final = struct.Struct("=32x2BHIQ")  # direction, size, port, count, data_offset
_EXIT_SUBREASON: Final = struct.Struct("=32xQ")
_VALID_REGISTERS: Final = struct.Struct("=Q")
_VALID_REGISTERS_AT: Final = 288
_SYNC_REGISTERS_AT: Final = 304
_SYNC_X86_REGS: Final = 1

_RUN: Final = io(_KVMIO, 0x80)
_GET_REGS: Final = ior(_KVMIO, 0x81, REGISTERS.size)
_SET_REGS: Final = iow(_KVMIO, 0x82, REGISTERS.size)
_GET_MSRS: Final = iowr(_KVMIO, 0x88, _MSRS_HEAD.size)
_SET_MSRS: Final = iow(_KVMIO, 0x89, _MSRS_HEAD.size)
_GET_CPUID2: Final = iowr(_KVMIO, 0x91, _CPUID_HEAD.size)
_SET_CPUID2: Final = iow(_KVMIO, 0x90, _CPUID_HEAD.size)
_GET_MP_STATE: Final = ior(_KVMIO, 0x98, _MP_STATE.size)
_SET_MP_STATE: Final = iow(_KVMIO, 0x99, _MP_STATE.size)
_GET_EVENTS: Final = ior(_KVMIO, 0x9F, EVENTS_BYTES)
_SET_EVENTS: Final = iow(_KVMIO, 0xA0, EVENTS_BYTES)
_GET_DEBUG: Final = ior(_KVMIO, 0xA1, DEBUG_BYTES)
_SET_DEBUG: Final = iow(_KVMIO, 0xA2, DEBUG_BYTES)
_SET_TSC_KHZ: Final = io(_KVMIO, 0xA2)
_GET_TSC_KHZ: Final = io(_KVMIO, 0xA3)
_GET_XSAVE: Final = ior(_KVMIO, 0xA4, _XSAVE_BYTES)
_SET_XSAVE: Final = iow(_KVMIO, 0xA5, _XSAVE_BYTES)
_GET_XCRS: Final = ior(_KVMIO, 0xA6, _XCRS_BYTES)
_SET_XCRS: Final = iow(_KVMIO, 0xA7, _XCRS_BYTES)
_GET_SREGS2: Final = ior(_KVMIO, 0xCC, SYSTEM_BYTES)
_SET_SREGS2: Final = iow(_KVMIO, 0xCD, SYSTEM_BYTES)
_GET_XSAVE2: Final = ior(_KVMIO, 0xCF, _XSAVE_BYTES)

# KVM_EXIT_*: why KVM_RUN has returned
_EXIT_BY_IO: Final = 2
_EXIT_BY_SIGNAL: Final = 10
_OTHER_EXITS: Final = {
    0: "unknown",
    1: "exception",
    3: "hypercall",
    4: "debug",
    5: "halt",
    6: "memory without a slot",
    8: "shutdown",
    9: "entry failed",
    17: "internal error of the kernel",
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)


class Register(IntEnum):
    """Where each general-purpose register is in `REGISTERS`."""

    RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8, R9, R10, R11, R12, R13, R14, R15, RIP, RFLAGS = range(18)


class CpuidEntry(NamedTuple):
    """One answer of the CPUID instruction. Bit 0 of `flags` says that the subleaf matters."""

    leaf: int
    subleaf: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True, slots=True)
class PortAccess:
    """The guest has executed IN or OUT. For an IN, `answer` is due before it runs on."""

    port: int
    is_out: bool
    size: int
    value: int


class VcpuError(Exception):
    """The guest cannot run on; the message says what the kernel said."""


def pack_cpuid(entries: Sequence[CpuidEntry], room: int = 0) -> bytearray:
    """The struct kvm_cpuid2 with these entries, or room for as many."""
    count = max(room, len(entries))
    argument = bytearray(_CPUID_HEAD.size + count * _CPUID_ENTRY.size)
    _CPUID_HEAD.pack_into(argument, 0, count, 0)
    for number, entry in enumerate(entries):
        _CPUID_ENTRY.pack_into(argument, _CPUID_HEAD.size + number * _CPUID_ENTRY.size, *entry)
    return argument


def unpack_cpuid(argument: bytearray) -> tuple[CpuidEntry, ...]:
    """The entries of a struct kvm_cpuid2."""
    count, _ = _CPUID_HEAD.unpack_from(argument)
    body = memoryview(argument)[_CPUID_HEAD.size :][: count * _CPUID_ENTRY.size]
    return tuple(CpuidEntry(*fields) for fields in _CPUID_ENTRY.iter_unpack(body))


class Vcpu(Descriptor):
    """A processor. Only one thread may run it; state is for whoever knows that it does not run.

    Methods that read and write a part of the state raise `OSError` with the name of the ioctl.
    """

    def __init__(self, fd: int, run_bytes: int, xsave_bytes: int) -> None:
        super().__init__(fd)
        self._xsave2 = xsave_bytes > 0
        self._xsave_bytes = xsave_bytes or _XSAVE_BYTES
        try:
            self._run = mmap.mmap(fd, run_bytes)
        except BaseException:
            self.close()
            raise
        # General-purpose registers come with every exit, instead of being asked for.
        _VALID_REGISTERS.pack_into(self._run, _VALID_REGISTERS_AT, _SYNC_X86_REGS)

    def close(self) -> None:
        """The processor goes with its machine."""
        if hasattr(self, "_run"):
            self._run.close()
        super().close()

    def run(self) -> PortAccess | None:
        """Run the guest until it accesses a port; None if it was kicked.

        Raises:
            VcpuError: it can run no further.
        """
        if _libc.ioctl(self._fd, _RUN, 0) < 0:
            code = ctypes.get_errno()
            if code in {errno.EINTR, errno.EAGAIN}:
                return None
            raise VcpuError(f"KVM_RUN: {os.strerror(code)}")
        (reason,) = _EXIT_REASON.unpack_from(self._run)
        if reason == _EXIT_BY_IO:
            return self._port_access()
        if reason == _EXIT_BY_SIGNAL:
            return None
        (detail,) = _EXIT_SUBREASON.unpack_from(self._run)
        raise VcpuError(f"exit {reason}: {_OTHER_EXITS.get(reason, 'unexpected')}, {detail:#x}")

    def _port_access(self) -> PortAccess:
        is_out, size, port, count, offset = _EXIT_IO.unpack_from(self._run)
        if count != 1:
            raise VcpuError("a string instruction at a port")
        value = int.from_bytes(self._run[offset : offset + size], "little") if is_out else 0
        return PortAccess(port, bool(is_out), size, value)

    def answer(self, value: int) -> None:
        """What the IN reads that `run` has returned with; it is done at the next `run`."""
        _, size, _, _, offset = _EXIT_IO.unpack_from(self._run)
        self._run[offset : offset + size] = value.to_bytes(size, "little")

    def exit_registers(self) -> tuple[int, ...]:
        """The general-purpose registers as they were when `run` returned; see `Register`."""
        return REGISTERS.unpack_from(self._run, _SYNC_REGISTERS_AT)

    def finish_access(self) -> None:
        """Have an IN or OUT that `run` has returned with done, and nothing more.

        Only then is the state whole: the kernel keeps the rest of such an instruction to itself.

        Raises:
            VcpuError: it cannot.
        """
        before = self._run[_IMMEDIATE_EXIT]
        self._run[_IMMEDIATE_EXIT] = 1
        try:
            if self.run() is not None:
                raise VcpuError("runs although it was not to")
        finally:
            self._run[_IMMEDIATE_EXIT] = before

    def kick(self, thread: threading.Thread) -> None:
        """Have `run` return soon, in this thread, whether it has been called by now or not."""
        self._run[_IMMEDIATE_EXIT] = 1
        if thread.ident is not None and thread.is_alive():
            signal.pthread_kill(thread.ident, KICK)

    def let_run(self) -> None:
        """Take back what `kick` has told."""
        self._run[_IMMEDIATE_EXIT] = 0

    def registers(self) -> bytes:
        """As struct kvm_regs, as `REGISTERS` has it."""
        return self._get(_GET_REGS, "KVM_GET_REGS", REGISTERS.size)

    def set_registers(self, data: bytes) -> None:
        """Likewise."""
        self._set(_SET_REGS, "KVM_SET_REGS", data)

    def system_registers(self) -> bytes:
        """As struct kvm_sregs2: segments, descriptor tables, control registers."""
        return self._get(_GET_SREGS2, "KVM_GET_SREGS2", SYSTEM_BYTES)

    def set_system_registers(self, data: bytes) -> None:
        """Likewise."""
        self._set(_SET_SREGS2, "KVM_SET_SREGS2", data)
        # Where the kernel keeps no APIC, each KVM_RUN takes this register from here.
        self._run[_CR8_AT : _CR8_AT + 8] = data[_SYSTEM_CR8]

    def xsave(self) -> bytes:
        """As struct kvm_xsave: the XSAVE area in its standard form."""
        request, name = (_GET_XSAVE2, "KVM_GET_XSAVE2") if self._xsave2 else (_GET_XSAVE, "KVM_GET_XSAVE")
        return self._get(request, name, self._xsave_bytes)

    @property
    def xsave_bytes(self) -> int:
        """The size of that area here."""
        return self._xsave_bytes

    def set_xsave(self, data: bytes) -> None:
        """Likewise; exactly `xsave_bytes`."""
        if len(data) != self._xsave_bytes:
            raise OSError(errno.EINVAL, "another size than the area has here", "KVM_SET_XSAVE")
        self._set(_SET_XSAVE, "KVM_SET_XSAVE", data)

    def extended_control(self) -> tuple[tuple[int, int], ...]:
        """XCRs, as pairs of a number and a value."""
        data = self._get(_GET_XCRS, "KVM_GET_XCRS", _XCRS_BYTES)
        count, _ = _XCRS_HEAD.unpack_from(data)
        entries = (_XCR.unpack_from(data, _XCRS_HEAD.size + i * _XCR.size) for i in range(min(count, XCRS)))
        return tuple((number, value) for number, _, value in entries)

    def set_extended_control(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Likewise; at most `XCRS` of them."""
        data = bytearray(_XCRS_BYTES)
        _XCRS_HEAD.pack_into(data, 0, len(pairs), 0)
        for i, (number, value) in enumerate(pairs):
            _XCR.pack_into(data, _XCRS_HEAD.size + i * _XCR.size, number, 0, value)
        self._set(_SET_XCRS, "KVM_SET_XCRS", data)

    def debug_registers(self) -> bytes:
        """As struct kvm_debugregs."""
        return self._get(_GET_DEBUG, "KVM_GET_DEBUGREGS", DEBUG_BYTES)

    def set_debug_registers(self, data: bytes) -> None:
        """Likewise."""
        self._set(_SET_DEBUG, "KVM_SET_DEBUGREGS", data)

    def events(self) -> bytes:
        """As struct kvm_vcpu_events: exceptions and interrupts that are under way."""
        return self._get(_GET_EVENTS, "KVM_GET_VCPU_EVENTS", EVENTS_BYTES)

    def set_events(self, data: bytes) -> None:
        """Likewise."""
        self._set(_SET_EVENTS, "KVM_SET_VCPU_EVENTS", data)

    def mp_state(self) -> int:
        """KVM_MP_STATE_*: whether it runs at all; 0 is that it does."""
        return int(_MP_STATE.unpack(self._get(_GET_MP_STATE, "KVM_GET_MP_STATE", _MP_STATE.size))[0])

    def set_mp_state(self, state: int) -> None:
        """Likewise."""
        self._set(_SET_MP_STATE, "KVM_SET_MP_STATE", _MP_STATE.pack(state))

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """What CPUID answers; before the first `run`."""
        self._set(_SET_CPUID2, "KVM_SET_CPUID2", pack_cpuid(entries))

    def cpuid(self) -> tuple[CpuidEntry, ...]:
        """Likewise; some bits follow what the guest does."""
        argument = pack_cpuid((), CPUID_ENTRIES)
        self._call(_GET_CPUID2, "KVM_GET_CPUID2", argument)
        return unpack_cpuid(argument)

    def tsc_khz(self) -> int:
        """How fast the time stamp counter counts for the guest; an error where the host's is not stable."""
        return self._call(_GET_TSC_KHZ, "KVM_GET_TSC_KHZ", 0)

    def set_tsc_khz(self, khz: int) -> None:
        """Likewise; `Machine.scales_tsc` says whether it is more than a number."""
        if khz > _TSC_KHZ_MAX:
            raise OSError(errno.EINVAL, "no counter is so fast", "KVM_SET_TSC_KHZ")
        self._call(_SET_TSC_KHZ, "KVM_SET_TSC_KHZ", khz)

    def msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The values of those of these model-specific registers that can be read."""
        left, found = list(indices), dict[int, int]()
        while left:
            argument = _pack_msrs([(index, 0) for index in left])
            done = self._call(_GET_MSRS, "KVM_GET_MSRS", argument)
            values = _MSR.iter_unpack(memoryview(argument)[_MSRS_HEAD.size :])
            found |= {index: value for index, _, value in list(values)[:done]}
            left = left[done + 1 :]  # it stops at the first that it cannot read
        return found

    def set_msrs(self, values: Sequence[tuple[int, int]]) -> None:
        """Set them, in this order.

        Raises:
            OSError: one of them is not to be set to this value; the message names it.
        """
        done = self._call(_SET_MSRS, "KVM_SET_MSRS", _pack_msrs(values))
        if done != len(values):
            index, value = values[done]
            raise OSError(errno.EINVAL, f"MSR {index:#x} does not take {value:#x}", "KVM_SET_MSRS")

    def _get(self, request: int, name: str, size: int) -> bytes:
        argument = bytearray(size)
        self._call(request, name, argument)
        return bytes(argument)

    def _set(self, request: int, name: str, data: bytes | bytearray) -> None:
        self._call(request, name, bytearray(data))

    def _call(self, request: int, name: str, argument: bytearray | int) -> int:
        try:
            return fcntl.ioctl(self._fd, request, argument)
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from error


def _pack_msrs(values: Sequence[tuple[int, int]]) -> bytearray:
    entries = b"".join(_MSR.pack(index, 0, value) for index, value in values)
    return bytearray(_MSRS_HEAD.pack(len(values), 0) + entries)
