"""What a destination asks for while pages are missing, and what it does with what comes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core_serving import BLOCK, PAGE, TABLE, Image

from sterna.core import fetching
from sterna.core.fetching import MISMATCHES_MAX, Fetching
from sterna.core.serving import Serving
from sterna.errors import RemoteProtocolError
from sterna.limits import Limits
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import RegionPages
from sterna.memory.regions import PageSets
from sterna.registry import Encoding, ErrorCode
from sterna.wire.records import PageRange, PageRequest, Pages


@pytest.fixture(autouse=True, scope="module", params=[fetching.FEW_RUNS, 0], ids=["few", "many"])
def few_runs(request):
    """Every test, with tables looked at in both ways."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "FEW_RUNS", request.param)
        yield


class Room:
    """A destination's memory, and what it is fetched into it."""

    def __init__(self, *runs: tuple[int, int, int], requests: int = 256) -> None:
        self.stale = PageSets(TABLE)
        for region, first, count in runs:
            self.stale[region].set(first, count)
        self.memory = {region: bytearray(TABLE[region].size_bytes) for region in TABLE}
        views = {region: memoryview(memory) for region, memory in self.memory.items()}
        self.digest = MemoryDigest(TABLE)
        self.fetching = Fetching(self.stale, RegionPages(TABLE, views), self.digest, (3, 8), requests)

    def receive(
        self, batch: tuple[Pages, object], *, damage: bool = False, install: bool = True
    ) -> tuple[PageRange, ...]:
        """A frame of the source arrives."""
        table, buffers = batch
        places = self.fetching.announce(table)
        bulk = bytearray(b"".join(bytes(each) for each in buffers))
        if damage:
            bulk[0] ^= 1
        at = 0
        for place in places:
            place[:] = bulk[at : at + len(place)]
            at += len(place)
        assert at == len(bulk)
        arrived = self.fetching.take()
        for pages in arrived if install else ():
            self.fetching.installed(pages)
        return arrived

    def requests(self) -> list[PageRequest]:
        return list(iter(self.fetching.next_request, None))


IMAGE = Image((BLOCK, BLOCK))


def frame(
    *runs: tuple[int, int], region: int = 1, round_: int = 8, zeros: bool = True
) -> tuple[Pages, object]:
    """A PAGES frame with these runs, whatever they are."""
    starts, counts = (np.array(column, dtype=np.int64) for column in zip(*runs, strict=True))
    batch = IMAGE.pages.encode(region, starts, counts, zeros=zeros, whole=True)
    return batch.table(3, round_), batch.buffers


def test_a_fault_is_asked_for_once_with_its_group():
    """[PCY-9]"""
    room = Room((1, 3, 40))
    room.fetching.fault(1, 20, 1)
    room.fetching.fault(1, 21, 1)
    assert not room.fetching.is_waited_for
    assert room.requests() == [PageRequest(1, 16, 16, urgent=True)]
    assert room.fetching.is_waited_for
    room.fetching.fault(1, 15, 2)
    assert room.requests() == [PageRequest(1, 3, 13, urgent=True)]
    assert room.fetching.requests == 2


def test_what_is_not_missing_is_not_asked_for():
    """[PCY-9] Neither what came, nor what is being installed, nor what never was stale."""
    room = Room((1, 0, 2 * BLOCK))
    room.receive(frame((0, BLOCK)))
    room.receive(frame((BLOCK, BLOCK)), install=False)
    for page in (0, BLOCK, 5 * BLOCK):
        room.fetching.fault(1, page, 1)
    room.fetching.fault(5, 0, 1)
    assert room.requests() == []
    late = Room((1, 0, BLOCK))
    late.fetching.fault(1, 0, 1)
    late.receive(frame((0, BLOCK)))  # before it could be asked for
    assert late.requests() == []


def test_no_more_is_asked_for_than_the_source_takes():
    """[PCY-11] [CMP-3]"""
    room = Room((1, 0, 4 * BLOCK), requests=2)
    room.fetching.fault(1, 0, 4 * BLOCK)
    assert [request.first for request in room.requests()] == [0, BLOCK]
    assert room.requests() == []
    room.receive(frame((0, BLOCK)), install=False)
    assert room.requests() == []  # outstanding until it is installed
    room.fetching.installed(PageRange(1, 0, BLOCK))
    assert [request.first for request in room.requests()] == [2 * BLOCK]


