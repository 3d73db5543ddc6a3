"""How much memory this process may still take, the system's and its control group's; and of what pages."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")
_CGROUPS: Final = Path("/sys/fs/cgroup")
SHARED_HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def system_available_bytes() -> int:
    """MemAvailable: what can be had without swapping.

    Raises:
        OSError: /proc is not readable.
    """
    for line in _MEMINFO.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise OSError("no MemAvailable in /proc/meminfo")


def cgroup_available_bytes() -> int | None:
    """The least that is left in our control group (version 2) and those above it; None without a limit."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return None
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None:
        return None
    left: int | None = None
    group = _CGROUPS / own.lstrip("/")
    while True:
        try:
            limit = (group / "memory.max").read_text().strip()
            used = int((group / "memory.current").read_text())
        except (OSError, ValueError):
            limit, used = "max", 0
        if limit != "max":
            left = max(0, int(limit) - used) if left is None else min(left, max(0, int(limit) - used))
        if group in {_CGROUPS, group.parent}:
            return left
        group = group.parent


def available_bytes() -> int:
    """What can be allocated now; an estimate that others may spoil.

    Raises:
        OSError: /proc is not readable.
    """
    group = cgroup_available_bytes()
    system = system_available_bytes()
    return system if group is None else min(system, group)


def shared_huge_pages() -> str:
    """When shared memory gets huge pages, in the kernel's word: ``never``, ``deny``, or something else.

    Raises:
        OSError: this kernel knows of none.
    """
    text = SHARED_HUGE_PAGES.read_text()
    return text[text.find("[") + 1 : text.find("]")]
