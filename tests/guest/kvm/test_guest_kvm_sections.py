from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from sterna.errors import GuestError
from sterna.guest.api import StateSection
from sterna.guest.kvm.sections import MachineState, VcpuState, canonical, from_sections, to_sections
from sterna.guest.kvm.state import compared
from sterna.linux.kvm_long_mode import SEGMENT
from sterna.linux.kvm_vcpu import EVENTS_BYTES, REGISTERS, SYSTEM_BYTES, CpuidEntry
from sterna.registry import Architecture, ErrorCode, StateKind
from sterna.wire.records import NO_VCPU

KIND = StateKind


def vcpu(number: int) -> VcpuState:
    segment = SEGMENT.pack(number << 12, 0xFFFFFFFF, 0x2B, 3, 1, 3, 1, 1, 0, 1, 0, 0, 0)
    return VcpuState(
        cpuid=(CpuidEntry(0, 0, 0, 7, 1, 2, 3), CpuidEntry(7, 1, 1, 4, 5, 6, number)),
        registers=REGISTERS.pack(*range(16), (1 << 64) - 4096, 2),
        system=(8 * segment).ljust(SYSTEM_BYTES, b"\0"),
        xsave=bytes(576),
        xcr=((0, 7),),
        debug=bytes(range(48)),
        msrs=((0xC0000080, 1), (0xC0000102, number)),
        events=bytes(EVENTS_BYTES),
        mp_state=0,
        tsc=10**15 + number,
        tsc_khz=2_500_000,
    )


STATE = MachineState(5, -6, (vcpu(0), vcpu(1)))
SECTIONS = to_sections(STATE)


def changed(kind: int, change: Callable[[bytes], bytes], number: int = 0) -> tuple[StateSection, ...]:
    return tuple(
        replace(one, data=change(one.data)) if (one.kind, one.vcpu) == (kind, number) else one
        for one in SECTIONS
    )


def put(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:offset] + data + whole[offset + len(data) :]


def refused(sections: tuple[StateSection, ...], code: ErrorCode, vcpus: int = 2) -> str:
    with pytest.raises(GuestError) as caught:
        from_sections(sections, vcpus)
    assert caught.value.code is code
    return str(caught.value)


def test_sections_are_read_as_they_were_written() -> None:
    assert from_sections(SECTIONS, 2) == STATE
    assert from_sections(tuple(reversed(SECTIONS)), 2) == STATE
    assert {one.architecture for one in SECTIONS} == {Architecture.X86_64}
    assert len(SECTIONS) == 1 + 2 * 10


@pytest.mark.parametrize("lost", range(len(SECTIONS)))
def test_a_state_that_lacks_a_section(lost: int) -> None:  # [XCP-1]
    text = refused(SECTIONS[:lost] + SECTIONS[lost + 1 :], ErrorCode.STATE_REJECTED)
    assert StateKind(SECTIONS[lost].kind).name.lower() in text


@pytest.mark.parametrize(
    "change",
    [{"kind": 0x01FF}, {"kind": KIND.WORKLOAD}, {"version": 2}, {"architecture": Architecture.AARCH64}],
)
def test_a_section_that_is_not_known(change: dict[str, int]) -> None:  # [XCP-1]
    refused((*SECTIONS, replace(SECTIONS[1], **change)), ErrorCode.UNKNOWN_STATE)


def test_more_sections_than_there_are_vcpus() -> None:
    assert "of vCPU 1 is of no vCPU of this guest, which has 1" in refused(
        SECTIONS, ErrorCode.STATE_REJECTED, 1
    )
    refused(SECTIONS, ErrorCode.STATE_REJECTED, 3)
    stray = replace(SECTIONS[1], vcpu=NO_VCPU)
    refused((*SECTIONS, stray), ErrorCode.STATE_REJECTED)


def test_a_section_twice() -> None:
    refused((*SECTIONS, SECTIONS[3]), ErrorCode.STATE_REJECTED)
    refused((*SECTIONS, replace(SECTIONS[3], instance=1)), ErrorCode.STATE_REJECTED)


@pytest.mark.parametrize("number", range(len(SECTIONS)))
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"", lambda data: data[:7]])
def test_a_section_of_another_length(number: int, change: Callable[[bytes], bytes]) -> None:  # [XCP-2]
    one = SECTIONS[number]
    refused(changed(one.kind, change, one.vcpu), ErrorCode.STATE_REJECTED)


@pytest.mark.parametrize(
    ("kind", "offset"),
    [
        (KIND.X86_CPUID, 4),
        (KIND.X86_CPUID, 8 + 28),
        (KIND.X86_SYSTEM, 23),
        (KIND.X86_SYSTEM, 192 + 10),
        (KIND.X86_XCR, 4),
        (KIND.X86_XCR, 8 + 4),
        (KIND.X86_MSRS, 8 + 16 + 4),
        (KIND.X86_EVENTS, 15),
        (KIND.X86_EVENTS, 40),
        (KIND.X86_MP_STATE, 4),
        (KIND.X86_TSC, 12),
    ],
)
def test_reserved_bytes_that_are_not_zero(kind: StateKind, offset: int) -> None:  # [XCP-2]
    refused(changed(kind, put(offset, b"\1")), ErrorCode.STATE_REJECTED)


