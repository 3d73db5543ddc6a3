"""memfd_create(2): memory with a name that can be passed to another process and mapped there again.

A file that other processes map is sealed against changing its size: whoever could shrink it would kill every
other process that touches the missing pages with SIGBUS.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.linux.descriptor import Descriptor
from sterna.linux.errors import CapabilityMissing

PAGE_BYTES: Final = mmap.PAGESIZE
_FIXED_SIZE: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; the mmap module has no name for it
_STEP_BYTES: Final = 16 << 20
_PROCESS_MADVISE: Final = 440  # the number of the system call, on every machine
_RANGES: Final = 1024  # of one call: IOV_MAX

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_scratch = ctypes.create_string_buffer(8)
_scratch_address: Final = ctypes.addressof(_scratch)


def _own_process() -> int | None:
    """A pidfd of this process, if the kernel has such a thing."""
    try:
        return os.pidfd_open(os.getpid())
    except OSError:
        return None


def _madvise_many(process: int, address: int, ranges: npt.NDArray[np.uint64]) -> bool:
    """MADV_DONTNEED for all of them; False where the kernel (before 6.13) does not, or not for all."""
    vector = ranges + np.array([address, 0], np.uint64)
    done = _libc.syscall(
        _PROCESS_MADVISE, process, vector.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_size_t(len(vector)), mmap.MADV_DONTNEED, 0,
    )  # fmt: skip
    return int(done) == int(vector[:, 1].sum())


class MemoryMap:
    """A shared mapping of a whole memory file.

    Attributes:
        array: the bytes, as numpy sees them; shape (size_bytes,), dtype uint8.
        address: where they are in this process.
    """

    def __init__(self, fd: int, size_bytes: int, *, writable: bool = True) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, prot=protection)
        self.size_bytes = size_bytes
        self.array: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        self.address = int(self.array.ctypes.data)

    @property
    def view(self) -> memoryview:
        """The bytes as a memoryview."""
        return memoryview(self._map)

    def advise_huge_pages(self) -> None:
        """Ask for huge pages; a kernel that has none for shared memory ignores it."""
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOSYS}:
                raise

    def populate(self, offset: int, length: int) -> None:
        """Have pages present and writable before somebody waits for them. Content stays as it is.

        Raises:
            MemoryError: there is not enough memory.
        """
        self._populate(offset, length, _MADV_POPULATE_WRITE)

    def populate_entries(self, offset: int, length: int) -> None:
        """`populate`, where most pages are there already and lack only their entries in this mapping.

        A read maps the pages around it with its own, and writable where the mapping is: a third of the time.

        Raises:
            MemoryError: there is not enough memory.
        """
        self._populate(offset, length, _MADV_POPULATE_READ)

    def _populate(self, offset: int, length: int, advice: int) -> None:
        for start in range(offset, offset + length, _STEP_BYTES):
            size = min(_STEP_BYTES, offset + length - start)
            # Not mmap.madvise(): that one holds the interpreter lock all the time.
            if _libc.madvise(self.address + start, size, advice) == 0:
                continue
            code = ctypes.get_errno()
            if code == errno.EINVAL:
                return  # before Linux 5.14: pages come at their first touch
            raise MemoryError(f"populating memory: {os.strerror(code)}")

    def unmap_pages(self, offset: int, length: int) -> None:
        """Take this mapping's page table entries away: the next access faults. The file keeps its content."""
        if _libc.madvise(self.address + offset, length, mmap.MADV_DONTNEED):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def unmap_ranges(self, offsets: npt.ArrayLike, lengths: npt.ArrayLike) -> None:
        """`unmap_pages` of many ranges: several times faster where the kernel takes them together."""
        ranges = np.stack((np.asarray(offsets), np.asarray(lengths)), axis=1).astype(np.uint64)
        batches = [ranges[first : first + _RANGES] for first in range(0, len(ranges), _RANGES)]
        process = _own_process() if batches else None
        try:
            for batch in batches:
                if process is None or not _madvise_many(process, self.address, batch):
                    for offset, length in batch.tolist():
                        self.unmap_pages(offset, length)
        finally:
            if process is not None:
                os.close(process)

    def touch(self, offset: int) -> None:
        """Read a word; where that faults, wait for it without the interpreter lock, unlike `array`."""
        _libc.memcpy(_scratch_address, self.address + offset, 8)

    def free_pages(self) -> None:
        """Give all pages back to the system, for every process that maps the file; they read as zeros."""
        self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Unmap. Where views are still in use, the mapping goes with the last of them."""
        self.array = np.empty(0, dtype=np.uint8)
        with contextlib.suppress(BufferError):
            self._map.close()


class MemoryFile(Descriptor):
    """A sealed memory file of a fixed size. Mappings stay when it is closed."""

    def __init__(self, name: str, size_bytes: int) -> None:
        """Make the file; its pages are allocated when they are touched.

        Raises:
            CapabilityMissing: the kernel makes no memory files.
        """
        try:
            super().__init__(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        except OSError as error:
            raise CapabilityMissing(
                "memfd", f"memfd_create: {error.strerror}", "allow memfd_create in the sandbox"
            ) from error
        self.size_bytes = size_bytes
        try:
            os.ftruncate(self._fd, size_bytes)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _FIXED_SIZE)
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_bytes(cls, name: str, data: bytes) -> MemoryFile:
        """A file with this content, for passing on."""
        file = cls(name, len(data))
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(file.fileno(), memoryview(data)[written:], written)
        except BaseException:
            file.close()
            raise
        return file

    def map(self) -> MemoryMap:
        """A new writable mapping of the whole file."""
        return MemoryMap(self._fd, self.size_bytes)

    def open_read_only(self) -> int:
        """A new descriptor of the same file that can neither write nor be mapped for writing."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)


def is_memory_file(fd: int) -> bool:
    """Whether this is memory: only such files have seals. Asking does not wait, whatever it is."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def has_fixed_size(fd: int) -> bool:
    """Whether nobody can change the size of this memory file; others are not to be mapped."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return seals & _FIXED_SIZE == _FIXED_SIZE


def read_shared(fd: int, limit_bytes: int) -> bytes:
    """The whole content of a memory file that somebody passed to us.

    Raises:
        ValueError: not a memory file, larger than `limit_bytes`, or shrunk while it was read.
    """
    # Anything else (a pipe, a FUSE file) could make us wait for ever; even fstat(2) of it could.
    if not is_memory_file(fd):
        raise ValueError("not a readable memory file")
    try:
        size = os.fstat(fd).st_size
        if size > limit_bytes:
            raise ValueError(f"a memory file of {size} bytes, at most {limit_bytes} are taken")
        data = os.pread(fd, size, 0)
    except OSError as error:
        raise ValueError(f"not a readable memory file: {error.strerror}") from error
    if len(data) != size:
        raise ValueError("the memory file changed while it was read")
    return data
