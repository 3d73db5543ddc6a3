"""Clauses about what a side does not do, and about what holds from the first frame to the last."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace

import pytest
from core_support import (
    ADMISSION,
    BOTH,
    EPOCH,
    GUEST,
    PAGE,
    SECTION,
    SOURCE_STATES,
    THERE,
    TOKEN,
    DestinationRig,
    SourceRig,
)

from sterna.core import events as e
from sterna.core.policy import PolicySettings
from sterna.core.tables import DestinationState as D
from sterna.core.tables import SourceState as S
from sterna.limits import HEADER_BYTES, Limits
from sterna.memory.digest import MemoryDigest
from sterna.registry import ErrorCode, FrameType, Limit, Style
from sterna.wire import records as r
from sterna.wire import unchecked
from sterna.wire.header import decode_header

STATES = pytest.mark.parametrize(("rig", "state"), BOTH, ids=lambda each: getattr(each, "name", None))


# ---- limits ----


def test_before_welcome_a_hello_is_all_that_is_held():
    """[SEC-7] [LIM-5] However much comes, and whatever it says that it will be."""
    rig = DestinationRig()
    rig.say_bytes(unchecked.preface())
    chunk = bytes(1 << 16)
    unfinished = unchecked.frame(FrameType.HELLO, chunk, sequence=200)[:-1]
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(200):
            rig.say_bytes(unchecked.frame(0x7F00, chunk, sequence=number))
        for at in range(0, len(unfinished), 1000):
            rig.say_bytes(unfinished[at : at + 1000])
            held, _ = tracemalloc.get_traced_memory()
            assert held < len(unfinished) + (16 << 10)
    finally:
        tracemalloc.stop()
    assert rig.machine.state is D.IDLE
    rig = DestinationRig()
    rig.say_bytes(unchecked.preface() + unchecked.frame(FrameType.HELLO, body_bytes=(1 << 16) + 1))
    assert rig.last().code == ErrorCode.LIMIT_CONTROL  # before a byte of it has come


@pytest.mark.parametrize("state", [D.RECEIVING, D.BLACKOUT], ids=lambda state: state.name)
def test_what_a_destination_announces_holds_to_the_end(state):
    """[LIM-1] So much is taken, in the first round and in the last, and not a byte more."""
    limits = Limits(bulk_bytes=2 * PAGE)
    rig = DestinationRig(limits=limits).until(D.WELCOMED)
    assert rig.last().limits[Limit.BULK_BYTES] == 2 * PAGE
    rig = DestinationRig(limits=limits)
    rig.script = [
        (reached, (lambda rig: rig.pages([0], [2])) if step is DestinationRig.pages else step)
        for reached, step in DestinationRig.script
    ]
    rig.until(state)
    rig.image = b"x" * len(rig.image)  # no page is zero
    rig.pages([0], [2])
    assert rig.machine.state is state
    rig.pages([0], [3])
    assert rig.last().code == ErrorCode.LIMIT_BULK


@pytest.mark.parametrize("rejected", [1, 2])
@pytest.mark.parametrize("rounds", [1, 3])
def test_what_a_source_announces_holds_to_the_end(rounds, rejected):
    """[LIM-1] In whatever round."""
    never = PolicySettings(allowed_downtime_s=0.001, fixed_cost_s=0.01, max_throttle=0)
    rig = SourceRig(limits=Limits(rejected_runs=1), policy=never).until(S.ACKING)
    assert rig.heard[0].limits[Limit.REJECTED_RUNS] == 1
    for _ in range(rounds - 1):
        rig.say(rig.ack(r.PageRange(0, 0, 1)))
        rig.do(e.CollectDirty, rig.dirty(0, 1, 2, 3))
        rig.drain()
    ranges = [r.PageRange(0, 2 * number, 1) for number in range(rejected)]
    rig.say(rig.ack(*ranges))
    if rejected == 1:
        assert rig.machine.state is S.COLLECTING
    else:
        assert rig.last().code == ErrorCode.LIMIT_REJECTED


# ---- what follows what ----


def test_welcome_is_answered_with_the_guest():
    """[CON-13] (With ABORT, where it does not fit: test_core_source.py.)"""
    rig = SourceRig().until(S.GREETING)
    rig.say(rig.welcome())
    answer, *more = rig.drain()
    assert answer == GUEST
    assert {type(record) for record in more} <= {r.Ping}


def test_ready_waits_for_everything_that_may_be_slow():
    """[CON-40] [SFX-3] The host prepares; meanwhile this side is alive and says so."""
    rig = DestinationRig().until(D.STANDBY)
    rig.drain()
    said = len(rig.heard)
    rig.switchover_noted()
    request = rig.take(e.Prepare)
    for number in range(20):
        rig.pass_time(1.0)
        rig.say(r.Ping(number))
    rig.drain()
    assert rig.machine.state is D.PREPARING
    alive = [type(record) for record in rig.heard[said:]]
    assert set(alive) <= {r.Ping, r.Pong, r.Progress}
    assert alive.count(r.Pong) == 20
    rig.machine.complete(request, None, rig.now)
    assert rig.drain() == [r.Ready(1)]


def test_nothing_but_the_acknowledgement_ends_a_round():
    """[CON-26] [SWI-2] Until ROUND_ACK there is neither another ROUND nor SWITCHOVER."""
    rig = SourceRig().until(S.ACKING)
    said = len(rig.heard)
    rig.pass_time(4.0)
    assert {type(record) for record in rig.drain() + rig.heard[said:]} <= {r.Ping, r.Progress}
    for frame in (r.Round(1, 2, 4), r.Switchover(1, Style.STOP_AND_COPY)):
        peer = DestinationRig().until(D.RECEIVING)
        peer.say(frame)
        assert peer.last().code == ErrorCode.UNEXPECTED_FRAME


@pytest.mark.parametrize("state", SOURCE_STATES, ids=lambda state: state.name)
def test_an_image_is_freed_when_the_guest_is_complete_elsewhere(state):
    """[CMP-2] Not a state earlier."""
    rig = SourceRig().until(state)
    asked = [type(request) for request in [*rig.asked, *rig.machine._requests]]
    assert (e.ReleaseImage in asked) == (state in {S.RELEASING, S.CLOSING, S.CLOSED})


@pytest.mark.parametrize(
    "state", [S.HANDED_OVER, S.MOVED, S.RELEASING, S.CLOSED], ids=lambda state: state.name
)
@pytest.mark.parametrize("end", [b"", unchecked.frame(0x8999)], ids=["as it goes", "rubbish"])
def test_what_a_source_says_after_handover(state, end):
    """[CON-55]"""
    rig = SourceRig().until(state)
    if rig.machine.result is None:
        rig.say_bytes(end)
        rig.say(r.Ping(1))
        rig.pass_time(40.0)
    rig.drain()
    kinds = [type(record) for record in rig.heard]
    after = kinds[kinds.index(r.Handover) + 1 :]
    assert set(after) <= {r.Release, r.Bye, r.Ping, r.Pong, r.Progress, r.Abort}
    assert after


@pytest.mark.parametrize("state", [S.GREETING, S.DESCRIBING], ids=lambda state: state.name)
@pytest.mark.parametrize("code", [ErrorCode.FULL, ErrorCode.NO_COMMON_VERSION, 0xFFFF], ids=str)
def test_an_abort_instead_of_an_answer_is_a_refusal(state, code):
    """[CON-12]"""
    results = []
    for frame in (r.Abort(code, 0, text="no"), r.Refuse(code, text="no")):
        rig = SourceRig().until(state)
        rig.say(frame)
        assert rig.drain() == []
        rig.do(e.RollBack)
        results.append(rig.machine.result)
    one, other = results
    assert str(one.error) == str(other.error)
    assert replace(one, error=None, bytes_received=0) == replace(other, error=None, bytes_received=0)


def test_no_round_while_the_answer_to_switchover_is_awaited():
    """[CON-41] Neither is one sent, nor is one taken."""
    rig = SourceRig().until(S.PREPARING)
    rig.pass_time(4.0)
    rig.say(r.Ping(0))
    rig.drain()
    after = rig.heard[[type(record) for record in rig.heard].index(r.Switchover) :]
    assert not [record for record in after if isinstance(record, r.Round)]
    peer = DestinationRig().until(D.PREPARING)
    peer.say(r.Round(1, peer.round + 1, 4))
    refusal = peer.last()
    assert (refusal.code, refusal.frame) == (ErrorCode.UNEXPECTED_FRAME, FrameType.ROUND)


# ---- one stream ----


def test_all_frames_travel_on_the_control_stream():
    """[STR-1] [STR-7] Every version of every page among them."""
    rig = SourceRig(batch_bytes=PAGE)
    sent = bytearray()
    poll = rig.machine.poll_transmit
    rig.machine.poll_transmit = lambda now: sent.extend(b"".join(found := [*map(bytes, poll(now))])) or found
    rig.until(S.CLOSED)
    seen, at = [], len(unchecked.preface())
    while at < len(sent):
        header = decode_header(bytes(sent[at : at + HEADER_BYTES]))
        seen.append((header.type, header.stream))
        at += HEADER_BYTES + header.body_bytes + header.bulk_bytes
    assert sum(kind == FrameType.PAGES for kind, _ in seen) == 5  # four in a round, one again in the blackout
    assert {stream for _, stream in seen} == {0}


def test_pages_of_another_stream_are_not_taken():
    """[STR-1] With ACCEPT.data_streams = 0 there is no stream 1."""
    rig = DestinationRig().until(D.RECEIVING)
    before = bytes(rig.memory[0])
    batch = rig.batch([0], [1])
    body = unchecked.body(batch.table(1, rig.round))
    rig.say_bytes(
        unchecked.frame(FrameType.PAGES, body, b"".join(batch.buffers), stream=1, sequence=rig.said)
    )
    assert rig.last().code == ErrorCode.BAD_HEADER
    assert bytes(rig.memory[0]) == before


@pytest.mark.parametrize("later", [b"\x77" * PAGE, bytes(PAGE)], ids=["bytes", "zeros"])
def test_what_comes_later_replaces_what_came_before(later):
    """[STR-10] In memory and in the digest, with bytes or without."""
    rig = DestinationRig().until(D.STANDBY)
    rig.whole_round()
    rig.image[:PAGE] = later
    rig.begin()
    rig.pages([0], [1])
    rig.finish_round()
    assert rig.last().pages == 1
    assert bytes(rig.memory[0]) == bytes(rig.image)
    rig.switchover_noted()
    rig.do(e.Prepare)
    rig.begin()
    rig.finish_round()
    rig.state(SECTION)
    rig.say(rig.seal())
    assert rig.machine.state is D.LOADING
    assert rig.machine.digest == rig.digest.value() != MemoryDigest(rig.table).value()


# ---- what is told ----


@STATES
@pytest.mark.parametrize("end", [None, unchecked.frame(0x8999)], ids=["as it goes", "rubbish"])
def test_no_token_is_told(rig, state, end):
    """[SEC-5] Not in what records, events, requests and results look like, nor in a word for the peer."""
    rig = rig().until(state)
    if end is not None and rig.machine.result is None:
        rig.say_bytes(end)
    rig.drain()
    asked = [*rig.asked, *rig.machine._requests]
    told = repr([rig.heard, rig.events(), asked, rig.machine.result, ADMISSION, rig.machine])
    texts = [record.text for record in rig.heard if isinstance(record, r.Abort)]
    for words in (told, *texts):
        assert repr(TOKEN)[2:-1] not in words
        assert TOKEN.hex() not in words


# ---- claims ----


@STATES
def test_nobody_claims_but_a_destination_that_was_permitted_to(rig, state):
    """[ONE-5] [ONE-10] [ONE-24] The next epoch, for the runner that was recorded, once."""
    rig = rig().until(state)
    asked = [*rig.asked, *rig.machine._requests]
    claims = [request for request in asked if isinstance(request, e.Claim)]
    permitted = [D.CLAIMING, D.COMMITTING, D.HANDING_BACK, D.STARTING, D.FETCHING, D.COMPLETING]
    permitted += [D.RUNNING, D.RELEASED, D.CLOSED]
    if not isinstance(rig, DestinationRig) or state not in permitted:
        assert claims == []
        return
    (claim,) = claims
    assert (claim.epoch, claim.runner) == (EPOCH + 1, THERE)
    before = asked[: asked.index(claim)]
    record = [each.record for each in before if isinstance(each, e.Persist)][-1]
    assert (record.kind, record.epoch, record.runner) == ("claiming", EPOCH + 1, THERE)
