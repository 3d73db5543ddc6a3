from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sterna.linux import capabilities, kvm, memory
from sterna.linux.capabilities import Capability, probe
from sterna.linux.errors import CapabilityMissing

NAMES = [
    "userfaultfd", "write_protect", "minor_faults", "missing_faults", "pagemap_scan", "kvm", "qemu", "tshark",
    "etcd", "openssl", "huge_pages", "memory", "locked_memory", "cpus",
]  # fmt: skip


def failing(error: Exception):
    def attempt(*_: object, **__: object):
        raise error

    return attempt


def test_every_capability_has_its_detail_or_reason_and_remedy() -> None:
    found = probe()
    assert [capability.name for capability in found] == NAMES
    for capability in found:
        assert bool(capability.detail) == capability.available
        assert bool(capability.reason) == bool(capability.remedy) == (not capability.available)


def test_no_exception_leaves_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = (("good", lambda: "yes"), ("bad", failing(RuntimeError("surprise"))))
    monkeypatch.setattr(capabilities, "_PROBES", probes)
    good, bad = probe()
    assert good == Capability("good", True, "yes")
    assert (bad.available, bad.reason) == (False, "RuntimeError: surprise")


def test_without_userfaultfd_everything_on_top_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = CapabilityMissing("userfaultfd", "not permitted", "be root")
    monkeypatch.setattr("sterna.linux.userfaultfd._open", failing(missing))
    found = {capability.name: capability for capability in probe()}
    for name in ("userfaultfd", "write_protect", "minor_faults", "missing_faults", "pagemap_scan"):
        assert found[name] == Capability(name, False, "", "not permitted", "be root")


@pytest.mark.needs("userfaultfd")
def test_a_kernel_without_a_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    _, way, user = capabilities.supported()
    monkeypatch.setattr(capabilities, "supported", lambda: (capabilities.Feature(0), way, user))
    found = {capability.name: capability for capability in probe()}
    assert "MINOR_SHMEM" in found["minor_faults"].reason


@pytest.mark.needs("pagemap_scan")
def test_a_scan_that_lies_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = capabilities.PagemapScanner.scan_written
    monkeypatch.setattr(
        capabilities.PagemapScanner, "scan_written", lambda self, *args: runs(self, *args, rearm=False)
    )
    found = {capability.name: capability for capability in probe()}
    assert "wrong answers" in found["pagemap_scan"].reason


@pytest.mark.parametrize("kind", ["missing", "no device", "old"])
def test_kvm_that_does_not_work(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    if kind != "missing":
        device.write_bytes(b"")
    if kind == "old":
        monkeypatch.setattr(kvm.fcntl, "ioctl", lambda *_: 11)
    monkeypatch.setattr(capabilities, "_KVM", str(device))
    with pytest.raises(CapabilityMissing, match="version 11" if kind == "old" else "kvm: "):
        capabilities._kvm()


def test_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho tool 1.2\necho more\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert capabilities._tool("tool", ("tool",), "install it") == f"{tool}: tool 1.2"
    assert capabilities._tool("tool", ("none-such", "tool"), "install it").startswith(str(tool))
    with pytest.raises(CapabilityMissing, match="no none-such on PATH; install it"):
        capabilities._tool("tool", ("none-such",), "install it")
    tool.write_text("#!/bin/sh\necho $1\n")
    assert capabilities._tool("tool", ("tool",), "install it", "version") == f"{tool}: version"
    tool.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(CapabilityMissing, match="CalledProcessError"):
        capabilities._tool("tool", ("tool",), "install it")
    tool.write_text("#!/bin/sh\n")
    assert capabilities._tool("tool", ("tool",), "install it").endswith("no version")


def test_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = tmp_path / "shmem_enabled"
    monkeypatch.setattr(memory, "SHARED_HUGE_PAGES", switch)
    with pytest.raises(CapabilityMissing, match="THP"):
        capabilities._huge_pages()
    switch.write_text("always within_size advise [never] deny force\n")
    with pytest.raises(CapabilityMissing, match="never"):
        capabilities._huge_pages()
    switch.write_text("always within_size [advise] never deny force\n")
    assert capabilities._huge_pages() == "for shared memory: advise"


def test_limits_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 0))
    assert capabilities._locked_memory() == "RLIMIT_MEMLOCK: none"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64 << 10, 0))
    assert capabilities._locked_memory() == "RLIMIT_MEMLOCK: 64 KiB"
    monkeypatch.setattr(capabilities, "cgroup_available_bytes", lambda: 3 << 40)
    assert "3072 GiB left in the control group" in capabilities._memory()
    monkeypatch.setattr(capabilities.os, "sched_getaffinity", lambda _: {0})
    with pytest.raises(CapabilityMissing, match="one processor"):
        capabilities._cpus()


def test_without_rights_write_tracking_still_works() -> None:
    """The third way into userfaultfd needs none; only root can try how it is without."""
    program = """
import ctypes, os
from sterna.linux.capabilities import probe
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: giving up root hides /proc/self from us
print({c.name for c in probe() if c.available} >= {"write_protect", "pagemap_scan"})
"""
    before = {capability.name: capability.available for capability in probe()}
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    if before["pagemap_scan"]:
        assert answer.stdout == "True\n", answer.stderr
