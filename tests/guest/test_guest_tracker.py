from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from sterna.guest import tracker as module
from sterna.guest.tracker import CompareTracker, Tracker, UffdTracker, choose_tracker
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap
from sterna.memory.bitmap import PageBitmap

PAGES = 500
ROUNDS = 20
BOTH = [pytest.param(UffdTracker, marks=pytest.mark.needs("pagemap_scan")), CompareTracker]
UFFD = BOTH[:1]


@pytest.fixture
def memory() -> Iterator[MemoryMap]:
    file = MemoryFile("test", PAGES * PAGE_BYTES)
    mapped = file.map()
    yield mapped
    mapped.close()
    file.close()


def pages_of(bitmap: PageBitmap) -> list[int]:
    return [
        page
        for start, count in zip(*(part.tolist() for part in bitmap.runs()), strict=True)
        for page in range(start, start + count)
    ]


@pytest.mark.parametrize("kind", BOTH)
def test_what_was_written_is_reported_once(kind: type[Tracker], memory: MemoryMap) -> None:
    memory.array[7 * PAGE_BYTES] = 1
    tracker = kind(memory)
    tracker.start()
    assert pages_of(tracker.collect()) == []
    for page in (0, 5, 6, PAGES - 1):
        memory.array[page * PAGE_BYTES + page] += 1
    assert pages_of(tracker.collect()) == [0, 5, 6, PAGES - 1]
    assert pages_of(tracker.collect()) == []
    tracker.stop()
    tracker.stop()


@pytest.mark.parametrize("kind", BOTH)
def test_what_is_kept_may_be_told_again(kind: type[Tracker], memory: MemoryMap) -> None:
    """And nothing is lost by it."""
    tracker = kind(memory)
    tracker.start()
    memory.array[5 * PAGE_BYTES] = 1
    assert pages_of(tracker.collect(keep=True)) == [5]
    memory.array[6 * PAGE_BYTES] = 1
    assert set(pages_of(tracker.collect())) - {5} == {6}
    assert pages_of(tracker.collect()) == []
    tracker.stop()


@pytest.mark.parametrize("kind", BOTH)
def test_tracking_can_begin_again(kind: type[Tracker], memory: MemoryMap) -> None:
    tracker = kind(memory)
    with pytest.raises(RuntimeError):
        tracker.collect()
    tracker.start()
    memory.array[0] = 1
    tracker.stop()
    memory.array[PAGE_BYTES] = 1
    tracker.start()
    assert pages_of(tracker.collect()) == []
    memory.array[2 * PAGE_BYTES] = 1
    tracker.start()  # without a stop
    memory.array[3 * PAGE_BYTES] = 1
    assert pages_of(tracker.collect()) == [3]
    tracker.stop()


@pytest.mark.parametrize("kind", UFFD)
def test_a_write_of_the_same_content_is_a_write(kind: type[Tracker], memory: MemoryMap) -> None:
    tracker = kind(memory)
    tracker.start()
    memory.array[0] = 0
    assert pages_of(tracker.collect()) == [0]
    tracker.stop()


class Writer(threading.Thread):
    """Writes ever larger numbers to pages at random, and notes them before and after, as fast as it can."""

    def __init__(self, memory: MemoryMap) -> None:
        super().__init__()
        self.words = memory.array.view(np.uint64).reshape(PAGES, -1)
        self.done = threading.Event()
        self.written = threading.Event()

    def run(self) -> None:
        random = np.random.default_rng(5)
        value = 0
        while not self.done.is_set():
            for page in random.integers(0, PAGES, 64).tolist():
                value += 1
                self.words[page, value % 512] = value
            self.written.set()


@pytest.mark.parametrize("kind", BOTH)
def test_no_write_is_lost_under_a_concurrent_writer(kind: type[Tracker], memory: MemoryMap) -> None:
    """Copy what is reported after it was reported, as a migration does: the copy must become the memory."""
    tracker = kind(memory)
    writer = Writer(memory)
    tracker.start()
    copy = writer.words.copy()
    writer.start()
    reported = 0
    for _ in range(ROUNDS):
        writer.written.clear()
        assert writer.written.wait(30)
        dirty = pages_of(tracker.collect())
        copy[dirty] = writer.words[dirty]
        reported += len(dirty)
    writer.done.set()
    writer.join()
    dirty = pages_of(tracker.collect())
    copy[dirty] = writer.words[dirty]
    tracker.stop()
    assert reported > 0
    assert (copy == writer.words).all()


