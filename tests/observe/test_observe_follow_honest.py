"""What honest endpoints do is never called wrong, whatever happens to them."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observe_support import migration
from sterna.core import events as e
from sterna.errors import GuestError, LocalProtocolError
from sterna.observe.follow import Follower
from sterna.observe.recording import How, RecordClock
from sterna.registry import ErrorCode
from sterna.testing.pair import Pair

REASONS = {
    e.Admit: ErrorCode.BUSY,
    e.Reserve: ErrorCode.FULL,
    e.Prepare: ErrorCode.NOT_READY,
    e.LoadState: ErrorCode.STATE_REJECTED,
    e.SaveState: ErrorCode.GUEST_FAILED,
    e.Pause: ErrorCode.GUEST_FAILED,
    e.CollectDirty: ErrorCode.GUEST_FAILED,
    e.MarkGranted: ErrorCode.RECORD_FAILED,
    e.Claim: ErrorCode.RECORD_FAILED,
    e.RunGuest: ErrorCode.GUEST_FAILED,
    e.ReleaseImage: ErrorCode.GUEST_FAILED,
}


@pytest.mark.slow
@settings(max_examples=100)
@given(st.data())
def test_honest_sessions_are_never_called_wrong(data: st.DataObject) -> None:
    """Whatever fails, at whichever side, and however it ends: two machines that keep to the rules."""
    failing = data.draw(st.sets(st.sampled_from(sorted(REASONS, key=str)), max_size=2))
    moment = data.draw(st.integers(0, 40))
    event = data.draw(st.sampled_from(["nothing", "cancel here", "cancel there", "cut", "wait", "heal"]))
    steps = count()

    slow = data.draw(st.booleans())

    def meddle(pair: Pair) -> None:
        if slow:  # so that there are heartbeats: PING, PONG and PROGRESS
            pair.now += 1.1
            for machine in (pair.source, pair.destination):
                machine.handle_timeout(pair.now)
        if next(steps) != moment:
            return
        try:
            match event:
                case "cancel here":
                    pair.source.cancel(pair.now)
                case "cancel there":
                    pair.destination.cancel(pair.now)
                case "cut":
                    pair.cut()
                case "wait":
                    pair.now += 1000.0
                    for machine in (pair.source, pair.destination):
                        machine.handle_timeout(pair.now)
                case "heal":
                    pair.fail_on.clear()
                case _:
                    pass
        except LocalProtocolError:
            pass  # too late to cancel

    def prepare(pair: Pair) -> None:
        pair.fail_on.update({each: GuestError("no", REASONS[each]) for each in failing})

    damage = data.draw(st.sets(st.integers(0, 8), max_size=3))
    tape = migration(damage=damage, meddle=meddle, prepare=prepare)
    # A tape has no times: how often PROGRESS came [PRG-1] is judged elsewhere.
    timeless = Follower(clock=RecordClock.NONE)
    follower = tape.follow(timeless, end=data.draw(st.sampled_from(How)))
    if follower.fault is not None:
        assert follower.fault.clause == "CON-47"  # damage that hit the blackout
        assert damage
    assert not follower.trouble
