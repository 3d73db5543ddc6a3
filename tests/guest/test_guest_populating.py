from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from sterna.errors import GuestError
from sterna.guest import populating
from sterna.guest.populating import Ahead, populate
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap
from sterna.registry import ErrorCode

PAGES = 64


@contextlib.contextmanager
def mapped() -> Iterator[MemoryMap]:
    """A mapping with two entries, of memory that is all there."""
    with contextlib.closing(MemoryFile("test", PAGES * PAGE_BYTES)) as file:
        other, memory = file.map(), file.map()
        other.array[:] = 7
        for page in (10, 20):
            memory.touch(page * PAGE_BYTES)
        try:
            yield memory
        finally:
            other.close()
            memory.close()


def entries(memory: MemoryMap) -> list[bool]:
    """Of each page, as the kernel tells."""
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(memory.address // PAGE_BYTES * 8)
        return [bool(top & 0x80) for top in pagemap.read(PAGES * 8)[7::8]]


def no_scanner(*_: object) -> None:
    raise CapabilityMissing("pagemap_scan", "there is none", "a newer kernel has it")


@pytest.mark.parametrize("how", ["told", "not told", "too much told"])
async def test_a_part_of_a_mapping_has_all_of_its_entries(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(populating, "STEP_BYTES", 16 * PAGE_BYTES)
    if how == "not told":
        monkeypatch.setattr(populating, "PagemapScanner", no_scanner)
    elif how == "too much told":
        monkeypatch.setattr(populating, "_RANGES_MAX", 0)
    with mapped() as memory:
        await populate(memory, 2 * PAGE_BYTES, 60 * PAGE_BYTES)
        there = entries(memory)
        assert all(there[2:62])
        assert (memory.array == 7).all()
        await populate(memory, 0, memory.size_bytes)
        assert all(entries(memory))


def test_entries_are_made_ahead() -> None:
    with mapped() as memory:
        ahead = Ahead([memory])
        ahead.join()
        assert all(entries(memory))
        assert (memory.array == 7).all()
        ahead.stop()
        ahead.stop()


def test_huge_pages_are_asked_for_before_the_first_entry_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is faster than the holder brings the pages: by a mapping that does not ask they would be small."""
    calls: list[tuple[str, MemoryMap]] = []
    monkeypatch.setattr(MemoryMap, "advise_huge_pages", lambda self: calls.append(("advise", self)))
    monkeypatch.setattr(MemoryMap, "populate_entries", lambda self, *_: calls.append(("entries", self)))
    with mapped() as one, mapped() as other:
        Ahead([one, other]).join()
        assert calls == [("advise", one), ("advise", other), ("entries", one), ("entries", other)]


@pytest.mark.parametrize("why", ["stopped", "no memory"])
def test_no_entry_is_made_behind_the_end(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(populating, "AHEAD_BYTES", 8 * PAGE_BYTES)
    reached, go_on = threading.Event(), threading.Event()
    populate_some, join, begun = MemoryMap.populate_entries, Ahead.join, []

    def let_it_go_on(self: Ahead) -> None:
        go_on.set()
        join(self)

    def populate_slowly(self: MemoryMap, offset: int, length: int) -> None:
        begun.append(offset // PAGE_BYTES)
        if offset:
            if why == "no memory":
                raise MemoryError
            reached.set()
            assert go_on.wait(10)
        populate_some(self, offset, length)

    monkeypatch.setattr(MemoryMap, "populate_entries", populate_slowly)
    monkeypatch.setattr(Ahead, "join", let_it_go_on)
    with mapped() as memory:
        there = entries(memory)
        ahead = Ahead([memory])
        if why == "stopped":
            assert reached.wait(10)
            ahead.stop()
        ahead.join()
        assert begun == [0, 8]
        assert all(entries(memory)[:8])
        assert entries(memory)[24:] == there[24:]  # up to 16 pages are mapped together, wherever they begin


@pytest.mark.needs("pagemap_scan")
async def test_what_has_its_entries_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    with mapped() as memory, monkeypatch.context() as patch:
        for page in (10, 11, 12, 20):
            memory.touch(page * PAGE_BYTES)
        there = entries(memory)
        patch.setattr(MemoryMap, "populate_entries", lambda _, *part: asked.append(part))
        await populate(memory, 0, memory.size_bytes)
    pages = {
        page for offset, size in asked for page in range(offset // PAGE_BYTES, (offset + size) // PAGE_BYTES)
    }
    assert pages == {page for page in range(PAGES) if not there[page]}


async def test_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError("populating memory: Cannot allocate memory")

    with mapped() as memory, monkeypatch.context() as patch:
        patch.setattr(MemoryMap, "populate_entries", refuse)
        with pytest.raises(GuestError, match="Cannot allocate") as caught:
            await populate(memory, 0, memory.size_bytes)
    assert caught.value.code is ErrorCode.FULL