def test_what_comes_is_verified_and_then_installed_neighbours_together():
    """[PCY-10] [PCY-12] [PCY-14]"""
    room = Room((1, 0, 3 * BLOCK), (1, 5 * BLOCK, 2), (2, 0, 1))
    arrived = room.receive(frame((0, BLOCK), (BLOCK, BLOCK), (5 * BLOCK, 2)), install=False)
    assert arrived == (PageRange(1, 0, 2 * BLOCK), PageRange(1, 5 * BLOCK, 2))
    assert room.memory[1][: 2 * BLOCK * PAGE] == IMAGE.memory[1][: 2 * BLOCK * PAGE]
    assert room.digest.stale_pages == TABLE.pages - 2 * BLOCK - 2
    assert not room.fetching.is_complete
    for pages in arrived:
        room.fetching.installed(pages)
    room.receive(frame((2 * BLOCK, BLOCK)))
    assert not room.fetching.is_complete
    room.receive(frame((0, 1), region=2))
    assert room.fetching.is_complete
    assert room.fetching.stats(1.5).pushed == 3 * BLOCK + 3
    assert room.fetching.stats(1.5).seconds == 1.5


def test_a_zero_group_reads_as_zeros_whatever_was_there():
    room = Room((1, BLOCK, BLOCK))
    room.memory[1][BLOCK * PAGE : 2 * BLOCK * PAGE] = b"\xff" * (BLOCK * PAGE)
    sink = RegionPages(TABLE, {r: memoryview(m) for r, m in room.memory.items()}, fresh=False)
    room.fetching = Fetching(room.stale, sink, room.digest, (3, 8), 1)
    assert room.receive(frame((BLOCK, BLOCK))) == (PageRange(1, BLOCK, BLOCK),)
    assert not any(room.memory[1][BLOCK * PAGE : 2 * BLOCK * PAGE])


def test_the_first_arrival_wins():
    """[STR-11] What comes again is dropped and counted, and harms nobody."""
    room = Room((1, 0, 2 * BLOCK))
    room.fetching.fault(1, 0, 1)
    room.receive(frame((0, BLOCK)))
    room.memory[1][:8] = b"the guest"[:8]
    for damage in (False, True):
        assert room.receive(frame((0, BLOCK)), damage=damage) == ()
    assert room.receive(frame((0, BLOCK), (BLOCK, BLOCK), zeros=False)) == (PageRange(1, BLOCK, BLOCK),)
    assert room.memory[1][:8] == b"the gues"
    stats = room.fetching.stats()
    assert (stats.demanded, stats.pushed, stats.repeated) == (BLOCK, BLOCK, 3 * BLOCK)
    assert room.fetching.is_complete


def test_a_page_that_arrived_but_is_not_installed_is_not_overwritten_either():
    """[STR-11] [PCY-12]"""
    room = Room((1, 0, BLOCK))
    arrived = room.receive(frame((0, BLOCK)), install=False)
    assert room.receive(frame((0, BLOCK)), damage=True) == ()
    assert room.memory[1][: BLOCK * PAGE] == IMAGE.memory[1][: BLOCK * PAGE]
    room.fetching.installed(*arrived)
    room.fetching.installed(*arrived)  # once is enough
    assert room.fetching.is_complete


def test_pages_that_never_were_stale_are_dropped():
    """[PCY-15]"""
    room = Room((1, 0, BLOCK))
    before = bytes(room.memory[1])
    assert room.receive(frame((3 * BLOCK, BLOCK), (7 * BLOCK, 5))) == ()
    assert room.receive(frame((2, 1), region=2)) == ()
    assert bytes(room.memory[1]) == before
    assert room.fetching.stats().outside == BLOCK + 6
    assert room.digest.stale_pages == TABLE.pages


@pytest.mark.parametrize(
    "run",
    [(0, 5), (2, 3), (1, BLOCK), (3, 5), (0, 2), (BLOCK, 3 * BLOCK), (5 * BLOCK - 1, 2)],
    ids=["more", "part", "across", "later", "less", "many", "outside"],
)
def test_what_is_no_whole_group_is_refused(run):
    """[PCY-7]"""
    room = Room((1, 1, 4), (1, BLOCK, 3 * BLOCK))
    with pytest.raises(RemoteProtocolError) as error:
        room.fetching.announce(frame(run)[0])
    assert (error.value.code, error.value.clause) == (ErrorCode.BAD_VALUE, "PCY-7")


