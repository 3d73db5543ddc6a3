"""A room whose pages come later: who reads them, in this process and in one that is forked from it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import trio

from sterna.errors import GuestError
from sterna.guest.api import FAULT, EarlyRoom, PagesEarly
from sterna.memory.bitmap import PageBitmap
from sterna.wire.integrity import page_hash
from sterna.wire.records import NO_RUNNER, PageRange, Region
from sterna_interop.contract import Order
from sterna_interop.guest import GuestSpec
from sterna_interop.shim_following import FollowedRoom

SPEC = GuestSpec(regions=(Region(1, 0, 40 << 12), Region(2, 1 << 32, 3 << 12)), writes=())
PAGE = bytes(range(256)) * 16


@pytest.fixture
async def room() -> AsyncIterator[FollowedRoom]:
    room = FollowedRoom(Order())
    yield room
    room.close()


async def expecting(room: FollowedRoom, *runs: tuple[int, int, int]) -> None:
    """Make room for a guest that lacks these pages, and run it."""
    await room.reserve(SPEC.description)
    stale = {region.id: PageBitmap(region.pages) for region in SPEC.copied}
    for region, first, count in runs:
        stale[region].set(first, count)
    await room.expect(stale)
    await room.run(8, NO_RUNNER)


def early(room: FollowedRoom) -> EarlyRoom:
    assert isinstance(room, PagesEarly)
    found = room.early_pages()
    assert found is not None
    return found


async def waits_for(room: FollowedRoom) -> tuple[int, int] | None:
    """The page that it waits for; None if it waits for none."""
    with trio.move_on_after(0.05):
        (found,) = await room.faults()
        assert found.count == 1
        return found.region, found.first
    return None


async def test_it_reads_from_the_last_page_to_the_first(room: FollowedRoom) -> None:
    await expecting(room, (1, 2, 2), (2, 1, 1))
    assert room.can_post_copy
    assert await waits_for(room) == (2, 1)
    assert await waits_for(room) is None  # told once
    await room.installed(1, 3, 1)
    await room.installed(2, 1, 1)
    assert {number: pages.count() for number, pages in (await room.missing()).items()} == {1: 1, 2: 0}
    assert await waits_for(room) == (1, 2)
    await room.installed(1, 2, 1)
    assert await waits_for(room) is None
    assert room.early_pages() is None


async def test_before_it_runs_it_waits_for_nothing(room: FollowedRoom) -> None:
    await room.reserve(SPEC.description)
    assert room.early_pages() is None
    await room.expect({1: PageBitmap.full(40)})
    await room.expect({2: PageBitmap.full(3)})  # the newest counts
    assert await waits_for(room) is None
    await room.run(8, NO_RUNNER)
    assert await waits_for(room) == (2, 2)


async def test_a_pager_has_it_get_on_by_early_pages(room: FollowedRoom) -> None:
    await expecting(room, (1, 0, 40))
    made = early(room)
    told, tells = os.pipe2(os.O_NONBLOCK)
    made.hear(told)
    assert await waits_for(room) is None
    pager = made.pager()  # of this process: one that is forked does the same
    assert made.any_unread()
    assert pager.news() == [(1, 39)]
    assert not made.any_unread()
    assert pager.wanted(1, 39) == [(39, 1), (32, 7)]
    for page in (39, 38):
        assert pager.install(1, page, memoryview(PAGE), page_hash(memoryview(PAGE)))
    assert pager.news() == []  # page 37 was asked for
    os.write(tells, FAULT.pack(1, 37))
    assert await room.faults() == [PageRange(1, 37, 1)]
    os.close(tells)
    made.on_stuck = lambda: None
    assert await waits_for(room) == (1, 37)  # the pager has ended: what it waits for is told again
    assert bytes(room.memory(1)[39 << 12 :]) == PAGE


async def test_notes(room: FollowedRoom) -> None:
    assert not await room.notes()
    notes = await room.notes(100)
    notes[:3] = b"abc"
    assert bytes((await room.notes())[:3]) == b"abc"
    assert not await room.notes(0)


async def test_without_room_nothing_is_expected(room: FollowedRoom) -> None:
    with pytest.raises(GuestError):
        await room.installed(1, 0, 1)
