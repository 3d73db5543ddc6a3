"""The memory of a benchmark's guest, at both sides: files that every way of moving maps.

It may have holes, which nobody has ever written: `extents` are what has content. And it may be larger than
what the machine has: the same file is then mapped several times behind each other, at both sides, so that a
guest of 12 GiB takes one; to an endpoint it is memory like any other, far larger than the caches.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.cli.units import format_size
from sterna.errors import ConfigError, GuestError
from sterna.linux.memfd import PAGE_BYTES, MemoryFile
from sterna.linux.memory import available_bytes

_PIECE_BYTES: Final = 16 << 20
_SPARE_BYTES: Final = 512 << 20

_MAP_FIXED: Final = 0x10  # the mmap module has no names for these
_MAP_NORESERVE: Final = 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)

Bytes = npt.NDArray[np.uint8]


class Memories:
    """What is sent, which is random, and where it goes.

    Args:
        size_bytes: memory of the guest.
        extents: offset and length of what has content; the rest was never written. None for all.
        times: how often the same file is mapped; a part of `size_bytes` so large is really there.
        compressible: whether it is like that of a program, and not random; see `like_a_program`.

    Raises:
        ConfigError: there is no room for it.
    """

    def __init__(
        self,
        size_bytes: int,
        extents: Sequence[tuple[int, int]] | None = None,
        *,
        times: int = 1,
        compressible: bool = False,
    ) -> None:
        self._compressible = compressible
        self.size = size_bytes
        self.times = times
        if not size_bytes or size_bytes % (PAGE_BYTES * times):
            raise ConfigError(f"{size_bytes} bytes are not whole pages")
        real = size_bytes // times
        self.extents = [(0, real)] if extents is None else list(extents)
        need = real + sum(length for _, length in self.extents) + _SPARE_BYTES
        if need > available_bytes():
            raise ConfigError(f"there is no room for {format_size(need)}: give the guest less memory")
        self.source = MemoryFile("sterna-bench-source", real)
        self.destination = MemoryFile("sterna-bench-destination", real)
        self._sent, self._arrived = self.source.map(), self.destination.map()
        self._backed: MemoryFile | None = None
        self._fill(self._sent.array)
        self._arrived.array[:] = 0

    @property
    def sent(self) -> memoryview:
        """What is sent, in this process."""
        return self._sent.view

    @property
    def arrived(self) -> memoryview:
        """What has arrived, in this process."""
        return self._arrived.view

    @property
    def whole(self) -> bool:
        """Whether there are no holes in it."""
        return self.extents == [(0, self.source.size_bytes)]

    @property
    def backed_source(self) -> MemoryFile:
        """The same content without holes, for those to whom reading one would give it a page."""
        if self.whole:
            return self.source
        if self._backed is None:
            if self.source.size_bytes > available_bytes() - _SPARE_BYTES:
                raise ConfigError("there is no room for a copy without holes: give the guest less memory")
            self._backed = MemoryFile("sterna-bench-backed", self.source.size_bytes)
            array = self._backed.map().array
            array[:] = 0
            self._fill(array)
        return self._backed

    def map_source(self) -> memoryview:
        """The guest's memory, for a process that sends it; what has content is mapped and touched."""
        return self._map(self.source, self.extents)

    def map_destination(self) -> memoryview:
        """The room for it, all of it touched."""
        return self._map(self.destination, [(0, self.destination.size_bytes)])

    def clear(self) -> None:
        """Have zeros at the destination, in memory that is there already."""
        for begin, end in self._pieces():
            self._arrived.array[begin:end] = 0

    def check(self) -> None:
        """Raise GuestError unless all has arrived, and nothing else."""
        sent, arrived = self._sent.array, self._arrived.array
        equal = all(np.array_equal(sent[begin:end], arrived[begin:end]) for begin, end in self._pieces())
        ends = [0, *(offset + length for offset, length in self.extents)]
        begins = [*(offset for offset, _ in self.extents), len(arrived)]
        if not equal or any(arrived[begin:end].any() for begin, end in zip(ends, begins, strict=True)):
            raise GuestError("what has arrived is not what was sent")

    def copy(self) -> float:
        """The seconds that a plain copy of the content takes."""
        begin = time.perf_counter()
        for offset, length in self.extents:
            np.copyto(
                self._arrived.array[offset : offset + length], self._sent.array[offset : offset + length]
            )
        return (time.perf_counter() - begin) * self.times

    def _fill(self, array: Bytes) -> None:
        """Random bytes: nobody can compress them, and no page is like another. Or not so."""
        rng = np.random.default_rng(1)
        for begin, end in self._pieces():
            if self._compressible:
                array[begin:end] = like_a_program(rng, end - begin)
                continue
            array[begin:end] = np.frombuffer(rng.bytes(end - begin), np.uint8)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """What has content, in pieces: a comparison makes an array as large as what it compares."""
        for offset, length in self.extents:
            for begin in range(offset, offset + length, _PIECE_BYTES):
                yield begin, min(begin + _PIECE_BYTES, offset + length)

    def _map(self, file: MemoryFile, extents: Sequence[tuple[int, int]]) -> memoryview:
        view = file.map().view if self.times == 1 else _repeated(file, self.times)
        array = np.frombuffer(view, np.uint8)
        for number in range(self.times):
            for offset, length in extents:
                begin = number * file.size_bytes + offset
                array[begin : begin + length : PAGE_BYTES] |= 0  # a write of what is there
        return view


def like_a_program(rng: np.random.Generator, size_bytes: int) -> Bytes:
    """Whole pages, a quarter of them zero and a quarter random; the others repeat some words of 8 bytes.

    Which word comes next is as in texts and heaps: a few often, most of them seldom. Such a page compresses
    to about a third.
    """
    pages = size_bytes // PAGE_BYTES
    words = rng.integers(1 << 40, 1 << 63, 4096, np.uint64)
    order = np.minimum(rng.zipf(1.3, pages * PAGE_BYTES // 8), len(words)) - 1
    content = words[order].reshape(pages, -1)
    kind = rng.integers(0, 4, pages)
    content[kind == 0] = 0
    noise = rng.bytes(int(np.count_nonzero(kind == 1)) * PAGE_BYTES)
    content[kind == 1] = np.frombuffer(noise, np.uint64).reshape(-1, PAGE_BYTES // 8)
    made: Bytes = content.view(np.uint8).reshape(-1)
    return made


def path_of(file: MemoryFile) -> str:
    """Where other processes find a memory file of this one."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _repeated(file: MemoryFile, times: int) -> memoryview:
    """A mapping of the whole file, so many times behind itself."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    room = mmap.mmap(-1, file.size_bytes * times, flags=private)
    address = int(np.frombuffer(room, np.uint8).ctypes.data)
    for number in range(times):
        at = address + number * file.size_bytes
        got = _libc.mmap(
            *(at, file.size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED),
            *(file.fileno(), 0),
        )
        if got != at:
            raise MemoryError(os.strerror(ctypes.get_errno()))
    return memoryview(room)