@pytest.mark.parametrize("kind", UFFD)
def test_nothing_is_reported_that_was_not_written(kind: type[Tracker], memory: MemoryMap) -> None:
    tracker = kind(memory)
    tracker.start()
    random = np.random.default_rng(6)
    for _ in range(ROUNDS):
        pages = np.unique(random.integers(0, PAGES, random.integers(1, 300)))
        memory.array[pages * PAGE_BYTES + 9] += 1
        assert pages_of(tracker.collect()) == pages.tolist()
    tracker.stop()


@pytest.mark.parametrize("kind", UFFD)
def test_writes_through_other_mappings_are_not_the_guests(kind: type[Tracker]) -> None:
    """The tracker follows its own mapping: what an endpoint writes elsewhere is no write of the guest."""
    file = MemoryFile("test", PAGES * PAGE_BYTES)
    mine, other = file.map(), file.map()
    tracker = kind(mine)
    tracker.start()
    other.array[0] = 1
    assert pages_of(tracker.collect()) == []
    tracker.stop()
    mine.close()
    other.close()
    file.close()


@pytest.mark.needs("pagemap_scan")
def test_the_kernels_tracker_is_chosen_where_it_works(memory: MemoryMap) -> None:
    tracker, reason = choose_tracker(memory)
    assert (tracker.name, reason) == ("userfaultfd", "")
    assert choose_tracker(memory, "userfaultfd")[0].name == "userfaultfd"


def test_comparison_is_chosen_where_the_kernel_offers_nothing(
    memory: MemoryMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise CapabilityMissing("userfaultfd", "not permitted", "be root")

    monkeypatch.setattr(module, "Userfaultfd", refuse)
    tracker, reason = choose_tracker(memory)
    assert tracker.name == "compare"
    assert "not permitted" in reason
    with pytest.raises(CapabilityMissing):
        choose_tracker(memory, "userfaultfd")


def test_comparison_can_be_asked_for(memory: MemoryMap) -> None:
    tracker, reason = choose_tracker(memory, "compare")
    assert (tracker.name, reason) == ("compare", "asked for")
    with pytest.raises(ValueError, match="no tracker"):
        choose_tracker(memory, "magic")


@pytest.mark.needs("pagemap_scan")
@pytest.mark.parametrize("mode", ["advise", "never", None])
def test_a_kernel_that_forgets_unmapped_huge_pages(
    memory: MemoryMap, monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    """Where a huge page was, no page table is left; it does not call that written."""

    def huge_pages() -> str:
        if mode is None:
            raise OSError("no such kernel")
        return mode

    monkeypatch.setattr(module, "shared_huge_pages", huge_pages)
    assert choose_tracker(memory)[0].name == "userfaultfd" or mode == "advise"
    monkeypatch.setattr(module.PagemapScanner, "scan_written", lambda *_, **__: np.empty((0, 2), np.uint64))
    tracker, reason = choose_tracker(memory)
    assert tracker.name == ("compare" if mode == "advise" else "userfaultfd")
    assert ("huge pages" in reason) == (mode == "advise")


@pytest.mark.needs("pagemap_scan")
def test_what_is_not_mapped_any_more_is_written(memory: MemoryMap) -> None:
    """As after reclaim: pages that were written and then unmapped."""
    tracker = UffdTracker(memory)
    tracker.start()
    memory.array[::PAGE_BYTES] += 1
    memory._map.madvise(mmap.MADV_DONTNEED, 5 * PAGE_BYTES, 2 * PAGE_BYTES)
    assert pages_of(tracker.collect()) == list(range(PAGES))
    tracker.stop()


@pytest.mark.needs("userfaultfd")
def test_a_start_that_fails_leaves_nothing_registered(
    memory: MemoryMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise CapabilityMissing("pagemap_scan", "PAGEMAP_SCAN: Inappropriate ioctl", "Linux 6.7")

    monkeypatch.setattr(module.PagemapScanner, "protect", refuse)
    tracker = UffdTracker(memory)
    with pytest.raises(CapabilityMissing):
        tracker.start()
    assert tracker._uffd is None
    assert choose_tracker(memory)[0].name == "compare"
