"""What is read ahead of the first round: what is there, and nothing for longer than it is wanted."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from sterna.core.events import RoundStarted
from sterna.memory.bitmap import PageBitmap
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.net.ahead import ReadAhead, places
from sterna.net.steady import SteadyPages
from sterna.wire.records import Region

PAGES = 10_000  # of 4 KiB, which is no whole number of portions
WINDOW = 16


def bitmap(*runs: tuple[int, int], pages: int = PAGES) -> PageBitmap:
    made = PageBitmap(pages)
    for first, count in runs:
        made.set(first, count)
    return made


def read(pages: PageBitmap, granule_log2: int = 12) -> list[int]:
    """Numbers of the pages that are read."""
    memory = np.zeros(pages.bits << granule_log2, np.uint8)
    found = [offsets for _, offsets in places(memory, pages, granule_log2)]
    return (np.concatenate(found) >> granule_log2).tolist()


def test_a_page_of_each_window_is_read() -> None:
    assert read(PageBitmap.full(PAGES)) == list(range(0, PAGES, WINDOW))


def test_only_pages_that_are_there_are_read() -> None:
    there = bitmap((3, 1), (7, 1), (100, 400), (5000, 1), (PAGES - 1, 1))
    windows = [3, 100, *range(112, 500, WINDOW), 5000, PAGES - 1]
    assert read(there) == windows


def test_nothing_there_is_nothing_to_read() -> None:
    assert read(bitmap()) == []


def test_larger_granules() -> None:
    assert read(bitmap((1, 1), (8, 3), pages=64), 13) == [1, 8]
    assert read(bitmap((1, 2), (9, 1), pages=64), 16) == [1, 2, 9]


class Guest:
    """Memory that cannot be resized as long as somebody holds it."""

    def __init__(self) -> None:
        self.memory = bytearray(PAGES * 4096)
        table = RegionTable((Region(0, 0, len(self.memory)),))
        self.pages = RegionPages(table, {0: memoryview(self.memory)})
        self.steady = SteadyPages(self.pages, lambda: 0.0)

    def check_free(self) -> None:
        del self.pages
        self.memory.append(0)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "entries"]


@pytest.mark.parametrize(
    "told", [None, "nonsense", {}, {0: bitmap((5, 9))}, {0: bitmap(pages=3)}, {7: 1}], ids=str
)
def test_memory_is_free_when_nothing_is_sent_any_more(told: object) -> None:
    guest = Guest()
    guest.steady.reads_next(told)
    guest.steady.on_event(RoundStarted(1, 1, last=False))
    guest.steady.close()
    assert not threads()
    guest.check_free()


@pytest.mark.parametrize("event", [None, RoundStarted(1, 1, last=True), RoundStarted(2, 1, last=False)])
def test_only_the_first_round_is_read_ahead(event: RoundStarted | None, monkeypatch) -> None:
    """The blackout has no time for it; and a session without any round reads what it pushes later."""
    monkeypatch.setattr(ReadAhead, "start", lambda _: pytest.fail("it was started"))
    guest = Guest()
    guest.steady.reads_next(None)
    if event is not None:
        guest.steady.on_event(event)
    guest.steady.close()
    guest.check_free()


def test_with_one_processor_nothing_is_read_ahead(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr("sterna.net.ahead.EntriesAhead", lambda _: pytest.fail("a thread was started"))
    guest = Guest()
    ahead = ReadAhead(guest.pages, None)
    ahead.start()
    ahead.close()
    del ahead
    guest.steady.close()
    guest.check_free()


def test_it_goes_without_a_thread_if_there_can_be_no_more(monkeypatch) -> None:
    def refuses(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(threading.Thread, "start", refuses)
    guest = Guest()
    guest.steady.reads_next(None)
    guest.steady.on_event(RoundStarted(1, 1, last=False))
    guest.steady.close()
    guest.check_free()
