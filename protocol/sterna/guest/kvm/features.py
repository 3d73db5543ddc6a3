"""What a processor can do, by names: spec/x86.md, section 2.

A guest relies on every feature that it can see; their names are those that Linux has in /proc/cpuinfo. What
has no name there is not told; such features come with others that have one. Two things more are part of what
a guest is offered, and have names of our own: the components of its XSAVE area, with their places in it, and
the model-specific registers that are sent with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from sterna.linux.kvm import Kvm
from sterna.linux.kvm_vcpu import CpuidEntry

# A line for each register, and its bits from bit 0 on; "-" is one without a name.
_TEXT: Final = """
0x1.0 edx: fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush -
    dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe
0x1.0 ecx: pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm -
    pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand
    hypervisor
0x6.0 eax: - - arat
0x7.0 ebx: fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a
    avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er
    avx512cd sha_ni avx512bw avx512vl
0x7.0 ecx: - avx512vbmi umip pku ospke waitpkg avx512_vbmi2 - gfni vaes vpclmulqdq avx512_vnni
    avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri
    movdir64b enqcmd sgx_lc
0x7.0 edx: - - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect - md_clear - - -
    serialize - tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 ibrs stibp
    flush_l1d arch_capabilities - ssbd
0x7.1 eax: sha512 sm3 sm4 - avx_vnni avx512_bf16 - - - - fzrm fsrs fsrc - - - - fred - -
    - - - - - - lam
0xd.1 eax: xsaveopt xsavec xgetbv1 xsaves
0x80000001.0 edx: - - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb
    rdtscp - lm 3dnowext 3dnow
0x80000001.0 ecx: lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw
    ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - - - -
    mwaitx
0x80000007.0 edx: - - - - - - - - nonstop_tsc
0x80000008.0 ebx: clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs stibp - - - - - -
    - - ssbd virt_ssbd
"""
# Bits that follow what a guest does, or the APIC's state, and are no promise of the processor.
_CHANGING: Final = frozenset({"osxsave", "ospke", "apic"})

TSC: Final = 0x10  # IA32_TIME_STAMP_COUNTER, which every processor has, and a section of its own
_XSAVE_LEAF: Final = 0xD
_ADDRESS_LEAF: Final = 0x80000008
_ADDRESS_BITS: Final = 36  # of a processor that does not say


def _names() -> dict[str, tuple[str, ...]]:
    """By leaf, subleaf and register, as in the text above."""
    lines = _TEXT.replace("\n    ", " ").strip().splitlines()
    return {register: tuple(names.split()) for register, _, names in (line.partition(":") for line in lines)}


_NAMES: Final = _names()


def features(cpuid: Sequence[CpuidEntry]) -> tuple[str, ...]:
    """Names of all features that a processor with this CPUID has, without repetitions."""
    return tuple(dict.fromkeys(_found(cpuid)))


def _found(cpuid: Sequence[CpuidEntry]) -> Iterator[str]:
    for entry in cpuid:
        for register in ("eax", "ebx", "ecx", "edx"):
            value: int = getattr(entry, register)
            for bit, name in enumerate(_NAMES.get(f"{entry.leaf:#x}.{entry.subleaf} {register}", ())):
                if value >> bit & 1 and name != "-" and name not in _CHANGING:
                    yield name


def components(cpuid: Sequence[CpuidEntry]) -> tuple[str, ...]:
    """Names of the parts of the XSAVE area behind those of x87 and SSE; none where there is no XSAVE.

    Two processors may have one component at different places, and a guest has read there where it is.
    """
    if "xsave" not in features(cpuid):
        return ()
    leaf = {entry.subleaf: entry for entry in cpuid if entry.leaf == _XSAVE_LEAF}
    offered = 0
    if 0 in leaf:
        offered |= leaf[0].eax | leaf[0].edx << 32
    if 1 in leaf:
        offered |= leaf[1].ecx | leaf[1].edx << 32
    return tuple(
        f"xstate_{number}_{leaf[number].ebx}_{leaf[number].eax}"
        for number in sorted(leaf)
        if number > 1 and offered >> number & 1
    )


def names(cpuid: Sequence[CpuidEntry]) -> tuple[str, ...]:
    """All that a guest can see of this CPUID and that has a name."""
    return (*features(cpuid), *components(cpuid))


def register_names(indices: Iterable[int]) -> tuple[str, ...]:
    """Names of model-specific registers."""
    return tuple(f"msr_{index:#x}" for index in sorted(indices))


def of_host(kvm: Kvm) -> tuple[str, ...]:
    """All that a guest can be offered here.

    Raises:
        CapabilityMissing: no machine can be made.
        OSError: KVM does not say.
    """
    cpuid = kvm.supported_cpuid()
    with kvm.create_machine() as machine, machine.create_vcpu(0) as vcpu:
        vcpu.set_cpuid(cpuid)
        registers = vcpu.msrs(kvm.msr_indices())
    return (*names(cpuid), *register_names(registers.keys() - {TSC}))


def unnamed(promised: Sequence[str], cpuid: Sequence[CpuidEntry]) -> tuple[str, ...]:
    """Those that a processor with this CPUID has and that were not promised, in the order of their names."""
    return missing(names(cpuid), promised)


def missing(wanted: Iterable[str], offered: Iterable[str]) -> tuple[str, ...]:
    """Those of the wanted names that are not offered, in their order."""
    return tuple(sorted(set(wanted) - set(offered)))


def address_bits(cpuid: Sequence[CpuidEntry]) -> int:
    """How wide addresses of memory may be."""
    return next((entry.eax & 0xFF for entry in cpuid if entry.leaf == _ADDRESS_LEAF), _ADDRESS_BITS)