@pytest.mark.parametrize("round_", [7, 9])
def test_another_round_is_refused(round_):
    """[PCY-8]"""
    room = Room((1, 0, 1))
    with pytest.raises(RemoteProtocolError) as error:
        room.fetching.announce(frame((0, 1), round_=round_)[0])
    assert (error.value.code, error.value.clause) == (ErrorCode.BAD_ROUND, "PCY-8")


def test_what_differs_from_its_hash_is_asked_for_again():
    """[MEM-5] [MEM-4] It is not installed, and its entry not set."""
    room = Room((1, 0, BLOCK), (1, 2 * BLOCK, BLOCK))
    arrived = room.receive(frame((0, BLOCK), (2 * BLOCK, BLOCK)), damage=True)
    assert arrived == (PageRange(1, 2 * BLOCK, BLOCK),)
    assert room.digest.stale_pages == TABLE.pages - BLOCK
    assert room.requests() == [PageRequest(1, 0, BLOCK, urgent=False)]
    room.fetching.fault(1, 1, 1)  # now somebody waits for it; it is asked for already
    assert room.requests() == []
    room.receive(frame((0, BLOCK)), damage=True)
    assert room.requests() == [PageRequest(1, 0, BLOCK, urgent=True)]
    room.receive(frame((0, BLOCK)))
    assert room.fetching.is_complete
    stats = room.fetching.stats()
    assert (stats.mismatched, stats.demanded, stats.pushed) == (2 * BLOCK, BLOCK, BLOCK)


def test_a_fault_on_what_is_to_be_asked_for_again_makes_it_urgent():
    room = Room((1, 0, BLOCK))
    room.receive(frame((0, BLOCK)), damage=True)
    room.fetching.fault(1, 0, 1)
    assert room.requests() == [PageRequest(1, 0, BLOCK, urgent=True)]


def test_it_is_not_asked_for_without_end():
    """[MEM-5]"""
    room = Room((1, 0, BLOCK))
    for _ in range(MISMATCHES_MAX):
        room.receive(frame((0, BLOCK)), damage=True)
        assert len(room.requests()) == 1
    with pytest.raises(RemoteProtocolError) as error:
        room.receive(frame((0, BLOCK)), damage=True)
    assert (error.value.code, error.value.clause) == (ErrorCode.PAGE_HASH, "MEM-5")


def runs_of(region: int) -> st.SearchStrategy[tuple[int, int, int]]:
    pages = TABLE[region].pages
    return st.integers(0, pages - 1).flatmap(
        lambda first: st.tuples(st.just(region), st.just(first), st.integers(1, min(pages - first, 90)))
    )


RUNS = st.lists(st.one_of(runs_of(1), runs_of(2)), min_size=1, max_size=4)
STEPS = st.lists(st.tuples(st.integers(0, 40 * BLOCK - 1), st.integers(0, 5)), max_size=30)


@settings(max_examples=40)
@given(RUNS, STEPS, st.integers(1, 3))
def test_both_sides_agree_in_the_end(runs, steps, most):
    """[MEM-16] [PCY-13] [PCY-14] Whatever is asked for, damaged, and delayed meanwhile."""
    image, room = Image((0, 3 * BLOCK)), Room(*runs, requests=most)
    source = Serving(
        room.stale, image.pages, image.digest, (3, 8), peer=Limits(), own=Limits(page_requests=most)
    )
    late: list[PageRange] = []
    for page, what in [*steps, *[(0, 5)] * 1000]:
        if what < 3:
            room.fetching.fault(1, page, 1 + what)
        for request in room.requests():
            source.request(request)
        if what == 4:
            while late:
                room.fetching.installed(late.pop())
        batch = source.next_batch(zeros=True)
        if batch is None and not room.fetching.is_complete:
            while late:
                room.fetching.installed(late.pop())
        elif batch is None:
            break
        else:
            damage = what == 3 and batch[0].bulk_bytes > 0
            late += room.receive(batch, damage=damage, install=False)
    assert room.fetching.is_complete
    assert not source.pages_left
    assert not source.is_asked
    assert room.digest.value() == image.digest.value()
    stats = room.fetching.stats()
    assert stats.demanded + stats.pushed == stats.stale == room.stale.count()
    for region, (starts, counts) in room.stale.runs():
        size = TABLE[region].granule_log2
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            place = slice(start << size, (start + count) << size)
            assert room.memory[region][place] == image.memory[region][place]


# ---- more connections than one ----


