"""Sessions with data connections: two machines, and bytes that come in any order among the connections."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from core_support import EPOCH, PAGE, plain_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes_support import SESSION, TOKEN, check_moved, door, encode, pair_of, run_to, said_on
from xxhash import xxh3_64_intdigest

from sterna.core import shares
from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.events import Join, OpenStreams, Outcome, StreamAttached
from sterna.core.policy import PolicySettings
from sterna.core.source import SourceMachine
from sterna.core.tables import DestinationState, SourceState
from sterna.errors import LocalProtocolError, SternaError, TransportError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.limits import Limits
from sterna.registry import GREASE_FIRST, Encoding, ErrorCode, FrameType, Phase, Style
from sterna.testing.pair import Pair, resuming_pair
from sterna.wire import FrameReader, make_runs, unchecked
from sterna.wire import records as r


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    monkeypatch.setattr(shares, "BLOCK_BYTES", 2 * PAGE)


@pytest.mark.parametrize("streams", [1, 2, 3, 16])
def test_pages_travel_on_data_connections(streams):
    """[STR-1] [STR-2] [ATT-1] [RND-4] [same-memory]"""
    pair = pair_of(streams)
    pair.run()
    check_moved(pair)
    for name in ("source", "destination"):
        attached = [event for event in pair.events[name] if isinstance(event, StreamAttached)]
        assert sorted(event.stream for event in attached) == list(range(1, streams + 1))
        assert {event.generation for event in attached} == {0}
    assert pair.source.result.bytes_sent == pair.destination.result.bytes_received
    assert pair.source.result.streams == pair.destination.result.streams == streams


def shuffled(pair: Pair, dice: Random, cuts: int = 0) -> int:
    """Run a session with its connections in any order, cut and taken up again; how often."""
    pair.start()
    cut = 0
    for _ in range(50_000):
        for name, machine in (("source", pair.source), ("destination", pair.destination)):
            pair.perform(name, machine)
            pair._events_of(name, machine)
        if pair.source.result is not None and pair.destination.result is not None:
            break
        ways = [
            (act, name, stream)
            for stream in (0, *pair.lanes)
            for name in ("source", "destination")
            for act in (pair.send, pair.receive)
        ]
        dice.shuffle(ways)
        moved = [act(name, stream, dice.randint(1, 2 * PAGE)) for act, name, stream in ways]
        assert any(moved), (pair.source.state, pair.destination.state)
        if cut < cuts and not dice.randrange(30) and pair.source._can_resume and pair.destination._can_resume:
            cut += 1
            pair.cut()
            pair.reconnect()
    return cut


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_any_interleaving_gives_the_same_memory(seed, streams):
    """[same-memory] [no-stale-page] [STR-7] [STR-9] [STR-10] [STR-13] [RND-4]"""
    pair = pair_of(streams)
    shuffled(pair, Random(seed))
    check_moved(pair)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_a_session_with_data_connections_is_taken_up_again(seed, streams):
    """[same-memory] [no-stale-page] [STR-5] [STR-14] [STR-15] [ATT-4] [ATT-5] [RES-9]"""
    pair = pair_of(streams)
    cut = shuffled(pair, Random(seed), cuts=5)
    check_moved(pair)
    assert pair.source.result.resumed <= pair.destination.result.resumed <= cut


# ---- who may join ----


def between(pair: Pair) -> Pair:
    """A session between two rounds, with its data connections attached."""
    run_to(pair, SourceState.ACKING)
    run_to(pair, DestinationState.STANDBY)
    assert pair.destination.state is DestinationState.STANDBY
    return pair


@pytest.mark.parametrize(
    ("changes", "stream", "code", "clause"),
    [
        ({"token": bytes(32)}, 1, ErrorCode.BAD_TOKEN, "ATT-3"),
        ({"session": bytes(16)}, 1, ErrorCode.BAD_TOKEN, "ATT-3"),
        ({"index": 2}, 3, ErrorCode.BAD_VALUE, "ATT-2"),
        ({"generation": 0}, 1, ErrorCode.BAD_TOKEN, "STR-5"),
        ({"index": 1}, 1, ErrorCode.BAD_HEADER, "HDR-5"),
    ],
)
def test_who_may_not_join_leaves_the_session_as_it_is(changes, stream, code, clause):
    """[ATT-2] [ATT-3] [STR-4] [STR-5] [HDR-5]"""
    pair = between(pair_of(2))
    attach = replace(r.Attach(SESSION, TOKEN, 0, 1), **changes)
    with pytest.raises(SternaError) as caught:
        pair.destination.join(attach, door(stream), pair.now)
    assert (caught.value.code, caught.value.clause) == (code, clause)
    pair.run()
    check_moved(pair)


def test_a_data_connection_joins_a_session_with_some_and_at_its_time():
    """[STR-4] In the middle of a round it is refused, when all is over, and before there is a session."""
    attach = r.Attach(SESSION, TOKEN, 0, 1)
    pair = run_to(pair_of(1), DestinationState.RECEIVING)
    with pytest.raises(SternaError) as caught:
        pair.destination.join(attach, door(1), pair.now)
    assert (caught.value.code, caught.value.frame) == (ErrorCode.UNEXPECTED_FRAME, FrameType.ATTACH)
    pair.run()
    check_moved(pair)
    for machine in (pair.destination, DestinationMachine(DestinationConfig(), 0.0)):
        with pytest.raises(SternaError) as caught:
            machine.join(attach, door(1), pair.now)
        assert caught.value.code is ErrorCode.BAD_TOKEN


def test_nothing_comes_between_attach_and_attached():
    """[ATT-5]"""
    pair = between(pair_of(1))
    early = encode(r.Ping(1), 1, 1)
    with pytest.raises(SternaError) as caught:
        pair.destination.join(r.Attach(SESSION, TOKEN, 0, 1), door(1, early), pair.now)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.BAD_SEQUENCE, "ATT-5")


def test_a_next_generation_takes_the_place_of_the_one_before():
    """[STR-6] [STR-12] [ATT-4] [HDR-6] Numbers go on where they were, and the older connection is gone."""
    pair = between(pair_of(1))
    applied = pair.destination._lanes[1].sequence
    assert applied > 1
    old = pair.destination._lanes[1]
    assert pair.destination.join(r.Attach(SESSION, TOKEN, 0, 1), door(1), pair.now) == 1
    assert pair.destination._lanes[1] is not old
    assert said_on(pair, 1) == [r.Attached(0, 1, applied)]
    pair.destination.receive_data(encode(r.Ping(1), 1, applied), pair.now, 1)
    result = run_to(pair, DestinationState.DISCARDING).destination
    assert result._account.error.code is ErrorCode.BAD_SEQUENCE


def called(data: bytes) -> DestinationMachine:
    machine = DestinationMachine(DestinationConfig(), 0.0)
    machine.receive_data(data, 0.0)
    return machine


def last_words(machine: DestinationMachine, stream: int) -> r.Record:
    reader = FrameReader(stream=stream)
    while buffers := machine.poll_transmit(0.0):
        reader.receive_data(b"".join(map(bytes, buffers)))
        while (event := reader.next_event()) is not None:
            last = event
    return last.record


ATTACH = r.Attach(SESSION, TOKEN, 2, 0)


def test_the_machine_that_is_called_on_a_data_connection_asks_for_its_session():
    """[ATT-1] What comes behind ATTACH it leaves to the session's machine."""
    machine = called(unchecked.preface() + encode(ATTACH, 3, 0) + encode(r.Ping(1), 3, 1))
    assert machine.state is DestinationState.JOINING
    assert machine.is_held()
    request = machine.poll_request()
    assert isinstance(request, Join)
    machine.complete(request, None, 0.0)
    assert machine.result.outcome is Outcome.JOINED
    attach, lane = machine.door
    assert attach == ATTACH
    assert (lane, lane.reader.stream) == (machine.called, 3)
    assert not lane.reader.is_drained


