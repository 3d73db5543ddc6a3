"""A destination whose guest runs before all of its pages are there, frame by frame."""

from __future__ import annotations

import pytest
from core_support import EPOCH, IMAGE, PAGE, SECTION, FetchingRig, code_of

from sterna.core import events as e
from sterna.core.tables import DestinationState as D
from sterna.errors import GuestError
from sterna.registry import ErrorCode, Feature, Limit, Style
from sterna.wire import records as r


def test_styles_are_selected_if_the_host_can():
    """[NEG-10] [NEG-11]"""
    rig = FetchingRig().until(D.WELCOMED)
    assert {Feature.BITMAP, Feature.POST_COPY} <= {each.id for each in rig.heard[0].features}
    rig = FetchingRig(features=frozenset({Feature.STOP_AND_COPY, Feature.HASH_XXH3_64})).until(D.WELCOMED)
    assert not {Feature.BITMAP, Feature.POST_COPY} & {each.id for each in rig.heard[0].features}


def test_the_style_is_told_to_who_prepares():
    rig = FetchingRig().until(D.STANDBY)
    rig.until(D.PREPARING)
    assert rig.take(e.Prepare).style is Style.BITMAP


def test_post_copy_after_a_round_is_none():
    """[PCY-4]"""
    rig = FetchingRig().until(D.RECEIVING)
    rig.until(D.RECEIVING)
    rig.pages()
    rig.finish_round()
    rig.switchover(Style.POST_COPY)
    assert code_of(rig) is ErrorCode.BAD_ROUND


def test_post_copy_without_a_round():
    """[PCY-4] [MEM-10]"""
    rig = FetchingRig().until(D.STANDBY)
    rig.switchover(Style.POST_COPY)
    rig.do(e.Persist)
    rig.do(e.Prepare)
    rig.begin()
    rig.finish_round()
    rig.bitmap(pages=b"\x0f")
    rig.state(SECTION)
    rig.say(rig.seal())
    (stale,) = rig.take(e.Expect).stale.values()
    assert stale.count() == 4


def test_loaded_comes_when_accesses_are_held_and_the_state_is_loaded():
    """[PCY-5] [PCY-3] [MEM-14]"""
    rig = FetchingRig().until(D.LOADING)
    expect = rig.take(e.Expect)
    assert expect.stale[0].runs()[0].tolist() == [1]
    assert expect.stale[0].count() == 2
    assert rig.take(e.LoadState)
    rig.machine.complete(expect, None, rig.now)
    assert rig.drain() == []


def test_a_guest_that_cannot_hold_accesses_fails_the_attempt():
    """[PCY-5]"""
    rig = FetchingRig().until(D.LOADING)
    rig.break_(e.Expect, GuestError("no userfaultfd"))
    assert code_of(rig) is ErrorCode.GUEST_FAILED
    assert rig.wishes == [e.Discard]


def test_a_bitmap_in_stop_and_copy_is_unexpected():
    """[PCY-21] [MEM-11]"""
    rig = FetchingRig().until(D.STANDBY)
    rig.switchover(Style.STOP_AND_COPY)
    rig.do(e.Persist)
    rig.do(e.Prepare)
    rig.begin()
    rig.finish_round()
    rig.bitmap()
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME


def frozen() -> FetchingRig:
    rig = FetchingRig().until(D.BLACKOUT)
    rig.finish_round()
    return rig


@pytest.mark.parametrize("state", [D.STANDBY, D.READY, D.BLACKOUT])
def test_a_bitmap_before_the_end_of_the_round_is_unexpected(state):
    """[PCY-1]"""
    rig = FetchingRig().until(state)
    rig.bitmap()
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME


def test_a_bitmap_behind_state_is_unexpected():
    """[PCY-1]"""
    rig = frozen()
    rig.state(SECTION)
    rig.bitmap()
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"first": 1}, ErrorCode.OUTSIDE_REGION),
        ({"region": 9}, ErrorCode.OUTSIDE_REGION),
        ({"bits": 0, "pages": b""}, ErrorCode.BAD_VALUE),
        ({"pages": b"\x16"}, ErrorCode.TRAILING_BYTES),
    ],
    ids=["beyond", "no-region", "empty", "trailing"],
)
def test_bitmaps_that_fit_nothing(changes, code):
    """[FRM-18] [BMP-1] [BMP-3]"""
    rig = frozen()
    rig.bitmap(**changes)
    assert code_of(rig) is code


def test_bitmaps_out_of_order():
    """[BMP-8]"""
    rig = frozen()
    rig.bitmap(first=2, bits=2, pages=b"\x01")
    rig.bitmap(first=0, bits=2, pages=b"\x01")
    assert code_of(rig) is ErrorCode.OVERLAPPING_RUNS


def test_a_bitmap_of_a_region_that_is_not_copied():
    """[PCY-19]"""
    shared = r.Region(1, 1 << 32, PAGE, transfer=1)
    rig = FetchingRig(guest=r.Guest("guest", 0, 1, 4096, (r.Region(0, 0, 4 * PAGE), shared)))
    rig.until(D.BLACKOUT)
    rig.finish_round()
    rig.bitmap(region=1, bits=1, pages=b"\x01")
    assert code_of(rig) is ErrorCode.OUTSIDE_REGION


