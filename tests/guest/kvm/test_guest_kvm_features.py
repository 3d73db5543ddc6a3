from __future__ import annotations

import platform
from pathlib import Path

import pytest

from sterna.guest.kvm.features import features, missing, unnamed
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
    assert missing(("sse", "no_such_thing", "avx2", "pni"), [BASIC]) == ("avx2", "no_such_thing")
    assert missing((), []) == ()


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
