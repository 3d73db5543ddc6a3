"""The state of a guest's processors: out of the kernel, into it, and whether it is the same there.

`load` sets every part and reads it back. Whatever then has another value than was sent is refused, so that a
guest never runs with a register that a kernel has quietly left as it was.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from typing import Final

from sterna.errors import GuestError
from sterna.guest.kvm.features import TSC
from sterna.guest.kvm.sections import DEBUG_WORDS, MachineState, VcpuState, segments
from sterna.linux.kvm import Machine
from sterna.linux.kvm_long_mode import CONTROL, CONTROL_AT
from sterna.linux.kvm_vcpu import DEBUG_BYTES, REGISTERS, CpuidEntry, Register, Vcpu
from sterna.registry import ErrorCode

_DEBUG_SIZE: Final = 8 * DEBUG_WORDS
_TSC_TOLERANCE: Final = 250e-6
_FAR: Final = 1 << 62
_CLOCK_TOLERANCE_NS: Final = 1_000_000  # two clocks of one kernel
_SEGMENT_NAMES: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_CONTROL_NAMES: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base", "flags")


def save(
    machine: Machine, vcpus: Sequence[Vcpu], cpuid: Sequence[Sequence[CpuidEntry]], msrs: Sequence[int]
) -> MachineState:
    """The state of vCPUs that do not run.

    Args:
        machine: whose clock it is.
        vcpus: all of them.
        cpuid: what each was told to be.
        msrs: those that this host can save.
    """
    clock, wall = machine.clock_ns(), time.time_ns()
    return MachineState(clock, wall, tuple(_save_vcpu(*one, msrs) for one in zip(vcpus, cpuid, strict=True)))


def _save_vcpu(vcpu: Vcpu, cpuid: Sequence[CpuidEntry], indices: Sequence[int]) -> VcpuState:
    values = vcpu.msrs([TSC, *indices])
    counter = values.pop(TSC, 0)
    return VcpuState(
        cpuid=tuple(cpuid),
        registers=vcpu.registers(),
        system=vcpu.system_registers(),
        xsave=vcpu.xsave(),
        xcr=tuple(sorted(vcpu.extended_control())),
        debug=vcpu.debug_registers()[:_DEBUG_SIZE],
        msrs=tuple(sorted(values.items())),
        events=vcpu.events(),
        mp_state=vcpu.mp_state(),
        tsc=counter,
        tsc_khz=vcpu.tsc_khz(),
    )


def load(state: MachineState, machine: Machine, vcpus: Sequence[Vcpu]) -> int:
    """Set all of it in vCPUs that have not run, and compare; how many registers were compared.

    Raises:
        GuestError: with STATE_REJECTED, this host does not take a part of it. Then it is set in part.
    """
    checked = 0
    for number, (wanted, vcpu) in enumerate(zip(state.vcpus, vcpus, strict=True)):
        try:
            _load_vcpu(wanted, vcpu, scales_tsc=machine.scales_tsc, first=not number)
            found = _save_vcpu(vcpu, vcpu.cpuid(), [index for index, _ in wanted.msrs])
        except OSError as error:
            raise _rejected(number, f"{error.filename}: {error.strerror}") from error
        if _is_other_frequency(found.tsc_khz, wanted.tsc_khz):
            raise _rejected(number, f"a counter of {wanted.tsc_khz} kHz, and it has {found.tsc_khz}")
        # Kernels change bits of the answers: some by what the guest does, some by what they take for right.
        if lacking := _leaves(wanted) - _leaves(found):
            raise _rejected(number, f"CPUID has no answer for leaf {min(lacking):#x}")
        there = dict(compared(found))
        for name, value in compared(wanted):
            checked += 1
            if there.get(name) != value:
                raise _rejected(number, f"{name} does not take {value:#x}")
    _load_clock(state.clock_ns, machine)
    return checked


def _load_clock(wanted_ns: int, machine: Machine) -> None:
    """Have the clock go on from there, and look whether it does [XCP-10]."""
    try:
        began_ns = time.monotonic_ns()
        machine.set_clock_ns(wanted_ns)
        found_ns = machine.clock_ns()
    except OSError as error:
        raise GuestError(f"KVM_SET_CLOCK: {error.strerror}", ErrorCode.STATE_REJECTED) from error
    most_ns = wanted_ns + time.monotonic_ns() - began_ns + _CLOCK_TOLERANCE_NS
    if not wanted_ns <= found_ns <= most_ns:
        raise GuestError(
            f"the clock is at {found_ns} ns after it was set to {wanted_ns} ns", ErrorCode.STATE_REJECTED
        )


def _load_vcpu(wanted: VcpuState, vcpu: Vcpu, *, scales_tsc: bool, first: bool) -> None:
    """Each part after those that it depends on."""
    vcpu.set_cpuid(wanted.cpuid)
    vcpu.set_system_registers(wanted.system)
    vcpu.set_registers(wanted.registers)
    vcpu.set_extended_control(wanted.xcr)
    vcpu.set_xsave(_fit(wanted.xsave, vcpu.xsave_bytes))
    # One that has its value is left alone: some take only what they have, and some not even that.
    here = vcpu.msrs([index for index, _ in wanted.msrs])
    vcpu.set_msrs([(index, value) for index, value in wanted.msrs if here.get(index) != value])
    if scales_tsc and _is_other_frequency(vcpu.tsc_khz(), wanted.tsc_khz):
        vcpu.set_tsc_khz(wanted.tsc_khz)
    # A kernel takes a counter within a second of the machine's others for an attempt to have all count alike,
    # and does just that. Right, but for the first one: those others are its own of before.
    vcpu.set_msrs([(TSC, wanted.tsc ^ _FAR), (TSC, wanted.tsc)] if first else [(TSC, wanted.tsc)])
    vcpu.set_events(wanted.events)
    vcpu.set_debug_registers(wanted.debug.ljust(DEBUG_BYTES, b"\0"))
    vcpu.set_mp_state(wanted.mp_state)


def _leaves(state: VcpuState) -> set[int]:
    return {entry.leaf for entry in state.cpuid}


def _is_other_frequency(khz: int, wanted_khz: int) -> bool:
    return abs(khz - wanted_khz) > wanted_khz * _TSC_TOLERANCE  # [XCP-10]


def _fit(area: bytes, size: int) -> bytes:
    """An XSAVE area of this host's size [XCP-7]."""
    if any(area[size:]):
        raise OSError(0, "the area is larger than it is here", "KVM_SET_XSAVE")
    return area[:size].ljust(size, b"\0")


