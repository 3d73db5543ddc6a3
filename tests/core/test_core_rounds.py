"""A round as either side sees it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from core_support import PAGE
from hypothesis import given
from hypothesis import strategies as st

from sterna.core import shares
from sterna.core.rounds import IncomingRound, OutgoingRound, batch_bounds
from sterna.errors import LimitExceeded, PeerMisbehaved
from sterna.limits import CHUNK_BYTES, REJECTED_FLOOR_PAGES, Limits
from sterna.memory.pages import RegionPages, zero_batch
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import Encoding, ErrorCode, Transfer
from sterna.wire import records as r
from sterna.wire.codec import encode_body
from sterna.wire.pages import make_runs
from sterna.wire.rules import Bounds

MIB = 1 << 20
FAST = 1e12  # a link that a batch passes at once
TABLE = RegionTable([r.Region(3, 0, 8 * PAGE), r.Region(1, 1 << 40, 16 * PAGE)])
LARGE = RegionTable([r.Region(0, 0, 1 << 40)])
NO_HASHES = np.empty(0, np.uint64)


def zeros(region=1, *runs, attempt=1, number=1):
    """A page table of zero runs."""
    rows = make_runs([(first, count, Encoding.ZERO) for first, count in runs], 12)
    return r.Pages(attempt, number, region, rows, NO_HASHES)


def ranges(*items):
    return tuple(r.PageRange(*item) for item in items)


def wrong(code, clause):
    return pytest.raises((PeerMisbehaved, LimitExceeded), match=rf"{code.name.lower()}.*\[{clause}\]")


# ---- batches ----


PEERS = st.builds(
    Limits,
    control_bytes=st.integers(65536, 1 << 21),
    batch_runs=st.integers(1, 20000),
    bulk_bytes=st.integers(CHUNK_BYTES, 1 << 24),
)


@given(st.integers(12, 16), PEERS, st.integers(1, 1 << 25), st.randoms(use_true_random=False))
def test_the_worst_batch_fits_the_peer(granule_log2, peer, wanted, random):
    """[LIM-6] [PGS-5] [PGS-21] [HDR-7] [HDR-9] However zero pages and others alternate."""
    pages = min((1 << 24 >> granule_log2) + 5, 2500)
    table = RegionTable([r.Region(0, 0, pages << granule_log2, granule_log2)])
    most_bytes, most_runs = batch_bounds(table, peer, wanted, FAST)
    pieces = random.sample(range(pages), random.randrange(1, pages))
    sets = PageSets(table)
    sets.add_ranges(r.PageRange(0, page, 1) for page in pieces)
    _, starts, counts = next(sets.batches(most_bytes, most_runs))
    count = int(counts.sum())
    assert len(starts) <= peer.batch_runs
    assert count << granule_log2 <= peer.bulk_bytes
    # Worst of all: every page a run of its own, each with bytes.
    single = make_runs([(page, 1, Encoding.RAW) for page in range(count)], granule_log2)
    body = encode_body(
        r.Pages(1, 1, 0, single, np.zeros(count, np.uint64)),
        Bounds(limits=Limits(batch_runs=1 << 20, bulk_bytes=1 << 30), regions={0: table[0]}),
    )
    assert len(body) <= peer.control_bytes
    assert count <= peer.batch_runs


@pytest.mark.parametrize(
    ("rate_bytes_s", "batch_bytes"),
    [(0, MIB // 4), (1e6, MIB // 4), (20e6, 1_000_000), (125e6, 4 * MIB), (4e8, 8_000_000), (1e15, 16 * MIB)],
)
def test_a_batch_does_not_fill_a_slow_link_for_long(rate_bytes_s, batch_bytes):
    """[PGS-22] Heartbeats and ABORT wait behind it."""
    assert batch_bounds(LARGE, Limits(), 1 << 30, rate_bytes_s)[0] == batch_bytes
    assert batch_bounds(LARGE, Limits(), 3 * MIB, rate_bytes_s)[0] == min(batch_bytes, 3 * MIB)
    assert batch_bounds(LARGE, Limits(bulk_bytes=PAGE), 1 << 30, rate_bytes_s)[0] == PAGE


@pytest.mark.parametrize(
    ("guest_bytes", "batch_bytes"),
    [(MIB, MIB // 4), (16 * MIB, MIB), (64 * MIB, 4 * MIB), (128 * MIB, 4 * MIB), (256 * MIB, 8 * MIB)],
)
def test_a_batch_is_a_small_part_of_its_guest(guest_bytes, batch_bytes):
    """What is rejected of one that the guest writes to is a small part, too."""
    table = RegionTable([r.Region(0, 0, guest_bytes)])
    assert batch_bounds(table, Limits(), 1 << 30, FAST)[0] == batch_bytes


@pytest.mark.parametrize(("connections", "batch_bytes"), [(1, 16_000_000), (2, 8_000_000), (4, 4 * MIB)])
def test_batches_on_several_connections_take_as_long_together_as_one(connections, batch_bytes):
    assert batch_bounds(LARGE, Limits(), 1 << 30, 8e8, connections)[0] == batch_bytes


def test_a_guest_without_copied_regions_has_batches_too():
    nothing = RegionTable([r.Region(0, 0, PAGE, transfer=Transfer.SHARED)])
    assert min(batch_bounds(nothing, Limits(), MIB, FAST)) > 0


# ---- sending ----


def outgoing(*items, number=1, last=False):
    pages = PageSets(TABLE)
    pages.add_ranges(ranges(*items))
    return OutgoingRound(number, 2, pages, (4 * PAGE, 8), 10.0, last=last)


def send(round_, memory=None):
    """All batches, as frames 5, 6, 7 and so on."""
    memory = memory or {1: memoryview(bytearray(16 * PAGE)), 3: memoryview(bytearray(b"x" * (8 * PAGE)))}
    pages = RegionPages(TABLE, memory)
    tables = []
    while (runs := round_.next_runs()) is not None:
        tables.append(round_.sent(pages.encode(*runs), 5 + len(tables)))
    return tables


def test_a_round_is_opened_sent_and_ended():
    """[RND-3] [STR-8] [CON-21] [CON-23]"""
    round_ = outgoing((1, 0, 6), (3, 2, 3), number=9)
    assert round_.opening() == r.Round(2, 9, 9)
    assert round_.ending() == r.RoundEnd(2, 9, 0, 0, ())
    assert round_.pages_left == 9
    tables = send(round_)
    assert [(table.region, table.attempt, table.round) for table in tables] == [
        (1, 2, 9),
        (1, 2, 9),
        (3, 2, 9),
    ]
    assert round_.pages_left == 0
    assert round_.ending() == r.RoundEnd(2, 9, 9, 3 * PAGE, ((0, 7),))


def test_pages_are_sent_once_a_round():
    """[CON-27]"""
    seen = PageSets(TABLE)
    round_ = outgoing((1, 0, 16), (3, 0, 8))
    for table in send(round_):
        for row in table.runs:
            item = r.PageRange(table.region, int(row["first"]), int(row["count"]))
            before = seen.count()
            seen.add_ranges([item])
            assert seen.count() == before + item.count
    assert seen == round_.pages


def test_an_acknowledgement():
    """[CON-32]"""
    round_ = outgoing((1, 0, 6), (3, 2, 3))
    send(round_)
    assert not round_.rejected(r.RoundAck(2, 1, 9, 77)).any()
    rejected = ranges((1, 4, 2), (3, 2, 1))
    expected = PageSets(TABLE)
    expected.add_ranges(rejected)
    assert round_.rejected(r.RoundAck(2, 1, 6, 77, rejected)) == expected


@pytest.mark.parametrize(
    ("ack", "code", "clause"),
    [
        (r.RoundAck(2, 2, 9, 0), ErrorCode.BAD_ROUND, "CON-30"),
        (r.RoundAck(2, 1, 8, 0), ErrorCode.COUNT_MISMATCH, "CON-32"),
        (r.RoundAck(2, 1, 9, 0, ranges((1, 0, 1))), ErrorCode.COUNT_MISMATCH, "CON-32"),
        (r.RoundAck(2, 1, 8, 0, ranges((1, 6, 1))), ErrorCode.COUNT_MISMATCH, "CON-33"),
        (r.RoundAck(2, 1, 8, 0, ranges((1, 16, 1))), ErrorCode.OUTSIDE_REGION, "FRM-18"),
        (r.RoundAck(2, 1, 8, 0, ranges((2, 0, 1))), ErrorCode.OUTSIDE_REGION, "FRM-18"),
        (r.RoundAck(2, 1, 0, 0, ranges((1, 0, 1 << 60))), ErrorCode.COUNT_MISMATCH, "CON-32"),
    ],
)
def test_an_acknowledgement_that_does_not_fit(ack, code, clause):
    round_ = outgoing((1, 0, 6), (3, 2, 3))
    send(round_)
    with wrong(code, clause):
        round_.rejected(ack)


def test_what_a_round_measured():
    round_ = outgoing((1, 0, 6), (3, 2, 3))
    send(round_)
    dirty = PageSets(TABLE)
    dirty.add_ranges(ranges((1, 0, 2)))
    ack = r.RoundAck(2, 1, 8, 4711, ranges((3, 2, 1)))
    stats = round_.stats(12.5, 0.3, dirty, ack)
    assert (stats.round, stats.pages, stats.bulk_bytes, stats.seconds) == (1, 9, 3 * PAGE, 2.5)
    assert (stats.dirty_pages, stats.dirty_bytes, stats.throttle) == (2, 2 * PAGE, 0.3)
    assert (stats.rejected_pages, stats.receive_rate_bytes_s) == (1, 4711)
    assert round_.stats(12.5, 0.3, dirty).rejected_pages == 0


def test_versions_that_were_looked_for_are_counted():
    round_ = outgoing((1, 0, 6))
    batch = zero_batch(1, np.array([0]), np.array([3]))
    for asked, found in ((3, 1), (2, 2)):
        round_.sent(replace(batch, versions_asked=asked, versions_found=found), 1)
    stats = round_.stats(12.5, 0.0, PageSets(TABLE))
    assert (stats.versions_asked, stats.versions_found) == (5, 3)


# ---- receiving ----


def incoming(last=False):
    return IncomingRound(1, TABLE, 10.0, last=last)


def test_tables_are_counted():
    """[RND-3] [RND-4] [STR-8]"""
    round_ = incoming()
    round_.check_end(r.RoundEnd(1, 1, 0, 0))
    for sequence, table in enumerate((zeros(1, (0, 4), (8, 2)), zeros(3, (0, 1))), 7):
        round_.announce(table)
        round_.take(table, [], sequence)
    round_.check_end(r.RoundEnd(1, 1, 7, 0, ((0, 8),)))
    assert round_.rejected(Limits(), r.RoundEnd(1, 1, 7, 0)) == ()


@pytest.mark.parametrize(
    ("end", "code", "clause"),
    [
        (r.RoundEnd(1, 2, 4, 0, ((0, 7),)), ErrorCode.BAD_ROUND, "CON-21"),
        (r.RoundEnd(1, 1, 3, 0, ((0, 7),)), ErrorCode.COUNT_MISMATCH, "RND-3"),
        (r.RoundEnd(1, 1, 4, 1, ((0, 7),)), ErrorCode.COUNT_MISMATCH, "RND-3"),
        (r.RoundEnd(1, 1, 4, 0, ()), ErrorCode.COUNT_MISMATCH, "RND-4"),
        (r.RoundEnd(1, 1, 4, 0, ((0, 6),)), ErrorCode.COUNT_MISMATCH, "RND-4"),
        (r.RoundEnd(1, 1, 4, 0, ((0, 8),)), ErrorCode.COUNT_MISMATCH, "RND-4"),
        (r.RoundEnd(1, 1, 4, 0, ((0, 7), (1, 7))), ErrorCode.COUNT_MISMATCH, "RND-4"),
    ],
)
def test_an_end_that_states_something_else(end, code, clause):
    """[STR-9]"""
    round_ = incoming()
    round_.take(zeros(1, (0, 4)), [], 7)
    with wrong(code, clause):
        round_.check_end(end)


def test_pages_of_another_round():
    """[CON-21]"""
    with wrong(ErrorCode.BAD_ROUND, "CON-21"):
        incoming().announce(zeros(1, (0, 4), number=2))


def test_more_pages_than_the_guest_has():
    """[CON-27] Refused while nothing has been taken."""
    round_ = incoming()
    for table in (zeros(1, (0, 16)), zeros(3, (0, 8))):
        round_.announce(table)
        round_.take(table, [], 1)
    with wrong(ErrorCode.COUNT_MISMATCH, "CON-27"):
        round_.announce(zeros(1, (0, 1)))
    assert round_.page_count == 24


def test_rejected_pages_are_listed():
    """[RAK-3] [CON-35] What came again in the same round and was good is not."""
    round_ = incoming()
    round_.take(zeros(3, (0, 8)), ranges((3, 2, 2)), 1)
    round_.take(zeros(1, (0, 16)), ranges((1, 3, 1), (1, 9, 2)), 2)
    round_.take(zeros(1, (9, 1)), [], 3)
    listed = round_.rejected(Limits(), r.RoundEnd(1, 1, 25, 0))
    assert listed == ranges((1, 3, 1), (1, 10, 1), (3, 2, 2))
    assert round_.stats(11.0).rejected_pages == 4


def test_in_the_blackout_no_page_may_differ():
    """[CON-47]"""
    with wrong(ErrorCode.PAGE_HASH, "CON-47"):
        incoming(last=True).take(zeros(1, (0, 4)), ranges((1, 0, 1)), 1)


@pytest.mark.parametrize("share", [0.25, 0.2501])
def test_more_rejected_pages_than_a_running_guest_explains(share):
    """[RAK-5] A quarter of the round, or 1024."""
    pages = 10_000
    table = RegionTable([r.Region(1, 0, pages * PAGE)])
    for sent, rejected in ((pages, int(pages * share)), (2000, REJECTED_FLOOR_PAGES + (share > 0.25))):
        round_ = IncomingRound(1, table, 0.0, last=False)
        round_.take(zeros(1, (0, sent)), ranges((1, 0, rejected)), 1)
        end = r.RoundEnd(1, 1, sent, 0)
        if share == 0.25:
            assert round_.rejected(Limits(), end) == ranges((1, 0, rejected))
        else:
            with wrong(ErrorCode.TOO_MANY_REJECTED, "RAK-5"):
                round_.rejected(Limits(), end)


def test_a_source_does_not_believe_in_so_many_rejections_either():
    """[RAK-5] 1024 pages are borne, one more ends the session."""
    table = RegionTable([r.Region(1, 0, 2000 * PAGE)])
    whole = PageSets(table)
    whole.add_ranges(ranges((1, 0, 2000)))
    round_ = OutgoingRound(1, 1, whole, (2000 * PAGE, 8), 0.0, last=False)
    pages = RegionPages(table, {1: memoryview(bytearray(2000 * PAGE))})
    while (runs := round_.next_runs()) is not None:
        round_.sent(pages.encode(*runs), 1)
    most = REJECTED_FLOOR_PAGES
    assert round_.rejected(r.RoundAck(1, 1, 2000 - most, 0, ranges((1, 0, most)))).count() == most
    with wrong(ErrorCode.TOO_MANY_REJECTED, "RAK-5"):
        round_.rejected(r.RoundAck(1, 1, 2000 - most - 1, 0, ranges((1, 0, most + 1))))


@pytest.mark.parametrize("peer", [Limits(rejected_runs=700), Limits(control_bytes=700 * 24 + 32)])
def test_more_rejected_ranges_than_the_source_can_be_told(peer):
    """[RAK-2] [RAK-5] [HDR-7]"""
    table = RegionTable([r.Region(1, 0, 4000 * PAGE)])
    for count in (700, 701):
        round_ = IncomingRound(1, table, 0.0, last=False)
        round_.take(zeros(1, (0, 4000)), ranges(*((1, 2 * page, 1) for page in range(count))), 1)
        if count == 700:
            listed = round_.rejected(peer, r.RoundEnd(1, 1, 4000, 0))
            ack = r.RoundAck(1, 1, 3300, 0, listed)
            assert len(encode_body(ack, Bounds(limits=peer))) <= peer.control_bytes
        else:
            with wrong(ErrorCode.TOO_MANY_REJECTED, "RAK-5"):
                round_.rejected(peer, r.RoundEnd(1, 1, 4000, 0))


@pytest.mark.parametrize(("seconds", "rate_bytes_s"), [(2.0, 2 * PAGE), (0.0, 0), (5e-324, 0), (1e-9, 0)])
def test_the_rate_is_that_of_the_bytes(seconds, rate_bytes_s):
    """Where the clock stands still there is none."""
    round_ = IncomingRound(1, TABLE, 0.0, last=False)
    table = r.Pages(1, 1, 3, make_runs([(0, 4, Encoding.RAW)], 12), np.zeros(1, np.uint64))
    round_.take(table, [], 1)
    assert round_.stats(seconds).receive_rate_bytes_s == rate_bytes_s


def test_pages_that_were_not_given_out_can_be_left_out():
    """[CON-29] [RND-3]"""
    round_ = outgoing((1, 0, 6), (3, 2, 3))
    region, starts, counts = round_.next_runs()
    assert (region, starts.tolist(), counts.tolist()) == (1, [0], [4])
    assert (round_.pages_left, round_.bytes_left) == (9, 5 * PAGE)
    again = PageSets(TABLE)
    again.add_ranges(ranges((1, 1, 4), (3, 3, 2)))
    round_.skip(again)
    assert (round_.pages_left, round_.bytes_left) == (6, 2 * PAGE)
    left = [
        (region, starts.tolist(), counts.tolist()) for region, starts, counts in iter(round_.next_runs, None)
    ]
    assert left == [(1, [5], [1]), (3, [2], [1])]
    assert round_.is_given_out


def test_a_share_that_is_left_is_left_with_what_is_known_to_be_zero():
    """[CON-29] What has been given out stays so."""
    pages, blank = PageSets(TABLE), PageSets(TABLE)
    pages.add_ranges(ranges((1, 0, 6), (3, 0, 2)))
    blank.add_ranges(ranges((1, 4, 2), (3, 0, 1)))
    round_ = OutgoingRound(1, 1, pages, (4 * PAGE, 8), 0.0, last=False, blank=blank, blank_bytes=8 * PAGE)
    for runs, place in ((round_.next_runs(), (1, [0], [4])), (round_.next_blanks(), (1, [4], [2]))):
        assert runs is not None
        assert (runs[0], runs[1].tolist(), runs[2].tolist()) == place
    left = round_.leave_out(0)
    assert [(region, *(each.tolist() for each in runs)) for region, runs in left.runs()] == [(3, [0], [2])]
    assert round_.next_blanks() is None
    assert round_.next_runs() is None
    assert round_.is_given_out


def test_what_lies_around_pages_that_were_written_comes_last(monkeypatch):
    """The guest goes on where it has written, and what it writes before its turn is spared."""
    monkeypatch.setattr(shares, "NEAR_BYTES", 2 * PAGE)
    round_ = outgoing((1, 0, 6), (3, 0, 5))
    written = PageSets(TABLE)
    written.add_ranges(ranges((1, 1, 1), (3, 3, 1)))
    round_.skip(written)
    assert round_.bytes_left == 9 * PAGE
    order = [
        (region, starts.tolist(), counts.tolist()) for region, starts, counts in iter(round_.next_runs, None)
    ]
    assert order == [(1, [2], [4]), (3, [0, 4], [2, 1]), (1, [0], [1]), (3, [2], [1])]
    assert round_.is_given_out
