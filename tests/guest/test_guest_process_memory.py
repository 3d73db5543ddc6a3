from __future__ import annotations

import contextlib
import threading

import pytest

from descriptors_support import nothing_stays_open
from sterna.guest import process_memory
from sterna.guest.process_memory import GuestMemory
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap

SIZE = 16 * PAGE_BYTES


def test_populated_and_freed() -> None:
    memory = GuestMemory(SIZE, "compare")
    other = memory.file.map()
    memory.wait_populated()  # nothing to wait for
    memory.start_populating()
    memory.wait_populated()
    memory.map.array[:] = 3
    assert other.view[5] == 3
    memory.free()
    assert other.view[5] == 0  # [HOL-30]: freed for everybody
    assert (memory.tracker.name, memory.tracker_reason) == ("compare", "asked for")
    other.close()


def test_not_enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError("populating memory")

    memory = GuestMemory(SIZE, "compare")
    monkeypatch.setattr(MemoryMap, "populate", refuse)
    memory.start_populating()
    for _ in range(2):
        with pytest.raises(MemoryError):
            memory.wait_populated()
    monkeypatch.undo()
    with contextlib.suppress(MemoryError):  # of the attempt that began before there was enough
        memory.wait_populated()
    memory.wait_populated()
    memory.free()


def test_what_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A destination is asked again and again."""
    with nothing_stays_open(), pytest.raises(ValueError, match="no tracker"):
        GuestMemory(SIZE, "magic")
    monkeypatch.setattr(MemoryFile, "map", lambda _: (_ for _ in ()).throw(OSError(12, "no memory")))
    with nothing_stays_open(), pytest.raises(OSError, match="no memory"):
        GuestMemory(SIZE, "compare")


def test_freeing_does_not_wait_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "_STEP_BYTES", PAGE_BYTES)
    begun, go = threading.Event(), threading.Event()
    steps = []

    def slow(_: MemoryMap, offset: int, __: int) -> None:
        steps.append(offset)
        begun.set()
        assert go.wait(30)

    memory = GuestMemory(SIZE, "compare")
    monkeypatch.setattr(MemoryMap, "populate", slow)
    memory.start_populating()
    assert begun.wait(30)
    memory._cancelled = True
    go.set()
    memory.free()
    assert len(steps) == 1
