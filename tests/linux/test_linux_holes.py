"""Holes are what nobody has written, and are found without making them anything else."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest

from sterna.linux import holes as module
from sterna.linux.errors import CapabilityMissing
from sterna.linux.holes import file_holes, memory_holes
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap

PAGES = 600  # more than a page table maps
SIZE = PAGES * PAGE_BYTES
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


@pytest.fixture
def file() -> Iterator[MemoryFile]:
    with MemoryFile("test", SIZE) as file:
        yield file


@pytest.fixture
def mapped(file: MemoryFile) -> Iterator[MemoryMap]:
    mapped = file.map()
    yield mapped
    mapped.close()


def pages(ranges: np.ndarray) -> list[list[int]]:
    return (ranges // PAGE_BYTES).tolist()


def address_of(memory: mmap.mmap) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def test_a_file_is_one_hole_until_somebody_writes(file: MemoryFile, mapped: MemoryMap) -> None:
    assert pages(file_holes(file.fileno(), 0, SIZE)) == [[0, PAGES]]
    mapped.array[3 * PAGE_BYTES] = 1
    mapped.array[-1] = 0  # written is written, whatever the content
    assert pages(file_holes(file.fileno(), 0, SIZE)) == [[0, 3], [4, PAGES - 1]]
    mapped.free_pages()
    assert pages(file_holes(file.fileno(), 0, SIZE)) == [[0, PAGES]]


def test_a_part_of_a_file_counts_from_its_start(file: MemoryFile, mapped: MemoryMap) -> None:
    mapped.array[: 2 * PAGE_BYTES] = 1
    mapped.array[5 * PAGE_BYTES : 9 * PAGE_BYTES] = 1
    assert pages(file_holes(file.fileno(), PAGE_BYTES, 6 * PAGE_BYTES)) == [[1, 4]]
    assert pages(file_holes(file.fileno(), 2 * PAGE_BYTES, 2 * PAGE_BYTES)) == [[0, 2]]
    assert pages(file_holes(file.fileno(), 6 * PAGE_BYTES, PAGE_BYTES)) == []


def test_behind_very_many_pieces_everything_counts_as_written(
    file: MemoryFile, mapped: MemoryMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped.array[:: 2 * PAGE_BYTES] = 1
    monkeypatch.setattr(module, "_PIECES_MOST", 5)
    assert pages(file_holes(file.fileno(), 0, SIZE)) == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]


def test_where_data_ends_is_not_sought_where_it_is_known(
    file: MemoryFile, mapped: MemoryMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first, count in ((1, 2), (5, 3), (8, 2), (20, 4)):
        mapped.array[first * PAGE_BYTES : (first + count) * PAGE_BYTES] = 1
    sought, seek = [], os.lseek

    def lseek(fd: int, position: int, whence: int) -> int:
        if whence == os.SEEK_HOLE:
            sought.append(position // PAGE_BYTES)
        return seek(fd, position, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    holes = [[0, 1], [3, 5], [10, 20], [24, PAGES]]
    assert pages(file_holes(file.fileno(), 0, SIZE)) == holes
    assert sought == [1, 5, 20]
    sought.clear()
    backed = np.array([(1, 3), (5, 8), (22, 24)], np.int64) * PAGE_BYTES
    assert pages(file_holes(file.fileno(), 0, SIZE, backed)) == holes
    assert sought == [8, 20]
    part = file_holes(file.fileno(), PAGE_BYTES, 6 * PAGE_BYTES, backed - PAGE_BYTES)
    assert pages(part) == [[2, 4]]


def test_of_files_that_are_not_memory_nothing_is_told() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        assert pages(file_holes(file.fileno(), 0, SIZE)) == []


@pytest.mark.parametrize("error", [OSError("no descriptors"), CapabilityMissing("pagemap_scan", "none", "")])
def test_what_the_kernel_does_not_tell_is_no_hole(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object) -> None:
        raise error

    memory = mmap.mmap(-1, SIZE)
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(module, "_private_holes", refuse)
    assert pages(memory_holes(address_of(memory), SIZE)) == []


def can_open_mappings() -> bool:
    memory = mmap.mmap(-1, PAGE_BYTES)
    return len(memory_holes(address_of(memory), PAGE_BYTES)) == 1


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(PRIVATE, marks=pytest.mark.needs("pagemap_scan")),
        pytest.param(
            mmap.MAP_SHARED | mmap.MAP_ANONYMOUS,
            marks=pytest.mark.skipif("not can_open_mappings()", reason="no right to open what is mapped"),
        ),
    ],
)
def test_memory_of_this_process(flags: int) -> None:
    memory = mmap.mmap(-1, SIZE, flags=flags)
    address = address_of(memory)
    assert pages(memory_holes(address, SIZE)) == [[0, PAGES]]
    assert memory[7 * PAGE_BYTES] == 0  # reading may give shared memory a page, and private memory none
    memory[9 * PAGE_BYTES] = 1
    found = pages(memory_holes(address, SIZE))
    assert found == ([[0, 9], [10, PAGES]] if flags == PRIVATE else [[0, 7], [8, 9], [10, PAGES]])
    odd = memory_holes(address + 9 * PAGE_BYTES + 16, 2 * PAGE_BYTES)
    assert odd.tolist() == [[PAGE_BYTES - 16, 2 * PAGE_BYTES]]


@pytest.mark.skipif("not can_open_mappings()", reason="no right to open what is mapped")
@pytest.mark.parametrize("scans", [True, False])
def test_shared_memory_that_another_mapping_has_written(
    file: MemoryFile, mapped: MemoryMap, monkeypatch: pytest.MonkeyPatch, *, scans: bool
) -> None:
    def refuse(*_: object) -> None:
        raise CapabilityMissing("pagemap_scan", "none", "")

    if not scans:
        monkeypatch.setattr(module, "PagemapScanner", refuse)
    other = file.map()
    mapped.array[3 * PAGE_BYTES : 5 * PAGE_BYTES] = 1
    other.array[5 * PAGE_BYTES] = 1  # in no page table of the first mapping
    other.array[7 * PAGE_BYTES] = 1
    assert pages(memory_holes(mapped.address, SIZE)) == [[0, 3], [6, 7], [8, PAGES]]
    other.close()


def test_private_pages_over_a_file_are_no_holes() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * PAGE_BYTES)
        file.flush()
        memory = mmap.mmap(file.fileno(), PAGE_BYTES, flags=mmap.MAP_PRIVATE)
        assert pages(memory_holes(address_of(memory), PAGE_BYTES)) == []


def test_few_holes_are_not_looked_for(file: MemoryFile, mapped: MemoryMap) -> None:
    mapped.array[:] = 1
    mapped.unmap_pages(0, SIZE)
    assert pages(file_holes(file.fileno(), 0, SIZE)) == []
    with MemoryFile("test", SIZE) as other:
        others = other.map()
        others.array[: SIZE - SIZE // 64] = 1
        assert pages(file_holes(other.fileno(), 0, SIZE)) == []
        others.close()


def test_page_tables_are_not_asked_about_a_file_without_holes(
    mapped: MemoryMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module, "_backed", lambda start, end: asked.append(end - start) or module._NOTHING)
    address = address_of(mapped.array)
    assert pages(memory_holes(address, SIZE)) == [[0, PAGES]]
    mapped.array[::PAGE_BYTES] = 1
    assert pages(memory_holes(address, SIZE)) == []
    assert asked == [SIZE]
