"""What a source does when a round is over, or the destination is not ready, frame by frame."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_support import (
    ALL_FEATURES,
    BITMAP_FEATURES,
    EPOCH,
    GUEST,
    IMAGE,
    PAGE,
    SECTION,
    SESSION,
    TOKEN,
    SourceRig,
    code_of,
    is_early,
    rolled_back,
)

from sterna.core import events as e
from sterna.core.choosing import FRESH_S, NOT_READY_MAX
from sterna.core.policy import PolicySettings, RoundStats, decide
from sterna.core.records import SessionRecord, Side
from sterna.core.style import offer_for
from sterna.core.tables import SourceState
from sterna.errors import GuestError, LocalProtocolError
from sterna.memory.bitmap import PageBitmap
from sterna.registry import Encoding, ErrorCode, Feature, FrameType, Phase, Style
from sterna.wire import records as r

S = SourceState
WRONG = b"\xee" * 16


# ---- what has come of the last choice ----


def arming(**features):
    rig = SourceRig().until(S.GREETING)
    rig.say(rig.welcome(**features))
    rig.say(r.Accept(4 * PAGE))
    return rig


def test_pages_that_were_never_written_are_not_read():
    rig = arming()
    blank = PageBitmap(4)
    blank.set(1, 3)
    rig.do(e.StartTracking, {0: blank})
    rig.drain()
    first, second = (each for each in rig.heard if isinstance(each, r.Pages))
    assert second.runs["encoding"].tolist() == [Encoding.ZERO]
    assert (first.page_count, second.page_count) == (1, 3)
    assert b"".join(map(bytes, rig.bulk)) == IMAGE[:PAGE]


def test_without_the_encoding_they_are():
    """[NEG-7] [PGS-9]"""
    rig = arming(features=tuple(each for each in ALL_FEATURES if each.id != Feature.ENCODING_ZERO))
    rig.do(e.StartTracking, {0: PageBitmap.full(4)})
    rig.drain()
    assert bytes(rig.bulk[0]) == IMAGE


def test_unwritten_pages_of_a_region_that_is_not_there_end_it():
    rig = arming()
    rig.do(e.StartTracking, {9: PageBitmap(4)})
    assert rig.machine.state is S.ROLLING_BACK


@pytest.mark.parametrize(
    ("ack", "code"),
    [
        (r.RoundAck(1, 2, 4, 0), ErrorCode.BAD_ROUND),  # [CON-30]
        (r.RoundAck(1, 1, 3, 0), ErrorCode.COUNT_MISMATCH),  # [CON-32]
        (r.RoundAck(1, 1, 3, 0, (r.PageRange(0, 4, 1),)), ErrorCode.OUTSIDE_REGION),  # [FRM-18]
        (r.RoundAck(2, 1, 4, 0), ErrorCode.BAD_ATTEMPT),  # [CON-25]
        (r.RoundAck(0, 1, 4, 0), ErrorCode.BAD_ATTEMPT),  # [CON-22]
    ],
    ids=str,
)
def test_an_acknowledgement_that_does_not_fit(ack, code):
    rig = SourceRig().until(S.ACKING)
    rig.say(ack)
    assert code_of(rig) is code
    assert (rig.heard[-1].frame, rig.heard[-1].phase) == (FrameType.ROUND_ACK, Phase.ROUNDS)
    rolled_back(rig, code)


def test_pages_of_another_round_are_not_rejected():
    """[CON-33]"""
    rig = SourceRig(policy=PolicySettings(allowed_downtime_s=0.001)).until(S.COLLECTING)
    rig.do(e.CollectDirty, rig.dirty(2))
    rig.drain()
    assert rig.machine.state is S.ACKING
    assert rig.heard[-1] == r.RoundEnd(1, 2, 1, 0, rig.heard[-1].last_sequences)
    rig.say(rig.ack(r.PageRange(0, 1, 1)))
    assert code_of(rig) is ErrorCode.COUNT_MISMATCH


def test_more_rejected_ranges_than_announced():
    """[RAK-2]"""
    rig = SourceRig(limits=replace(SourceRig().machine._config.limits, rejected_runs=1)).until(S.ACKING)
    rig.say(rig.ack(r.PageRange(0, 0, 1), r.PageRange(0, 2, 1)))
    assert code_of(rig) is ErrorCode.LIMIT_REJECTED


def test_rejected_and_written_pages_are_sent_again():
    """[CON-34] [RAK-4]"""
    rig = SourceRig(policy=PolicySettings(allowed_downtime_s=0.001)).until(S.ACKING)
    rig.say(rig.ack(r.PageRange(0, 1, 1)))
    rig.events()
    rig.do(e.CollectDirty, rig.dirty(3))
    rig.drain()
    (stats,) = (event.stats for event in rig.events(e.RoundFinished))
    assert (stats.pages, stats.rejected_pages, stats.dirty_pages) == (4, 1, 2)
    table = rig.heard[-2]
    assert [(int(row["first"]), int(row["count"])) for row in table.runs] == [(1, 1), (3, 1)]


def test_what_was_written_is_collected_while_the_acknowledgement_is_on_its_way():
    """[CON-34] Then that leads on at once."""
    rig = SourceRig(policy=PolicySettings(allowed_downtime_s=0.001)).until(S.ACKING)
    rig.do(e.CollectDirty, rig.dirty(3))
    assert rig.machine.state is S.ACKING
    rig.now += FRESH_S / 2
    rig.say(rig.ack(r.PageRange(0, 1, 1)))
    assert (rig.machine.state, rig.wishes) == (S.ROUND, [])
    rig.drain()
    table = rig.heard[-2]
    assert [(int(row["first"]), int(row["count"])) for row in table.runs] == [(1, 1), (3, 1)]


def test_what_was_collected_long_ago_is_not_all():
    """[CON-34] Over a slow link the guest may have written a lot until ROUND_ACK comes."""
    rig = SourceRig(policy=PolicySettings(allowed_downtime_s=0.001)).until(S.ACKING)
    rig.do(e.CollectDirty, rig.dirty(3))
    rig.now += 2 * FRESH_S
    rig.acknowledge()
    assert rig.machine.state is S.COLLECTING
    rig.do(e.CollectDirty, rig.dirty(0))
    rig.drain()
    table = rig.heard[-2]
    assert [(int(row["first"]), int(row["count"])) for row in table.runs] == [(0, 1), (3, 1)]


def test_what_would_be_in_vain_is_not_collected_early():
    """Where ROUND_ACK took long, or by the round trip, what was collected before it came would be old."""
    rig = SourceRig(policy=PolicySettings(allowed_downtime_s=0.001))
    rig.machine._heartbeat.rtt_s = 2 * FRESH_S
    rig.until(S.ACKING)
    for lag_s, early in ((3 * FRESH_S, False), (FRESH_S / 2, False), (FRESH_S / 2, True)):
        assert rig.wishes == ([e.CollectDirty] if early else [])
        if early:
            rig.do(e.CollectDirty, rig.dirty(0))
        rig.now += lag_s
        rig.acknowledge()
        if not early:
            rig.do(e.CollectDirty, rig.dirty(0, 1))
        assert rig.machine.state is S.ROUND
        rig.drain()


def test_how_long_the_guest_took_to_write_is_from_collect_to_collect():
    """However long ROUND_ACK took."""
    rig = SourceRig(policy=PolicySettings(allowed_downtime_s=0.001)).until(S.ROUND)
    for seconds in (0.25, 0.5):
        rig.now += seconds
        rig.drain()
        rig.do(e.CollectDirty, rig.dirty(3))
        rig.now += FRESH_S / 2
        rig.acknowledge()
    first, second = (event.stats for event in rig.events(e.RoundFinished))
    assert (first.seconds, first.written_s) == pytest.approx((0.25 + FRESH_S / 2, 0.25))
    assert (second.seconds, second.written_s) == pytest.approx((0.5 + FRESH_S / 2, 0.5 + FRESH_S / 2))


def test_a_collect_that_fails_beside_the_acknowledgement():
    """[CON-62]"""
    rig = SourceRig().until(S.ACKING)
    rig.break_(e.CollectDirty)
    rolled_back(rig, ErrorCode.GUEST_FAILED)


def test_a_tracker_that_answers_all():
    """Precision is not needed, only that nothing is missing."""
    rig = SourceRig(policy=PolicySettings(allowed_downtime_s=0.001)).until(S.COLLECTING)
    rig.do(e.CollectDirty, {0: PageBitmap.full(4)})
    rig.drain()
    assert rig.heard[-1].pages == 4


@pytest.mark.parametrize("answer", [{0: PageBitmap(5)}, {7: PageBitmap(4)}], ids=["bits", "region"])
@pytest.mark.parametrize("state", [S.ACKING, S.COLLECTING, S.FREEZING])
def test_a_tracker_that_answers_nonsense(state, answer):
    """The guest's failure, not the driver's: the session ends and the guest runs on [CON-62]."""
    rig = SourceRig().until(state)
    rig.do(e.CollectDirty, answer)
    assert code_of(rig) is ErrorCode.GUEST_FAILED
    rolled_back(rig, ErrorCode.GUEST_FAILED)


def test_not_ready_begins_a_new_attempt():
    """[CON-22] [CON-25] [CON-42] What still comes of the old one is ignored, in whatever state."""
    rig = SourceRig().until(S.PREPARING)
    rig.say(r.NotReady(1, ErrorCode.NOT_READY, "busy"))
    rig.collect_and_note()
    assert rig.last() == replace(rig.heard[-1], attempt=2)
    rig.say(r.Ready(1), r.NotReady(1, 1), r.RoundAck(1, 1, 0, 0), r.Loaded(1, WRONG))
    assert rig.machine.state is S.PREPARING
    assert rig.wishes == []
    rig.say(r.Ready(2))
    rig.do(e.Pause)
    rig.do(e.CollectDirty, rig.dirty(0))
    rig.do(e.SaveState, (SECTION,))
    rig.drain()
    assert rig.heard[-1].attempt == 2
    rig.say(r.Loaded(2, rig.machine.digest))
    rig.do(e.MarkGranted)
    rig.do(e.Persist)
    assert rig.last() == r.Handover(2, EPOCH)


def test_a_destination_that_is_never_ready():
    """[CON-43]"""
    rig = SourceRig().until(S.PREPARING)
    for attempt in range(1, NOT_READY_MAX):
        rig.say(r.NotReady(attempt, 1))
        rig.collect_and_note()
        assert rig.last().attempt == attempt + 1
    rig.say(r.NotReady(NOT_READY_MAX, 1, "never"))
    assert code_of(rig) is ErrorCode.NOT_READY
    result = rolled_back(rig, ErrorCode.NOT_READY)
    assert isinstance(result.error, LocalProtocolError)
    assert "'never'" in str(result.error)
    assert e.Pause not in [type(each) for each in rig.asked]


# ---- the next one ----


def test_a_guest_that_does_not_converge_is_throttled_and_at_last_given_up():
    """[CON-36] [CON-62]"""
    policy = PolicySettings(
        allowed_downtime_s=0.1, fixed_cost_s=0, max_rounds=8, patience=1, max_throttle=0.5
    )
    rig = SourceRig(policy=policy).until(S.ACKING)
    while rig.machine.state is S.ACKING:
        rig.now += 0.1
        rig.say(rig.ack())
        rig.do(e.CollectDirty, rig.dirty(0, 1, 2, 3))
        if e.Throttle in rig.wishes:
            rig.do(e.Throttle)
        rig.drain()
    shares = [each.share for each in rig.asked if isinstance(each, e.Throttle)]
    assert shares == sorted(shares)
    assert shares[-1] == 0.5
    assert code_of(rig) is ErrorCode.NOT_CONVERGING
    result = rolled_back(rig, ErrorCode.NOT_CONVERGING)
    assert [stats.round for stats in result.rounds] == list(range(1, len(result.rounds) + 1))
    assert len(result.rounds) <= 8
    assert all(isinstance(stats, RoundStats) for stats in result.rounds)


@pytest.mark.parametrize(
    ("most", "expected", "counted"), [(4096, None, 4096), (4096, 100, 100), (4096, 5000, 4096), (0, 100, 0)]
)
def test_the_policy_counts_the_state_that_is_expected(monkeypatch, most, expected, counted):
    asked = []

    def recorded(history, remaining_bytes, state_bytes, *rest):
        asked.append(state_bytes)
        return decide(history, remaining_bytes, state_bytes, *rest)

    monkeypatch.setattr("sterna.core.style.decide", recorded)
    SourceRig(guest=replace(GUEST, state_bytes=most), expected_state_bytes=expected).until(S.ROUND)
    assert asked == [counted]


def test_a_throttle_that_fails():
    policy = PolicySettings(allowed_downtime_s=0.1, fixed_cost_s=0, max_rounds=8, patience=1)
    rig = SourceRig(policy=policy).until(S.ACKING)
    while e.Throttle not in rig.wishes:
        rig.drain()
        rig.now += 0.1
        rig.say(rig.ack())
        rig.do(e.CollectDirty, rig.dirty(0, 1, 2, 3))
    assert rig.machine.state is S.ROUND
    rig.break_(e.Throttle)
    rolled_back(rig, ErrorCode.GUEST_FAILED)


def test_the_session_is_noted_while_the_second_round_travels():
    """If that fails it is not the end: the switchover asks for it again."""
    policy = PolicySettings(allowed_downtime_s=0.1, fixed_cost_s=0, max_throttle=0)
    rig = SourceRig(policy=policy).until(S.ACKING)
    noted = 0
    for _ in range(2):
        rig.now += 0.1
        rig.acknowledge()
        rig.do(e.CollectDirty, rig.dirty(0, 1, 2, 3))
        requests = list(rig.machine._requests)
        rig.drain()
        for request in requests:
            assert is_early(request)
            assert request.record == SessionRecord(SESSION, EPOCH, Side.SOURCE, TOKEN, "")
            noted += 1
            assert rig.machine.poll_request() is request
            rig.machine.fail(request, GuestError("no", ErrorCode.RECORD_FAILED), rig.now)
    assert (noted, rig.machine.state) == (1, S.ACKING)


@pytest.mark.parametrize("code", [ErrorCode.UNSUPPORTED, ErrorCode.NOT_READY])
def test_auto_does_without_what_this_guest_cannot(code):
    """[CON-42] Another reason may pass."""
    policy = PolicySettings(switchover="auto", max_rounds=1, allowed_downtime_s=0.001, on_exhausted="switch")
    rig = SourceRig(policy=policy, features=offer_for("auto"))
    rig.start()
    rig.say(rig.welcome(features=BITMAP_FEATURES), r.Accept(4 * PAGE))
    rig.do(e.StartTracking)
    rig.drain()
    rig.acknowledge()
    rig.do(e.CollectDirty, rig.dirty(1))
    rig.do(e.Persist)
    assert rig.last().style is Style.BITMAP
    rig.say(r.NotReady(1, code, "not now"))
    rig.do(e.CollectDirty, rig.clean())
    rig.do(e.Persist)
    assert rig.last().style is (Style.STOP_AND_COPY if code is ErrorCode.UNSUPPORTED else Style.BITMAP)