def coming(room: Room, batch: tuple[Pages, object], stream: int) -> bytes:
    """A batch begins to arrive there; the bytes of its bulk part."""
    table, buffers = batch
    places = room.fetching.announce(table, stream)
    bulk = b"".join(bytes(each) for each in buffers)
    room.lent = getattr(room, "lent", {}) | {stream: places}
    return bulk


def come(room: Room, stream: int, bulk: bytes) -> tuple[PageRange, ...]:
    at = 0
    for place in room.lent[stream]:
        place[:] = bulk[at : at + len(place)]
        at += len(place)
    return room.fetching.take(stream)


def test_what_comes_on_two_connections_at_once_is_taken_from_the_first():
    """[STR-17] [STR-11] The second one is written nowhere, whichever is there first."""
    room = Room((1, 0, BLOCK))
    one = coming(room, frame((0, BLOCK)), 1)
    two = coming(room, frame((0, BLOCK)), 0)
    assert room.fetching.repeated == BLOCK
    assert come(room, 0, b"\xee" * len(two)) == ()
    assert bytes(room.memory[1][:PAGE]) == bytes(PAGE)
    assert come(room, 1, one) == (PageRange(1, 0, BLOCK),)
    assert bytes(room.memory[1][: BLOCK * PAGE]) == one
    room.fetching.installed(PageRange(1, 0, BLOCK))
    assert room.fetching.is_complete


def test_what_is_coming_is_asked_for_only_if_it_comes_damaged():
    """[MEM-5] [STR-17]"""
    room = Room((1, 0, BLOCK))
    bulk = coming(room, frame((0, BLOCK)), 2)
    room.fetching.fault(1, 0, 1)
    assert room.requests() == []
    assert come(room, 2, b"\xee" * len(bulk)) == ()
    assert room.requests() == [PageRequest(1, 0, BLOCK, urgent=True)]


def test_what_was_coming_on_a_connection_that_is_gone_is_missing_again():
    """[STR-6] And asked for, if somebody waits for it."""
    room = Room((1, 0, 2 * BLOCK))
    coming(room, frame((0, BLOCK)), 1)
    coming(room, frame((BLOCK, BLOCK)), 2)
    room.fetching.fault(1, 0, 1)
    assert room.requests() == []
    room.fetching.drop(1)
    room.fetching.drop(1)
    assert room.requests() == [PageRequest(1, 0, BLOCK, urgent=True)]
    room.receive(frame((0, BLOCK)))
    room.fetching.ask_again()
    assert room.requests() == []
    room.receive(frame((BLOCK, BLOCK)))
    assert room.fetching.is_complete


def test_what_an_endpoint_before_has_installed_is_not_asked_for():
    """[RES-13] [HOL-41] Regions of which nothing is missing any more may be left out."""
    room = Room((1, 3, 40))
    missing = room.stale[1].copy()
    missing.clear(3, 13)  # the first group
    room.fetching.take_over({1: missing})
    room.fetching.fault(1, 3, 40)
    assert room.requests() == [PageRequest(1, 16, 16, urgent=True), PageRequest(1, 32, 11, urgent=True)]
    assert room.fetching.held()[1].count() == room.fetching.pushed == 13
    assert not room.fetching.is_complete
    room = Room((1, 3, 40))
    room.fetching.take_over({})
    assert room.fetching.is_complete
    assert room.fetching.stats().pushed == 40


def test_no_change_follows_the_guest():
    """[PCY-17] What it would be a change of, only the guest knows."""
    room = Room((1, 0, 2 * BLOCK))
    table, _ = frame((0, BLOCK))
    table.runs["encoding"][0] = Encoding.DELTA
    with pytest.raises(RemoteProtocolError) as caught:
        room.fetching.announce(table)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.NOT_SELECTED, "PCY-17")


class Early(RegionPages):
    """A sink that has some of the pages before their groups come."""

    early_pages = 0


def test_what_was_early_counts_for_nothing_but_the_figures():
    """[PCY-31] It is missing until its group has come, then it is one of those that came."""
    room = Room((1, 0, 2 * BLOCK))
    assert room.fetching.stats().early == 0
    views = {region: memoryview(memory) for region, memory in room.memory.items()}
    sink = Early(TABLE, views)
    waits = Fetching(room.stale, sink, room.digest, (3, 8), 256)
    sink.early_pages = 3
    assert not waits.held().any()
    assert not waits.is_complete
    assert (waits.stats().early, waits.stats().demanded + waits.stats().pushed) == (3, 0)
    assert waits.position == (3, 8)
