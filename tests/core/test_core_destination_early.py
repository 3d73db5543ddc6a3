"""A destination whose guest runs before all of its pages are there, frame by frame."""

from __future__ import annotations

import pytest
from core_support import PAGE, SECTION, FetchingRig, code_of

from sterna.core import events as e
from sterna.core.image_notes import ImageNotes
from sterna.core.tables import DestinationState as D
from sterna.errors import GuestError
from sterna.registry import ErrorCode, Feature, Style
from sterna.wire import records as r


def seal(rig: FetchingRig, style: Style, *, stale: bytes = b"") -> None:
    """From SWITCHOVER to SEAL, without a page in the blackout."""
    rig.switchover(style)
    rig.do(e.Persist)
    rig.do(e.Prepare)
    rig.begin()
    rig.finish_round()
    if stale:
        rig.bitmap(pages=stale)
    rig.state(SECTION)
    rig.say(rig.seal())


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
    seal(rig, Style.POST_COPY, stale=b"\x0f")
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


def in_blackout_with_place() -> tuple[FetchingRig, bytearray]:
    """READY was said, and where notes are kept is known."""
    rig = FetchingRig().until(D.PREPARING)
    prepare = rig.take(e.Prepare)
    place = bytearray(prepare.notes_bytes)
    rig.machine.complete(prepare, memoryview(place), rig.now)
    assert isinstance(rig.last(), r.Ready)
    rig.begin()
    rig.finish_round()
    rig.declare()
    return rig, place


def test_accesses_are_held_while_seal_is_on_its_way():
    """[PCY-5] [PCY-16] Once, if the place of the notes is known; they are complete when LOADED may come."""
    rig, place = in_blackout_with_place()
    assert rig.wishes == []
    rig.state(SECTION)
    expect = rig.take(e.Expect)
    assert expect.stale[0].runs()[0].tolist() == [1]
    assert expect.ahead
    rig.state()
    assert rig.wishes == []
    assert not ImageNotes.lie_in(memoryview(place))
    rig.say(rig.seal())
    assert ImageNotes.lie_in(memoryview(place))
    load = rig.take(e.LoadState)
    rig.machine.complete(expect, None, rig.now)
    assert rig.drain() == []
    rig.machine.complete(load, None, rig.now)
    assert isinstance(rig.last(), r.Loaded)


def test_accesses_that_were_held_for_an_attempt_are_nothing_to_the_next_one():
    """[PCY-5] [CON-59]"""
    rig, _ = in_blackout_with_place()
    rig.state(SECTION)
    expect = rig.take(e.Expect)
    rig.attempt += 1
    rig.begin()
    rig.machine.complete(expect, None, rig.now)
    assert rig.machine.state is D.RECEIVING
    assert rig.drain() == []


def test_accesses_that_were_to_be_let_go_are_let_go_in_the_next_attempt():
    """[CON-58] [CON-59] [PCY-5] The guest was not told: STATE came in one piece with the next ROUND."""
    rig = FetchingRig().until(D.PREPARING)
    prepare = rig.take(e.Prepare)
    assert prepare.likely
    rig.machine.complete(prepare, memoryview(bytearray(prepare.notes_bytes)), rig.now)
    rig.begin()
    rig.finish_round()
    rig.state(SECTION)
    assert rig.wishes == [e.Expect]
    rig.attempt += 1
    rig.begin()
    assert rig.wishes == []
    rig.finish_round()
    seal(rig, Style.STOP_AND_COPY)
    assert rig.take(e.Expect).stale == {}


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


def test_an_attempt_without_stale_pages_takes_the_holding_back():
    """[PCY-5] What an earlier attempt has asked the guest to hold is not held any more."""
    rig = FetchingRig().until(D.STANDBY)
    rig.whole_round()
    rig.machine._follows._held = True  # as after an attempt that was taken back
    seal(rig, Style.BITMAP)
    assert rig.take(e.Expect).stale == {}