def test_pages_that_are_neither_held_nor_declared():
    """[MEM-10] [MEM-15] Even if the source leaves them out of its digest, too."""
    rig = frozen()
    rig.bitmap(pages=b"\x02")
    rig.digest.mark_stale(0, [1], [2])
    rig.state(SECTION)
    rig.say(rig.seal())
    assert code_of(rig) is ErrorCode.DIGEST_MISMATCH


def test_a_bitmap_of_an_attempt_that_never_was():
    """[CON-23]"""
    rig = frozen()
    rig.bitmap(attempt=2)
    assert code_of(rig) is ErrorCode.BAD_ATTEMPT


def test_running_comes_before_the_pages_and_complete_behind_them():
    """[CON-56] [CON-57] [PCY-12] [MEM-16]"""
    rig = FetchingRig().until(D.FETCHING)
    assert isinstance(rig.heard[-1], r.Running)
    assert [event.pages for event in rig.events(e.PagesFollow)] == [2]
    rig.follow()
    assert rig.drain() == []
    rig.now += 1.5
    installed = rig.take(e.Installed)
    assert installed.pages == (r.PageRange(0, 1, 2),)
    assert bytes(rig.memory[0]) == IMAGE
    rig.machine.complete(installed, None, rig.now)
    assert rig.machine.state is D.COMPLETING
    (followed,) = rig.events(e.PagesFollowed)
    assert (followed.stats.pushed, followed.stats.seconds) == (2, 1.5)
    rig.do(e.Persist)
    assert rig.last() == r.Complete(EPOCH + 1, rig.digest.value())
    rig.release()
    rig.say(r.Bye())
    result = rig.machine.result
    assert (result.outcome, result.style) == (e.Outcome.COMPLETED, Style.BITMAP)
    assert result.digest == rig.digest.value()
    assert result.after == followed.stats


def test_what_the_guest_waits_for_is_asked_for():
    """[PCY-9] [CMP-3]"""
    rig = FetchingRig()
    assert not rig.machine.guest_waits
    rig.until(D.FETCHING)
    assert not rig.machine.guest_waits
    rig.machine.fault(0, 2, 1, rig.now)
    assert rig.last() == r.PageRequest(0, 1, 2, urgent=True)
    assert rig.machine.guest_waits
    rig.machine.fault(0, 1, 1, rig.now)
    rig.machine.fault(0, 0, 1, rig.now)  # it is there
    assert rig.drain() == []


def test_a_fault_before_running_is_asked_for_behind_it():
    """[CON-55] The guest may fault before its runner has said that it runs."""
    rig = FetchingRig()
    rig.machine.fault(0, 1, 1, rig.now)
    rig.until(D.STARTING)
    rig.machine.fault(0, 1, 1, rig.now)
    assert rig.drain() == []
    rig.do(e.RunGuest)
    assert [type(each) for each in rig.drain()] == [r.Running, r.PageRequest]


def test_a_fault_when_all_is_over_changes_nothing():
    rig = FetchingRig().until(D.FETCHING)
    rig.machine.connection_lost(None, rig.now)
    rig.machine.fault(0, 1, 1, rig.now)
    assert rig.machine.state is D.STRANDED


def test_no_more_requests_than_the_source_takes():
    """[PCY-11] [CMP-3]"""
    rig = FetchingRig()
    rig.say(rig.hello(limits={Limit.PAGE_REQUESTS: 0}))
    rig._done = 1
    rig.until(D.FETCHING)
    rig.machine.fault(0, 1, 1, rig.now)
    assert rig.drain() == []


def test_what_does_not_match_its_hash_is_asked_for_again():
    """[MEM-4] [MEM-5]"""
    rig = FetchingRig().until(D.FETCHING)
    rig.follow(damage=True)
    assert rig.last() == r.PageRequest(0, 1, 2, urgent=False)
    assert rig.wishes == []
    rig.follow()
    rig.do(e.Installed)
    assert rig.machine.state is D.COMPLETING


def test_damage_without_end_ends_the_session_and_not_the_guest():
    """[MEM-5] [CON-64]"""
    rig = FetchingRig().until(D.FETCHING)
    for _ in range(20):
        rig.follow(damage=True)
        if rig.machine.result is not None:
            break
    assert code_of(rig) is ErrorCode.PAGE_HASH
    assert rig.machine.result.outcome is e.Outcome.STRANDED


def test_the_first_arrival_wins_until_release():
    """[STR-11] [PCY-22] Before it is installed, before COMPLETE is recorded, and after it was sent."""
    rig = FetchingRig().until(D.FETCHING)
    rig.follow()
    rig.image[PAGE : 2 * PAGE] = b"\xee" * PAGE
    rig.follow()
    rig.do(e.Installed)
    assert rig.machine.state is D.COMPLETING
    rig.follow()
    rig.do(e.Persist)
    assert rig.machine.state is D.RUNNING
    rig.follow(damage=True)
    assert bytes(rig.memory[0]) == IMAGE
    assert rig.wishes == []
    assert rig.machine._follows.fetching.stats().repeated == 6
    rig.release()
    rig.follow()
    assert rig.machine.result.outcome is e.Outcome.COMPLETED  # RELEASE was enough [CON-70]


