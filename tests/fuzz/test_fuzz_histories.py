"""Histories by hand: each rule does what it says, and each invariant notices what breaks it."""

from __future__ import annotations

import pytest

from sterna.core.events import Outcome, Persist
from sterna.core.tables import SOURCE as TABLE
from sterna.core.tables import DestinationState, Row, SourceInput, SourceState
from sterna.guest.simulated import JournalEntry
from sterna.registry import ErrorCode, FrameType, Phase
from sterna_fuzz.conversations import DESTINATION, SOURCE
from sterna_fuzz.histories import WAY, Action, History
from sterna_fuzz.worlds import Setting


def history(ending="flow", **changes):
    made = History()
    made.begin(setting=Setting(**changes), ending=ending)
    return made


@pytest.mark.parametrize("state", WAY)
def test_every_state_of_the_way_can_be_reached(state):
    made = history()
    made.reach(state=state, pages=0)
    assert state in {made.world.source.state, made.world.destination.state}
    made.holds()
    made.teardown()
    assert list(made.reached()) == ["completed", "completed", "handed over"]


@pytest.mark.parametrize("ending", ["cut", "silence"])
@pytest.mark.parametrize("state", WAY[::3])
def test_every_history_ends(state, ending):
    made = history(ending)
    made.reach(state=state, pages=1)
    made.teardown()
    assert made.world.guest.running + made.world.room.running <= 1


def test_a_history_that_has_not_begun_has_no_end():
    made = History()
    made.teardown()
    assert made.reached() == ()


def test_rules_do_what_they_say():
    made = history("cut")
    for action in Action:
        made.act(name=SOURCE, action=action, count=5)
    made.flow(steps=20)
    made.live(steps=3, pages=1)
    made.write(pages=1)
    made.scribble(number=0, value=1)
    made.pass_time(seconds=0.5)
    made.idle(seconds=0.5)
    made.ping()
    made.holds()
    made.corrupt(name=SOURCE, at=100_000, pages=True)
    made.lose(name=DESTINATION, orderly=True)
    made.cancel(name=SOURCE)
    made.fail(name=SOURCE)
    made.teardown()
    assert made.world.source.result is not None


@pytest.mark.parametrize("cancel", [True, False])
def test_a_fault_can_strike_in_any_state(cancel):
    made = history("silence")
    made.strike(state=SourceState.RECORDING, name=SOURCE, done=True, cancel=cancel)
    made.stall(seconds=1.6)
    made.teardown()
    assert made.world.source.result.outcome is Outcome.ROLLED_BACK


def test_cancelling_too_late_changes_nothing():
    made = history("cut")
    made.reach(state=SourceState.HANDED_OVER, pages=0)
    made.cancel(name=SOURCE)
    assert not made.world.disturbed
    made.reach(state=SourceState.CLOSED, pages=0)
    made.teardown()
    assert made.world.source.result.outcome is Outcome.COMPLETED


def moved():
    made = history()
    made.reach(state=SourceState.MOVED, pages=0)
    made.holds()
    return made


def noticed(made, text, look="holds"):
    with pytest.raises(AssertionError, match=text):
        getattr(made, look)()


def test_two_runners_are_noticed():
    """[ONE-20]"""
    made = moved()
    made.world.guest.machine.running = True
    noticed(made, "both sides run the guest")


def test_a_runner_too_many_later_is_noticed():
    made = history()
    made.reach(state=SourceState.HANDED_OVER, pages=0)
    made.world.guest.machine.running = True
    noticed(made, "it runs at the source, though another may run it")


def test_a_runner_without_permission_is_noticed():
    made = history()
    made.world.guest.machine.running = False
    made.world.room.has_run = True
    noticed(made, "without permission")


def test_permission_without_a_mark_or_record_is_noticed():
    """[ONE-17] [ONE-18]"""
    made = moved()
    made.world.records[SOURCE].clear()
    noticed(made, "without a record")
    made = moved()
    made.world.guest.granted_epoch = None
    noticed(made, "its holder does not know")


def test_two_lines_of_writes_are_noticed():
    made = history()
    made.write(pages=2)
    made.holds()
    entry = made.world.guest.machine.journal[-1]
    made.world.guest.machine.journal.append(JournalEntry(entry.count, 7, entry.runner))
    noticed(made, "two runs of the guest have written")