def test_what_is_refused_is_told_on_its_connection():
    """[STR-4] [HDR-5]"""
    machine = called(unchecked.preface() + encode(ATTACH, 3, 0))
    refused = LocalProtocolError(ErrorCode.BAD_TOKEN, "no such session", clause="STR-4")
    machine.fail(machine.poll_request(), refused, 0.0)
    assert machine.result.outcome is Outcome.ROLLED_BACK
    words = last_words(machine, 3)
    assert isinstance(words, r.Abort)
    assert words.code == ErrorCode.BAD_TOKEN


def test_an_attach_in_the_middle_of_a_connection():
    """[ATT-1]"""
    pair = run_to(pair_of(1), DestinationState.RECEIVING)
    sequence = pair.destination._lanes.control.reader.next_sequence
    pair.to_destination.clear()
    pair.destination.receive_data(encode(ATTACH, 0, sequence), pair.now)
    assert pair.destination._account.error.code is ErrorCode.UNEXPECTED_FRAME


# ---- what comes, and when ----


def table(pair: Pair, first: int, *, attempt: int = 1, number: int = 1) -> tuple[r.Pages, bytes]:
    data = bytes([first + 1]) * PAGE
    runs = make_runs([(first, 1, Encoding.RAW)], 12)
    hashes = np.array([xxh3_64_intdigest(data)], dtype=np.uint64)
    return r.Pages(attempt, number, 1, runs, hashes), data


