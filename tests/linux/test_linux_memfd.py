from __future__ import annotations

import errno
import os
from collections.abc import Callable

import numpy as np
import pytest

from descriptors_support import nothing_stays_open
from sterna.linux import memfd
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap, read_shared


def test_two_mappings_show_one_memory() -> None:
    file = MemoryFile("test", 3 * PAGE_BYTES)
    one, other = file.map(), file.map()
    one.advise_huge_pages()
    one.populate(0, one.size_bytes)
    assert not np.count_nonzero(other.array)
    one.array[PAGE_BYTES] = 7
    assert other.view[PAGE_BYTES] == 7
    assert other.address == other.array.ctypes.data
    one.free_pages()
    assert other.view[PAGE_BYTES] == 0
    one.close()
    other.close()
    file.close()
    file.close()
    assert file.fileno() == -1


def test_a_page_that_was_unmapped_keeps_its_content() -> None:
    """[PCY-6]"""
    file = MemoryFile("test", 3 * PAGE_BYTES)
    memory = file.map()
    memory.array[:] = 9
    memory.unmap_pages(PAGE_BYTES, PAGE_BYTES)
    memory.touch(PAGE_BYTES)
    assert (memory.array == 9).all()
    with pytest.raises(OSError, match="Invalid argument"):
        memory.unmap_pages(1, PAGE_BYTES)
    memory.close()
    file.close()


def pidfds() -> set[str]:
    """Numbers of this process' descriptors that are pidfds."""
    names = os.listdir("/proc/self/fd")
    return {name for name in names if "pidfd" in os.path.realpath(f"/proc/self/fd/{name}")}


@pytest.mark.parametrize("lacks", ["", "pidfd_open", "process_madvise"])
def test_many_ranges_are_unmapped_by_any_kernel(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What /proc says is mapped is what was left."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    if lacks == "pidfd_open":
        monkeypatch.setattr(os, "pidfd_open", refuse)
    if lacks == "process_madvise":
        monkeypatch.setattr(memfd, "_PROCESS_MADVISE", 1 << 20)
    pages = 3000
    before = pidfds()
    file = MemoryFile("test", pages * PAGE_BYTES)
    memory = file.map()
    memory.array[:] = 9
    starts = np.arange(0, pages, 2)
    memory.unmap_ranges(starts * PAGE_BYTES, np.full(len(starts), PAGE_BYTES))
    memory.unmap_ranges([], [])
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(memory.address // PAGE_BYTES * 8)
        entries = np.frombuffer(pagemap.read(pages * 8), "<u8") >> np.uint64(63)
    assert entries.tolist() == [0, 1] * (pages // 2)
    assert (memory.array == 9).all()
    with pytest.raises(OSError, match="Invalid argument"):
        memory.unmap_ranges([0, 1], [PAGE_BYTES, PAGE_BYTES])
    memory.close()
    file.close()
    assert pidfds() <= before  # what an earlier test has left may be closed meanwhile


def test_nobody_changes_its_size() -> None:
    """[HOL-32]"""
    file = MemoryFile("test", PAGE_BYTES)
    for size in (0, 2 * PAGE_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(file.fileno(), size)
    file.close()


def test_a_read_only_descriptor_gives_no_writable_mapping() -> None:
    file = MemoryFile("test", PAGE_BYTES)
    descriptor = file.open_read_only()
    with pytest.raises(PermissionError):
        MemoryMap(descriptor, PAGE_BYTES)
    mapped = MemoryMap(descriptor, PAGE_BYTES, writable=False)
    assert mapped.view.readonly
    mapped.close()
    os.close(descriptor)
    file.close()


def test_a_mapping_outlives_close_while_it_is_in_use() -> None:
    file = MemoryFile("test", PAGE_BYTES)
    mapped = file.map()
    view = mapped.view
    mapped.close()
    file.close()
    view[0] = 1
    assert view[0] == 1


@pytest.mark.parametrize("populate", [MemoryMap.populate, MemoryMap.populate_entries])
def test_populating_keeps_content_and_reports_what_the_kernel_says(
    populate: Callable[[MemoryMap, int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MemoryFile("test", 4 * PAGE_BYTES)
    mapped = file.map()
    mapped.array[:] = 9
    populate(mapped, 0, mapped.size_bytes)
    assert (mapped.array == 9).all()
    other = file.map()
    populate(other, 0, other.size_bytes)
    other.array[:] = 8
    assert (mapped.array == 8).all()
    other.close()

    def answer(code: int) -> None:
        monkeypatch.setattr("sterna.linux.memfd._libc.madvise", lambda *_: -1)
        monkeypatch.setattr("ctypes.get_errno", lambda: code)

    answer(errno.EINVAL)  # a kernel that cannot: pages come by themselves
    populate(mapped, 0, mapped.size_bytes)
    answer(errno.EFAULT)
    with pytest.raises(MemoryError, match="populating"):
        populate(mapped, 0, mapped.size_bytes)
    mapped.close()
    file.close()


def test_a_kernel_without_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(CapabilityMissing, match="memfd"):
        MemoryFile("test", PAGE_BYTES)


def test_a_size_that_cannot_be_leaves_nothing_open() -> None:
    with nothing_stays_open(), pytest.raises((OSError, OverflowError)):
        MemoryFile("test", -1)


@pytest.mark.parametrize("data", [b"", b"state", bytes(range(256)) * 100])
def test_bytes_through_a_file(data: bytes) -> None:
    file = MemoryFile.of_bytes("test", data)
    assert read_shared(file.fileno(), len(data)) == data
    file.close()


def test_shared_bytes_are_bounded_and_come_from_memory_files_only() -> None:
    file = MemoryFile.of_bytes("test", b"12345")
    with pytest.raises(ValueError, match="at most 4"):
        read_shared(file.fileno(), 4)
    file.close()
    reader, writer = os.pipe()
    with pytest.raises(ValueError, match="not a readable memory file"):
        read_shared(reader, 100)  # would wait for ever
    os.close(reader)
    os.close(writer)


def test_a_write_only_memory_file_is_refused() -> None:
    file = MemoryFile.of_bytes("test", b"12345")
    descriptor = os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY)
    with pytest.raises(ValueError, match="not a readable"):
        read_shared(descriptor, 100)
    os.close(descriptor)
    file.close()
