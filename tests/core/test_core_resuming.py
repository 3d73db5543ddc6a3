"""What a source has to send again after a loss: by cases, and against a model that knows every version."""

from __future__ import annotations

from collections import deque

import pytest
from core_support import PAGE
from hypothesis import example, given
from hypothesis import strategies as st

from sterna.core.bitmap_frames import held_frames
from sterna.core.holdings import Holdings
from sterna.core.resuming import HeldReport, dirty_after_resume
from sterna.core.sending import Sending
from sterna.errors import RemoteProtocolError
from sterna.limits import Limits
from sterna.memory.bitmap import PageBitmap, checked_runs, expand_runs
from sterna.memory.pages import RegionPages
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import BitmapEncoding, ErrorCode
from sterna.wire import records as r

SIZE = 8
PAGES = st.integers(0, SIZE - 1)
TABLE = RegionTable([r.Region(3, 0, SIZE * PAGE)])


def pages_of(*numbers: int) -> PageSets:
    sets = PageSets(TABLE)
    for page in numbers:
        sets[3].set(page)
    return sets


def welcome(complete: int, held: int) -> r.Welcome:
    return r.Welcome(0, bytes(15) + b"\1", bytes(32), (), {}, "", 1, complete, held)


def report_of(complete: int, begun: int, applied: dict[int, PageSets], rejected: PageSets) -> HeldReport:
    frames = [each for n, sets in applied.items() for each in held_frames(n, sets, 4096, rejected=False)]
    frames += held_frames(begun, rejected, 4096, rejected=True)
    report = HeldReport(welcome(complete, len(frames)), TABLE, begun, frozenset(range(1, begun + 1)))
    for frame in frames:
        report.add(frame)
    assert not report.owed
    return report


def test_every_reason_for_which_a_page_is_dirty():
    """[RES-9]"""
    report = report_of(4, 6, {5: pages_of(2, 3, 4), 6: pages_of(5, 6)}, pages_of(1))
    planned = {4: pages_of(0, 1), 5: pages_of(2, 3), 6: pages_of(4, 5, 6, 7)}
    dirty = dirty_after_resume(pages_of(3), planned, 3, report)
    # 0 is of a complete round; 2, 5 and 6 are listed under their latest round. Page 3 was collected
    # again, 4 is listed under a round before its latest, 7 is not listed, 1 was rejected.
    assert dirty == pages_of(1, 3, 4, 7)


def test_a_destination_that_has_lost_what_it_had_is_sent_everything():
    """[RES-7] [RES-9]"""
    report = report_of(0, 6, {}, PageSets(TABLE))
    assert dirty_after_resume(PageSets(TABLE), {}, 6, report) == PageSets.full(TABLE)
    assert dirty_after_resume(PageSets(TABLE), {1: PageSets.full(TABLE)}, 0, report) == PageSets.full(TABLE)


def test_a_complete_round_must_have_been_begun():
    """[RES-5]"""
    with pytest.raises(RemoteProtocolError) as error:
        HeldReport(welcome(7, 0), TABLE, 6, frozenset())
    assert error.value.code is ErrorCode.BAD_ROUND


def held(round_: int, first: int = 0, *, rejected: bool = False, bits: int = 8) -> r.Held:
    return r.Held(round_, 3, rejected, first, bits, BitmapEncoding.PLAIN, b"\x01")


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([held(5), held(6), held(6)], ErrorCode.COUNT_MISMATCH),
        ([held(4)], ErrorCode.COUNT_MISMATCH),
        ([held(7)], ErrorCode.COUNT_MISMATCH),
        ([held(0, rejected=True)], ErrorCode.COUNT_MISMATCH),
        ([held(7, rejected=True)], ErrorCode.COUNT_MISMATCH),
        ([held(5, bits=4), held(5, 2, bits=4)], ErrorCode.OVERLAPPING_RUNS),
        ([held(5, 4)], ErrorCode.OUTSIDE_REGION),
        ([held(6, 4)], ErrorCode.OUTSIDE_REGION),
        ([held(6, 4, rejected=True)], ErrorCode.OUTSIDE_REGION),
    ],
    ids=[
        "more",
        "complete",
        "not-begun",
        "no-round",
        "rejected-not-begun",
        "order",
        "off",
        "off-unasked",
        "off-rejected",
    ],
)
def test_lists_that_make_no_sense_are_refused(frames, code):
    """[BMP-7] [BMP-8] [RES-6] [FRM-18]"""
    report = HeldReport(welcome(4, 2), TABLE, 6, frozenset({5}))
    for frame in frames[:-1]:
        report.add(frame)
    with pytest.raises(RemoteProtocolError) as error:
        report.add(frames[-1])
    assert error.value.code is code


def test_rounds_that_nobody_asked_for_are_not_kept():
    report = HeldReport(welcome(1, 2), TABLE, 6, frozenset({1, 5}))
    report.add(held(4))
    report.add(held(5))
    assert report.applied == {5: pages_of(0)}


def numbers(table: r.Pages) -> list[int]:
    runs = table.runs
    return expand_runs(*checked_runs(runs["first"], runs["count"], SIZE)).tolist()


