"""The numbers that the kernel's headers give on x86-64, aarch64 and riscv64."""

from __future__ import annotations

from sterna.linux.ioctl import io, ior, iow, iowr


def test_known_requests() -> None:
    assert io(0xAA, 0x00) == 0xAA00  # USERFAULTFD_IOC_NEW
    assert io(0xAE, 0x00) == 0xAE00  # KVM_GET_API_VERSION
    assert iowr(0xAA, 0x3F, 24) == 0xC018AA3F  # UFFDIO_API
    assert ior(0xAA, 0x01, 16) == 0x8010AA01  # UFFDIO_UNREGISTER
    assert iow(0xAE, 0x46, 32) == 0x4020AE46  # KVM_SET_USER_MEMORY_REGION
    assert iowr(ord("f"), 16, 96) == 0xC0606610  # PAGEMAP_SCAN
