"""Entries are made of what is there, in order, and no longer than is wanted."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from sterna.linux.entries import AROUND_BYTES, READS, EntriesAhead, Place
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap
from sterna.linux.pagemap import PagemapScanner

SIZE = 4 << 20


@pytest.fixture
def fresh() -> Iterator[MemoryMap]:
    """A mapping without entries of a file that has all of its pages."""
    with MemoryFile("test", SIZE) as file:
        writer, reader = file.map(), file.map()
        writer.array[::PAGE_BYTES] = 1
        yield reader
        reader.close()
        writer.close()


def entries(memory: MemoryMap) -> int:
    try:
        with PagemapScanner() as scanner:
            found = scanner.scan_backed(memory.address, SIZE)
    except CapabilityMissing as missing:
        pytest.skip(str(missing))
    return int((found[:, 1] - found[:, 0]).sum())


def every(memory: MemoryMap, size: int = SIZE) -> Place:
    return memory.array, np.arange(0, size, AROUND_BYTES)


def test_a_reader_has_no_fault_behind_it(fresh: MemoryMap) -> None:
    assert entries(fresh) == 0
    EntriesAhead([every(fresh)]).join()
    # What a fault maps does not begin where memory does, so some are left at its end.
    assert entries(fresh) >= (SIZE - 2 * AROUND_BYTES) // PAGE_BYTES


def test_only_what_was_asked_for_is_touched() -> None:
    with MemoryFile("test", SIZE) as file:
        memory = file.map()
        EntriesAhead([every(memory, AROUND_BYTES)]).join()
        assert 0 < entries(memory) <= AROUND_BYTES // PAGE_BYTES
        memory.close()


@pytest.mark.parametrize("reads", [0, READS + 1], ids=["nothing there", "more than at once"])
def test_whoever_stops_it_may_free_the_memory(reads: int) -> None:
    """It ends at the next place at the latest, be there anything to read; nothing is held behind it."""
    begun, go_on = threading.Event(), threading.Event()
    memory = bytearray(4096)
    taken = 0

    def places() -> Iterator[Place]:
        nonlocal taken
        begun.set()
        go_on.wait()
        for _ in range(3):
            taken += 1
            yield np.frombuffer(memory, np.uint8), np.zeros(reads, np.int64)

    ahead = EntriesAhead(places())
    begun.wait()
    ahead._stopped = True  # as `stop` says first
    go_on.set()
    ahead.stop()
    ahead.stop()
    assert taken == 1
    memory.append(0)  # which no buffer of it forbids any more