class Model:
    """A source, a link that loses things, and a destination; every page has a version."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE * PAGE)
        self.version = [1] * SIZE
        self.tracked: set[int] = set()
        self.sending = Sending(TABLE, RegionPages(TABLE, {3: memoryview(self.memory)}))
        self.pipe: deque[tuple[r.Pages, list[int]] | None] = deque()  # None is ROUND_END
        self.back: deque[r.RoundAck] = deque()
        self.open = self.ending = False
        self.forget()

    def forget(self) -> None:
        self.there: list[int | None] = [None] * SIZE  # None: neither this version nor that
        self.holdings = Holdings(TABLE)
        self.receiving = False
        self.got, self.refused = 0, PageSets(TABLE)

    def pending(self) -> set[int]:
        missing = self.sending._pending[3]
        return {page for page in range(SIZE) if page in missing}

    def write(self, pages: set[int]) -> None:
        for page in pages:
            self.version[page] += 1
            self.memory[page * PAGE] = self.version[page] % 251 + 1
        self.tracked |= pages

    def collect(self) -> None:
        bitmap = PageBitmap(SIZE)
        for page in self.tracked:
            bitmap.set(page)
        self.tracked.clear()
        self.sending.written({3: bitmap})

    def go_on(self, steps: int, ahead: int, bad: set[int]) -> None:
        """What is next, so many times; the source is so many frames ahead."""
        for _ in range(steps):
            if self.back:
                self.sending.acknowledged(self.back.popleft())
                self.collect()
                self.open = False
            elif not self.open:
                self.collect()
                self.sending.begin(1, Limits(), PAGE, 1e12, 0.0, last=False)
                self.open, self.receiving, self.ending = True, False, False
            elif len(self.pipe) <= ahead and not self.ending:
                self.send()
            else:
                self.receive(bad)

    def send(self) -> None:
        batch = self.sending.next_batch(1, zeros=True)
        self.ending = batch is None
        if batch is None:
            self.pipe.append(None)
        else:
            self.pipe.append((batch[0], [self.version[page] for page in numbers(batch[0])]))

    def announce(self) -> r.Pages | None:
        """The head of the next frame arrives; None if it is ROUND_END."""
        if not self.receiving:
            self.holdings.begin(self.sending.round)
            self.receiving, self.got, self.refused = True, 0, PageSets(TABLE)
        if self.pipe[0] is None:
            return None
        table = self.pipe[0][0]
        self.holdings.announce(table)
        for page in numbers(table):
            self.there[page] = None
        return table

    def receive(self, bad: set[int]) -> None:
        table = self.announce()
        unit = self.pipe.popleft()
        if table is None or unit is None:
            self.holdings.end()
            (_, runs), *_ = [*self.refused.runs(), (3, ((), ()))]
            ranges = tuple(r.PageRange(3, int(first), int(count)) for first, count in zip(*runs, strict=True))
            count = self.got - self.refused.count()
            self.back.append(r.RoundAck(1, self.sending.round, count, 0, ranges))
            return
        pages = numbers(table)
        rejected = [r.PageRange(3, page, 1) for page in pages if page in bad]
        self.holdings.take(table, rejected)
        self.refused.add_ranges(rejected)
        self.got += len(pages)
        for page, version in zip(pages, unit[1], strict=True):
            self.there[page] = None if page in bad else version

    def lose(self, *, half: bool, anew: bool) -> None:
        """The link is lost, perhaps within a frame; sometimes it was the destination's process."""
        if half and self.pipe:
            self.announce()
        self.pipe.clear()
        self.back.clear()
        self.open = False
        if anew:
            self.forget()
        frames = list(self.holdings.frames(4096))
        report = self.sending.report(welcome(self.holdings.complete, len(frames)))
        for frame in frames:
            report.add(frame)
        self.sending.resume(report)
        self.check_clean()

    def check_clean(self) -> None:
        dirty = self.pending() | self.tracked
        for page in range(SIZE):
            if page not in dirty:
                assert self.there[page] == self.version[page], (page, self.there, self.version)

        stale = self.sending._digest.stale(3)
        assert all(page in stale for page in self.pending())


STEPS = st.tuples(
    st.sets(PAGES, max_size=4),
    st.integers(0, 30),
    st.integers(0, 3),
    st.sets(PAGES, max_size=2),
    st.sampled_from(["nothing", "link", "link in a frame", "destination"]),
)


# The first acknowledgement is lost, so that only WELCOME has ever told of the round; then all is lost.
@example([(set(), 19, 0, set(), "link"), (set(), 0, 0, set(), "destination")])
@given(st.lists(STEPS, min_size=1, max_size=12))
def test_what_counts_as_clean_is_there_in_its_newest_version(steps):
    """[RES-6] [RES-7] [RES-8] [RES-9] [RES-10]

    Whatever was lost: link, frames, acknowledgements, or all that the destination had.
    """
    model = Model()
    for pages, count, ahead, bad, lost in steps:
        model.write(pages)
        model.go_on(count, ahead, bad)
        if lost != "nothing":
            model.lose(half=lost == "link in a frame", anew=lost == "destination")
        if not model.open:
            model.check_clean()