def give(pair: Pair, record: r.Record, stream: int = 1, bulk: bytes = b"") -> None:
    lane = pair.destination._lanes[stream]
    pair.destination.receive_data(encode(record, stream, lane.reader.next_sequence, bulk), pair.now, stream)


def standing_by(streams: int = 1) -> Pair:
    """The destination before its first round, with its data connections attached; the source is not heard."""
    pair = run_to(pair_of(streams), SourceState.DECIDING, SourceState.ROUND)
    for pipe in (pair.to_destination, *(lane.to_destination for lane in pair.lanes.values())):
        pipe.clear()
    assert pair.destination.state is DestinationState.STANDBY
    pair.now += 1.0
    return pair


def test_pages_wait_for_their_round():
    """[STR-13] They are not read any further, and no error; ROUND_END waits for them in turn [RND-4]."""
    pair = standing_by()
    there = pair.destination
    first, data = table(pair, 3)
    give(pair, first, bulk=data)
    assert there.is_held(1)
    assert there.state is DestinationState.STANDBY
    give(pair, r.Round(1, 1, 1), 0)
    assert not there.is_held(1)
    assert there._round.page_count == 1
    assert bytes(pair.destination_guest.bytes[1][3 * PAGE : 4 * PAGE]) == data


def test_the_end_of_a_round_waits_for_the_lanes():
    """[RND-4] [STR-9] PING is answered meanwhile, and nothing else is acted on."""
    pair = standing_by(2)
    there = pair.destination
    give(pair, r.Round(1, 1, 2), 0)
    one, data_one = table(pair, 0)
    two, data_two = table(pair, 1)
    give(pair, one, 1, data_one)
    sequences = tuple(
        (stream, there._lanes[stream].reader.next_sequence - (stream == 1)) for stream in (1, 2)
    )
    give(pair, r.RoundEnd(1, 1, 2, 2 * PAGE, sequences), 0)
    give(pair, r.Ping(77), 0)
    give(pair, r.Switchover(1, Style.STOP_AND_COPY, 0), 0)
    assert there.state is DestinationState.RECEIVING
    assert there.is_held()
    unsent = len(there._outbox._queue)
    assert unsent == 1, "the PONG"
    give(pair, two, 2, data_two)
    assert there.state is DestinationState.PREPARING
    assert not there.is_held()


def test_a_held_connection_may_end():
    """[STR-14] Whoever reads it all the same finds that it is lost."""
    pair = standing_by()
    first, data = table(pair, 3)
    lane = pair.destination._lanes[1]
    frame = encode(first, 1, lane.reader.next_sequence, data)
    pair.destination.receive_data(frame[:-100], pair.now, 1)
    assert pair.destination.is_held(1)
    pair.destination.connection_lost(None, pair.now, 1)
    assert pair.destination.state is DestinationState.SUSPENDED


def fails(pair: Pair) -> SternaError:
    error = pair.destination._account.error
    assert error is not None, pair.destination.state
    return error


def test_pages_travel_where_they_belong():
    """[STR-1] Before RUNNING not on the control connection."""
    pair = standing_by()
    give(pair, r.Round(1, 1, 1), 0)
    first, data = table(pair, 0)
    give(pair, first, 0, data)
    assert (fails(pair).code, fails(pair).clause) == (ErrorCode.UNEXPECTED_FRAME, "STR-1")


