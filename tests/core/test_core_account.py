"""What a result tells of why and how long."""

from __future__ import annotations

import pytest

from sterna.core.account import Account
from sterna.core.events import Outcome
from sterna.core.policy import RoundStats
from sterna.errors import GuestError, PeerAborted
from sterna.limits import ROUNDS_KEPT
from sterna.registry import ErrorCode, Phase

CLOSING = {"epoch": 3, "digest": b"digest", "bytes_sent": 70}


def test_a_completed_session():
    account = Account(100.0)
    account.bytes_received += 30
    account.guest_stops(104.0)
    account.guest_runs(104.5)
    account.guest_runs(105.0)
    result = account.close(Outcome.COMPLETED, 106.0, **CLOSING)
    assert (result.outcome, result.code, result.error) == (Outcome.COMPLETED, None, None)
    assert (result.seconds, result.blackout_s, result.run_after_s) == (6.0, 0.5, 4.5)
    assert (result.bytes_sent, result.bytes_received) == (70, 30)
    assert (result.epoch, result.digest) == (3, b"digest")


def test_what_a_blackout_consists_of():
    """States while the guest stood still, of the attempt that came to an end; the whole of it."""
    account = Account(0.0)
    account.entered("PAUSING", 1.0)
    account.guest_stops(1.0)
    account.entered("ROUND", 2.0)  # taken back
    account.entered("PAUSING", 10.0)
    account.guest_stops(10.0)
    for state, now in [
        ("FREEZING", 10.25),
        ("FREEZING", 10.5),
        ("SEALED", 11.0),
        ("GRANTING", 11.0),
        ("MOVED", 12.0),
    ]:
        account.entered(state, now)
    assert account.close(Outcome.UNDECIDED, 12.0, **CLOSING).blackout_steps == ()
    account.guest_runs(12.0)
    account.entered("CLOSED", 13.0)
    result = account.close(Outcome.COMPLETED, 14.0, **CLOSING)
    steps = [("pausing", 0.25), ("freezing", 0.75), ("granting", 1.0)]
    assert [(each.state, each.seconds) for each in result.blackout_steps] == steps
    assert result.blackout_s == 2.0


def test_a_peer_that_takes_it_back_for_ever_costs_no_memory():
    """[SEC-6]"""
    account = Account(0.0)
    account.guest_stops(0.0)
    for number in range(1000):
        account.entered(str(number), float(number))
    account.guest_runs(2000.0)
    result = account.close(Outcome.COMPLETED, 2000.0, **CLOSING)
    assert len(result.blackout_steps) < 40
    assert sum(each.seconds for each in result.blackout_steps) == result.blackout_s


def test_trouble_behind_a_completed_session_is_no_code():
    account = Account(0.0)
    error = GuestError("the image could not be freed")
    account.failed(error, Phase.AFTER)
    result = account.close(Outcome.COMPLETED, 1.0, **CLOSING)
    assert (result.code, result.error, result.phase) == (None, error, Phase.AFTER)


@pytest.mark.parametrize(
    ("error", "by_peer", "retry_after_ms", "items"),
    [
        (GuestError("broken", ErrorCode.FULL), False, 0, ()),
        (PeerAborted(ErrorCode.FULL, "full", 500, ("memory",)), True, 500, ("memory",)),
    ],
)
def test_who_ended_it(error, by_peer, retry_after_ms, items):
    account = Account(0.0)
    account.failed(error, Phase.HANDSHAKE)
    result = account.close(Outcome.ROLLED_BACK, 1.0, **CLOSING)
    assert (result.code, result.by_peer, result.phase) == (ErrorCode.FULL, by_peer, Phase.HANDSHAKE)
    assert (result.retry_after_ms, result.items) == (retry_after_ms, items)


def test_of_a_long_session_the_newest_rounds_are_remembered():
    """[SEC-6] A peer may send as many as it likes."""
    account = Account(0.0)
    for number in range(1, ROUNDS_KEPT + 10):
        account.round_over(RoundStats(number, 0, 0, 0.0, 0, 0))
    result = account.close(Outcome.ROLLED_BACK, 1.0, **CLOSING)
    assert [stats.round for stats in result.rounds] == list(range(10, ROUNDS_KEPT + 10))


def test_a_guest_that_did_not_stand_still():
    account = Account(0.0)
    assert account.close(Outcome.ROLLED_BACK, 1.0, **CLOSING).run_after_s is None
    account.guest_runs(1.0)
    assert account.blackout_s is None
