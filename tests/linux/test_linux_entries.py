"""Entries are made of what is there, in order, and no longer than is wanted."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from sterna.linux.entries import AROUND_BYTES, STEP_BYTES, EntriesAhead
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


def test_a_reader_has_no_fault_behind_it(fresh: MemoryMap) -> None:
    assert entries(fresh) == 0
    EntriesAhead([fresh.array[: SIZE // 2], fresh.array[SIZE // 2 :]]).join()
    # What a fault maps does not begin where a piece does, so some are left at its end.
    assert entries(fresh) >= (SIZE - 2 * AROUND_BYTES) // PAGE_BYTES


def test_only_what_was_asked_for_is_touched() -> None:
    with MemoryFile("test", SIZE) as file:
        memory = file.map()
        EntriesAhead([memory.array[:AROUND_BYTES]]).join()
        assert 0 < entries(memory) <= AROUND_BYTES // PAGE_BYTES
        memory.close()


def test_whoever_stops_it_may_free_the_memory() -> None:
    """It is between two steps at the latest; nothing is held behind it."""
    begun, go_on = threading.Event(), threading.Event()
    memory = bytearray(4096)
    taken = 0

    def pieces() -> Iterator[npt.NDArray[np.uint8]]:
        nonlocal taken
        begun.set()
        go_on.wait()
        for _ in range(3):
            taken += 1
            yield np.frombuffer(memory, np.uint8)

    ahead = EntriesAhead(pieces())
    begun.wait()
    ahead._stopped = True  # as `stop` says first
    go_on.set()
    ahead.stop()
    ahead.stop()
    assert taken == 1
    memory.append(0)  # which no buffer of it forbids any more


def test_a_step_is_enough_to_let_go_of_the_interpreter() -> None:
    """numpy does for reductions of more than 500 elements."""
    assert STEP_BYTES // AROUND_BYTES > 500