@pytest.mark.parametrize(
    "record", [r.Ping(1), r.Round(1, 1, 1), r.Attach(SESSION, TOKEN, 0, 2)], ids=lambda each: each.type.name
)
def test_nothing_but_pages_travels_on_a_data_connection(record):
    """[STR-3] [ATT-1]"""
    pair = standing_by()
    give(pair, record)
    assert (fails(pair).code, fails(pair).clause) == (ErrorCode.UNEXPECTED_FRAME, "STR-3")


def test_the_other_side_s_frames_do_not_come_on_a_data_connection():
    """[CON-4]"""
    pair = standing_by()
    give(pair, r.Attached(0, 0, 0))
    assert fails(pair).code is ErrorCode.WRONG_DIRECTION


def test_an_abort_on_a_data_connection_ends_the_session_and_is_told_on_the_control_connection():
    """[STR-3]"""
    pair = standing_by()
    give(pair, r.Abort(ErrorCode.INTERNAL, Phase.ROUNDS, 0, 0, 0, ""))
    assert fails(pair).code is ErrorCode.INTERNAL
    assert pair.destination.has_unsent


@pytest.mark.parametrize(
    "sequences",
    [((1, 2),), ((1, 1), (2, 1)), ((0, 1), (1, 1)), ()],
    ids=["of a frame of another kind", "of another connection", "of the control connection", "none"],
)
def test_sequences_that_are_not_those_of_the_round(sequences):
    """[STR-8] [STR-9]"""
    pair = standing_by()
    give(pair, r.Round(1, 1, 1), 0)
    first, data = table(pair, 0)
    give(pair, first, 1, data)
    give(pair, r.RoundEnd(1, 1, 1, PAGE, sequences), 0)
    if sequences == ((1, 2),):  # it may still come, until it comes and is none of those
        pair.destination.receive_data(unchecked.frame(GREASE_FIRST, stream=1, sequence=2), pair.now, 1)
        give(pair, table(pair, 1)[0], 1, table(pair, 1)[1])
    assert (fails(pair).code, fails(pair).clause[:3]) == (ErrorCode.COUNT_MISMATCH, "RND")


def test_a_round_does_not_end_while_pages_are_on_their_way():
    """[STR-8] A batch that no end states."""
    pair = standing_by(2)
    give(pair, r.Round(1, 1, 1), 0)
    one, data_one = table(pair, 0)
    two, data_two = table(pair, 1)
    give(pair, one, 1, data_one)
    lane = pair.destination._lanes[2]
    frame = encode(two, 2, lane.reader.next_sequence, data_two)
    pair.destination.receive_data(frame[:-1], pair.now, 2)
    give(pair, r.RoundEnd(1, 1, 1, PAGE, ((1, 1),)), 0)
    assert (fails(pair).code, fails(pair).clause) == (ErrorCode.COUNT_MISMATCH, "RND-4")


def test_pages_do_not_come_on_two_connections_at_a_time():
    """[STR-18] [MEM-8] Else what was verified first would be written over by what is left of the other."""
    for page, refused in ((2, False), (3, True), (4, False)):
        pair = standing_by(2)
        give(pair, r.Round(1, 1, 3), 0)
        first, data = table(pair, 3)
        lane = pair.destination._lanes[1]
        frame = encode(first, 1, lane.reader.next_sequence, data)
        pair.destination.receive_data(frame[:-PAGE], pair.now, 1)
        other, more = table(pair, page)
        if refused:
            give(pair, other, 2, more)
            assert (fails(pair).code, fails(pair).clause) == (ErrorCode.UNEXPECTED_FRAME, "STR-18")
            continue
        give(pair, other, 2, more)
        pair.destination.receive_data(frame[-PAGE:], pair.now, 1)
        give(pair, *table(pair, page)[:1], 1, more)  # one behind the other they may [STR-10]
        assert pair.destination._round.page_count == 3
        assert pair.destination.result is None


# ---- the source's side ----


def attaching(streams: int = 2) -> Pair:
    return run_to(pair_of(streams), SourceState.ATTACHING)


