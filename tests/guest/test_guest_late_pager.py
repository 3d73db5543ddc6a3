"""A pager in a process of its own, a guest's thread, and an endpoint, with a kernel that holds accesses."""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TypeAlias

import pytest
from xxhash import xxh3_64_intdigest

from late_support import Forked, Rig, beside, die, rigs, told
from sterna.errors import GuestError
from sterna.guest.early_pages import EarlyPages
from sterna.guest.holder_bitmaps import set_bits
from sterna.guest.late_entries import LateEntries
from sterna.guest.late_pager import LatePager
from sterna.guest.schedule import PAGE_BYTES
from sterna.linux.byte_locks import ByteLocks
from sterna.wire.records import PageRange, Region

DATA = b"\x07" * PAGE_BYTES
PAGES = 70
LARGE = Region(3, 1 << 40, PAGES * PAGE_BYTES)


@pytest.fixture
async def rig_of() -> AsyncIterator[Callable[..., Rig]]:
    async with rigs() as make:
        yield make


@pytest.fixture
def here_of() -> Iterator[MakeHere]:
    """Makes pagers in the test's process."""
    made: list[EarlyPages] = []

    def make(rig: Rig) -> Here:
        made.append(beside(rig.endpoint.claims))
        return Here(LatePager(rig.endpoint.entries, made[-1]))

    yield make
    for early in made:
        early.close()


@pytest.fixture
async def rig(rig_of: Callable[..., Rig]) -> Rig:
    """All pages but the first are stale."""
    return rig_of(*range(1, PAGES), region=LARGE)


class Here:
    """A pager in the test's process."""

    def __init__(self, pager: LatePager) -> None:
        self.pager = pager

    def install(self, page: int, data: bytes = DATA) -> bool:
        return self.pager.install(3, page, memoryview(data), xxh3_64_intdigest(data))

    def news(self) -> list[tuple[int, int]]:
        """Faults, once there are some."""
        select.select([self.pager], [], [])
        return self.pager.news()


MakeHere: TypeAlias = Callable[[Rig], Here]


def serve(rig: Rig, page: int, ready: int | None = None) -> None:
    """In the child: bring a page that the guest waits for."""
    pager = rig.endpoint.pager()
    if ready is not None:
        os.write(ready, b"!")
    while (3, page) not in pager.news():
        select.select([pager], [], [])
    assert pager.wanted(3, page)[0][0] == page
    assert pager.install(3, page, memoryview(DATA), xxh3_64_intdigest(DATA))
    assert not pager.is_missing(3, page)


@pytest.mark.needs("minor_faults")
async def test_the_guest_gets_a_page_early(rig: Rig) -> None:
    """[HOL-47] [PCY-31] It is missing all the same."""
    thread = rig.touch(5)
    pager = Forked(partial(serve, rig, 5))
    await rig.went_on(thread)
    assert pager.ended() == 0
    assert rig.theirs.array[5 * PAGE_BYTES] == 7
    assert rig.late.early(3).tolist() == [1 << 5, 0]
    assert rig.late.missing() == PAGES - 1
    assert 5 in rig.endpoint.missing()[3]
    assert rig.endpoint.claims.noted(3, 5) == xxh3_64_intdigest(DATA)
    assert not rig.endpoint.claims.take_all(3, 0, 16)


@pytest.mark.needs("minor_faults")
async def test_the_pager_needs_two_descriptors(rig: Rig) -> None:
    """It closes all others, so that nobody believes that its endpoint lives."""

    def alone() -> None:
        kept = sorted(rig.endpoint.descriptors())
        os.closerange(3, kept[0])
        os.closerange(kept[0] + 1, kept[1])
        os.closerange(kept[1] + 1, 4096)
        serve(rig, 5)

    thread = rig.touch(5)
    pager = Forked(alone)
    await rig.went_on(thread)
    assert pager.ended() == 0


def at_bit(early: EarlyPages) -> None:
    """Die when the page is written, and before its bit is set."""

    class Words:
        def __getitem__(self, word: int) -> int:
            return 0

        def __setitem__(self, word: int, bits: int) -> None:
            die()

    early._regions[3].early = Words()  # type: ignore[assignment]


def at_unlock(_: EarlyPages) -> None:
    """Die with the lock in its hand, when the bit is set."""
    ByteLocks.unlock = lambda *_: die()  # type: ignore[assignment]


def at_entry(_: EarlyPages) -> None:
    """Die before the entry is made."""
    LateEntries.resolve = lambda *_: die()  # type: ignore[assignment]


@pytest.mark.parametrize(("step", "is_early"), [(at_bit, False), (at_unlock, True), (at_entry, True)])
@pytest.mark.parametrize("takes_over", [False, True])
@pytest.mark.needs("minor_faults")
async def test_a_pager_that_dies_in_the_middle(
    rig: Rig, step: Callable[[EarlyPages], None], is_early: bool, takes_over: bool
) -> None:
    """[HOL-40] [HOL-41] [HOL-47] [HOL-48] [PCY-34] Its endpoint goes on, or the next one does."""

    def work() -> None:
        step(rig.endpoint.claims)
        serve(rig, 5)

    thread = rig.touch(5)
    assert Forked(work).ended() == -9
    assert thread.is_alive()
    if takes_over:
        rig.endpoint.close()
        rig.endpoint = rig.attach()
    rig.endpoint.repeat()
    assert rig.endpoint.claims.take_all(3, 0, 16) == (not is_early)
    if is_early:
        await rig.served(thread)
        assert rig.theirs.array[5 * PAGE_BYTES] == 7
        return
    assert await told(rig.endpoint, 1) == [PageRange(3, 5, 1)]
    rig.ours.array[5 * PAGE_BYTES] = 9
    rig.endpoint.installed(3, 0, 16)
    await rig.went_on(thread)
    assert rig.theirs.array[5 * PAGE_BYTES] == 9