@pytest.mark.parametrize(("kind", "most"), [(KIND.X86_CPUID, 256), (KIND.X86_XCR, 16), (KIND.X86_MSRS, 1024)])
def test_counts_beyond_the_bytes_or_the_most(kind: StateKind, most: int) -> None:  # [XCP-2]
    refused(changed(kind, put(0, struct.pack("<I", most))), ErrorCode.STATE_REJECTED)
    refused(changed(kind, put(0, struct.pack("<I", 0xFFFFFFFF))), ErrorCode.STATE_REJECTED)
    size = 32 if kind is KIND.X86_CPUID else 16
    many = struct.pack("<II", most + 1, 0) + bytes(size * (most + 1))
    refused(changed(kind, lambda data: many), ErrorCode.STATE_REJECTED)


def test_an_area_that_no_processor_has() -> None:
    refused(changed(KIND.X86_XSAVE, lambda data: bytes(1 << 20)), ErrorCode.STATE_REJECTED)


def test_an_instruction_pointer_that_is_not_canonical() -> None:  # [XCP-5]
    text = refused(
        changed(KIND.X86_REGISTERS, put(128, struct.pack("<Q", 1 << 47))), ErrorCode.STATE_REJECTED
    )
    assert "rip that is not canonical: 0x800000000000" in text
    refused(changed(KIND.X86_REGISTERS, put(136, bytes(8))), ErrorCode.STATE_REJECTED)


@pytest.mark.parametrize("offset", [0, 3 * 24, 7 * 24, 192, 208])
def test_bases_that_are_not_canonical(offset: int) -> None:  # [XCP-6]
    system = changed(KIND.X86_SYSTEM, put(offset, struct.pack("<Q", 1 << 63)))
    assert "not canonical" in refused(system, ErrorCode.STATE_REJECTED)


@pytest.mark.parametrize(("offset", "value"), [(14, 16), (15, 2), (16, 4), (22, 2)])
def test_segments_out_of_range(offset: int, value: int) -> None:
    refused(changed(KIND.X86_SYSTEM, put(offset, bytes([value]))), ErrorCode.STATE_REJECTED)


def test_model_specific_registers_that_are_not_a_list_of_them() -> None:  # [XCP-8]
    twice = struct.pack("<II", 2, 0) + 2 * struct.pack("<IIQ", 5, 0, 1)
    refused(changed(KIND.X86_MSRS, lambda data: twice), ErrorCode.STATE_REJECTED)
    counter = struct.pack("<II", 1, 0) + struct.pack("<IIQ", 0x10, 0, 1)
    assert "time stamp counter" in refused(
        changed(KIND.X86_MSRS, lambda data: counter), ErrorCode.STATE_REJECTED
    )


def test_states_and_frequencies_that_do_not_exist() -> None:
    refused(changed(KIND.X86_MP_STATE, put(0, b"\5")), ErrorCode.STATE_REJECTED)
    refused(changed(KIND.X86_TSC, put(8, bytes(4))), ErrorCode.STATE_REJECTED)


@pytest.mark.parametrize("value", [1 << 63, (1 << 64) - 1])
def test_times_that_no_guest_comes_to(value: int) -> None:  # [XCP-12]
    counter = changed(KIND.X86_TSC, put(0, struct.pack("<Q", value)))
    assert "x86_tsc of vCPU 0 is at" in refused(counter, ErrorCode.STATE_REJECTED)
    clock = tuple(
        replace(one, data=struct.pack("<Qq", value, 0)) if one.kind == KIND.CLOCK else one for one in SECTIONS
    )
    assert "section clock is at" in refused(clock, ErrorCode.STATE_REJECTED)


def test_the_area_of_a_processor_with_wide_registers() -> None:
    """As one with AVX writes it: 832 bytes, of which no kernel here has any to give."""
    header = struct.pack("<QQ48x", 7, 0)  # XSTATE_BV: x87, SSE, AVX; standard form
    upper = struct.pack("<32Q", *(0xA5A5_0000 + number for number in range(32)))
    area = bytes(512) + header + upper
    wide = replace(STATE, vcpus=tuple(replace(one, xsave=area, xcr=((0, 7),)) for one in STATE.vcpus))
    assert from_sections(to_sections(wide), 2) == wide
    lost = replace(wide.vcpus[0], xsave=area[:576] + bytes(256))
    differs = set(compared(wide.vcpus[0])) - set(compared(lost))
    assert {name for name, value in differs if value} == {f"xsave[{number}]" for number in range(72, 104)}


def test_canonical_addresses() -> None:
    assert all(map(canonical, (0, (1 << 47) - 1, (1 << 64) - 1, (1 << 64) - (1 << 47))))
    assert not any(map(canonical, (1 << 47, 1 << 63, (1 << 64) - (1 << 47) - 1)))
