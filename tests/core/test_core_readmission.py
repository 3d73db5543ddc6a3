"""Sessions that lose their link and go on: two machines, two guests, and cuts wherever they can fall."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_support import (
    EPOCH,
    GUEST,
    HERE,
    PAGE,
    SECTION,
    SESSION,
    THERE,
    PlainDestination,
    PlainSource,
    code_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from resume_support import (
    FirstDestinationRig,
    FirstSourceRig,
    SecondDestinationRig,
    SecondSourceRig,
)

from sterna.core import events as e
from sterna.core.carry import DestinationCarry
from sterna.core.events import Outcome
from sterna.core.holdings import Holdings
from sterna.core.session import Session
from sterna.core.tables import DestinationState, SourceState
from sterna.errors import GuestError, LocalProtocolError, TransportError
from sterna.memory.bitmap import PageBitmap
from sterna.memory.digest import MemoryDigest
from sterna.registry import ErrorCode, Owner, Style
from sterna.testing.pair import Pair, resuming_pair
from sterna.wire import records as r

S, D = SourceState, DestinationState
REGIONS = (r.Region(1, 0, 24 * PAGE), r.Region(2, 1 << 30, 8 * PAGE))


def pair_of(**changes: object) -> Pair:
    """Some memory, sent page by page."""
    source = PlainSource(REGIONS, seed=5)
    changes = {"batch_bytes": PAGE, "epoch": EPOCH, "runner": HERE, **changes}
    return resuming_pair(source, PlainDestination(), **changes)


def nudge(pair: Pair, chunk: int = 4096) -> None:
    """A little of everything: each side says at most one unit, and hears so many bytes."""
    _half(pair, pair.source, pair.destination, chunk)
    _half(pair, pair.destination, pair.source, chunk)


def _half(pair: Pair, speaker: Session, hearer: Session, chunk: int, *, perform: bool = True) -> None:
    name = "source" if speaker is pair.source else "destination"
    pipe = pair.to_destination if speaker is pair.source else pair.to_source
    if perform:
        pair.perform(name, speaker)
    data = b"".join(bytes(buffer) for buffer in speaker.poll_transmit(pair.now))
    speaker.transmitted(len(data), pair.now)
    pipe.extend(data)
    pair.deliver(pipe, hearer, chunk)


def run_to(pair: Pair, state: S | D) -> None:
    if pair.source.state is S.IDLE:
        pair.start()
    for _ in range(20_000):
        for speaker, hearer in ((pair.source, pair.destination), (pair.destination, pair.source)):
            if state in {pair.source.state, pair.destination.state}:
                return
            # A source that is to be found collecting is slow to do so.
            slow = state is S.COLLECTING and speaker.state is S.ACKING
            _half(pair, speaker, hearer, 4096 if speaker is pair.source else 16, perform=not slow)
    raise AssertionError(f"{state} was not reached")


def check_moved(pair: Pair) -> None:
    result, theirs = pair.source.result, pair.destination.result
    assert (result.outcome, theirs.outcome) == (Outcome.COMPLETED, Outcome.COMPLETED), result
    assert result.digest == theirs.digest
    source, destination = pair.source_guest, pair.destination_guest
    assert source.image == {number: bytes(memory) for number, memory in destination.bytes.items()}
    assert not source.running


# Those in which only a request is waited for are reached with the rigs below.
STATES = [S.ROUND, S.ACKING, S.COLLECTING, S.PREPARING, S.PAUSING, S.BLACKOUT, S.SEALED]
STATES += [D.RECEIVING, D.READY, D.BLACKOUT, D.FROZEN, D.LOADED]


@pytest.mark.parametrize("state", STATES, ids=str)
def test_a_link_lost_before_the_grant_is_taken_up_again(state):
    """[RES-1] [RES-5] [RES-8] [RES-11] [CON-60]"""
    pair = pair_of()
    run_to(pair, state)
    pair.cut()
    pair.reconnect()
    assert pair.source_guest.running
    pair.run()
    check_moved(pair)
    assert (pair.source.result.resumed, pair.destination.result.resumed) == (1, 1)
    assert pair.source.result.bytes_sent > sum(region.size_bytes for region in REGIONS)


def test_what_was_held_is_not_sent_again():
    """[RES-6] [RES-9]"""
    pair = pair_of()
    run_to(pair, S.ACKING)
    pair.cut()
    pair.reconnect()
    pair.run()
    check_moved(pair)
    assert pair.source.result.bytes_sent < 1.5 * sum(region.size_bytes for region in REGIONS)


WRITES = st.lists(st.tuples(st.integers(0, 23), st.integers(1, 255)), max_size=5)
CUTS = st.tuples(st.integers(1, 70), WRITES, WRITES)


@settings(max_examples=30)
@given(st.lists(CUTS, min_size=1, max_size=5), st.integers(100, 3000))
def test_wherever_the_link_is_cut_the_image_is_that_of_the_pause(cuts, chunk):
    """[RES-8] [RES-9] [RES-10] [RES-11] [CON-62] As often as it is cut, and whatever is written meanwhile."""
    pair = pair_of()
    pair.start()
    for steps, before, after in cuts:
        for _ in range(steps):
            nudge(pair, chunk)
        write(pair, before)
        pair.cut()
        for name, machine in (("source", pair.source), ("destination", pair.destination)):
            pair.perform(name, machine)
        if pair.source.state is not S.SUSPENDED:
            break
        assert pair.destination.state is D.SUSPENDED or pair.kept is not None
        write(pair, after)
        pair.reconnect()
    else:
        pair.run(chunk=chunk)
        check_moved(pair)
        assert pair.source.result.resumed <= len(cuts)
        return
    # Before the first round, and from HANDOVER on, nothing is taken up again.
    assert pair.source.state in {S.ENDED, S.UNDECIDED, S.DEPARTED, S.CLOSED}
    assert pair.source_guest.running == (pair.source.state is S.ENDED)


def write(pair: Pair, writes: list[tuple[int, int]]) -> None:
    for page, value in writes:
        if pair.source_guest.running:
            pair.source_guest.write(1, page, value)


# ---- the source, request by request ----

RUNS = [S.ROUND, S.ACKING, S.COLLECTING, S.PREPARING, S.PAUSING, S.FREEZING, S.BLACKOUT, S.SEALED]


@pytest.mark.parametrize("state", RUNS, ids=str)
def test_a_source_that_loses_its_link_lets_the_guest_run_and_says_nothing(state):
    """[RES-11] [CON-62]"""
    rig = FirstSourceRig().until(state)
    said = len(rig.heard)
    rig.machine.connection_lost(None, rig.now)
    assert rig.wishes == [e.RunOn]  # what nobody had taken is withdrawn
    rig.do(e.RunOn)
    assert (rig.machine.state, rig.machine.result.outcome) == (S.SUSPENDED, Outcome.SUSPENDED)
    assert len(rig.heard) == said
    (event,) = rig.events(e.Suspended)
    assert (event.error.code, event.times) == (ErrorCode.CONNECTION_LOST, 1)
    assert rig.machine.poll_timeout() is None


@pytest.mark.parametrize("state", [S.GREETING, S.DESCRIBING, S.ARMING, S.GRANTING, S.RECORDING], ids=str)
def test_before_the_rounds_and_from_the_mark_on_a_loss_ends_the_session(state):
    """[RES-12] [ONE-19]"""
    rig = FirstSourceRig().until(state)
    rig.machine.connection_lost(None, rig.now)
    assert rig.machine.state in {S.ROLLING_BACK, S.VOIDING}


def test_without_the_feature_a_loss_ends_the_session():
    """[NEG-7]"""
    rig = FirstSourceRig()
    rig.start()
    rig.say(rig.welcome(features=tuple(each for each in rig.welcome().features if each.id != 4)))
    rig.say(r.Accept(4 * PAGE))
    rig.do(e.StartTracking)
    rig.machine.connection_lost(None, rig.now)
    assert rig.machine.state is S.ROLLING_BACK


def test_a_fault_of_this_side_is_no_lost_link():
    rig = FirstSourceRig().until(S.ACKING)
    rig.machine.connection_lost(TransportError(ErrorCode.INTERNAL, "a bug"), rig.now)
    assert rig.machine.state is S.ROLLING_BACK


def test_a_silent_peer_is_a_lost_link():
    """[CON-73] An ABORT might arrive late, and end what is to be taken up again."""
    rig = FirstSourceRig().until(S.ACKING)
    said = len(rig.heard)
    rig.pass_time(10.0)
    assert rig.machine.state is S.SUSPENDING
    assert not [each for each in rig.heard[said:] if isinstance(each, r.Abort)]


def test_what_was_collected_before_the_loss_is_not_lost_with_it():
    """[RES-9] [CON-34]"""
    rig = FirstSourceRig().until(S.COLLECTING)
    request = rig.take(e.CollectDirty)
    rig.machine.connection_lost(None, rig.now)
    rig.machine.complete(request, rig.dirty(2), rig.now)
    rig.do(e.RunOn)
    assert rig.machine.carry.memory.pending_bytes == PAGE


@pytest.mark.parametrize("answer", [GuestError("broken"), {0: PageBitmap(3)}], ids=["failed", "nonsense"])
def test_what_was_collected_and_cannot_be_known_ends_the_session(answer):
    """[CON-62]"""
    rig = FirstSourceRig().until(S.COLLECTING)
    request = rig.take(e.CollectDirty)
    rig.machine.connection_lost(None, rig.now)
    if isinstance(answer, GuestError):
        rig.machine.fail(request, answer, rig.now)
    else:
        rig.machine.complete(request, answer, rig.now)
    rig.do(e.RollBack)
    assert rig.machine.result.outcome is Outcome.ROLLED_BACK


def test_a_guest_that_does_not_run_on_is_rolled_back():
    """[CON-62]"""
    rig = FirstSourceRig().until(S.SEALED)
    rig.machine.connection_lost(None, rig.now)
    rig.break_(e.RunOn)
    rig.do(e.RollBack)
    assert rig.machine.result.code is ErrorCode.GUEST_FAILED


@pytest.mark.parametrize("fails", [True, False])
def test_what_else_was_asked_for_is_overtaken(fails):
    rig = FirstSourceRig().until(S.FREEZING)
    rig.do(e.CollectDirty, rig.clean())
    request = rig.take(e.SaveState)
    rig.machine.connection_lost(None, rig.now)
    if fails:
        rig.machine.fail(request, GuestError("too late"), rig.now)
    else:
        rig.machine.complete(request, (SECTION,), rig.now)
    rig.do(e.RunOn)
    assert rig.machine.state is S.SUSPENDED


def test_a_source_goes_on_with_a_round_of_the_next_attempt():
    """[RES-1] [RES-8] [RES-10] [BMP-7]"""
    rig = SecondSourceRig().until(S.RESUMING)
    assert rig.heard[-1] == rig.first.machine.carry.ticket.next_hello()
    rig.until(S.COLLECTING)
    (event,) = rig.events(e.SessionResumed)
    assert (event.times, event.complete_round, event.pages_missing) == (1, 0, 3)
    assert rig.machine._memory._digest.stale_pages == 3
    rig.until(S.ACKING)
    assert r.Round(2, 2, 3) in rig.heard
    assert [each.page_count for each in rig.heard if isinstance(each, r.Pages)] == [3]


def test_what_follows_is_a_round_even_if_nothing_is_left():
    """[RES-8] Only a ROUND tells the destination of the attempt."""
    rig = SecondSourceRig(S.PREPARING).until(S.RESUMING)
    rig.say(rig.welcome_back(complete_round=1))
    rig.do(e.CollectDirty, rig.clean())
    rig.drain()
    assert r.Round(2, 2, 0) in rig.heard
    rig.acknowledge()
    rig.do(e.CollectDirty, rig.clean())
    assert rig.last().attempt == 2
    assert isinstance(rig.last(), r.Switchover)


def test_a_source_that_does_not_converge_gives_up_after_a_loss_too():
    """[CON-36]"""
    rig = SecondSourceRig(S.COLLECTING)
    rig.machine._job = replace(rig.machine._job, policy=replace(rig.machine._job.policy, max_rounds=1))
    rig.until(S.RESUMING)
    rig.say(rig.welcome_back(complete_round=1))
    rig.do(e.CollectDirty, rig.dirty(0, 1, 2, 3))
    assert rig.machine.state in {S.ROUND, S.ROLLING_BACK}


@pytest.mark.parametrize("code", [ErrorCode.BUSY, ErrorCode.FULL])
def test_a_refusal_that_passes_is_a_lost_connection(code):
    """[RES-18] [REF-2] The guest runs on here, and the session is taken up when the other side can."""
    rig = SecondSourceRig().until(S.RESUMING)
    rig.say(r.Refuse(code, 2500, (), "not now"))
    rig.do(e.RunOn)
    result = rig.machine.result
    assert (rig.machine.state, result.outcome, result.code) == (S.SUSPENDED, Outcome.SUSPENDED, code)
    assert result.error.retry_after_ms == 2500
    assert rig.machine.carry.account.losses == 2


def test_a_refused_resumption_ends_the_session():
    """[RES-3] [CON-62]"""
    rig = SecondSourceRig().until(S.RESUMING)
    rig.say(r.Refuse(ErrorCode.BAD_TOKEN, 0, (), "no"))
    rig.do(e.RollBack)
    result = rig.machine.result
    assert (result.outcome, result.code, result.by_peer) == (Outcome.ROLLED_BACK, ErrorCode.BAD_TOKEN, True)


@pytest.mark.parametrize("state", [S.IDLE, S.RESUMING, S.COMPARING, S.COLLECTING, S.ROUND], ids=str)
def test_a_link_that_is_lost_again_is_taken_up_again(state):
    """[RES-1] [RES-8] Each connection has a generation of its own, each round a number."""
    rig = SecondSourceRig().until(state)
    carry = rig.lose()
    assert carry.ticket.generation == (state is not S.IDLE)
    assert carry.ticket.next_hello().generation == 1 + (state is not S.IDLE)
    assert carry.memory.round == 1 + (state is S.ROUND)
    assert carry.account.losses == 2


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"complete_round": 2}, ErrorCode.BAD_ROUND),
        ({"session": b"\7" * 16}, ErrorCode.BAD_VALUE),
        ({"generation": 2}, ErrorCode.BAD_VALUE),
        ({"features": ()}, ErrorCode.NOT_SELECTED),
        ({"limits": {1: 70000}}, ErrorCode.LIMIT_MISMATCH),
    ],
    ids=str,
)
def test_a_wrong_answer_ends_the_session(changes, code):
    """[RES-5] [NEG-9] [LIM-8]"""
    rig = SecondSourceRig().until(S.RESUMING)
    rig.say(rig.welcome_back(**changes))
    assert code_of(rig) is code
    assert rig.machine.state is S.ROLLING_BACK


def test_more_pages_than_were_announced_end_the_session():
    """[BMP-7] [CON-3] [CON-82]"""
    rig = SecondSourceRig().until(S.COLLECTING)
    rig.say(rig.held())
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME


def test_an_endpoint_that_gives_up_rolls_back():
    """[CON-62]"""
    rig = SecondSourceRig()
    rig.machine.abandon(TransportError(ErrorCode.CONNECT_FAILED, "nobody there"), rig.now)
    rig.do(e.RollBack)
    assert rig.machine.result.code is ErrorCode.CONNECT_FAILED


# ---- the destination, request by request ----

KEEPS = [D.STANDBY, D.RECEIVING, D.PREPARING, D.READY, D.BLACKOUT, D.FROZEN, D.LOADING, D.LOADED]


@pytest.mark.parametrize("state", KEEPS, ids=str)
def test_a_destination_keeps_the_room_of_a_lost_session(state):
    """[RES-14] [CON-63] [CON-60]"""
    rig = FirstDestinationRig().until(state)
    carry = rig.lose()
    assert rig.machine.result.outcome is Outcome.SUSPENDED
    assert e.Discard not in rig.wishes
    assert (carry.attempt, carry.holdings.newest) == (1, rig.round)


@pytest.mark.parametrize("state", [D.PREPARING, D.LOADING], ids=str)
def test_what_a_destination_has_begun_comes_to_its_end_first(state):
    rig = FirstDestinationRig().until(state)
    request = rig.take()
    rig.machine.connection_lost(None, rig.now)
    assert rig.machine.state is D.SUSPENDING
    rig.machine.fail(request, GuestError("broken"), rig.now)
    assert rig.machine.state is D.SUSPENDED


def test_a_destination_that_does_not_do_it_frees_the_room():
    """[CON-63] [NEG-7]"""
    rig = FirstDestinationRig()
    rig.say(rig.hello(features=tuple(each for each in rig.hello().features if each.id != 4)))
    rig.do(e.Admit, rig.answer(e.Admit(rig.hello())))
    rig.say(GUEST)
    rig.do(e.Reserve, rig.sink())
    rig.machine.connection_lost(None, rig.now)
    rig.do(e.Discard)


def test_a_destination_tells_what_it_holds():
    """[RES-5] [RES-6] [BMP-7]"""
    rig = SecondDestinationRig(D.RECEIVING)
    rig.until(D.RESUMED)
    welcome, *held = rig.heard
    assert (welcome.session, welcome.generation, welcome.complete_round, welcome.held_frames) == (
        SESSION,
        1,
        0,
        0,
    )
    assert held == []
    assert rig.machine.ticket.generation == 1
    (event,) = rig.events(e.SessionResumed)
    assert (event.times, event.complete_round, event.pages_missing) == (1, 0, 4)


def test_a_destination_tells_of_the_round_that_was_open():
    """[RES-6]"""
    first = FirstDestinationRig().until(D.RECEIVING)
    first.pages((1,), (2,))
    rig = SecondDestinationRig()
    rig.carry = first.lose()
    rig.until(D.RESUMED)
    welcome, held = rig.heard
    assert (welcome.complete_round, welcome.held_frames) == (0, 1)
    assert (held.round, held.region, held.first, held.bits, held.data) == (1, 0, 1, 2, b"\3")


def test_a_destination_takes_the_round_that_follows():
    """[RES-8] Whatever attempt it is, if only it is not below its own."""
    for attempt, number in ((1, 2), (2, 2), (900, 77)):
        rig = SecondDestinationRig(whole=True).until(D.RESUMED)
        rig.attempt, rig.round = attempt, number - 1
        rig.begin()
        rig.pages((0,), (1,))
        rig.finish_round()
        ack = rig.last()
        assert (ack.attempt, ack.round, ack.pages) == (attempt, number, 1)
        rig.switchover()
        rig.do(e.Persist)
        rig.do(e.Prepare)
        rig.begin()
        rig.finish_round()
        rig.state(SECTION)
        rig.say(rig.seal())
        rig.do(e.LoadState)
        assert rig.last() == r.Loaded(attempt, rig.digest.value())


def test_a_round_that_is_not_new_is_refused():
    """[RES-8]"""
    rig = SecondDestinationRig(whole=True).until(D.RESUMED)
    rig.say(r.Round(2, 1, 4))
    assert code_of(rig) is ErrorCode.BAD_ROUND
    assert rig.wishes == [e.Discard]


def test_nothing_but_a_round_follows_a_resumption():
    """[RES-8] [CON-24]"""
    rig = SecondDestinationRig(whole=True).until(D.RESUMED)
    rig.say(r.Round(0, 2, 4))
    assert code_of(rig) is ErrorCode.BAD_ATTEMPT
    rig = SecondDestinationRig(whole=True).until(D.RESUMED)
    rig.say(r.Switchover(1, Style.STOP_AND_COPY))
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME


def test_a_session_that_is_not_known_is_refused():
    """[RES-3] [CON-11]"""
    rig = SecondDestinationRig().until(D.RESUMING)
    rig.break_(e.Readmit, LocalProtocolError(ErrorCode.BAD_TOKEN, "no such session", clause="RES-3"))
    assert code_of(rig) is ErrorCode.BAD_TOKEN
    assert isinstance(rig.last(), r.Refuse)
    assert (rig.machine.state, rig.wishes) == (D.ENDED, [])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"token": bytes(32)}, ErrorCode.BAD_TOKEN),
        ({"generation": 0}, ErrorCode.BAD_TOKEN),
        ({"epoch": 1}, ErrorCode.NOT_SELECTED),
        ({"limits": {1: 70000}}, ErrorCode.LIMIT_MISMATCH),
    ],
    ids=str,
)
def test_a_host_that_lets_in_what_it_should_not_keeps_the_session(changes, code):
    """[RES-1] [RES-2] [RES-3] [RES-4] [LIM-8]"""
    rig = SecondDestinationRig()
    rig.say(rig.hello_back(**changes))
    rig.do(e.Readmit, rig.carry)
    assert code_of(rig) is code
    assert rig.machine.state is D.SUSPENDED
    assert rig.machine.carry.ticket == rig.carry.ticket


def test_a_guest_that_was_handed_over_here_is_not_taken_up_again():
    """[RES-15] And the source, which has never granted it, runs on."""
    rig = SecondDestinationRig().until(D.RESUMING)
    verdict = r.Verdict(Owner.DESTINATION, EPOCH + 1, THERE)
    rig.do(e.Readmit, verdict)
    assert (rig.last(), rig.machine.state) == (verdict, D.ANSWERED)
    source = SecondSourceRig().until(S.RESUMING)
    source.say(verdict)
    source.do(e.RollBack)
    assert source.machine.result.outcome is Outcome.ROLLED_BACK
    late = SecondDestinationRig().until(D.RESUMING)
    request = late.take(e.Readmit)
    late.machine.connection_lost(None, late.now)
    late.machine.complete(request, verdict, late.now)
    assert late.machine.state is D.ENDED


def test_a_connection_that_ends_before_the_host_has_answered():
    """[RES-4] Nothing is lost, whoever has the carry by then."""
    rig = SecondDestinationRig().until(D.RESUMING)
    rig.machine.connection_lost(None, rig.now)
    assert (rig.machine.state, rig.wishes) == (D.ENDED, [])
    rig = SecondDestinationRig().until(D.RESUMING)
    request = rig.take(e.Readmit)
    rig.machine.connection_lost(None, rig.now)
    rig.machine.complete(request, rig.carry, rig.now)
    assert rig.machine.carry.sink is rig.carry.sink
    rig = SecondDestinationRig().until(D.RESUMING)
    request = rig.take(e.Readmit)
    rig.machine.connection_lost(None, rig.now)
    rig.machine.fail(request, LocalProtocolError(ErrorCode.BAD_TOKEN, "no"), rig.now)
    assert rig.machine.state is D.ENDED


def test_a_destination_that_has_lost_what_it_had_says_so():
    """[RES-7]"""
    rig = SecondDestinationRig(whole=True)
    fresh = DestinationCarry(
        ticket=rig.carry.ticket,
        attempt=1,
        admission=rig.carry.admission,
        guest=rig.carry.guest,
        sink=rig.sink(),
        digest=MemoryDigest(rig.table),
        holdings=Holdings(rig.table),
        account=rig.carry.account,
    )
    rig.carry = fresh
    rig.until(D.RESUMED)
    assert (rig.last().complete_round, rig.last().held_frames) == (0, 0)
    source = SecondSourceRig(S.PREPARING).until(S.RESUMING)
    source.say(source.welcome_back())
    source.do(e.CollectDirty, source.clean())
    source.drain()
    assert r.Round(2, 2, 4) in source.heard
