"""Waiting times as data, and the clocks that watch them."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
from core_support import BOTH
from resume_support import RESUMED

from sterna.core.deadlines import WAITS, Deadlines, Watch
from sterna.core.tables import DEAF, DestinationState, SourceState
from sterna.errors import LocalProtocolError
from sterna.registry import ErrorCode

NAMES = [each.name for each in fields(Deadlines)]
SHORT = Deadlines(heartbeat_s=1, silence_s=5, stall_s=10, handshake_s=20)


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
@pytest.mark.parametrize("name", NAMES)
def test_a_deadline_is_a_time(name, seconds):
    with pytest.raises(LocalProtocolError, match=name) as caught:
        replace(Deadlines(), **{name: seconds})
    assert caught.value.code is ErrorCode.BAD_VALUE


def test_every_wait_has_its_name():
    """[CON-74]"""
    assert set(WAITS.values()) <= set(NAMES)
    assert not set(WAITS) & DEAF


# Where a side waits for its own host, or is itself the one that has to go on: there its peer waits.
OWN_WORK = {
    SourceState.APART,
    DestinationState.RESUMING,
    SourceState.IDLE, SourceState.ARMING, SourceState.ROUND, SourceState.COLLECTING, SourceState.PAUSING,
    SourceState.FREEZING, SourceState.BLACKOUT, SourceState.CONFIRMING, SourceState.GRANTING,
    SourceState.RECORDING, SourceState.RELEASING,
    DestinationState.ADMITTING, DestinationState.RESERVING, DestinationState.PREPARING,
    DestinationState.LOADING, DestinationState.RECORDING, DestinationState.CLAIMING,
    DestinationState.COMMITTING, DestinationState.STARTING, DestinationState.COMPLETING,
    DestinationState.HANDING_BACK, DestinationState.ANSWERING,
}  # fmt: skip


def test_every_wait_for_the_peer_has_a_deadline():
    """[CON-74] And nothing that this side's own host does [CON-73]."""
    states = {state for _, state in (*BOTH, *RESUMED)}
    states |= {SourceState.ATTACHING, SourceState.REATTACHING, SourceState.REPLACING}
    assert states - DEAF - OWN_WORK == set(WAITS)  # IDLE among them: whoever connects has to say HELLO
    assert not OWN_WORK & set(WAITS)


def alarms(watch, state=SourceState.GREETING, *, greeted=True, listening=True, in_flight=True):
    return dict(watch.alarms(state, greeted=greeted, listening=listening, in_flight=in_flight))


def test_alarms():
    """[CON-74] [CON-75] [CON-77]"""
    watch = Watch(SHORT, 100.0)
    watch.heard, watch.left, watch.entered = 101.0, 102.0, 103.0
    assert alarms(watch) == {
        ErrorCode.PEER_STALLED: 112.0,
        ErrorCode.PEER_SILENT: 106.0,
        ErrorCode.PHASE_DEADLINE: 123.0,
    }
    assert list(alarms(watch, greeted=False)) == [ErrorCode.PEER_STALLED, ErrorCode.PHASE_DEADLINE]
    assert list(alarms(watch, listening=False)) == [ErrorCode.PEER_STALLED]
    assert alarms(watch, SourceState.ROUND, greeted=False, in_flight=False) == {}


def test_what_has_run_out_is_looked_at_twice():
    watch = Watch(SHORT, 100.0)
    silent = ErrorCode.PEER_SILENT
    assert watch.next_look(silent, 105.0) == 105.0
    assert not watch.confirms(silent, 105.0, 104.9)
    assert not watch.confirms(silent, 105.0, 130.0)  # far too late: this process slept
    assert watch.next_look(silent, 105.0) == 131.0
    assert not watch.confirms(silent, 105.0, 130.5)
    assert watch.confirms(silent, 105.0, 131.0)
    # Something was heard meanwhile: it begins anew.
    assert watch.next_look(silent, 135.0) == 135.0
    assert not watch.confirms(silent, 135.0, 135.0)
    assert watch.confirms(silent, 135.0, 136.0)


def test_each_alarm_is_suspected_by_itself():
    watch = Watch(SHORT, 100.0)
    assert not watch.confirms(ErrorCode.PEER_SILENT, 105.0, 105.0)
    assert not watch.confirms(ErrorCode.PEER_STALLED, 105.0, 106.0)
    assert watch.confirms(ErrorCode.PEER_SILENT, 105.0, 106.0)


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        (ErrorCode.PEER_STALLED, "no byte left for 28.0 s"),
        (ErrorCode.PEER_SILENT, "nothing heard for 29.0 s"),
        (ErrorCode.PHASE_DEADLINE, "HELLO sent, waiting for WELCOME for 27.0 s"),
    ],
)
def test_an_alarm_says_for_how_long(code, detail):
    watch = Watch(SHORT, 100.0)
    watch.heard, watch.left, watch.entered = 101.0, 102.0, 103.0
    error = watch.error(code, SourceState.GREETING, 130.0)
    assert (error.code, error.detail) == (code, detail)
