"""userfaultfd(2): being told of, or letting the kernel note, accesses to a range of our own memory.

Sterna uses it in two ways. Write tracking registers a range with `Mode.WP` and `Feature.WP_ASYNC`: the
kernel then resolves a write to a protected page by itself, at the cost of one fault, and
`sterna.linux.pagemap` asks which pages were written.

Post-copy registers a mapping of shared memory for missing and minor faults and takes the page table entries
of some pages away (`MemoryMap.unmap_pages`). The thread that touches one of these waits, and the descriptor
tells of it. It may have been passed to another process: what is asked for over it is done in the address
space of the process that opened it. The other one writes the page through a mapping of its own and has the
entry made (`FaultDescriptor.resolve`), which lets the thread go on. A fault is minor if the memory has the
page, and missing if not; after the page was written it is minor, so one way of resolving is enough. What
was read from the descriptor is told once. If whoever has read it dies, `wake` makes the threads that still
wait touch their pages again, and that is told anew.

There are three ways in, tried in this order: /dev/userfaultfd (the rights of that file), the system call
(CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1), and the system call for faults in user mode only (no
rights). The last is enough for write tracking but not for a KVM guest, whose faults are the kernel's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import select
import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from sterna.linux.descriptor import Descriptor
from sterna.linux.errors import CapabilityMissing
from sterna.linux.ioctl import io, ior, iowr

DEVICE: Final = "/dev/userfaultfd"

_UFFD_API: Final = 0xAA
_USER_MODE_ONLY: Final = 1
_SYSCALL: Final = {"x86_64": 323, "aarch64": 282, "riscv64": 282}

# struct uffdio_api { u64 api, features, ioctls }
_API: Final = struct.Struct("=3Q")
# struct uffdio_range { u64 start, len }
_RANGE: Final = struct.Struct("=2Q")
# struct uffdio_register { struct uffdio_range range; u64 mode, ioctls }
_REGISTER: Final = struct.Struct("=4Q")

# struct uffdio_continue { struct uffdio_range range; u64 mode; s64 mapped }
_CONTINUE: Final = struct.Struct("=3Qq")
# struct uffd_msg of a page fault { u8 event, reserved; u16, u32 reserved; u64 flags, address; u32 thread, 0 }
_MESSAGE: Final = struct.Struct("=B7x2Q8x")
_EVENT_PAGEFAULT: Final = 0x12
_FAULT_MINOR: Final = 4
_MESSAGES: Final = 64  # of one read; more are there at the next

_IOC_NEW: Final = io(0xAA, 0x00)
_IOC_API: Final = iowr(0xAA, 0x3F, _API.size)
_IOC_REGISTER: Final = iowr(0xAA, 0x00, _REGISTER.size)
_IOC_UNREGISTER: Final = ior(0xAA, 0x01, _RANGE.size)
_IOC_WAKE: Final = ior(0xAA, 0x02, _RANGE.size)
_IOC_CONTINUE: Final = iowr(0xAA, 0x07, _CONTINUE.size)

_REMEDY: Final = (
    f"run as root, give this user read and write access to {DEVICE}, or set vm.unprivileged_userfaultfd=1"
)


class Feature(IntFlag):
    """UFFD_FEATURE_*, as far as Sterna has a use for them."""

    PAGEFAULT_FLAG_WP = 1 << 0
    MISSING_SHMEM = 1 << 5
    MINOR_SHMEM = 1 << 10
    WP_HUGETLBFS_SHMEM = 1 << 12
    WP_UNPOPULATED = 1 << 13
    WP_ASYNC = 1 << 15


class Mode(IntFlag):
    """UFFDIO_REGISTER_MODE_*."""

    MISSING = 1
    WP = 2
    MINOR = 4


WRITE_TRACKING: Final = (
    Feature.WP_ASYNC | Feature.WP_UNPOPULATED | Feature.WP_HUGETLBFS_SHMEM | Feature.PAGEFAULT_FLAG_WP
)

LATE_PAGES: Final = Feature.MISSING_SHMEM | Feature.MINOR_SHMEM


def _by_device() -> int:
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(device, _IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(device)


def _by_syscall(flags: int) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"no userfaultfd system call number for {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | flags))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


_WAYS: Final = (
    (DEVICE, _by_device),
    ("system call", lambda: _by_syscall(0)),
    ("system call, user mode only", lambda: _by_syscall(_USER_MODE_ONLY)),
)


def _open() -> tuple[int, str]:
    reasons = []
    for way, opener in _WAYS:
        try:
            return opener(), way
        except OSError as error:
            reasons.append(f"{way}: {error.strerror}")
    raise CapabilityMissing("userfaultfd", "; ".join(reasons), _REMEDY)


@dataclass(frozen=True, slots=True)
class Fault:
    """A thread of the registered process waits at this address.

    Attributes:
        minor: the memory has the page, only the mapping has no entry for it.
    """

    address: int
    minor: bool


class FaultDescriptor(Descriptor):
    """A userfaultfd of this process or of another, which has passed it to us. It does not block."""

    def read_faults(self) -> list[Fault]:
        """Faults that nobody has read yet, oldest first; a bounded number of them, none if there are none."""
        try:
            data = os.read(self._fd, _MESSAGES * _MESSAGE.size)
        except BlockingIOError:
            return []
        messages = _MESSAGE.iter_unpack(data)
        return [
            Fault(address, bool(flags & _FAULT_MINOR))
            for event, flags, address in messages
            if event == _EVENT_PAGEFAULT
        ]

    def any_unread(self) -> bool:
        """Whether there are faults that nobody has read yet."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def resolve(self, start: int, length: int) -> None:
        """Make page table entries for pages that the memory has, and let go who waits for them.

        Pages that have an entry already do no harm.

        Raises:
            OSError: EFAULT if the memory lacks a page, ENOENT if the range is not registered any more, ESRCH
                if the process has ended.
        """
        end = start + length
        while start < end:
            argument = bytearray(_CONTINUE.pack(start, end - start, 0, 0))
            try:
                fcntl.ioctl(self._fd, _IOC_CONTINUE, argument)
                start = end
            except OSError as error:
                mapped = _CONTINUE.unpack(argument)[-1]
                if error.errno == errno.EAGAIN:  # a part of it, or nothing while the mapping is changed
                    start += max(mapped, 0)
                elif error.errno == errno.EEXIST:
                    # Somebody may wait all the same: it had faulted before the entry was made.
                    self.wake(start, mmap.PAGESIZE)
                    start += mmap.PAGESIZE
                else:
                    raise

    def wake(self, start: int, length: int) -> None:
        """Let go who waits in the range: it touches its page again, and faults again if that has no entry."""
        fcntl.ioctl(self._fd, _IOC_WAKE, bytearray(_RANGE.pack(start, length)))