def tell_source(pair: Pair, record: r.Record, stream: int = 1, sequence: int = 0) -> SternaError | None:
    data = (unchecked.preface() if not sequence else b"") + encode(record, stream, sequence)
    pair.perform("source", pair.source)
    pair.source.receive_data(data, pair.now, stream)
    return pair.source._account.error


@pytest.mark.parametrize(
    ("record", "code", "clause"),
    [
        (r.Attached(1, 0, 0), ErrorCode.BAD_VALUE, "ATT-6"),
        (r.Attached(0, 1, 0), ErrorCode.BAD_VALUE, "ATT-6"),
        (r.Attached(0, 0, 1), ErrorCode.BAD_VALUE, "ATT-6"),
        (r.Pong(1), ErrorCode.UNEXPECTED_FRAME, "STR-3"),
        (r.Abort(ErrorCode.BAD_TOKEN, Phase.STREAMS, 0, 0, 0, ""), ErrorCode.BAD_TOKEN, ""),
    ],
    ids=["another index", "another generation", "never sent", "no ATTACHED", "refused"],
)
def test_answers_to_attach_that_end_the_session(record, code, clause):
    """[ATT-6] [STR-3] [STR-4] The guest runs on, and the destination is told."""
    pair = attaching()
    error = tell_source(pair, record)
    assert (error.code, getattr(error, "clause", "")) == (code, clause)
    assert pair.source.has_unsent
    pair.perform("source", pair.source)
    assert pair.source.result.outcome is Outcome.ROLLED_BACK


def test_attached_comes_once():
    """[STR-3]"""
    pair = attaching()
    assert tell_source(pair, r.Attached(0, 0, 0)) is None
    assert pair.source.state is SourceState.ATTACHING
    assert tell_source(pair, r.Attached(0, 0, 0), sequence=1).code is ErrorCode.UNEXPECTED_FRAME


def test_a_destination_cannot_have_more_than_was_selected():
    """[ACC-3]"""
    pair = run_to(pair_of(2), SourceState.DESCRIBING)
    sequence = pair.source._lanes.control.reader.next_sequence
    pair.source.receive_data(encode(r.Accept(1 << 40, 3), 0, sequence), pair.now)
    assert pair.source._account.error.clause == "ACC-3"


def test_a_destination_may_have_fewer():
    """[STR-2]"""
    pair = run_to(pair_of(3), SourceState.DESCRIBING)
    sequence = pair.source._lanes.control.reader.next_sequence
    pair.source.receive_data(encode(r.Accept(1 << 40, 0), 0, sequence), pair.now)
    assert pair.source.state is SourceState.ARMING


def test_a_destination_that_takes_none_does_not_select_them():
    """[NEG-10] [ACC-3]"""
    pair = pair_of(2)
    pair.destination._config = replace(pair.destination._config, limits=Limits())
    pair.run()
    check_moved(pair)
    assert not pair.lanes


def test_connections_that_cannot_be_opened_end_the_session():
    pair = pair_of(2)
    pair.fail_on[OpenStreams] = TransportError(ErrorCode.CONNECT_FAILED, "nothing listens there")
    pair.run()
    assert pair.source.result.outcome is Outcome.ROLLED_BACK
    assert pair.source.result.code is ErrorCode.CONNECT_FAILED
    assert pair.destination.result.code is ErrorCode.CONNECT_FAILED


# ---- the end of a data connection ----


@pytest.mark.parametrize("loser", ["source", "destination"])
def test_the_end_of_one_is_the_end_of_all(loser):
    """[STR-14] The session is taken up again."""
    pair = run_to(pair_of(2), DestinationState.RECEIVING)
    machine = pair.source if loser == "source" else pair.destination
    machine.connection_lost(None, pair.now, 2)
    pair.perform(loser, machine)
    assert machine.result.outcome is Outcome.SUSPENDED
    assert machine.result.code is ErrorCode.CONNECTION_LOST
    pair.cut()
    pair.reconnect()
    pair.run()
    check_moved(pair)
    assert pair.source.result.resumed == 1


@pytest.mark.parametrize("resumes", [True, False])
def test_a_connection_that_is_worn_out(resumes):
    """[TLS-18] The session goes on with new ones, or ends, and the peer is told."""
    pair = run_to(pair_of(2) if resumes else plain_pair(), DestinationState.RECEIVING)
    error = TransportError(ErrorCode.UNSUPPORTED, "the key is used up")
    pair.source.wear_out(error, pair.now)
    state = SourceState.SUSPENDING if resumes else SourceState.ROLLING_BACK
    assert pair.source.state is state
    assert pair.source.has_unsent is not resumes


