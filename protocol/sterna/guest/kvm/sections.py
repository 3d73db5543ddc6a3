"""State sections of an x86-64 guest: spec/x86.md, as records and back.

What arrives is checked as far as that needs no processor. Whether this host can set it is for `state`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, TypeVar

from sterna.errors import GuestError
from sterna.guest.api import NO_VCPU, StateSection
from sterna.guest.kvm.features import TSC
from sterna.linux.kvm_long_mode import CONTROL_AT, SEGMENT
from sterna.linux.kvm_vcpu import EVENTS_BYTES, REGISTERS, SYSTEM_BYTES, XCRS, CpuidEntry, Register
from sterna.registry import Architecture, ErrorCode, StateKind

VERSION: Final = 1
CPUID_ENTRIES: Final = 256
MSRS: Final = 1024
DEBUG_WORDS: Final = 6
XSAVE_MIN: Final = 576  # the area of x87 and SSE, and its header
XSAVE_MAX: Final = 64 << 10  # far beyond any processor's

_COUNT: Final = struct.Struct("<II")
_CPUID: Final = struct.Struct("<8I")
_PAIR: Final = struct.Struct("<IIQ")
_DEBUG: Final = struct.Struct("<6Q")
_MP_STATE: Final = struct.Struct("<II")
_TSC: Final = struct.Struct("<QII")
_CLOCK: Final = struct.Struct("<Qq")
_TABLE: Final = struct.Struct("<QH6s")
_TABLES_AT: Final = 192
_SEGMENTS: Final = 8
_EVENTS_RES: Final = (15, *range(29, 55))
_FLAG: Final = range(2)
_SEGMENT_RANGES: Final = (range(16), _FLAG, range(4), *[_FLAG] * 6, range(1))
_MP_STATES: Final = range(5)
_CANONICAL_BITS: Final = 47
_TIME_END: Final = 1 << 63  # nanoseconds or ticks: about a hundred years, and as many until it runs over
_KINDS: Final = frozenset(
    kind for kind in StateKind if kind is StateKind.CLOCK or kind.name.startswith("X86_")
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class VcpuState:
    """One processor. What is `bytes` has the layout of the specification."""

    cpuid: tuple[CpuidEntry, ...]
    registers: bytes
    system: bytes
    xsave: bytes
    xcr: tuple[tuple[int, int], ...]
    debug: bytes
    msrs: tuple[tuple[int, int], ...]
    events: bytes
    mp_state: int
    tsc: int
    tsc_khz: int


@dataclass(frozen=True, slots=True)
class MachineState:
    """All of it. `wall_ns` is since 1970."""

    clock_ns: int
    wall_ns: int
    vcpus: tuple[VcpuState, ...]


def to_sections(state: MachineState) -> tuple[StateSection, ...]:
    """As they are sent."""
    clock = _CLOCK.pack(state.clock_ns, state.wall_ns)
    found = [StateSection(StateKind.CLOCK, VERSION, clock, Architecture.X86_64)]
    for number, vcpu in enumerate(state.vcpus):
        parts = {
            StateKind.X86_CPUID: _listed(_CPUID.pack(*entry, 0) for entry in vcpu.cpuid),
            StateKind.X86_REGISTERS: vcpu.registers,
            StateKind.X86_SYSTEM: vcpu.system,
            StateKind.X86_XSAVE: vcpu.xsave,
            StateKind.X86_XCR: _listed(_PAIR.pack(index, 0, value) for index, value in vcpu.xcr),
            StateKind.X86_DEBUG: vcpu.debug,
            StateKind.X86_MSRS: _listed(_PAIR.pack(index, 0, value) for index, value in vcpu.msrs),
            StateKind.X86_EVENTS: vcpu.events,
            StateKind.X86_MP_STATE: _MP_STATE.pack(vcpu.mp_state, 0),
            StateKind.X86_TSC: _TSC.pack(vcpu.tsc, vcpu.tsc_khz, 0),
        }
        found += [
            StateSection(kind, VERSION, data, Architecture.X86_64, number) for kind, data in parts.items()
        ]
    return tuple(found)


def from_sections(sections: Sequence[StateSection], vcpus: int) -> MachineState:
    """Check everything that can be checked here.

    Raises:
        GuestError: with UNKNOWN_STATE or STATE_REJECTED; the message names the section.
    """
    parts: dict[tuple[int, int], bytes] = {}
    for section in sections:
        right = (section.architecture, section.version) == (Architecture.X86_64, VERSION)
        if not right or section.kind not in _KINDS:
            name = (section.architecture, section.kind, section.version)
            raise GuestError(f"not of the state of this guest: {name}", ErrorCode.UNKNOWN_STATE)
        key = (section.kind, section.vcpu)
        if key in parts or section.instance:
            _reject(section.kind, section.vcpu, "is there twice, or has an instance")
        parts[key] = section.data
    clock = parts.pop((StateKind.CLOCK, NO_VCPU), b"")
    if len(clock) != _CLOCK.size:
        _reject(StateKind.CLOCK, NO_VCPU, f"has {len(clock)} bytes, and not {_CLOCK.size}")
    found = tuple(_read_vcpu(parts, number) for number in range(vcpus))
    for kind, number in parts:
        _reject(kind, number, f"is of no vCPU of this guest, which has {vcpus}")
    clock_ns, wall_ns = _CLOCK.unpack(clock)
    if clock_ns >= _TIME_END:
        _reject(StateKind.CLOCK, NO_VCPU, f"is at {clock_ns} ns, which no guest comes to")
    return MachineState(clock_ns, wall_ns, found)


def _read_vcpu(parts: dict[tuple[int, int], bytes], number: int) -> VcpuState:
    """The state of a vCPU, whose sections are taken out."""

    def read(kind: StateKind, reader: Callable[[bytes], _T]) -> _T:
        if (kind, number) not in parts:
            _reject(kind, number, "is missing")
        try:
            return reader(parts.pop((kind, number)))
        except ValueError as error:
            _reject(kind, number, str(error))

    counter, khz = read(StateKind.X86_TSC, _tsc)
    return VcpuState(
        cpuid=read(StateKind.X86_CPUID, _cpuid),
        registers=read(StateKind.X86_REGISTERS, _registers),
        system=read(StateKind.X86_SYSTEM, _system),
        xsave=read(StateKind.X86_XSAVE, _xsave),
        xcr=read(StateKind.X86_XCR, lambda data: _pairs(data, XCRS)),
        debug=read(StateKind.X86_DEBUG, lambda data: _exactly(data, _DEBUG.size)),
        msrs=read(StateKind.X86_MSRS, _msrs),
        events=read(StateKind.X86_EVENTS, _events),
        mp_state=read(StateKind.X86_MP_STATE, _mp_state),
        tsc=counter,
        tsc_khz=khz,
    )


def canonical(address: int) -> bool:
    """Whether bits 63 to 47 are equal."""
    return address >> _CANONICAL_BITS in {0, (1 << 64 - _CANONICAL_BITS) - 1}


def segments(system: bytes) -> Iterator[tuple[int, ...]]:
    """The segments of `x86_system`; 13 numbers each, in the order of their fields."""
    return SEGMENT.iter_unpack(system[: _SEGMENTS * SEGMENT.size])


def _reject(kind: int, vcpu: int, what: str) -> NoReturn:
    where = "" if vcpu == NO_VCPU else f" of vCPU {vcpu}"
    raise GuestError(f"section {StateKind(kind).name.lower()}{where} {what}", ErrorCode.STATE_REJECTED)


def _listed(entries: Iterable[bytes]) -> bytes:
    listed = list(entries)
    return _COUNT.pack(len(listed), 0) + b"".join(listed)


def _entries(data: bytes, layout: struct.Struct, most: int) -> list[tuple[int, ...]]:
    if len(data) < _COUNT.size:
        raise ValueError(f"has {len(data)} bytes")
    count, res = _COUNT.unpack_from(data)
    if count > most or res or len(data) != _COUNT.size + count * layout.size:
        raise ValueError(f"has {len(data)} bytes for {count} entries, of which there are at most {most}")
    return list(layout.iter_unpack(data[_COUNT.size :]))


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"has {len(data)} bytes, and not {size}")
    return data


def _cpuid(data: bytes) -> tuple[CpuidEntry, ...]:
    entries = _entries(data, _CPUID, CPUID_ENTRIES)
    if any(entry[-1] for entry in entries):
        raise ValueError("has reserved bits that are set")
    return tuple(CpuidEntry(*entry[:-1]) for entry in entries)


def _registers(data: bytes) -> bytes:
    _exactly(data, REGISTERS.size)
    registers = REGISTERS.unpack(data)
    if not canonical(registers[Register.RIP]):
        raise ValueError(f"has a rip that is not canonical: {registers[Register.RIP]:#x}")
    if not registers[Register.RFLAGS] & 2:
        raise ValueError("has no good rflags")
    return data


def _system(data: bytes) -> bytes:
    _exactly(data, SYSTEM_BYTES)
    for base, _, _, *flags in segments(data):
        if not canonical(base):
            raise ValueError(f"has a segment base that is not canonical: {base:#x}")
        if not all(value in right for value, right in zip(flags, _SEGMENT_RANGES, strict=True)):
            raise ValueError("has a segment with flags out of their range")
    for base, _, res in _TABLE.iter_unpack(data[_TABLES_AT:CONTROL_AT]):
        if not canonical(base):
            raise ValueError(f"has a table base that is not canonical: {base:#x}")
        if any(res):
            raise ValueError("has reserved bits that are set")
    return data


def _xsave(data: bytes) -> bytes:
    if not XSAVE_MIN <= len(data) <= XSAVE_MAX:
        raise ValueError(f"has {len(data)} bytes, and not {XSAVE_MIN} to {XSAVE_MAX}")
    return data


def _pairs(data: bytes, most: int) -> tuple[tuple[int, int], ...]:
    entries = _entries(data, _PAIR, most)
    if any(res for _, res, _ in entries):
        raise ValueError("has reserved bits that are set")
    numbers = [number for number, _, _ in entries]
    if numbers != sorted(set(numbers)):
        raise ValueError("has numbers that do not ascend")
    return tuple((number, value) for number, _, value in entries)


def _msrs(data: bytes) -> tuple[tuple[int, int], ...]:
    values = _pairs(data, MSRS)
    if any(index == TSC for index, _ in values):
        raise ValueError("has the time stamp counter, which has a section of its own")
    return values


def _events(data: bytes) -> bytes:
    _exactly(data, EVENTS_BYTES)
    if any(data[place] for place in _EVENTS_RES):
        raise ValueError("has reserved bits that are set")
    return data


def _mp_state(data: bytes) -> int:
    _exactly(data, _MP_STATE.size)
    state, res = _MP_STATE.unpack(data)
    if state not in _MP_STATES or res:
        raise ValueError(f"has a state that does not exist: {state}")
    return int(state)


def _tsc(data: bytes) -> tuple[int, int]:
    _exactly(data, _TSC.size)
    counter, khz, res = _TSC.unpack(data)
    if not khz or res:
        raise ValueError("has no frequency, or reserved bits that are set")
    if counter >= _TIME_END:
        raise ValueError(f"is at {counter} ticks, which no guest comes to")
    return counter, khz
