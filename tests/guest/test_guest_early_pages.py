"""Both processes in the test's; tests/guest/test_guest_late_pager.py forks one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest
from xxhash import xxh3_64_intdigest

from descriptors_support import nothing_stays_open
from late_support import Bitmaps
from sterna.errors import GuestError
from sterna.guest import early_pages
from sterna.guest.early_pages import DECIDING, LIVING
from sterna.guest.holder_bitmaps import set_bits
from sterna.linux.byte_locks import ByteLocks
from sterna.linux.memfd import PAGE_BYTES
from sterna.registry import ErrorCode
from sterna.wire.records import Region

PAGES = 3000  # more than are looked at as one number
REGIONS = Region(5, 0, PAGES * PAGE_BYTES), Region(9, 1 << 40, 70 * PAGE_BYTES)
DATA = bytes(range(256)) * 16
HASH = xxh3_64_intdigest(DATA)


@pytest.fixture
def bitmaps() -> Iterator[Bitmaps]:
    """All pages are stale but the first of region 5."""
    with contextlib.closing(Bitmaps(REGIONS, (5, 1, PAGES - 1), (9, 0, 70))) as bitmaps:
        yield bitmaps


def install(pager: early_pages.EarlyPages, region: int, page: int) -> bytes | None:
    """What the pager has written, if it has."""
    place = bytearray(PAGE_BYTES)
    if not pager.install(region, page, memoryview(DATA), HASH, memoryview(place)):
        assert not any(place)
        return None
    return bytes(place)


def test_an_early_page_is_written_and_noted(bitmaps: Bitmaps) -> None:
    """[HOL-47] In the holder's file, where its guest and the next endpoint see it."""
    pager = bitmaps.fork()
    assert install(pager, 9, 69) == DATA
    assert bitmaps.early(9) == [69]
    assert bitmaps.early(5) == []
    assert bitmaps.endpoint.is_early(9, 69)
    assert not bitmaps.endpoint.is_early(9, 68)
    assert not bitmaps.endpoint.is_installed(9, 69)
    assert bitmaps.endpoint.noted(9, 69) == HASH
    assert bitmaps.endpoint.noted(9, 68) == 0
    assert install(pager, 9, 69) is None
    pager.close()


def test_what_is_taken_or_installed_is_not_written(bitmaps: Bitmaps) -> None:
    """[HOL-48] [PCY-33]"""
    pager = bitmaps.fork()
    assert bitmaps.endpoint.take_all(5, 64, 3)
    assert bitmaps.endpoint.take_all(5, 66, 2)
    set_bits(bitmaps.file.words(5), 100, 1)
    for page in (0, 64, 67, 100):
        assert install(pager, 5, page) is None
    assert install(pager, 5, 63) is not None
    assert install(pager, 5, 68) is not None
    assert bitmaps.early(5) == [63, 68]
    assert pager.free(5, 1) & (1 << 64) - 1 == (1 << 64) - 1 & ~(0b11111 | 1 << 36)
    pager.close()


@pytest.mark.parametrize("early", [2, 63, 64, 1500, 2900, 2990])
def test_of_a_span_with_an_early_page_nothing_is_taken(bitmaps: Bitmaps, early: int) -> None:
    pager = bitmaps.fork()
    assert install(pager, 5, early) is not None
    for first, count in ((early, 1), (1, 2990), (0, early + 1), (early, PAGES - early)):
        assert not bitmaps.endpoint.take_all(5, first, count)
    assert install(pager, 5, early - 1) is not None
    assert bitmaps.endpoint.take_all(5, early + 1, PAGES - early - 1)
    assert bitmaps.endpoint.take_all(5, 0, early - 1)
    assert install(pager, 5, early + 1) is None
    pager.close()


def test_a_claim_takes_what_is_not_early_and_tells_the_rest(bitmaps: Bitmaps) -> None:
    pager = bitmaps.fork()
    install(pager, 9, 62)
    install(pager, 9, 65)
    assert bitmaps.endpoint.take_rest(9, 60, 10) == 0b100100
    for page in range(60, 70):
        assert install(pager, 9, page) is None
    assert install(pager, 9, 59) is not None
    assert bitmaps.endpoint.take_rest(9, 60, 10) == 0b100100
    pager.close()


def test_other_pages_are_expected(bitmaps: Bitmaps) -> None:
    bitmaps.endpoint.take_all(5, 0, PAGES)
    bitmaps.endpoint.renew()
    pager = bitmaps.fork()
    assert install(pager, 5, 2999) is not None
    pager.close()


