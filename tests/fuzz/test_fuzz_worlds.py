"""A world does in small steps what a driver does, and nothing by itself."""

from __future__ import annotations

import pytest

from sterna.core.events import Outcome, RoundFinished
from sterna.core.tables import DestinationState, SourceState
from sterna.guest.workload import PAGE_BYTES
from sterna.registry import ErrorCode
from sterna_fuzz.conversations import DESTINATION, SOURCE
from sterna_fuzz.guests import damaged
from sterna_fuzz.worlds import Setting, World


def world(**changes):
    made = World(Setting(**changes))
    made.source.start(made.now)
    return made


def until(made, state):
    while state not in {made.source.state, made.destination.state}:
        assert made.flow(1), f"{state} is not reached"
    return made


def test_a_healthy_world_moves_its_guest():
    made = world(regions=2)
    assert not made.flow(1000), "nothing moves any more"
    assert made.source.result.outcome is made.destination.result.outcome is Outcome.COMPLETED
    assert made.room.running
    assert not made.disturbed
    assert made.records == {
        SOURCE: ["session", "granted", "decided"],
        DESTINATION: ["session", "session", "claiming", "start", "complete", "released"],  # early, and due
    }
    assert made.claimed


def test_bytes_leave_and_arrive_as_many_as_wanted():
    made = world()
    assert made.take(SOURCE)
    assert not made.leave(DESTINATION)
    assert made.leave(SOURCE, 5)
    assert made.leave(SOURCE, 5)
    assert bytes(made.sides[SOURCE].pipe) == b"\x89STERNA\r\n\x1a"
    assert made.arrive(DESTINATION, 3, in_place=True)
    assert made.arrive(DESTINATION, 3)
    assert len(made.sides[SOURCE].pipe) == 4
    assert not made.arrive(SOURCE)


def test_a_write_between_taking_and_leaving_tears_a_page():
    """[CON-35] It is rejected, sent again, and the guest moves all the same."""
    made = until(world(), SourceState.ACKING)
    assert sum(map(len, made.sides[SOURCE].taken)) < PAGE_BYTES
    made = until(world(), SourceState.ROUND)
    while sum(map(len, made.sides[SOURCE].taken)) < PAGE_BYTES:
        made.flow(1)
    made.write(1)
    made.flow(1000)
    rounds = [event.stats for event in made.sides[SOURCE].events if isinstance(event, RoundFinished)]
    assert rounds[0].rejected_pages > 0
    assert made.source.result.outcome is Outcome.COMPLETED


def test_scribbles_are_tracked_too():
    made = until(world(), SourceState.ROUND)
    made.scribble(0, 7)
    made.flow(1000)
    assert made.room.machine.memory[-1] == 7
    assert not damaged(made.room.workload)
    made.room.machine.memory[0] ^= 1
    assert damaged(made.room.workload)


def test_requests_are_held_carried_out_and_answered():
    made = until(world(), SourceState.PAUSING)
    (held,) = made.sides[SOURCE].held
    assert made.guest.running
    assert made.carry_out(SOURCE)
    assert not made.guest.running
    assert made.source.state is SourceState.PAUSING
    assert not made.carry_out(SOURCE)
    assert made.answer(SOURCE)
    assert held.done
    assert made.source.state is SourceState.FREEZING
    assert not made.answer(DESTINATION)
    assert not made.fail(DESTINATION)


def test_what_fails_after_it_was_done_is_undone():
    made = until(world(), SourceState.GRANTING)
    made.carry_out(SOURCE)
    assert made.guest.granted_epoch == 6
    assert made.fail(SOURCE)
    made.flow(1000)
    assert made.source.result.outcome is Outcome.ROLLED_BACK
    assert made.guest.granted_epoch is None
    assert made.guest.running


def test_preparing_may_fail_and_a_claim_be_lost():
    made = world(not_ready=1, claim=False)
    made.flow(1000)
    assert made.destination.result.code is ErrorCode.STALE_EPOCH
    assert made.disturbed
    assert not made.claimed
    assert not made.room.has_run


def test_a_bit_that_flips_is_noticed():
    made = until(world(), SourceState.DESCRIBING)
    made.flow(1)
    assert made.sides[SOURCE].pipe
    made.corrupt(SOURCE, 8)
    made.corrupt(DESTINATION, 8)  # nothing is on its way there
    made.flow(1000)
    assert made.destination.result.code is ErrorCode.HEADER_CHECKSUM
    assert made.guest.running


@pytest.mark.parametrize("orderly", [True, False])
def test_one_side_may_know_of_the_end_before_the_other(orderly):
    made = until(world(), SourceState.ACKING)
    made.lose(SOURCE, orderly=orderly)
    made.flow(100)
    assert made.source.result.code is ErrorCode.CONNECTION_LOST
    assert made.destination.result is None
    made.pass_time(10.0)
    made.flow(100)
    assert made.destination.result.code is ErrorCode.PEER_SILENT
    assert made.disturbed


def test_heartbeats_keep_an_idle_session_alive():
    """[CON-76] [CON-78]"""
    made = until(world(), DestinationState.RESERVING)
    made.idle(20.0)
    assert not made.disturbed
    made.flow(1000)
    assert made.source.result.outcome is Outcome.COMPLETED


def test_quiet_worlds_count_as_disturbed():
    made = world()
    made.pass_time(1.0)
    made.pass_time(0.9)
    assert not made.disturbed
    made.pass_time(0.2)
    assert made.disturbed
    assert made.longest_quiet_s == pytest.approx(2.1)
    patient = world()
    patient.idle(30.0)
    assert patient.disturbed


def test_a_timer_that_never_passes_is_noticed(monkeypatch):
    made = world()
    monkeypatch.setattr(made.source, "poll_timeout", lambda: 0.0)
    with pytest.raises(AssertionError, match="source: a timer that never passes"):
        made.pass_time(1.0)


def test_another_memory_than_that_of_the_pause_is_noticed():
    made = until(world(), DestinationState.STARTING)
    made.room.machine.memory[0] ^= 1
    with pytest.raises(AssertionError, match="another memory"):
        made.check_image()
    made.room.machine.memory[0] ^= 1
    made.count += 1
    with pytest.raises(AssertionError, match="another state"):
        made.check_image()


def test_a_throttle_slows_writes_down():
    made = world()
    made.guest.machine.throttle = 0.5
    made.write(4)
    assert made.guest.workload.count == 2
    made.guest.machine.throttle = 0.99
    made.write(4)
    assert made.guest.workload.count == 2
