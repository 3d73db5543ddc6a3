"""CPU features by the names that Linux has for them in /proc/cpuinfo: spec/x86.md, section 2.

A guest relies on every feature that it can see. What has no name on Linux is not told; such features come
with others that have one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

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


def unnamed(promised: Sequence[str], cpuid: Sequence[CpuidEntry]) -> tuple[str, ...]:
    """Those that a processor with this CPUID has and that were not promised, in the order of their names."""
    return tuple(sorted(set(features(cpuid)) - set(promised)))


def missing(wanted: Sequence[str], cpuid: Sequence[CpuidEntry]) -> tuple[str, ...]:
    """Those of the wanted features that a processor with this CPUID lacks, in the order of their names."""
    return tuple(sorted(set(wanted) - set(features(cpuid))))
