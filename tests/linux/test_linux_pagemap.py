from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import pytest

from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap
from sterna.linux.pagemap import PagemapScanner
from sterna.linux.userfaultfd import WRITE_TRACKING, Mode, Userfaultfd

PAGES = 300
VECTOR_ROWS = 7  # far fewer than the runs below, so that a scan has to go on


@pytest.fixture
def memory() -> Iterator[MemoryMap]:
    file = MemoryFile("test", PAGES * PAGE_BYTES)
    mapped = file.map()
    yield mapped
    mapped.close()
    file.close()


@pytest.fixture
def scanner(memory: MemoryMap) -> Iterator[PagemapScanner]:
    with Userfaultfd(WRITE_TRACKING) as uffd:
        uffd.register(memory.address, memory.size_bytes, Mode.WP)
        found = PagemapScanner(VECTOR_ROWS)
        found.protect(memory.address, memory.size_bytes)
        yield found
        found.close()
        found.close()


def written(scanner: PagemapScanner, memory: MemoryMap, *, rearm: bool = True) -> list[list[int]]:
    return scanner.scan_written(memory.address, memory.size_bytes, rearm=rearm).tolist()


@pytest.mark.needs("pagemap_scan")
def test_runs_are_exact_and_forgotten(memory: MemoryMap, scanner: PagemapScanner) -> None:
    assert written(scanner, memory) == []
    memory.array[5 * PAGE_BYTES] = 1
    memory.array[7 * PAGE_BYTES : 9 * PAGE_BYTES] = 1
    assert written(scanner, memory) == [[5, 6], [7, 9]]
    assert written(scanner, memory) == []
    memory.array[-1] = 1
    assert written(scanner, memory) == [[PAGES - 1, PAGES]]


@pytest.mark.needs("pagemap_scan")
def test_looking_without_rearming_forgets_nothing(memory: MemoryMap, scanner: PagemapScanner) -> None:
    memory.array[0] = 1
    assert written(scanner, memory, rearm=False) == [[0, 1]]
    assert written(scanner, memory) == [[0, 1]]


@pytest.mark.needs("pagemap_scan")
def test_more_runs_than_the_vector_holds(memory: MemoryMap, scanner: PagemapScanner) -> None:
    memory.array[:: 2 * PAGE_BYTES] = 1
    assert written(scanner, memory) == [[page, page + 1] for page in range(0, PAGES, 2)]
    assert written(scanner, memory) == []


def test_a_process_that_cannot_look_at_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sterna.linux.pagemap._PAGEMAP", "/none/such")
    with pytest.raises(CapabilityMissing, match="/none/such"):
        PagemapScanner()


@pytest.mark.needs("pagemap_scan")
def test_a_range_that_is_not_registered(memory: MemoryMap) -> None:
    scanner = PagemapScanner()
    memory.array[0] = 1
    with pytest.raises(CapabilityMissing, match="PAGEMAP_SCAN"):
        scanner.scan_written(memory.address, memory.size_bytes)
    scanner.close()


@pytest.mark.needs("pagemap_scan")
def test_private_pages_that_exist() -> None:
    memory = mmap.mmap(-1, PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = int(np.frombuffer(memory, np.uint8).ctypes.data)
    with PagemapScanner(VECTOR_ROWS) as scanner:
        assert scanner.scan_backed(address, len(memory)).tolist() == []
        for page in range(0, 40, 2):
            memory[page * PAGE_BYTES] = 0
        assert memory[7 * PAGE_BYTES] == 0  # only read
        runs = scanner.scan_backed(address, len(memory)).tolist()
    assert runs == [[page, page + 1] for page in range(0, 40, 2)]