@pytest.mark.needs("minor_faults")
async def test_who_takes_over_waits_for_the_pager(
    rig: Rig, here_of: MakeHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[HOL-48] It may outlive its endpoint by a moment."""
    reader, writer = os.pipe()
    pager = Forked(partial(serve, rig, 5, writer))
    assert os.read(reader, 1) == b"!"
    with monkeypatch.context() as patch:
        patch.setattr("sterna.guest.early_pages._FREE_WITHIN_S", 0.0)
        with pytest.raises(GuestError, match="lives"):
            rig.attach()
        with pytest.raises(GuestError, match="there is a pager"):
            here_of(rig)
    pager.kill()
    rig.endpoint.close()
    rig.endpoint = rig.attach()
    os.close(reader)
    os.close(writer)


@pytest.mark.needs("minor_faults")
async def test_a_stopped_pager_is_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever is told that it holds the endpoint up."""
    reader, writer = os.pipe()

    def stop() -> None:
        early = rig.endpoint.claims
        early.after_fork()
        early._locks.lock(0)
        os.write(writer, b"!")
        os.kill(os.getpid(), 19)

    pager = Forked(stop)
    assert os.read(reader, 1) == b"!"
    monkeypatch.setattr("sterna.guest.early_pages._TRIES", 3)
    rig.endpoint.on_stuck = pager.kill
    assert rig.endpoint.on_stuck == pager.kill
    assert rig.endpoint.claims.take_all(3, 0, 16)
    os.close(reader)
    os.close(writer)


@pytest.mark.needs("minor_faults")
async def test_what_is_there_is_let_go_at_once(rig: Rig, here_of: MakeHere) -> None:
    """[HOL-40] [HOL-47] What was installed since the fork, too."""
    here = here_of(rig)
    rig.theirs.unmap_pages(0, PAGE_BYTES)
    held = rig.touch(0)
    assert here.news() == []
    await rig.went_on(held)
    held = rig.touch(9)
    set_bits(rig.late.installed(3), 9, 1)
    assert here.news() == []
    await rig.went_on(held)
    assert here.install(20)
    rig.theirs.unmap_pages(20 * PAGE_BYTES, PAGE_BYTES)
    held = rig.touch(20)
    assert here.news() == []
    await rig.went_on(held)
    assert rig.endpoint.news() == []


@pytest.mark.needs("minor_faults")
async def test_what_was_asked_for_is_not_told_again(rig: Rig, here_of: MakeHere) -> None:
    here = here_of(rig)
    threads = [rig.touch(17)]
    assert here.news() == [(3, 17)]
    assert here.pager.wanted(3, 17) == [(17, 15), (16, 1)]
    threads += [rig.touch(17), rig.touch(18), rig.touch(40)]
    found: list[tuple[int, int]] = []
    while not found:
        found = here.news()
    assert found == [(3, 40)]
    assert all(here.install(page) for page in (17, 18, 40))
    for thread in threads:
        await rig.went_on(thread)


@pytest.mark.needs("minor_faults")
async def test_a_chunks_pages_are_wanted_once(rig: Rig, here_of: MakeHere) -> None:
    """The page first, those behind it, those before; and none that somebody has, or will bring."""
    here = here_of(rig)
    rig.endpoint.claims.take_all(3, 36, 2)
    set_bits(rig.late.installed(3), 41, 1)
    assert here.install(33)
    assert here.pager.wanted(3, 39) == [(39, 2), (42, 6), (32, 1), (34, 2), (38, 1)]
    for page in (39, 32, 36, 41, 33):
        assert here.pager.wanted(3, page) == []
    assert here.pager.wanted(3, 66) == [(66, 4), (64, 2)]  # the region ends there
    assert here.pager.wanted(3, 0) == []
    assert here.pager.wanted(3, 3) == [(3, 13), (1, 2)]


@pytest.mark.needs("minor_faults")
async def test_a_page_of_the_endpoints_is_left_to_it(rig: Rig, here_of: MakeHere) -> None:
    """[HOL-48] [PCY-33]"""
    here = here_of(rig)
    thread = rig.touch(17)
    assert here.news() == [(3, 17)]
    rig.endpoint.claims.take_all(3, 16, 16)
    assert not here.install(17)
    assert here.pager.is_missing(3, 17)
    rig.endpoint.installed(3, 16, 16)
    assert not here.pager.is_missing(3, 17)
    assert not here.install(17)
    await rig.went_on(thread)
    assert rig.theirs.array[17 * PAGE_BYTES] == 1


@pytest.mark.needs("minor_faults")
async def test_large_pages_have_chunks_of_their_own(rig_of: Callable[..., Rig], here_of: MakeHere) -> None:
    rig = rig_of(*range(4), region=Region(3, 0, 4 << 16, granule_log2=16))
    here = here_of(rig)
    assert here.pager.wanted(3, 2) == [(2, 1)]
    assert here.install(2, bytes(1 << 16))