class Userfaultfd(FaultDescriptor):
    """An open userfaultfd, bound to the address space of the process that made it.

    Closing it ends every registration; protected pages become plainly writable again.

    Attributes:
        way: how it was opened, for people.
        user_mode_only: faults taken inside the kernel (KVM, read(2) into the range) are not handled.
    """

    def __init__(self, features: Feature) -> None:
        """Open with `features` switched on.

        Raises:
            CapabilityMissing: no way in, or a feature that this kernel lacks.
        """
        fd, self.way = _open()
        super().__init__(fd)
        self.user_mode_only = self.way == _WAYS[-1][0]
        argument = bytearray(_API.pack(_UFFD_API, int(features), 0))
        try:
            fcntl.ioctl(self._fd, _IOC_API, argument)
        except OSError as error:
            self.close()
            wanted = " | ".join(str(one.name) for one in features)
            raise CapabilityMissing(
                "userfaultfd", f"UFFDIO_API refuses {wanted}: {error.strerror}", "a newer kernel (6.7) has it"
            ) from error
        self.offered = Feature(_API.unpack(argument)[1] & _KNOWN)

    def register(self, start: int, length: int, mode: Mode) -> None:
        """Follow the pages of [start, start + length), which one mapping must cover.

        Raises:
            CapabilityMissing: this kernel does not do so for this kind of memory.
        """
        try:
            fcntl.ioctl(self._fd, _IOC_REGISTER, bytearray(_REGISTER.pack(start, length, int(mode), 0)))
        except OSError as error:
            raise CapabilityMissing(
                "userfaultfd",
                f"UFFDIO_REGISTER with {mode!r}: {error.strerror}",
                "the memory must be anonymous or shared memory, the kernel 5.19 or newer",
            ) from error

    def unregister(self, start: int, length: int) -> None:
        """Leave the range alone from now on."""
        fcntl.ioctl(self._fd, _IOC_UNREGISTER, bytearray(_RANGE.pack(start, length)))


_KNOWN: Final = sum(int(feature) for feature in Feature)


def supported() -> tuple[Feature, str, bool]:
    """What this kernel offers this process: features, the way in, and whether for user mode only.

    Raises:
        CapabilityMissing: no way in.
    """
    # UFFDIO_API ends the negotiation, so asking takes a descriptor of its own.
    with Userfaultfd(Feature(0)) as probe:
        return probe.offered, probe.way, probe.user_mode_only