def test_who_cannot_resume_tells_that_it_is_lost():
    """[STR-14]"""
    pair = attaching()
    pair.perform("source", pair.source)
    pair.source.connection_lost(None, pair.now, 1)
    assert pair.source.state is SourceState.ROLLING_BACK
    pair.run()
    assert pair.destination.result.code is ErrorCode.CONNECTION_LOST
    assert pair.destination.result.by_peer


@pytest.mark.parametrize(
    "state",
    [SourceState.HANDED_OVER, SourceState.MOVED, SourceState.CLOSING, DestinationState.RUNNING],
    ids=lambda each: each.name,
)
def test_where_no_page_travels_any_more_it_is_no_loss(state):
    """[STR-14]"""
    pair = run_to(pair_of(2), state)
    for machine in (pair.source, pair.destination):
        machine.connection_lost(None, pair.now, 1)
        machine.connection_lost(None, pair.now, 1)
        assert 1 not in machine._lanes
        assert machine.poll_transmit(pair.now, 1) == []
        machine.transmitted(10, pair.now, 1)
        assert len(machine.get_buffer(1)) > 0
        machine.receive_data(b"?", pair.now, 1)
    del pair.lanes[1]
    pair.run()
    check_moved(pair)


@pytest.mark.parametrize("state", [SourceState.HANDED_OVER, SourceState.MOVED])
def test_where_pages_are_to_follow_it_is_one(state):
    """[STR-14]"""
    pair = following("bitmap")
    pair.start()
    while pair.source.state is not state:
        pair.step(chunk=2_000)
    pair.source.connection_lost(None, pair.now, 1)
    left = {SourceState.HANDED_OVER: SourceState.UNDECIDED, SourceState.MOVED: SourceState.PARTED}
    assert pair.source.state is left[state]


def test_a_stalled_connection_beside_fast_ones_is_noticed():
    """[CON-77] The stall limit is that of each connection."""
    pair = run_to(pair_of(2), DestinationState.RECEIVING)
    source = pair.source
    source.poll_transmit(pair.now, 1)  # the connection has been given this, and takes none of it
    while source.state is not SourceState.SUSPENDING:
        pair.now += 0.5
        size = sum(len(buffer) for buffer in source.poll_transmit(pair.now, 2))
        source.transmitted(size, pair.now, 2)
        source.receive_data(b"", pair.now)
        source.handle_timeout(pair.now)
        assert pair.now < 30
    assert source._account.error.code is ErrorCode.PEER_STALLED


def test_a_stalled_connection_does_not_keep_the_others_silent():
    """[CON-76] [STR-14] Else the peer hears nothing, and loses patience with a session that goes on."""
    pair = run_to(pair_of(2), DestinationState.RECEIVING)
    source = pair.source
    source.poll_transmit(pair.now, 1)  # and none of it is taken
    while buffers := source.poll_transmit(pair.now):
        source.transmitted(sum(map(len, buffers)), pair.now)
    pair.now += source._config.deadlines.heartbeat_s
    source.handle_timeout(pair.now)
    assert source._outbox.has_unsent
    source.handle_timeout(
        pair.now + source._config.deadlines.heartbeat_s
    )  # the control connection takes none
    assert source._watch.said == pair.now + source._config.deadlines.heartbeat_s


# ---- pages that follow the guest ----

PARAMETERS = WorkloadParameters(seed=7, pages=512, hot_pages=128, cold_every=4, block_pages=8, zero_pages=64)


def following(switchover: str, streams: int = 2) -> Pair:
    """Guests that write while they run, and whose pages follow."""
    journal: list = []
    source = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=4e8)
    source.machine.journal = journal
    destination = SimulatedDestinationGuest(rate_bytes_s=4e8, journal=journal, can_post_copy=True)

    def pass_time(pair: Pair) -> None:
        pair.now += 0.001
        source.advance(0.001)
        destination.advance(0.001)

    policy = PolicySettings(switchover=switchover, max_rounds=4)
    return resuming_pair(source, destination, streams=streams, epoch=EPOCH, policy=policy, between=pass_time)


