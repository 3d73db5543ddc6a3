"""What this machine can do for Sterna: every probe tries the thing itself, on a page of its own.

A probe tells in one line what was found, and where something is missing why, and what an operator can do.
No exception leaves `probe`: a probe that fails in an unforeseen way reports that as its reason.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sterna.linux.errors import CapabilityMissing
from sterna.linux.kvm import API_VERSION, DEVICE
from sterna.linux.kvm_probe import try_machine
from sterna.linux.memfd import PAGE_BYTES, MemoryFile
from sterna.linux.memory import (
    SHARED_HUGE_PAGES,
    cgroup_available_bytes,
    shared_huge_pages,
    system_available_bytes,
)
from sterna.linux.pagemap import PagemapScanner
from sterna.linux.userfaultfd import WRITE_TRACKING, Feature, Mode, Userfaultfd, supported

_KVM: Final = DEVICE
_KVM_MODULES: Final = ("kvm_pvm", "kvm_intel", "kvm_amd")
_KVM_TRIED: Final = "kvm_pvm"
_TOOL_WITHIN_S: Final = 10.0
_QEMU_NAMES: Final = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-kvm")


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that a machine can or cannot do.

    Attributes:
        name: as `needs` marks of the tests and the JSON of `sterna doctor` have it.
        available: whether it works, for this user, now.
        detail: what was found, where it is available.
        reason: why it is not available; empty if it is.
        remedy: what to do about that; empty if it is available.
    """

    name: str
    available: bool
    detail: str = ""
    reason: str = ""
    remedy: str = ""


