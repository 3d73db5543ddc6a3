"""Versions that were sent, in bounded memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.memory.recent import RecentPages
from sterna.memory.regions import RegionTable
from sterna.wire.records import Region

PAGE = 4096
TABLE = RegionTable((Region(1, 0, 64 * PAGE), Region(2, 1 << 30, 64 * PAGE)))


def pages(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def versions(*values: int) -> np.ndarray:
    return np.repeat(np.array(values, np.uint8), PAGE).reshape(-1, PAGE)


def value(recent: RecentPages, page: int, region: int = 1) -> int | None:
    if not recent.known(region, pages(page))[0]:
        return None
    found = recent.versions(region, page, 1)
    assert found.shape == (1, PAGE)
    assert len(np.unique(found)) == 1
    return int(found[0, 0])


def test_the_newest_version_is_found():
    recent = RecentPages(TABLE, 1 << 20)
    recent.sent(1, pages(3, 4, 9), versions(30, 40, 90))
    recent.sent(1, pages(4, 5), versions(41, 50))
    assert [value(recent, page) for page in (3, 4, 5, 9, 10)] == [30, 41, 50, 90, None]
    assert value(recent, 3, region=2) is None
    assert recent.known(1, pages(2, 3, 4, 8)).tolist() == [False, True, True, False]
    assert recent.versions(1, 3, 3)[:, 0].tolist() == [30, 41, 50]


def test_versions_are_copies():
    recent = RecentPages(TABLE, 1 << 20)
    mine = versions(7)
    recent.sent(1, pages(1), mine)
    mine[:] = 8
    recent.versions(1, 1, 1)[:] = 9
    assert value(recent, 1) == 7


def test_zero_pages_are_forgotten():
    recent = RecentPages(TABLE, 1 << 20)
    recent.sent(1, pages(1, 2), versions(1, 2))
    recent.forget(1, pages(2, 3))
    assert [value(recent, page) for page in (1, 2, 3)] == [1, None, None]


def test_all_is_forgotten():
    recent = RecentPages(TABLE, 1 << 20)
    recent.sent(1, pages(1), versions(1))
    recent.sent(2, pages(1), versions(2))
    recent.clear()
    assert value(recent, 1) is value(recent, 1, region=2) is None
    recent.sent(1, pages(1), versions(3))
    assert value(recent, 1) == 3


def test_whether_there_was_anything_when_the_round_began():
    recent = RecentPages(TABLE, 1 << 20)
    recent.next_round()
    assert not recent.is_filled
    recent.sent(1, pages(1), versions(1))
    assert not recent.is_filled
    recent.next_round()
    assert recent.is_filled


def test_who_is_of_use_is_not_driven_out():
    """Eight places each: of sixteen pages that come in turn half are found, and not none."""
    recent = RecentPages(TABLE, 16 * PAGE)
    every = np.arange(16)
    for _ in range(6):
        recent.next_round()
        recent.sent(1, every, np.zeros((16, PAGE), np.uint8))
        assert recent.known(1, every).sum() == 8


def test_who_is_of_no_use_makes_room():
    recent = RecentPages(TABLE, 16 * PAGE)
    recent.sent(1, np.arange(8), np.zeros((8, PAGE), np.uint8))
    recent.next_round()
    recent.sent(1, np.arange(4), np.zeros((4, PAGE), np.uint8))
    recent.sent(1, pages(20), versions(1))
    assert value(recent, 20) is None
    recent.next_round()
    recent.sent(1, np.arange(30, 40), np.zeros((10, PAGE), np.uint8))
    assert recent.known(1, np.arange(64)).nonzero()[0].tolist() == [0, 1, 2, 3, 30, 31, 32, 33]


@pytest.mark.parametrize("room", [0, PAGE - 1, PAGE])
def test_no_room(room):
    """A region's share may be less than a page."""
    recent = RecentPages(TABLE, room)
    recent.next_round()
    recent.sent(1, pages(1, 2), versions(1, 2))
    assert value(recent, 1) is None


def test_a_guest_without_memory():
    assert not RecentPages(RegionTable(()), 1 << 20).is_filled


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sent"), st.sets(st.integers(0, 63), min_size=1, max_size=12), st.integers(1, 255)),
        st.tuples(st.just("forget"), st.sets(st.integers(0, 63), max_size=4), st.just(0)),
        st.tuples(st.sampled_from(("round", "clear")), st.just(frozenset()), st.just(0)),
    ),
    max_size=30,
)


@given(_STEPS)
def test_what_is_found_is_the_newest(steps):
    """However it was used: at most as many as there is room for, and never an old version."""
    recent, model = RecentPages(TABLE, 12 * PAGE), {}
    for step, some, number in steps:
        numbers = pages(*sorted(some))
        if step == "sent":
            recent.sent(1, numbers, versions(*[number] * len(numbers)))
            model.update(dict.fromkeys(some, number))
        elif step == "forget":
            recent.forget(1, numbers)
            model = {page: held for page, held in model.items() if page not in some}
        elif step == "clear":
            recent.clear()
            model.clear()
        else:
            recent.next_round()
        found = {page: value(recent, page) for page in range(64)}
        held = {page: version for page, version in found.items() if version is not None}
        assert len(held) <= 6
        assert held.items() <= model.items()