def test_the_next_endpoint_knows_what_is_early_and_nothing_else(bitmaps: Bitmaps) -> None:
    """[HOL-41] [HOL-47]"""
    pager = bitmaps.fork()
    install(pager, 5, 7)
    bitmaps.endpoint.take_all(5, 8, 1)
    bitmaps.endpoint.close()
    pager.close()
    bitmaps.endpoint = bitmaps.attach()
    assert not bitmaps.endpoint.take_all(5, 7, 1)
    assert bitmaps.endpoint.noted(5, 7) == 0
    pager = bitmaps.fork()
    assert install(pager, 5, 8) is not None
    pager.close()


def test_who_takes_over_waits_for_the_last_pager(bitmaps: Bitmaps, monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-48] Its endpoint may have ended before it."""
    pager = bitmaps.fork()
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            install(pager, 5, 7)
            pager.close()

    monkeypatch.setattr(early_pages.time, "sleep", wait)
    successor = bitmaps.attach()
    assert len(waits) == 3
    assert successor.is_early(5, 7)
    successor.close()


@pytest.mark.parametrize("attach", [Bitmaps.attach, Bitmaps.fork])
def test_a_pager_that_does_not_end_is_told(
    bitmaps: Bitmaps, monkeypatch: pytest.MonkeyPatch, attach: Callable[[Bitmaps], object]
) -> None:
    """[HOL-48] There is never another one, either."""
    monkeypatch.setattr(early_pages, "_FREE_WITHIN_S", 0.0)
    with ByteLocks.on(bitmaps.file.file.fileno()) as pager:
        assert pager.try_lock(LIVING)
        with pytest.raises(GuestError) as caught:
            attach(bitmaps)
        assert caught.value.code is ErrorCode.BUSY
        del caught


def test_the_endpoint_waits_a_little_while_the_pager_decides(
    bitmaps: Bitmaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ByteLocks.on(bitmaps.file.file.fileno()) as pager:
        pager.lock(DECIDING)
        yields: list[int] = []

        def others_run() -> None:
            yields.append(1)
            if len(yields) == 3:
                pager.unlock(DECIDING)

        monkeypatch.setattr(os, "sched_yield", others_run)
        bitmaps.endpoint.on_stuck = lambda: pytest.fail("it was not stuck")
        assert bitmaps.endpoint.take_all(5, 0, 1)
        assert len(yields) == 3


def test_a_pager_that_decides_for_ever_is_ended(bitmaps: Bitmaps, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped with the lock in its hand, say."""
    with ByteLocks.on(bitmaps.file.file.fileno()) as pager:
        pager.lock(DECIDING)
        bitmaps.endpoint.on_stuck = lambda: pager.unlock(DECIDING)
        assert bitmaps.endpoint.take_rest(5, 0, 1) == 0
        pager.lock(DECIDING)
        bitmaps.endpoint.on_stuck = lambda: None
        monkeypatch.setattr(early_pages, "_FREE_WITHIN_S", 0.0)
        for decide in (bitmaps.endpoint.take_all, bitmaps.endpoint.take_rest):
            with pytest.raises(GuestError) as caught:
                decide(5, 0, 1)
            assert caught.value.code is ErrorCode.BUSY
    assert bitmaps.endpoint.take_all(5, 0, 1)


def test_nobody_has_to_be_ended_where_there_is_no_pager(bitmaps: Bitmaps) -> None:
    bitmaps.endpoint.on_stuck()


def test_a_failure_lets_go_of_the_lock(bitmaps: Bitmaps) -> None:
    pager = bitmaps.fork()
    with pytest.raises(ValueError, match="assignment"):
        pager.install(5, 7, memoryview(DATA), HASH, memoryview(bytearray(1)))
    assert bitmaps.early(5) == []
    assert bitmaps.endpoint.take_all(5, 7, 1)
    pager.close()


def test_behind_the_end_nobody_else_decides(bitmaps: Bitmaps) -> None:
    """Pages of another attempt may come then; what is early stays the guest's."""
    pager = bitmaps.fork()
    install(pager, 5, 7)
    pager.close()
    bitmaps.endpoint.close()
    bitmaps.endpoint.close()
    assert bitmaps.endpoint.take_all(5, 0, 7)
    assert not bitmaps.endpoint.take_all(5, 7, 2)
    assert bitmaps.endpoint.take_rest(5, 6, 3) == 0b10


def test_descriptors_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with nothing_stays_open():
        bitmaps = Bitmaps(REGIONS)
        bitmaps.fork().close()
        monkeypatch.setattr(early_pages, "_FREE_WITHIN_S", 0.0)
        with ByteLocks.on(bitmaps.file.file.fileno()) as pager:
            pager.lock(LIVING)
            with pytest.raises(GuestError):
                bitmaps.attach()
        bitmaps.close()
        del bitmaps  # with views of what it maps
