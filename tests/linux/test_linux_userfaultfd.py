from __future__ import annotations

import os

import pytest

from sterna.linux import userfaultfd
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryFile
from sterna.linux.userfaultfd import WRITE_TRACKING, Feature, Mode, Userfaultfd, supported


def test_no_way_in_names_every_way_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(userfaultfd, "_WAYS", (("one way", refuse), ("another", refuse)))
    with pytest.raises(CapabilityMissing) as caught:
        Userfaultfd(WRITE_TRACKING)
    assert caught.value.capability == "userfaultfd"
    assert "one way: Operation not permitted; another" in caught.value.reason
    assert "unprivileged_userfaultfd" in caught.value.remedy


def test_an_unknown_machine_has_no_system_call_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(OSError, match="pdp11"):
        userfaultfd._by_syscall(0)


@pytest.mark.needs("userfaultfd")
def test_the_system_call_is_a_way_in_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userfaultfd, "_WAYS", userfaultfd._WAYS[-1:])
    features, way, user_mode_only = supported()
    assert features
    assert way == "system call, user mode only"
    assert user_mode_only


@pytest.mark.needs("userfaultfd")
def test_a_feature_that_no_kernel_has() -> None:
    with pytest.raises(CapabilityMissing, match="UFFDIO_API refuses"):
        Userfaultfd(Feature.WP_ASYNC | Feature(1 << 60))


@pytest.mark.needs("write_protect")
def test_register_and_unregister_shared_memory() -> None:
    file = MemoryFile("test", 4 * PAGE_BYTES)
    memory = file.map()
    with Userfaultfd(WRITE_TRACKING) as uffd:
        assert WRITE_TRACKING in uffd.offered
        uffd.register(memory.address, memory.size_bytes, Mode.WP)
        memory.array[:] = 1  # resolved by the kernel; a fault that waited for us would hang here
        uffd.unregister(memory.address, memory.size_bytes)
    uffd.close()
    assert uffd.fileno() == -1
    memory.close()
    file.close()


@pytest.mark.needs("write_protect")
def test_memory_that_cannot_be_registered(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE_BYTES))
    descriptor = os.open(path, os.O_RDWR)
    from sterna.linux.memfd import MemoryMap

    memory = MemoryMap(descriptor, PAGE_BYTES)
    try:
        with Userfaultfd(WRITE_TRACKING) as uffd, pytest.raises(CapabilityMissing, match="UFFDIO_REGISTER"):
            uffd.register(memory.address + 1, PAGE_BYTES, Mode.WP)
    finally:
        memory.close()
        os.close(descriptor)
