"""A source whose guest runs at the destination before all of its pages are there, frame by frame."""

from __future__ import annotations

import pytest
from core_support import BITMAP_FEATURES, EPOCH, IMAGE, PAGE, SESSION, THERE, ServingRig, SourceRig, code_of

from sterna.core import events as e
from sterna.core.records import Granted, Released
from sterna.core.style import offer_for
from sterna.core.tables import SourceState as S
from sterna.errors import GuestError
from sterna.registry import ErrorCode, Style
from sterna.wire import records as r

ASK = r.PageRequest(0, 1, 2)


def test_nothing_follows_before_running():
    """[CON-55]"""
    rig = ServingRig().until(S.HANDED_OVER)
    said = len(rig.heard)
    assert rig.drain() == []
    rig.say(ASK)
    assert rig.machine.result.code is ErrorCode.UNEXPECTED_FRAME
    assert not [each for each in rig.heard[said:] if isinstance(each, r.Pages)]


def test_everything_stale_follows_unasked():
    """[PCY-7] [PCY-13] [PCY-14] [MEM-16] Then COMPLETE proves the whole image [CMP-1]."""
    rig = ServingRig().until(S.MOVED)
    table, ping = rig.heard[-2:]  # a window this small has no room for more before the answer [PCY-23]
    assert isinstance(table, r.Pages)
    assert isinstance(ping, r.Ping)
    assert (table.attempt, table.round, table.region) == (1, 3, 0)
    assert [(run["first"], run["count"]) for run in table.runs] == [(1, 2)]
    assert bytes(rig.bulk[-1]) == IMAGE[PAGE : 3 * PAGE]
    whole = rig.machine._memory.complete()
    assert whole != rig.machine.digest
    assert [event.pages for event in rig.events(e.PagesFollow)] == [2]
    rig.now += 2.0
    rig.say(r.Complete(EPOCH + 1, whole))
    (followed,) = rig.events(e.PagesFollowed)
    assert (followed.stats.pushed, followed.stats.demanded, followed.stats.seconds) == (2, 0, 2.0)
    rig.do(e.Persist)
    rig.do(e.ReleaseImage)
    rig.say(r.Bye())
    result = rig.machine.result
    assert (result.outcome, result.style, result.digest) == (e.Outcome.COMPLETED, Style.BITMAP, whole)
    assert result.after == followed.stats


@pytest.mark.parametrize("failing", [False, True])
def test_what_was_owed_and_is_not_any_more_is_on_record(failing):
    """[ONE-42] With the grant that pages follow, and before they are freed that none is needed any more.

    Where that cannot be recorded the image is freed all the same, and the operator told.
    """
    rig = ServingRig().until(S.MOVED)
    grants = [each.record for each in rig.asked if isinstance(getattr(each, "record", None), Granted)]
    assert grants == [Granted(SESSION, EPOCH + 1, follows=True)]
    rig.drain()
    rig.say(r.Complete(EPOCH + 1, rig.machine._memory.complete()))
    request = rig.take(e.Persist)
    assert request.record == Released(SESSION)
    if failing:
        rig.machine.fail(request, GuestError("disk full"), rig.now)
    else:
        rig.machine.complete(request, None, rig.now)
    rig.do(e.ReleaseImage)
    rig.drain()
    rig.say(r.Bye())
    result = rig.machine.result
    assert (result.outcome, result.unrecorded is None) == (e.Outcome.COMPLETED, not failing)


def test_complete_before_everything_was_sent_is_wrong():
    """[CMP-1]"""
    rig = ServingRig().until(S.HANDED_OVER)
    rig.say(r.Running(EPOCH + 1, THERE))
    rig.do(e.Persist)
    rig.say(r.Complete(EPOCH + 1, rig.machine.digest))
    assert code_of(rig) is ErrorCode.MEMORY_MISMATCH
    assert e.ReleaseImage not in rig.wishes
    assert rig.machine.result.outcome is e.Outcome.MOVED


def test_a_request_is_answered_and_repeated():
    """[PCY-9]"""
    rig = ServingRig().until(S.MOVED)
    for _ in range(2):
        said = len(rig.heard)
        rig.say(ASK)
        rig.drain()
        (table,) = rig.heard[said:]
        assert [(run["first"], run["count"]) for run in table.runs] == [(1, 2)]
    assert rig.machine._serving.stats().repeated == 4


def test_a_request_where_nothing_is_stale_is_unexpected():
    """[PCY-21]"""
    rig = SourceRig(features=offer_for("bitmap")).until(S.GREETING)
    rig.script = [(state, step) for state, step in SourceRig.script]
    rig.script[1] = (S.DESCRIBING, lambda rig: rig.say(rig.welcome(features=BITMAP_FEATURES)))
    rig.until(S.MOVED)
    rig.say(ASK)
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME


def test_a_request_where_no_style_was_selected():
    """[NEG-7]"""
    rig = SourceRig().until(S.MOVED)
    rig.say(ASK)
    assert code_of(rig) is ErrorCode.NOT_SELECTED


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (r.PageRequest(0, 3, 2), ErrorCode.OUTSIDE_REGION),
        (r.PageRequest(9, 0, 1), ErrorCode.OUTSIDE_REGION),
        (r.PageRequest(0, 0, 0), ErrorCode.BAD_VALUE),
    ],
    ids=["beyond", "no-region", "empty"],
)
def test_requests_outside_of_memory(request_, code):
    """[FRM-17] [FRM-18]"""
    rig = ServingRig().until(S.MOVED)
    rig.say(request_)
    assert code_of(rig) is code


def test_a_million_of_the_same_request_end_the_session():
    """[PCY-18] [CMP-3] Long before."""
    rig = ServingRig().until(S.MOVED)
    for _ in range(1000):
        rig.say(ASK)
        if rig.machine.result is not None:
            break
    assert code_of(rig) is ErrorCode.LIMIT_RATE


def test_serving_is_progress_and_the_deadline_counts_from_it():
    """[CON-74] COMPLETE is due some time after the last page has been sent."""
    rig = ServingRig().until(S.HANDED_OVER)
    rig.say(r.Running(EPOCH + 1, THERE))
    rig.do(e.Persist)
    rig.now += 20.0  # the connection was busy
    rig.say(r.Ping(1))
    rig.drain()
    before = rig.machine._watch.entered
    assert before == rig.now


def test_progress_says_how_many_pages_exist_only_here():
    """[CON-80]"""
    rig = ServingRig().until(S.HANDED_OVER)
    rig.say(r.Running(EPOCH + 1, THERE))
    assert rig.machine._progress().pages_remaining == 2
    rig.drain()
    assert rig.machine._progress().pages_remaining == 0


def test_a_loss_while_pages_follow_keeps_the_image():
    """[CON-64] [ONE-38]"""
    rig = ServingRig().until(S.MOVED)
    rig.machine.connection_lost(None, rig.now)
    result = rig.machine.result
    assert (result.outcome, result.after.stale, result.after.seconds) == (e.Outcome.MOVED, 2, None)
    assert e.ReleaseImage not in rig.wishes
