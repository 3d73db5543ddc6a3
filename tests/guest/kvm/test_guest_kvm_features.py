from __future__ import annotations

import platform
from pathlib import Path

import pytest

from sterna.guest.kvm.features import (
    address_bits,
    components,
    features,
    missing,
    names,
    of_host,
    register_names,
    unnamed,
)
from sterna.linux.kvm import Kvm
from sterna.linux.kvm_vcpu import CpuidEntry

BASIC = CpuidEntry(0x1, 0, 0, 0, 0, 1 << 0 | 1 << 27 | 1 << 28, 1 << 25 | 1 << 26)


def test_names_stand_at_their_bits() -> None:
    assert features([BASIC]) == ("pni", "avx", "sse", "sse2")  # and osxsave, which is no feature
    assert features([CpuidEntry(0x7, 0, 1, 0, 1 << 5 | 1 << 31, 1 << 22, 1 << 29)]) == (
        "avx2", "avx512vl", "rdpid", "arch_capabilities",
    )  # fmt: skip
    assert features([CpuidEntry(0x80000001, 0, 0, 0, 0, 1 << 0 | 1 << 22, 1 << 29 | 1 << 31)]) == (
        "lahf_lm", "topoext", "lm", "3dnow",
    )  # fmt: skip
    assert features([CpuidEntry(0xD, 1, 1, 8, 0, 0, 0), CpuidEntry(0x80000008, 0, 0, 0x3030, 1, 0, 0)]) == (
        "xsaves", "clzero",
    )  # fmt: skip


def test_names_that_a_guest_would_use_registers_by() -> None:
    """SPEC_CTRL and its like: a guest that has seen them writes them, and dies where they are not."""
    assert features([CpuidEntry(0x7, 0, 1, 0, 0, 0, 1 << 26 | 1 << 27 | 1 << 31)]) == (
        "ibrs", "stibp", "ssbd",
    )  # fmt: skip
    amd = 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24 | 1 << 25
    assert features([CpuidEntry(0x80000008, 0, 0, 0, amd, 0, 0)]) == (
        "ibpb", "ibrs", "stibp", "ssbd", "virt_ssbd",
    )  # fmt: skip
    assert features([CpuidEntry(0x6, 0, 0, 1 << 2, 0, 0, 0)]) == ("arat",)
    assert features([CpuidEntry(0x7, 1, 1, 1 << 17 | 1 << 26, 0, 0, 0)]) == ("fred", "lam")
    assert features([CpuidEntry(0x80000007, 0, 0, 0, 0, 0, 1 << 8)]) == ("nonstop_tsc",)


def test_other_leaves_have_no_names() -> None:
    assert features([CpuidEntry(0x2, 0, 0, -1, -1, -1, -1), CpuidEntry(0x7, 2, 1, -1, -1, -1, -1)]) == ()


def test_what_was_not_announced() -> None:  # [XCP-11]
    cpuid = [CpuidEntry(1, 0, 0, 0, 0, 0, 1 << 25 | 1 << 26)]
    assert unnamed(("sse", "sse2", "more"), cpuid) == ()
    assert unnamed(("fpu",), cpuid) == ("sse", "sse2")


def test_what_is_missing() -> None:  # [XCP-4]
    assert missing(("sse", "no_such_thing", "avx2", "pni"), names([BASIC])) == ("avx2", "no_such_thing")
    assert missing((), []) == ()


AREA = (
    CpuidEntry(1, 0, 0, 0, 0, 1 << 26 | 1 << 28, 0),  # XSAVE, AVX
    CpuidEntry(0xD, 0, 1, 0b111, 0x240, 0x340, 1 << 30),  # x87, SSE, AVX, and number 62
    CpuidEntry(0xD, 1, 1, 0, 0, 1 << 12, 0),  # and number 12, which no guest enables by itself
    CpuidEntry(0xD, 2, 1, 256, 576, 0, 0),
    CpuidEntry(0xD, 9, 1, 8, 2688, 0, 0),  # described, and not offered
    CpuidEntry(0xD, 12, 1, 24, 0, 1, 0),
    CpuidEntry(0xD, 62, 1, 128, 832, 0, 0),
)


def test_components_of_the_area_and_their_places() -> None:  # [XCP-14]
    assert components(AREA) == ("xstate_2_576_256", "xstate_12_0_24", "xstate_62_832_128")
    assert names(AREA) == ("xsave", "avx", *components(AREA))
    assert components(AREA[1:]) == ()  # nobody can use them without XSAVE
    assert components(AREA[:1]) == ()
    moved = [entry._replace(ebx=640) if entry.subleaf == 2 else entry for entry in AREA]
    assert missing(names(AREA), names(moved)) == ("xstate_2_576_256",)
    assert unnamed(names(AREA), moved) == ("xstate_2_640_256",)


def test_names_of_registers() -> None:  # [XCP-14]
    assert register_names([0x4B564D00, 0x11]) == ("msr_0x11", "msr_0x4b564d00")


def test_widths_of_addresses() -> None:
    assert address_bits([CpuidEntry(0x80000008, 0, 0, 0x3030, 0, 0, 0)]) == 48
    assert address_bits([BASIC]) == 36


@pytest.mark.needs("kvm")
def test_what_this_host_offers_is_what_its_vcpus_have() -> None:
    with Kvm() as kvm:
        offered, cpuid = of_host(kvm), kvm.supported_cpuid()
    assert offered[: len(names(cpuid))] == names(cpuid)
    assert "msr_0x174" in offered
    assert "msr_0x10" not in offered


@pytest.mark.needs("kvm")
def test_most_of_it_is_what_this_host_says_of_itself() -> None:
    """A bit with a wrong name would be one that the host lacks, but for those that KVM makes itself."""
    assert platform.machine() == "x86_64"
    with Kvm() as kvm:
        found = set(features(kvm.supported_cpuid()))
    line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    made = {"x2apic", "tsc_deadline_timer", "hypervisor", "tsc_adjust", "umip", "arch_capabilities"}
    assert found - set(line.split()) <= made
    assert {"fpu", "sse2", "lm"} <= found