def _rejected(vcpu: int, what: str) -> GuestError:
    return GuestError(f"vCPU {vcpu}: {what}", ErrorCode.STATE_REJECTED)


def compared(state: VcpuState) -> Iterator[tuple[str, int]]:
    """Every register by a name, with its value; but counters, which go on."""
    yield from zip((one.name.lower() for one in Register), REGISTERS.unpack(state.registers), strict=True)
    for name, segment in zip(_SEGMENT_NAMES, segments(state.system), strict=True):
        for number, value in enumerate(segment):
            yield f"{name}[{number}]", value
    for number, value in enumerate(struct.unpack("<4Q", state.system[CONTROL_AT - 32 : CONTROL_AT])):
        yield f"table[{number}]", value
    yield from zip(_CONTROL_NAMES, CONTROL.unpack_from(state.system, CONTROL_AT), strict=True)
    for number, (value,) in enumerate(struct.iter_unpack("<Q", state.system[CONTROL_AT + CONTROL.size :])):
        yield f"pdptr[{number}]", value
    area = state.xsave.rstrip(b"\0")
    for number, (value,) in enumerate(struct.iter_unpack("<Q", area.ljust(-(-len(area) // 8) * 8, b"\0"))):
        yield f"xsave[{number}]", value
    yield from ((f"xcr{number}", value) for number, value in state.xcr)
    yield from ((f"debug[{i}]", value) for i, value in enumerate(struct.unpack("<6Q", state.debug)))
    yield from ((f"msr {index:#x}", value) for index, value in state.msrs)
    yield from ((f"events[{i}]", value) for i, value in enumerate(struct.unpack("<8Q", state.events)))
    yield "mp_state", state.mp_state
