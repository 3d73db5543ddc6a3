"""What may be said beside the conversation, and what the peer may ask for."""

from __future__ import annotations

import pytest

from sterna.core.heartbeat import PONGS_OWED_MAX, Heartbeat
from sterna.errors import LimitExceeded, PeerMisbehaved
from sterna.registry import ErrorCode, Feature, FrameType


def selected(interval_ms=1000):
    heartbeat = Heartbeat()
    heartbeat.select({Feature.PROGRESS: interval_ms}, 100.0)
    return heartbeat


def test_the_shortest_round_trip_counts():
    heartbeat = Heartbeat()
    assert heartbeat.rtt_s is None
    for taken in (0.5, 0.25, 0.75):
        heartbeat.answered(heartbeat.ask(10.0).id, 10.0 + taken)
    assert heartbeat.rtt_s == 0.25


def test_a_pong_answers_one_ping():
    """[PNG-2]"""
    heartbeat = Heartbeat()
    first, second = heartbeat.ask(1.0), heartbeat.ask(1.0)
    assert first.id != second.id
    assert heartbeat.unanswered == 2
    heartbeat.answered(second.id, 1.0)
    heartbeat.answered(first.id, 1.0)
    for number in (first.id, 0, second.id + 1):
        with pytest.raises(PeerMisbehaved, match="PNG-2") as caught:
            heartbeat.answered(number, 2.0)
        assert (caught.value.code, caught.value.frame) == (ErrorCode.UNSOLICITED, FrameType.PONG)


def test_pongs_are_owed_until_they_have_left():
    """[CON-79]"""
    heartbeat = Heartbeat()
    for number in range(PONGS_OWED_MAX):
        heartbeat.check_owed()
        heartbeat.owe(40 * (number + 1))
    with pytest.raises(LimitExceeded) as caught:
        heartbeat.check_owed()
    assert (caught.value.code, caught.value.clause) == (ErrorCode.LIMIT_RATE, "CON-79")
    heartbeat.left(39)
    with pytest.raises(LimitExceeded):
        heartbeat.check_owed()
    heartbeat.left(40)
    heartbeat.check_owed()
    heartbeat.left(10_000)
    for number in range(PONGS_OWED_MAX):
        heartbeat.check_owed()
        heartbeat.owe(20_000 + number)


def test_progress_is_told_no_oftener_than_agreed():
    """[PRG-1]"""
    heartbeat = selected(1500)
    assert heartbeat.may_tell(100.0)
    heartbeat.tell(100.0)
    assert not heartbeat.may_tell(101.4)
    assert heartbeat.may_tell(101.5)


def test_progress_that_was_not_selected():
    """[PRG-1]"""
    heartbeat = Heartbeat()
    heartbeat.select({}, 0.0)
    assert not heartbeat.may_tell(1000.0)
    with pytest.raises(PeerMisbehaved) as caught:
        heartbeat.heard_progress(1000.0)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.NOT_SELECTED, "PRG-1")


def test_more_progress_than_time_has_passed_for():
    """[PRG-1]"""
    heartbeat = selected(1000)
    for second in range(50):  # on time
        heartbeat.heard_progress(100.0 + second)
    for _ in range(15):  # delayed on the way, or by a clock that goes a little faster
        heartbeat.heard_progress(150.0)
    for _ in range(6):
        heartbeat.heard_progress(150.0)
    with pytest.raises(LimitExceeded) as caught:
        heartbeat.heard_progress(150.0)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.LIMIT_RATE, "PRG-1")


def test_without_an_interval_progress_is_not_limited():
    heartbeat = selected(0)
    for _ in range(100):
        heartbeat.heard_progress(100.0)