def test_stale_pages_are_noticed():
    """[MEM-11]"""
    made = history()
    made.reach(state=next(state for state in WAY if state.name == "LOADED"), pages=0)
    made.world.image = b"another"
    noticed(made, "stale or other pages were sealed")


def test_phases_that_run_backwards_are_noticed():
    made = history()
    made.reach(state=SourceState.ROUND, pages=0)
    made.holds()
    made.phases[SOURCE].append(Phase.AFTER)
    made.reach(state=SourceState.PREPARING, pages=0)
    noticed(made, "source: PREPARE after AFTER")


def test_a_guest_that_does_not_run_on_is_noticed():
    """[CON-62]"""
    made = history("cut")
    made.reach(state=SourceState.PAUSING, pages=0)
    made.cancel(name=SOURCE)
    made.flow(steps=12)
    made.holds()
    assert made.world.source.result.outcome is Outcome.ROLLED_BACK
    made.world.guest.machine.running = False
    noticed(made, "the guest stands still")


def test_an_undisturbed_migration_that_fails_is_noticed():
    made = history(not_ready=3)
    noticed(made, "undisturbed, and yet", "teardown")


def test_a_machine_that_never_ends_is_noticed(monkeypatch):
    made = history("silence")
    made.reach(state=SourceState.ACKING, pages=0)
    monkeypatch.setattr(made.world.source, "handle_timeout", lambda now: None)
    monkeypatch.setattr(made.world.source, "poll_timeout", lambda: None)
    noticed(made, "the source never ends", "teardown")


def test_a_peer_that_is_not_told_is_noticed(monkeypatch):
    """[ABT-1]"""
    made = history("flow", rounds=1, switch=False, allowed_downtime_s=0.001)
    monkeypatch.setattr(made.world.source, "_last_words", lambda error: None)
    monkeypatch.setattr(made.world.source, "_send", lambda record, buffers=(): None)
    made.world.source.cancel(made.world.now)
    made.world.disturbed = True
    noticed(made, "its peer is not told", "teardown")


def test_a_row_that_rolls_back_too_late_is_noticed(monkeypatch):
    """[ONE-20]"""
    monkeypatch.setitem(TABLE, (SourceState.HANDED_OVER, SourceInput.LOST), Row(SourceState.VOIDING, "", ""))
    made = history("cut")
    made.reach(state=SourceState.HANDED_OVER, pages=0)
    made.flow(steps=1)
    made.holds()
    made.lose(name=SOURCE, orderly=False)
    with pytest.raises(AssertionError, match=r"both sides run|its holder does not know"):
        made.teardown()


@pytest.mark.parametrize("done", [True, False])
def test_start_that_fails_is_handed_back_or_decided_by_its_record(done):
    """[ONE-27] [ONE-35] Where START is durable although it failed, HANDBACK cannot be."""
    made = history("cut")
    made.reach(state=DestinationState.COMMITTING, pages=0)
    held = made.world.sides[DESTINATION].held
    while not (held and isinstance(held[0].request, Persist)):
        made.world.ask(DESTINATION) or made.world.answer(DESTINATION)
    if done:
        made.world.carry_out(DESTINATION)
    assert made.world.fail(DESTINATION)
    made.flow(steps=12)
    made.holds()
    made.teardown()
    handed_back = bool(made.world.sides[DESTINATION].monitor.said[FrameType.HANDBACK])
    assert handed_back == (not done)
    assert made.world.destination.result.outcome is (Outcome.UNDECIDED if done else Outcome.ROLLED_BACK)
    assert made.world.source.result.outcome is Outcome.UNDECIDED


def test_handing_back_without_a_record_is_noticed():
    """[ONE-35]"""
    made = moved()
    made.world.sides[DESTINATION].monitor.said[FrameType.HANDBACK] += 1
    noticed(made, "handed back without a record")
    made.world.records[DESTINATION].append("handback")
    noticed(made, "handed back, and it has run")


def test_what_was_not_meant_to_be_raised_is(monkeypatch):
    from sterna.errors import LocalProtocolError

    def refuse(now):
        raise LocalProtocolError(ErrorCode.INTERNAL)

    made = history("cut")
    monkeypatch.setattr(made.world.source, "cancel", refuse)
    with pytest.raises(LocalProtocolError):
        made.cancel(name=SOURCE)
