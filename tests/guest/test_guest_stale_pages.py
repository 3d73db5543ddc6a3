from __future__ import annotations

import pytest
import trio
import trio.testing

from sterna.errors import GuestError
from sterna.guest.stale_pages import StalePages, check_stale, notes_limit
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode, Transfer
from sterna.wire.records import PageRange, Region

REGIONS = (Region(4, 0, 10 << 12), Region(2, 1 << 40, 20 << 12))  # numbered 0..9 and 10..29 here


def bitmap(bits: int, *pages: int) -> PageBitmap:
    found = PageBitmap(bits)
    for page in pages:
        found.set(page)
    return found


def stale(*pages: int, region: int = 2, bits: int = 20) -> StalePages:
    return StalePages(REGIONS, {region: bitmap(bits, *pages)})


def test_a_guest_goes_on_until_the_first_missing_page() -> None:
    pages = stale(5, 6)
    assert pages.any
    assert pages.present(0, 15) == 15
    assert pages.waits_for is None
    assert pages.present(12, 8) == 3
    assert pages.waits_for == 15
    assert pages.range_of(15) == PageRange(2, 5, 1)
    assert pages.range_of(9) == PageRange(4, 9, 1)
    pages.installed(2, 6, 1)
    assert pages.waits_for == 15  # that was another one
    pages.installed(2, 0, 20)
    assert pages.waits_for is None
    assert not pages.any
    assert pages.present(12, 8) == 8


def test_what_is_missing_is_told_by_region() -> None:
    pages = stale(0, 19)
    pages.installed(2, 0, 1)
    pages.installed(2, 0, 1)
    pages.installed(4, 0, 10)
    assert pages.missing() == {4: PageBitmap(10), 2: bitmap(20, 19)}


async def test_a_page_is_told_once_and_waited_for_otherwise(autojump_clock) -> None:
    pages = stale(5, 7)
    pages.present(10, 20)
    assert await pages.faults() == [PageRange(2, 5, 1)]
    with trio.move_on_after(1) as scope:
        await pages.faults()
    assert scope.cancelled_caught
    told = []

    async def listen() -> None:
        told.extend(await pages.faults())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        pages.installed(2, 5, 1)
        assert pages.present(15, 1) == 1
        assert pages.present(16, 4) == 1
    assert told == [PageRange(2, 7, 1)]


@pytest.mark.parametrize(
    ("number", "bits", "message"),
    [(3, 10, "region 3, which is not copied"), (4, 11, "11 bits"), (2, 1, "1 b")],
)
def test_bitmaps_that_do_not_fit(number: int, bits: int, message: str) -> None:
    device = Region(3, 1 << 41, 10 << 12, transfer=Transfer.OPAQUE)
    with pytest.raises(GuestError, match=message) as caught:
        check_stale({number: PageBitmap(bits)}, (*REGIONS, device))
    assert caught.value.code is ErrorCode.BAD_VALUE


@pytest.mark.parametrize("place", [(2, 20, 1), (2, -1, 1), (2, 3, -1), (9, 0, 0)])
def test_pages_that_do_not_exist(place: tuple[int, int, int]) -> None:
    with pytest.raises(GuestError) as caught:
        stale(1).installed(*place)
    assert caught.value.code is ErrorCode.BAD_VALUE


def test_notes_have_room_for_an_entry_a_page() -> None:
    assert notes_limit(REGIONS) >= 9 * 30