def check_followed(pair: Pair) -> None:
    here, there = pair.source.result, pair.destination.result
    assert here is not None, (pair.source.state, pair.destination.state)
    assert (here.outcome, there.outcome) == (Outcome.COMPLETED, Outcome.COMPLETED), (here, there)
    assert here.digest == there.digest != b""
    guest = pair.destination_guest
    guest.advance(0.1)
    assert guest.workload.errors == guest.workload.audit().errors == 0


@pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])
def test_what_a_guest_waits_for_travels_where_no_push_does(switchover, monkeypatch):
    """[STR-16] [same-memory] [PCY-9]"""
    carried: dict[int, int] = {}
    send = SourceMachine._send_on

    def note(self, lane, *frame):
        if self.state is SourceState.MOVED:
            carried[lane.stream] = carried.get(lane.stream, 0) + frame[0].page_count
        send(self, lane, *frame)

    monkeypatch.setattr(SourceMachine, "_send_on", note)
    pair = following(switchover)
    pair.run(chunk=30_000)
    check_followed(pair)
    after = pair.source.result.after
    assert after.requests > 0
    assert 0 < carried[0] <= after.demanded + after.repeated
    assert sum(carried.values()) == after.demanded + after.pushed + after.repeated
    assert set(carried) > {0}


@pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])
def test_a_link_that_is_lost_while_pages_follow(switchover):
    """[RES-13] [STR-15] What the guest waits for comes before the data connections are back."""
    pair = following(switchover)
    pair.start()
    while pair.destination.state is not DestinationState.FETCHING:
        pair.step(chunk=30_000)
    for _ in range(3):
        pair.step(chunk=3_000)
        pair.cut()
        pair.reconnect()
        for _ in range(8):
            pair.step(chunk=3_000)
    pair.run(chunk=30_000)
    check_followed(pair)
    assert pair.source.result.resumed > 0
    generations = [event.generation for event in pair.events["source"] if isinstance(event, StreamAttached)]
    assert max(generations) > 0


def test_a_data_connection_is_replaced_while_pages_follow():
    """[STR-6] [STR-12]"""
    pair = following("post-copy", 1)
    pair.start()
    while (fetching := pair.destination._fetching) is None or not fetching._coming:
        pair.step(chunk=3_000)
    assert 1 in fetching._coming
    pair.destination.join(r.Attach(SESSION, TOKEN, 0, 1), door(1), pair.now)
    assert 1 not in fetching._coming


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("state", ["COMPLETING", "RUNNING", "RELEASED"])
def test_a_data_connection_that_comes_when_all_pages_are_there(state, resumed):
    """[STR-15] [STR-4] Who opens it again behind a resumption does not know; nobody else opens one then."""
    pair = run_to(following("post-copy", 1), DestinationState.FETCHING)
    if resumed:
        run_to(pair, SourceState.MOVED).cut()
        pair.reconnect()
        run_to(pair, DestinationState.FETCHING)
    if state == "COMPLETING":  # it is recorded as soon as the last page is there
        pair.destination._state = DestinationState.COMPLETING
    run_to(pair, DestinationState[state])
    attach = r.Attach(SESSION, TOKEN, 0, 9)
    if resumed:
        assert pair.destination.join(attach, door(1), pair.now) == 1
    else:
        with pytest.raises(SternaError) as caught:
            pair.destination.join(attach, door(1), pair.now)
        assert (caught.value.code, caught.value.frame) == (ErrorCode.UNEXPECTED_FRAME, FrameType.ATTACH)
    assert pair.destination.state is DestinationState[state]


@pytest.mark.parametrize("state", ["RELEASING", "CLOSING"])
def test_a_data_connection_that_is_there_when_all_pages_were_sent(state):
    """[STR-15] It has nothing to carry any more."""
    pair = run_to(following("post-copy", 1), SourceState[state])
    pair.source._on_streams([1], pair.now)
    lane = pair.source._lanes[1]
    answer = encode(r.Attached(0, lane.generation, 0), 1, 0)
    pair.source.receive_data(unchecked.preface() + answer, pair.now, 1)
    assert pair.source.state is SourceState[state]
    assert lane.attached
    assert not pair.source._account.error
