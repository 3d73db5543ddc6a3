"""The harness that other tests stand on."""

from __future__ import annotations

import pytest

from sterna.core import events as e
from sterna.core.events import Outcome
from sterna.core.policy import PolicySettings
from sterna.core.tables import DestinationState, SourceState
from sterna.errors import GuestError, TransportError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.registry import ErrorCode
from sterna.testing.pair import Pair, run_now, source_config_of
from sterna.wire.records import Runner

PARAMETERS = WorkloadParameters(seed=1, pages=64, hot_pages=16, block_pages=16)


def make(**changes) -> Pair:
    return Pair(SimulatedSourceGuest(PARAMETERS), SimulatedDestinationGuest(), **changes)


@pytest.mark.parametrize("chunk", [None, 1000])
def test_a_session_in_one_call(chunk):
    pair = make()
    pair.run(chunk=chunk)
    assert pair.source.result.outcome == pair.destination.result.outcome == "completed"
    assert isinstance(pair.events["source"][-1], e.Finished)
    assert isinstance(pair.performed["destination"][0], e.Admit)
    assert pair.destination_guest.running


def test_the_guest_gets_its_turn_between_steps():
    turns = []
    pair = make(between=turns.append)
    pair.run()
    assert set(turns) == {pair}


def test_a_configuration_of_one_s_own():
    guest = SimulatedSourceGuest(PARAMETERS)
    config = source_config_of(guest.description, epoch=7, runner=Runner("here", b"\1" * 16))
    pair = Pair(guest, SimulatedDestinationGuest(), source_config=config)
    pair.run()
    assert pair.source.result.epoch == 8


def test_steps_are_counted():
    with pytest.raises(AssertionError, match="still moving after 3 steps"):
        make().run(steps=3)


def test_requests_can_be_held_back():
    pair = make()
    pair.start()
    for _ in range(5):
        pair.step(perform=False)
    assert pair.destination.state is DestinationState.ADMITTING
    pair.run()
    assert pair.source.result.outcome is Outcome.COMPLETED


def test_requests_can_be_made_to_fail():
    pair = make()
    pair.fail_on[e.Pause] = GuestError("no")
    pair.run()
    assert pair.source.result.outcome is Outcome.ROLLED_BACK
    assert pair.source_guest.running


def test_what_a_guest_raises_is_a_failure():
    pair = make()
    pair.source_guest.fail_on["mark_granted"] = GuestError("disk full", ErrorCode.RECORD_FAILED)
    pair.run()
    assert pair.source.result.code is ErrorCode.RECORD_FAILED
    assert pair.source_guest.running


def test_a_link_that_is_cut_loses_what_is_on_its_way():
    pair = make()
    pair.start()
    pair.step()
    pair.step()
    pair.cut(TransportError(ErrorCode.CONNECTION_LOST))
    pair.run()
    assert pair.to_destination == pair.to_source == b""
    assert pair.source.result.outcome is pair.destination.result.outcome is Outcome.ROLLED_BACK


def test_time_passes_when_it_is_told_to():
    pair = make()
    pair.start()
    pair.linked = False
    pair.advance(9.0)
    assert pair.source.state is SourceState.GREETING
    pair.advance(3.0)
    assert pair.now == 12.0
    assert pair.source.result.code is ErrorCode.PHASE_DEADLINE


def test_a_guest_that_outruns_its_link_is_slowed_down():
    """A round takes a few milliseconds, in which the guest writes all of its memory anew."""

    def live(pair):
        if pair.source_guest.running:
            pair.now += 0.001
            pair.source_guest.advance(0.001)

    parameters = WorkloadParameters(seed=1, pages=1024, hot_pages=1024, block_pages=16)
    guest = SimulatedSourceGuest(parameters, rate_bytes_s=4e9)
    policy = PolicySettings(allowed_downtime_s=0.02, fixed_cost_s=0, patience=1)
    config = source_config_of(guest.description, policy=policy)
    pair = Pair(guest, SimulatedDestinationGuest(), source_config=config, between=live)
    pair.run()
    assert any(isinstance(request, e.Throttle) for request in pair.performed["source"])
    assert "throttle" in guest.calls


def test_a_coroutine_that_waits_has_no_place_here():

    class Forever:
        def __await__(self):
            yield

    async def hangs():
        await Forever()

    with pytest.raises(AssertionError, match="waits for something"):
        run_now(hangs())
