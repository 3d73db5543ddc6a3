from __future__ import annotations

import sys
import types

import pytest

from sterna.guest.guest_thread import GRANT_PAGES
from sterna.guest.kvm.layout import RAM, Area
from sterna.guest.kvm.waits import PageWaits, VcpuWaits
from sterna.guest.process_gate import CHUNK_PAGES
from sterna.guest.schedule import Schedule, WorkloadParameters
from sterna.memory.bitmap import PageBitmap

PAGES, FIRST, HERE = 256, 64, 40
PARAMETERS = WorkloadParameters(seed=3, pages=PAGES, hot_pages=128, cold_every=3, block_pages=16)
KHZ = 2_000_000  # two ticks are a nanosecond


class FakeMachine:
    """What `PageWaits` needs of a machine: one vCPU, whose notes are given."""

    def __init__(self) -> None:
        self.vcpus = [types.SimpleNamespace(tsc_khz=lambda: KHZ)]
        self.regions = {RAM: types.SimpleNamespace(pages=FIRST + PAGES)}
        self.notes: list[tuple[int, int]] = []
        self.makes_sense = True

    def area(self, number: int) -> Area:
        assert number == 0
        if not self.makes_sense:
            raise ValueError("no")
        return Area(PARAMETERS, FIRST, 0, 0, 0, 0)

    def waits(self, number: int) -> list[tuple[int, int]]:
        return self.notes


class Watched:
    """A vCPU that came with these pages missing."""

    def __init__(self, machine: FakeMachine, stale: set[int]) -> None:
        self.machine = machine
        bitmap = PageBitmap(FIRST + PAGES)
        for page in stale:
            bitmap.set(page)
        self.installed = PageBitmap.full(FIRST + PAGES)
        self.installed -= bitmap
        self.early = PageBitmap(FIRST + PAGES)
        late = types.SimpleNamespace(
            stale=lambda region: bitmap.words,
            installed=lambda region: self.installed.words,
            early=lambda region: self.early.words,
        )
        self.all = PageWaits(machine, late)  # type: ignore[arg-type]
        self.one = VcpuWaits(self.all, 0, HERE)

    def doorbell(self, count: int, *notes: tuple[int, int]) -> bool:
        self.machine.notes = list(notes)
        return self.one.at_doorbell(count)


@pytest.fixture
def watched() -> Watched:
    return Watched(FakeMachine(), {page_of(count) for count in range(HERE, HERE + 60)})


def page_of(count: int) -> int:
    starts, _ = Schedule(PARAMETERS).runs(count, count + 1)
    return FIRST + int(starts[0])


def test_the_pages_are_those_of_the_schedule() -> None:
    waits = Watched(FakeMachine(), set()).one
    for begin, end in ((0, 1), (7, 7), (15, 17), (30, 200), (1_000_003, 1_000_100)):
        expected = [page_of(count) for count in range(begin, end)]
        assert waits._pages(begin, end).tolist() == expected


def test_accesses_to_missing_pages_are_counted(watched: Watched) -> None:
    assert watched.doorbell(HERE + 20, (HERE + 4, 2_000_000), (HERE + 9, 100_000))
    assert watched.doorbell(HERE + 30, (HERE + 20, 3_000_000))
    times = watched.all.times.all
    assert (times.count, times.total_ns) == (3, 1_000_000 + 50_000 + 1_500_000)


def test_the_first_access_in_each_chunk_is_counted_apart(watched: Watched) -> None:
    counts = range(HERE + 1, HERE + 30)
    notes = [(count, 2_000 * count) for count in counts]
    assert watched.doorbell(HERE + 20, *notes[:19])
    assert watched.doorbell(HERE + 30, *notes[19:])
    firsts: dict[int, int] = {}
    for count in counts:
        firsts.setdefault(page_of(count) // CHUNK_PAGES, 1_000 * count)
    times = watched.all.times
    assert 1 < len(firsts) < times.all.count == len(counts)
    assert (times.first.count, times.first.total_ns) == (len(firsts), sum(firsts.values()))


def test_the_access_with_which_it_came_is_not_counted(watched: Watched) -> None:
    """It may have begun at the source; and what was noted before that was there."""
    watched.doorbell(HERE + 20, (HERE - 1, 10), (HERE, 1 << 40), (HERE + 20, 10))
    assert watched.all.times.all.count == 0


def test_what_else_took_long_is_not_counted(watched: Watched) -> None:
    """A page that was never stale, and a stale one that was there before: another had the processor."""
    stale = {page_of(count) for count in range(HERE, HERE + 60)}
    other = next(count for count in range(HERE + 60, HERE + 200) if page_of(count) not in stale)
    watched.doorbell(HERE + 20)
    watched.installed.set(page_of(HERE + 25))
    watched.doorbell(HERE + 21)
    watched.doorbell(HERE + 200, (HERE + 25, 1 << 30), (other, 1 << 30))
    assert watched.all.times.all.count == 0
    watched.installed.set(page_of(HERE + 30))  # too late: the guest may have waited for it
    watched.one = VcpuWaits(watched.all, 0, HERE + 20)
    watched.doorbell(HERE + 35, (HERE + 30, 2_000_000))
    assert watched.all.times.all.count == 1


def test_an_early_page_is_there(watched: Watched) -> None:
    """[HOL-47]"""
    watched.doorbell(HERE + 20)
    watched.early.set(page_of(HERE + 25))
    watched.doorbell(HERE + 21)
    watched.doorbell(HERE + 30, (HERE + 25, 1 << 30), (HERE + 26, 2_000_000))
    assert (watched.all.times.all.count, watched.all.times.all.total_ns) == (1, 1_000_000)


def test_the_last_notes_are_taken_when_all_is_there(watched: Watched) -> None:
    there = watched.installed.words, watched.early.words
    watched.all.end()
    for words in there:
        assert sys.getrefcount(words) <= 4  # nobody keeps what they are views of: it, both names, the call
    assert not watched.doorbell(HERE + 20, (HERE + 4, 2_000_000))
    assert watched.all.times.all.count == 1


@pytest.mark.parametrize("count", [HERE - 1, HERE + GRANT_PAGES + 1, 1 << 63])
def test_counts_that_the_program_does_not_come_to(watched: Watched, count: int) -> None:
    assert not watched.doorbell(count, (HERE + 4, 2_000_000))
    assert watched.all.times.all.count == 0


def test_memory_that_makes_no_sense(watched: Watched) -> None:
    watched.machine.makes_sense = False
    assert not watched.doorbell(HERE + 20, (HERE + 4, 2_000_000))
    assert watched.all.times.all.count == 0