def _size(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 10 * 1024:
            return f"{count} {unit}"
        count //= 1024
    return f"{count} GiB"


def _userfaultfd() -> str:
    _, way, user_mode_only = supported()
    rights = f"effective user {os.geteuid()}"
    limits = ", for accesses in user mode only: not for KVM guests" if user_mode_only else ""
    return f"by {way}, {rights}{limits}"


def _registers(feature: Feature, mode: Mode, what: str) -> str:
    """Register a page of shared memory in this mode."""
    offered, _, _ = supported()
    if offered & feature != feature:
        missing = " and ".join(str(one.name) for one in feature & ~offered)
        raise CapabilityMissing("userfaultfd", f"the kernel lacks {missing}", "a newer kernel (6.7) has it")
    file = MemoryFile("sterna-probe", PAGE_BYTES)
    memory = file.map()
    try:
        with Userfaultfd(feature) as uffd:
            uffd.register(memory.address, memory.size_bytes, mode)
    finally:
        memory.close()
        file.close()
    return what


def _pagemap_scan() -> str:
    """Two pages, one of them written: the scan must say so, once."""
    file = MemoryFile("sterna-probe", 2 * PAGE_BYTES)
    memory = file.map()
    scanner = PagemapScanner()
    try:
        with Userfaultfd(WRITE_TRACKING) as uffd:
            uffd.register(memory.address, memory.size_bytes, Mode.WP)
            scanner.protect(memory.address, memory.size_bytes)
            memory.array[PAGE_BYTES] = 1
            first = scanner.scan_written(memory.address, memory.size_bytes).tolist()
            second = scanner.scan_written(memory.address, memory.size_bytes).tolist()
    finally:
        scanner.close()
        memory.close()
        file.close()
    if (first, second) != ([[1, 2]], []):
        raise CapabilityMissing("pagemap_scan", f"wrong answers: {first}, {second}", "report this kernel")
    return "finds written pages and protects them again in one step"


def _kvm() -> str:
    """A machine whose processor runs some instructions."""
    clears = "cleared by hand" if try_machine(_KVM) else "cleared when it is read"
    by = next((each for each in _KVM_MODULES if os.path.isdir(f"/sys/module/{each}")), "an unknown module")
    how = ", without the processor's help (slow at the higher privilege levels)" if by == "kvm_pvm" else ""
    if by != _KVM_TRIED:
        how = f" (Sterna's tests have run by {_KVM_TRIED} only: spec/x86.md, section 8)"
    return f"API version {API_VERSION}, by {by}{how}, a vCPU runs, dirty log {clears}"


def _tool(capability: str, names: tuple[str, ...], remedy: str, ask: str = "--version") -> str:
    """Path, and the first line of what it answers to `ask`, of the first of these programs that exists."""
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        raise CapabilityMissing(capability, f"no {names[0]} on PATH", remedy)
    try:
        output = subprocess.run(
            [path, ask],
            capture_output=True,
            timeout=_TOOL_WITHIN_S,
            check=True,
            text=True,
            errors="replace",
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise CapabilityMissing(capability, f"{path} {ask}: {type(error).__name__}", remedy) from error
    first = output.strip().splitlines()
    return f"{path}: {first[0] if first else 'no version'}"


def _huge_pages() -> str:
    try:
        mode = shared_huge_pages()
    except OSError as error:
        reason = f"{SHARED_HUGE_PAGES}: {error.strerror}"
        raise CapabilityMissing("huge_pages", reason, "a kernel with THP") from error
    if mode in {"never", "deny"}:
        remedy = f"echo advise > {SHARED_HUGE_PAGES}"
        raise CapabilityMissing("huge_pages", f"shared memory has none (shmem_enabled: {mode})", remedy)
    return f"for shared memory: {mode}"


def _memory() -> str:
    group = cgroup_available_bytes()
    limit = "no control group limit" if group is None else f"{_size(group)} left in the control group"
    return f"{_size(system_available_bytes())} available, {limit}"


def _locked_memory() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "RLIMIT_MEMLOCK: " + ("none" if soft == resource.RLIM_INFINITY else _size(soft))


def _cpus() -> str:
    usable = len(os.sched_getaffinity(0))
    if usable < 2:
        raise CapabilityMissing(
            "cpus", "one processor: a guest and its endpoint take turns", "allow this process a second one"
        )
    return f"{usable} usable of {os.cpu_count()}"


_PROBES: Final[tuple[tuple[str, Callable[[], str]], ...]] = (
    ("userfaultfd", _userfaultfd),
    (
        "write_protect",
        lambda: _registers(WRITE_TRACKING, Mode.WP, "shared memory, resolved by the kernel (WP_ASYNC)"),
    ),
    ("minor_faults", lambda: _registers(Feature.MINOR_SHMEM, Mode.MINOR, "shared memory")),
    ("missing_faults", lambda: _registers(Feature.MISSING_SHMEM, Mode.MISSING, "shared memory")),
    ("pagemap_scan", _pagemap_scan),
    ("kvm", _kvm),
    ("qemu", lambda: _tool("qemu", _QEMU_NAMES, "install QEMU (Debian: qemu-system-x86)")),
    ("tshark", lambda: _tool("tshark", ("tshark",), "install tshark (Wireshark's command line)")),
    ("etcd", lambda: _tool("etcd", ("etcd",), "install etcd (Debian: etcd-server)")),
    ("openssl", lambda: _tool("openssl", ("openssl",), "install openssl (the command)", "version")),
    ("huge_pages", _huge_pages),
    ("memory", _memory),
    ("locked_memory", _locked_memory),
    ("cpus", _cpus),
)


def probe() -> tuple[Capability, ...]:
    """Try everything, in a fixed order. Takes some milliseconds, and a second where QEMU is installed."""
    return tuple(_try(name, attempt) for name, attempt in _PROBES)


def _try(name: str, attempt: Callable[[], str]) -> Capability:
    try:
        return Capability(name, True, attempt())
    except CapabilityMissing as missing:
        return Capability(name, False, "", missing.reason, missing.remedy)
    except Exception as error:  # noqa: BLE001 - a doctor does not fall ill
        return Capability(name, False, "", f"{type(error).__name__}: {error}", "report this as a bug")
