"""What a source sends after HANDOVER, and in which order."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.core.resuming import HeldReport
from sterna.core.serving import ASKED_MAX, IN_VAIN_MAX, AfterStats, Serving
from sterna.errors import RemoteProtocolError
from sterna.limits import Limits
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import RegionPages
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import Encoding, ErrorCode, Transfer
from sterna.wire.records import PageRequest, Region, Welcome

PAGE, BLOCK = 4096, 16  # a block: the 64 KiB that a group does not leave
TABLE = RegionTable(
    [
        Region(1, 0, 40 * BLOCK * PAGE),
        Region(2, 1 << 32, 4 << 16, granule_log2=16),
        Region(5, 1 << 33, PAGE, transfer=Transfer.SHARED),
    ]
)


class Image:
    """An image with content in every page but those that are said to be zero."""

    def __init__(self, *zero: tuple[int, int]) -> None:
        self.memory = {region: bytearray(TABLE[region].size_bytes) for region in TABLE}
        for memory in self.memory.values():
            words = np.frombuffer(memory, dtype=np.uint64)
            words[:] = np.arange(1, len(words) + 1)
        for first, count in zero:
            self.memory[1][first * PAGE : (first + count) * PAGE] = bytes(count * PAGE)
        views = {region: memoryview(memory) for region, memory in self.memory.items()}
        self.pages = RegionPages(TABLE, views)
        self.digest = MemoryDigest(TABLE)


def serving(*runs: tuple[int, int, int], image: Image | None = None, **limits: int) -> Serving:
    """With these stale pages: region, first, count."""
    stale = PageSets(TABLE)
    for region, first, count in runs:
        stale[region].set(first, count)
    image = image or Image()
    peer, own = Limits(**{k: v for k, v in limits.items() if k != "page_requests"}), Limits()
    if "page_requests" in limits:
        own = Limits(page_requests=limits["page_requests"])
    return Serving(stale, image.pages, image.digest, (3, 8), peer=peer, own=own)


def sent(source: Serving) -> list[tuple[int, int, int]] | None:
    """The runs of the next frame."""
    batch = source.next_batch(zeros=True)
    if batch is None:
        return None
    table, buffers = batch
    assert (table.attempt, table.round) == (3, 8)
    assert sum(map(len, buffers)) == table.bulk_bytes
    return [(table.region, int(run["first"]), int(run["count"])) for run in table.runs]


def encodings_of(source: Serving, *, zeros: bool) -> list[int]:
    batch = source.next_batch(zeros=zeros)
    assert batch is not None
    return batch[0].runs["encoding"].tolist()


def everything(source: Serving) -> list[list[tuple[int, int, int]]]:
    return list(iter(lambda: sent(source), None))


def blocks(first: int, count: int) -> list[tuple[int, int, int]]:
    return [(1, number * BLOCK, BLOCK) for number in range(first, first + count)]


def test_everything_is_pushed_in_small_batches_region_by_region():
    """[PCY-8] [PCY-13] One run a group [PCY-7]."""
    source = serving((1, 0, 6 * BLOCK), (2, 1, 2))
    assert source.pages_left or source.is_asked
    assert everything(source) == [blocks(0, 4), blocks(4, 2), [(2, 1, 1), (2, 2, 1)]]
    assert not source.pages_left
    assert not source.is_asked
    assert source.stats(2.5) == AfterStats(stale=98, pushed=98, seconds=2.5)
    assert source.pages_left == 0


def test_less_is_pushed_at_once_where_less_may_be_ahead():
    """But never less than a group [PCY-7]."""
    source = serving((1, 0, 6 * BLOCK))
    batches = [source.next_batch(zeros=True, push_bytes=size) for size in (2 << 16, 1 << 16, 1)]
    assert [len(table.runs) for table, _ in batches] == [2, 1, 1]


def test_nothing_is_stale():
    source = serving()
    assert not source.pages_left
    assert not source.is_asked
    assert sent(source) is None


def test_a_batch_has_no_more_runs_than_the_peer_takes():
    source = serving(*[(1, 2 * page, 1) for page in range(5)], batch_runs=2)
    assert [len(runs) for runs in everything(source)] == [2, 2, 1]


def test_a_batch_has_no_more_bytes_than_the_peer_takes_but_a_group():
    """[PCY-20]"""
    assert [len(runs) for runs in everything(serving((1, 0, 3 * BLOCK), bulk_bytes=2 << 16))] == [2, 1]
    assert [len(runs) for runs in everything(serving((1, 0, 3 * BLOCK), batch_runs=1))] == [1, 1, 1]


def test_what_is_asked_for_goes_first_and_the_push_follows_it():
    """[PCY-9] [PCY-13]"""
    source = serving((1, 0, 20 * BLOCK))
    assert sent(source) == blocks(0, 4)
    source.request(PageRequest(1, 10 * BLOCK + 3, 1))
    assert source.pages_left or source.is_asked
    assert sent(source) == blocks(10, 1)
    assert [run[0] for run in everything(source)] == [
        *((1, block * BLOCK, BLOCK) for block in (11, 15, 19)),
        *((1, block * BLOCK, BLOCK) for block in (4, 8)),
    ]
    stats = source.stats()
    assert (stats.demanded, stats.pushed, stats.repeated, stats.requests) == (BLOCK, 19 * BLOCK, 0, 1)


def test_the_push_goes_on_where_the_guest_is():
    """[PCY-13] It got a page elsewhere: what lies there, that page's group first, comes next."""
    source = serving((1, 0, 12 * BLOCK))
    source.push_near(1, 5 * BLOCK + 3)
    assert sent(source) == blocks(5, 4)
    source.push_near(1, 6 * BLOCK)  # that has been sent, and what is behind it has not
    assert everything(source) == [blocks(9, 3), blocks(0, 4), blocks(4, 1)]
    source.push_near(1, 0)
    assert sent(source) is None