def test_a_part_of_the_pages_is_not_all():
    rig = FetchingRig()
    rig.image[PAGE : 3 * PAGE] = IMAGE[PAGE : 3 * PAGE]
    rig.until(D.BLACKOUT)
    rig.finish_round()
    rig.bitmap(pages=b"\x05")  # pages 0 and 2, two groups
    rig.digest.mark_stale(0, [0, 2], [1, 1])
    rig.state(SECTION)
    rig.say(rig.seal())
    rig.expect_and_load()
    rig.say(r.Handover(1, EPOCH))
    rig.do(e.Persist)
    rig.claim_won()
    rig.do(e.Persist)
    rig.do(e.RunGuest)
    rig.follow([2], [1])
    rig.do(e.Installed)
    assert rig.machine.state is D.FETCHING
    rig.follow([0], [1])
    rig.do(e.Installed)
    assert rig.machine.state is D.COMPLETING


@pytest.mark.parametrize(
    ("starts", "counts", "code"),
    [([1], [1], ErrorCode.BAD_VALUE), ([0], [4], ErrorCode.BAD_VALUE), ([2], [2], ErrorCode.BAD_VALUE)],
    ids=["part", "more", "across"],
)
def test_groups_that_are_not_whole(starts, counts, code):
    """[PCY-7]"""
    rig = FetchingRig().until(D.FETCHING)
    rig.follow(starts, counts)
    assert code_of(rig) is code
    assert rig.machine.result.outcome is e.Outcome.STRANDED


def test_pages_that_are_not_stale_are_dropped():
    """[PCY-15]"""
    rig = FetchingRig().until(D.FETCHING)
    rig.image[:PAGE] = b"\xee" * PAGE
    rig.follow([0], [1])
    assert bytes(rig.memory[0][:PAGE]) == IMAGE[:PAGE]
    assert rig.machine._follows.fetching.stats().outside == 1
    assert rig.machine.state is D.FETCHING


@pytest.mark.parametrize(
    ("attempt", "round_", "code"),
    [(1, 2, ErrorCode.BAD_ROUND), (1, 4, ErrorCode.BAD_ROUND), (2, 3, ErrorCode.BAD_ATTEMPT)],
)
def test_pages_of_another_round_or_attempt(attempt, round_, code):
    """[PCY-8] [CON-23]"""
    rig = FetchingRig().until(D.FETCHING)
    rig.attempt, rig.round = attempt, round_ - 1
    rig.follow()
    assert code_of(rig) is code


def test_pages_where_nothing_was_stale_are_unexpected():
    """[PCY-21]"""
    rig = FetchingRig().until(D.STANDBY)
    rig.whole_round()
    rig.switchover()
    rig.do(e.Persist)
    rig.do(e.Prepare)
    rig.begin()
    rig.finish_round()
    rig.state(SECTION)
    rig.say(rig.seal())
    assert rig.take(e.Expect).stale == {}  # takes back what was likely
    rig.machine.complete(rig.asked[-1], None, rig.now)
    rig.do(e.LoadState)
    rig.say(r.Handover(1, EPOCH))
    rig.do(e.Persist)
    rig.claim_won()
    rig.do(e.Persist)
    rig.do(e.RunGuest)
    assert rig.machine.state is D.COMPLETING
    rig.follow()
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME


def test_a_connection_lost_before_the_guest_runs_strands_it():
    """[ONE-30] [CON-64] The permission stands, and the pages are at the source."""
    rig = FetchingRig().until(D.STARTING)
    rig.machine.connection_lost(None, rig.now)
    rig.do(e.RunGuest)
    result = rig.machine.result
    assert (result.outcome, result.epoch, rig.machine.state) == (e.Outcome.STRANDED, EPOCH + 1, D.STRANDED)
    assert result.after.stale == 2


def test_pages_that_could_not_be_installed_strand_the_guest():
    rig = FetchingRig().until(D.FETCHING)
    rig.follow()
    rig.break_(e.Installed, GuestError("the holder is gone"))
    assert code_of(rig) is ErrorCode.GUEST_FAILED
    assert rig.machine.result.outcome is e.Outcome.STRANDED


def test_an_attempt_without_stale_pages_takes_the_holding_back():
    """[PCY-5] What an earlier attempt has asked the guest to hold is not held any more."""
    rig = FetchingRig().until(D.STANDBY)
    rig.whole_round()
    rig.machine._follows._held = True  # as after an attempt that was taken back
    rig.switchover()
    rig.do(e.Persist)
    rig.do(e.Prepare)
    rig.begin()
    rig.finish_round()
    rig.state(SECTION)
    rig.say(rig.seal())
    assert rig.take(e.Expect).stale == {}
