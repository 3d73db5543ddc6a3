from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from descriptors_support import nothing_stays_open
from kvm_support import MEMORY_BYTES, Small, small_machine
from sterna.linux import kvm
from sterna.linux.errors import CapabilityMissing
from sterna.linux.kvm import Extension, Kvm, MemorySlot
from sterna.linux.kvm_vcpu import VcpuError
from sterna.linux.memfd import PAGE_BYTES

FIRST = 0x200000 // PAGE_BYTES  # a page that the program itself does not need
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86-64")


def dirty(small: Small) -> list[int]:
    words = small.machine.dirty_log(small.slot, PAGE_BYTES)
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


def forget(small: Small, *pages: int) -> None:
    bits = np.zeros(-(-MEMORY_BYTES // PAGE_BYTES // 64) * 64, np.uint8)
    bits[list(pages)] = 1
    words = np.packbits(bits, bitorder="little").view(np.uint64)
    small.machine.clear_dirty_log(small.slot, PAGE_BYTES, words)


@pytest.mark.parametrize("path", ["nothing", "file"])
@x86
def test_a_device_that_is_none_is_named_with_a_remedy(path: str, tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    if path == "file":
        device.write_bytes(b"")
    with pytest.raises(CapabilityMissing, match=rf"kvm: {device}: .*; load kvm_intel") as caught:
        Kvm(str(device))
    assert caught.value.capability == "kvm"


def test_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(CapabilityMissing, match="a riscv64 machine; use an x86-64 host"):
        Kvm()


@x86
def test_what_the_kernel_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On any machine: a device that answers every question with a number of ours."""
    device = tmp_path / "kvm"
    device.write_bytes(b"")
    monkeypatch.setattr(kvm.fcntl, "ioctl", lambda fd, request, argument: 11)
    with nothing_stays_open(), pytest.raises(CapabilityMissing, match="API version 11 instead of 12"):
        Kvm(str(device))
    lacking = {0: 12, Extension.SREGS2: 0, Extension.XCRS: 0}
    monkeypatch.setattr(kvm.fcntl, "ioctl", lambda fd, request, argument: lacking.get(argument, 1))
    why = r"no KVM_CAP_XCRS, KVM_CAP_SREGS2; Linux 5.14 or newer"
    with nothing_stays_open(), pytest.raises(CapabilityMissing, match=why):
        Kvm(str(device))


@x86
def test_a_kernel_that_makes_no_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.write_bytes(b"")

    def answer(fd: int, request: int, argument: int) -> int:
        if request == kvm._CREATE_VM:
            raise OSError(16, "Device or resource busy")
        return 12 if request == kvm._GET_API_VERSION else 1

    monkeypatch.setattr(kvm.fcntl, "ioctl", answer)
    with Kvm(str(device)) as opened, pytest.raises(CapabilityMissing, match=r"KVM_CREATE_VM: .*busy; load"):
        opened.create_machine()


@pytest.mark.needs("kvm")
def test_what_a_vcpu_can_be() -> None:
    with Kvm() as opened:
        assert opened.supported_cpuid()[0].leaf == 0
        assert 0x10 in opened.msr_indices()  # the time stamp counter
        assert opened.extension(Extension.MAX_VCPUS) >= 2


@pytest.mark.needs("kvm")
def test_memory_that_does_not_fit_is_refused() -> None:
    with small_machine() as small, pytest.raises(OSError, match="Invalid argument"):
        small.machine.set_memory(MemorySlot(1, 1 << 30, 100, small.memory.address))


@pytest.mark.needs("kvm")
def test_memory_that_is_taken_away_is_not_there() -> None:
    with small_machine() as small:
        small.write(0x200123)
        small.machine.remove_memory(small.slot)
        with pytest.raises(VcpuError):
            small.write(0x200124)


@pytest.mark.needs("kvm")
def test_the_guest_writes_what_it_is_told() -> None:
    with small_machine() as small:
        small.write(0x200123)
        assert small.memory.array[0x200120:0x200126].tolist() == [0, 0, 0, 0x23, 0, 0]


@pytest.mark.needs("kvm")
def test_the_dirty_log_is_exact_and_forgets_what_it_is_told_to() -> None:
    with small_machine() as small:
        small.write(0x200000)
        small.machine.set_memory(small.slot, log=True)
        assert small.machine.manual_protection
        assert dirty(small) == []
        last = MEMORY_BYTES // PAGE_BYTES - 1
        for page in (FIRST, FIRST + 1, FIRST + 200, last):
            small.write(page * PAGE_BYTES + 1)
        assert dirty(small) == [FIRST, FIRST + 1, FIRST + 200, last]
        assert dirty(small) == [FIRST, FIRST + 1, FIRST + 200, last]  # looking forgets nothing
        forget(small, FIRST, last)
        assert dirty(small) == [FIRST + 1, FIRST + 200]
        small.write(FIRST * PAGE_BYTES + 1)
        assert dirty(small) == [FIRST, FIRST + 1, FIRST + 200]
        small.machine.set_memory(small.slot)
        small.machine.set_memory(small.slot, log=True)
        assert dirty(small) == []


@pytest.mark.needs("kvm")
def test_what_is_written_by_this_process_is_not_in_the_log() -> None:
    with small_machine() as small:
        small.machine.set_memory(small.slot, log=True)
        small.memory.array[0x200000] = 1
        assert dirty(small) == []


@pytest.mark.needs("kvm")
def test_a_clock_that_is_set_goes_on_from_there() -> None:
    with small_machine() as small:
        small.machine.set_clock_ns(10**15)
        assert small.machine.clock_ns() >= 10**15
