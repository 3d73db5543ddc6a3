"""Demand connections: who may open one and when, and that the session goes on as if there were none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_support import EPOCH
from lanes_support import SESSION, TOKEN, door

from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.events import Outcome
from sterna.core.policy import PolicySettings
from sterna.core.tables import DestinationState, SourceState, State
from sterna.errors import SternaError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.registry import ErrorCode, Feature
from sterna.testing.pair import Pair, resuming_pair
from sterna.wire import FrameReader, FrameReceived
from sterna.wire import records as r

PARAMETERS = WorkloadParameters(seed=7, pages=256, hot_pages=64, cold_every=4, block_pages=8, zero_pages=64)


def early_pair(streams: int = 1, *, selected: bool = True) -> Pair:
    """A session whose guest runs before all of its pages are there."""
    journal: list = []
    source = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=4e8)
    source.machine.journal = journal
    destination = SimulatedDestinationGuest(rate_bytes_s=4e8, journal=journal, can_post_copy=True)

    def pass_time(pair: Pair) -> None:
        pair.now += 0.001
        source.advance(0.001)
        destination.advance(0.001)

    policy = PolicySettings(switchover="bitmap", max_rounds=2)
    also = {Feature.EARLY_PAGES} if selected else ()
    changes = {"epoch": EPOCH, "policy": policy, "between": pass_time}
    return resuming_pair(source, destination, streams=streams, also=also, **changes)


def reach(pair: Pair, state: State) -> Pair:
    """Go on, with time that passes, until a side is in this state."""
    if pair.source.state is SourceState.IDLE:
        pair.start()
    while state not in {pair.source.state, pair.destination.state}:
        assert pair.step(chunk=512), (pair.source.state, pair.destination.state)
    return pair


def go_on(pair: Pair) -> None:
    """To the end, which is the one that a session without such a connection has."""
    pair.run()
    here, there = pair.source.result, pair.destination.result
    assert (here.outcome, there.outcome) == (Outcome.COMPLETED, Outcome.COMPLETED), (here, there)
    assert here.digest == there.digest != b""
    assert pair.destination_guest.workload.audit().errors == 0


def demand(streams: int, **changes: object) -> r.Attach:
    """The ATTACH of a demand connection."""
    return replace(r.Attach(SESSION, TOKEN, streams, 0), **changes)


def refusal(pair: Pair, attach: r.Attach, stream: int | None = None, rest: bytes = b"") -> SternaError:
    """Why a connection may not join; nothing has changed."""
    with pytest.raises(SternaError) as caught:
        pair.destination.check_join(attach, door(attach.index + 1 if stream is None else stream, rest))
    return caught.value


@pytest.mark.parametrize("streams", [0, 1, 15])
def test_the_source_opens_one_and_the_session_does_not_see_it(streams):
    """[PCY-26] [ATT-2] [ATT-4] [ATT-6] [STR-6] In any state behind ACCEPT; the lanes stay what they are."""
    pair = early_pair(streams)
    pair.start()
    assert pair.source.demand_attach is None
    reach(pair, SourceState.DESCRIBING)
    assert pair.source.demand_attach is None
    reach(pair, SourceState.ATTACHING if streams else DestinationState.RECEIVING)
    attach = pair.source.demand_attach
    assert attach == demand(streams)
    for generation, state in enumerate((DestinationState.RECEIVING, DestinationState.FETCHING)):
        reach(pair, state)
        before, lanes = pair.destination.state, [lane.stream for lane in pair.destination._lanes]
        newer = replace(attach, generation=generation)
        assert pair.destination.is_demand(newer)
        way = door(streams + 1)
        pair.destination.check_join(newer, way)
        assert pair.destination.join_demand(newer, way, pair.now) == streams + 1
        reader = FrameReader(stream=streams + 1)
        reader._state = reader._state.HEADER  # the preface left before
        reader.receive_data(b"".join(way.outbox.take()))
        event = reader.next_event()
        assert isinstance(event, FrameReceived)
        assert (event.header.sequence, event.record) == (0, r.Attached(streams, generation, 0))
        assert (pair.destination.state, [lane.stream for lane in pair.destination._lanes]) == (before, lanes)
        assert refusal(pair, newer).clause == "STR-5"
    pair.run()
    go_on(pair)
    assert pair.source.demand_attach is None
    assert pair.source.result.streams == pair.destination.result.streams == streams


@pytest.mark.parametrize(
    ("changes", "stream", "code", "clause"),
    [
        ({"token": bytes(32)}, 2, ErrorCode.BAD_TOKEN, "ATT-3"),
        ({"session": bytes(16)}, 2, ErrorCode.BAD_TOKEN, "ATT-3"),
        ({"index": 2}, 3, ErrorCode.BAD_VALUE, "ATT-2"),
        ({}, 3, ErrorCode.BAD_HEADER, "HDR-5"),
    ],
)
def test_who_may_not_open_one_leaves_the_session_as_it_is(changes, stream, code, clause):
    """[ATT-2] [ATT-3] [STR-4] [HDR-5] [PCY-30]"""
    pair = reach(early_pair(), DestinationState.RECEIVING)
    error = refusal(pair, demand(1, **changes), stream)
    assert (error.code, error.clause) == (code, clause)
    pair.run()
    go_on(pair)


def test_nothing_comes_between_attach_and_attached():
    """[ATT-5]"""
    pair = reach(early_pair(), DestinationState.RECEIVING)
    assert refusal(pair, demand(1), rest=b"\0").clause == "ATT-5"


@pytest.mark.parametrize(("streams", "selected"), [(0, False), (1, False), (16, True)])
def test_there_is_none_without_the_feature_and_without_an_index(streams, selected):
    """[ATT-2] [PCY-26] Streams above 16 are none at all [HDR-5]."""
    pair = reach(early_pair(streams, selected=selected), DestinationState.RECEIVING)
    assert pair.source.demand_attach is None
    attach = demand(streams)
    assert not pair.destination.is_demand(attach)
    pair.run()
    go_on(pair)


def test_one_comes_after_accept_and_before_the_end():
    """[PCY-26] [STR-4]"""
    pair = reach(early_pair(0), DestinationState.RESERVING)
    assert refusal(pair, demand(0)).code is ErrorCode.UNEXPECTED_FRAME
    pair.run()
    go_on(pair)
    assert refusal(pair, demand(0)).code is ErrorCode.BAD_TOKEN
    assert not DestinationMachine(DestinationConfig(), 0.0).is_demand(demand(0))


@pytest.mark.parametrize("state", [DestinationState.RECEIVING, DestinationState.FETCHING])
def test_there_is_none_once_the_session_was_resumed(state):
    """[PCY-26]"""
    pair = reach(early_pair(), state)
    pair.cut()
    assert pair.source.demand_attach is None
    pair.reconnect()
    assert pair.source.demand_attach is None
    while pair.destination.ticket is None or not pair.destination.ticket.generation:
        assert pair.step()
    assert pair.source.demand_attach is None
    error = refusal(pair, demand(1))
    assert (error.code, error.clause) == (ErrorCode.UNEXPECTED_FRAME, "PCY-26")
    pair.run()
    go_on(pair)