@pytest.mark.parametrize("page", [(1, 7 * BLOCK), (1, -1), (1, 1 << 70), (2, 0), (9, 0), (-1, 0)])
def test_the_push_stays_where_it_was_for_any_other_page(page):
    """One that is not stale, or none at all."""
    source = serving((1, 0, 6 * BLOCK), (2, 1, 2))
    assert sent(source) == blocks(0, 4)
    source.push_near(*page)
    assert sent(source) == blocks(4, 2)


def test_a_push_that_wraps_passes_over_what_was_sent():
    source = serving((1, 0, 9 * BLOCK))
    source.request(PageRequest(1, 8 * BLOCK, BLOCK))
    assert everything(source) == [blocks(8, 1), blocks(0, 4), blocks(4, 4)]
    source = serving((1, 0, 12 * BLOCK))
    source.request(PageRequest(1, 5 * BLOCK, BLOCK))
    assert everything(source) == [blocks(5, 1), blocks(6, 4), blocks(10, 2), blocks(0, 4), blocks(4, 1)]


def test_urgent_requests_overtake_others():
    """[PCY-9]"""
    source = serving((1, 0, 20 * BLOCK))
    source.request(PageRequest(1, 3 * BLOCK, 2 * BLOCK, urgent=False))
    source.request(PageRequest(1, 7 * BLOCK, 1))
    assert (sent(source), sent(source)) == (blocks(7, 1), blocks(3, 2))


def test_requests_that_wait_together_go_together_in_order():
    source = serving((1, 0, 20 * BLOCK), (2, 0, 4))
    for block in (9, 7, 9):
        source.request(PageRequest(1, block * BLOCK, 1))
    source.request(PageRequest(2, 3, 1))
    assert sent(source) == [(1, 7 * BLOCK, BLOCK), (1, 9 * BLOCK, BLOCK)]
    assert sent(source) == blocks(9, 1)  # it did not fit any more, for it was counted twice
    assert sent(source) == [(2, 3, 1)]


def test_a_request_for_much_goes_in_pieces_and_waits_for_them():
    source = serving((1, 0, 5 * BLOCK), page_requests=2)
    source.request(PageRequest(1, 0, 40 * BLOCK))
    assert (sent(source), sent(source), sent(source)) == (blocks(0, 2), blocks(2, 2), blocks(4, 1))
    assert not source.pages_left
    assert not source.is_asked


def test_a_request_that_does_not_fit_behind_another_waits():
    source = serving((1, 0, 3 * BLOCK))
    source.request(PageRequest(1, 0, 1))
    source.request(PageRequest(1, BLOCK, 2 * BLOCK))
    assert (sent(source), sent(source)) == (blocks(0, 2), blocks(2, 1))
    source = serving((1, 0, 8), (1, 1 * BLOCK, BLOCK), (1, 2 * BLOCK, BLOCK))
    source.request(PageRequest(1, 0, 2 * BLOCK))
    source.request(PageRequest(1, 2 * BLOCK, BLOCK))
    assert sent(source) == [(1, 0, 8), (1, BLOCK, BLOCK)]
    assert sent(source) == [(1, 2 * BLOCK, BLOCK)]


def test_what_was_sent_is_sent_again_on_request():
    """[PCY-9]"""
    source = serving((1, 0, 2 * BLOCK))
    everything(source)
    source.request(PageRequest(1, BLOCK, 1))
    assert everything(source) == [blocks(1, 1)]
    assert source.stats().repeated == BLOCK


def test_pages_that_never_were_stale_are_passed_over():
    """[PCY-9]"""
    source = serving((1, BLOCK, 2))
    source.request(PageRequest(1, 0, BLOCK))
    assert source.stats().requests == 1
    assert sent(source) == [(1, BLOCK, 2)]  # the push
    assert source.stats().demanded == 0
    source.request(PageRequest(1, 0, 3 * BLOCK))
    assert sent(source) == [(1, BLOCK, 2)]


def test_requests_for_nothing_are_bounded():
    """[PCY-18] Those that ask for a stale page, too, are not counted."""
    source = serving((1, BLOCK, 2))
    for _ in range(IN_VAIN_MAX):
        source.request(PageRequest(1, 0, BLOCK))
    source.request(PageRequest(1, 0, 2 * BLOCK))
    assert sent(source) == [(1, BLOCK, 2)]
    with pytest.raises(RemoteProtocolError, match="nothing that is stale") as error:
        source.request(PageRequest(1, 0, BLOCK))
    assert (error.value.code, error.value.clause) == (ErrorCode.LIMIT_RATE, "PCY-18")


def nothing_held(source: Serving) -> HeldReport:
    """What a destination says that has none of the pages."""
    _, number = source.position
    return HeldReport(Welcome(0, bytes(16), bytes(32), (), {}), TABLE, number, frozenset({number}))


def test_bounds_of_requests_are_a_connection_s():
    """[PCY-18] [RES-13] What was asked for in vain by one that is lost is not held against the next."""
    source = serving((1, 0, BLOCK), (1, BLOCK, 2))
    for _ in range(ASKED_MAX):
        source.request(PageRequest(1, 0, 1))
        assert sent(source) == [(1, 0, BLOCK)]
    for _ in range(IN_VAIN_MAX):
        source.request(PageRequest(2, 0, 1))
    source.resume(nothing_held(source), PageRequest(1, 0, 1))
    source.request(PageRequest(1, 0, 1))
    assert sent(source) == [(1, 0, BLOCK)]
    for _ in range(IN_VAIN_MAX):
        source.request(PageRequest(2, 0, 1))
    with pytest.raises(RemoteProtocolError, match="nothing that is stale"):
        source.request(PageRequest(2, 0, 1))


def test_repetitions_are_bounded():
    """[PCY-18]"""
    source = serving((1, 0, BLOCK))
    for _ in range(ASKED_MAX):
        source.request(PageRequest(1, 0, 1))
        assert sent(source) == blocks(0, 1)
    with pytest.raises(RemoteProtocolError, match="times") as error:
        source.request(PageRequest(1, 4, 1))
    assert (error.value.code, error.value.clause) == (ErrorCode.LIMIT_RATE, "PCY-18")


def test_requests_that_wait_are_bounded():
    """[CMP-3]"""
    source = serving((1, 0, 10 * BLOCK), page_requests=2)
    source.request(PageRequest(1, 0, 1))
    source.request(PageRequest(1, BLOCK, 1, urgent=False))
    with pytest.raises(RemoteProtocolError, match="more than 2 page requests") as error:
        source.request(PageRequest(1, 2 * BLOCK, 1))
    assert (error.value.code, error.value.clause) == (ErrorCode.LIMIT_RATE, "CMP-3")
    sent(source)
    source.request(PageRequest(1, 2 * BLOCK, 1))


def test_a_region_that_does_not_travel():
    """[PCY-19]"""
    with pytest.raises(RemoteProtocolError) as error:
        serving((1, 0, 1)).request(PageRequest(5, 0, 1))
    assert (error.value.code, error.value.clause) == (ErrorCode.OUTSIDE_REGION, "PCY-19")


def test_a_group_is_zero_or_not_as_a_whole_and_each_time():
    """[PCY-7] [PCY-17]"""
    image = Image((0, BLOCK), (BLOCK, BLOCK - 1))
    source = serving((1, 0, 2 * BLOCK), image=image)
    encodings = []
    for _ in range(2):
        source.request(PageRequest(1, 0, 2 * BLOCK))
        encodings.append(encodings_of(source, zeros=True))
    assert encodings == [[Encoding.ZERO, Encoding.RAW]] * 2
    assert encodings_of(serving((1, 0, 2 * BLOCK), image=image), zeros=False) == [Encoding.RAW] * 2


def test_entries_do_not_depend_on_the_order():
    """[PCY-14]"""
    digests = set()
    for asked in ([], [5], [1, 9, 1]):
        image = Image((3 * BLOCK, BLOCK))
        source = serving((1, 3, 8 * BLOCK), image=image)
        assert image.digest.stale_pages == TABLE.pages
        for block in asked:
            source.request(PageRequest(1, block * BLOCK, 1))
        everything(source)
        assert image.digest.stale_pages == TABLE.pages - 8 * BLOCK
        digests.add(image.digest.value())
    assert len(digests) == 1
