"""What both machines have in common, tried on each in every state."""

from __future__ import annotations

import pytest
from core_support import (
    ADMISSION,
    ALL_FEATURES,
    BOTH,
    EPOCH,
    GUEST,
    LIVE,
    PAGE,
    REGION,
    THERE,
    DestinationRig,
    SourceRig,
    code_of,
    offer,
)

from sterna.core import events as e
from sterna.core.deadlines import WAITS, Deadlines
from sterna.core.events import Outcome
from sterna.core.session import PONGS_OWED_MAX, Grease
from sterna.core.tables import COMMITTED, DEAF, PHASES, TERMINAL, DestinationState, SourceState
from sterna.errors import GuestError, LocalProtocolError, PeerAborted, TransportError
from sterna.registry import (
    ERRORS,
    FRAMES,
    GREASE_FIRST,
    GREASE_LAST,
    ErrorCode,
    Feature,
    FrameType,
    Mode,
    Phase,
    Sender,
    Style,
)
from sterna.wire import records as r
from sterna.wire import unchecked

S, D = SourceState, DestinationState
STEADY = Deadlines(
    **dict.fromkeys(("handshake_s", "describe_s", "round_s", "prepare_s", "blackout_s", "commit_s"), 50.0),
    after_s=50.0,
    close_s=50.0,
    heartbeat_s=1.0,
    silence_s=5.0,
    stall_s=10.0,
)

EVERY = pytest.mark.parametrize(
    ("rig", "state"), BOTH, ids=lambda each: each.name if each in {*S, *D} else each.__name__[:-3]
)
LIVING = pytest.mark.parametrize(
    ("rig", "state"), LIVE, ids=lambda each: each.name if each in {*S, *D} else each.__name__[:-3]
)
UNGREETED = {S.IDLE, S.GREETING, S.ASKING, D.IDLE, D.ADMITTING, D.ANSWERING}
GREETED = [(rig, state) for rig, state in LIVE if state not in UNGREETED]
CONVERSING = pytest.mark.parametrize(
    ("rig", "state"), GREETED, ids=lambda each: each.name if each in {*S, *D} else each.__name__[:-3]
)
ROLES = pytest.mark.parametrize("rig", [SourceRig, DestinationRig])


def settle(rig):
    """Carry out whatever the machine asks for, until it asks for nothing more."""
    while (request := rig.machine.poll_request()) is not None:
        rig.asked.append(request)
        rig.machine.complete(request, rig.answer(request), rig.now)
    return rig.machine.result


def expected(rig, state):
    """How a session that is lost in this state ends [CON-62] [CON-63] [CON-64] [CON-70] [ONE-19] [ONE-30]."""
    if state in {S.ASKING, D.ANSWERING}:
        return Outcome.UNDECIDED
    if state not in COMMITTED:
        return Outcome.ROLLED_BACK
    return {
        D.HANDING_BACK: Outcome.ROLLED_BACK,
        D.FETCHING: Outcome.STRANDED,
        S.HANDED_OVER: Outcome.UNDECIDED,
        S.RELEASING: Outcome.COMPLETED,
        S.CLOSING: Outcome.COMPLETED,
        D.RELEASED: Outcome.COMPLETED,
    }.get(state, Outcome.MOVED)


def ended_well(rig, state, result):
    """What follows from the outcome: who was told to run or to free what."""
    asked = [type(request) for request in rig.asked]
    if rig is SourceRig or isinstance(rig, SourceRig):
        assert (e.RollBack in asked) == (result.outcome is Outcome.ROLLED_BACK)
    else:
        assert (e.Discard in asked) == (result.outcome is Outcome.ROLLED_BACK)
        assert (e.RunGuest in asked) == (state in COMMITTED - {D.HANDING_BACK})
    assert isinstance(rig.events()[-1], e.Finished)
    assert rig.machine.state in TERMINAL
    assert rig.machine.phase is Phase.ANY


# ---- losing a session, in every state and in every way ----


@LIVING
def test_an_abort(rig, state):
    """[CON-68] [ABT-3] [CON-12] It is obeyed as far as the state allows, and not answered."""
    rig = rig().until(state)
    said = len(rig.heard)
    rig.say(r.Abort(0xFFFF, 99, text="so there"))
    rig.drain()
    assert not [each for each in rig.heard[said:] if isinstance(each, (r.Abort, r.Refuse))]
    result = settle(rig)
    assert result.outcome is expected(rig, state)
    if result.outcome is not Outcome.COMPLETED and state is not D.HANDING_BACK:  # that had its reason before
        assert result.code is ErrorCode.INTERNAL
        assert result.by_peer
        assert result.phase is PHASES[state]
        assert isinstance(result.error, PeerAborted)
        assert result.error.wire_code == 0xFFFF
    ended_well(rig, state, result)


@LIVING
@pytest.mark.parametrize("error", [None, TransportError(ErrorCode.NOT_CLOSED)], ids=["closed", "broken"])
def test_the_end_of_the_connection(rig, state, error):
    """[CON-69] Never a success by itself, and nothing is said into the void."""
    rig = rig().until(state)
    rig.machine.connection_lost(error, rig.now)
    assert rig.machine.poll_transmit(rig.now) == []
    assert not rig.machine.has_unsent
    result = settle(rig)
    assert result.outcome is expected(rig, state)
    if result.outcome is not Outcome.COMPLETED and state is not D.HANDING_BACK:
        assert result.code is (error.code if error else ErrorCode.CONNECTION_LOST)
        assert not result.by_peer
    ended_well(rig, state, result)
    rig.machine.connection_lost(error, rig.now)  # once more does no harm
    assert rig.machine.result is result


@LIVING
def test_a_connection_that_ends_inside_a_frame(rig, state):
    """[FRM-10] [PRE-7]"""
    rig = rig().until(state)
    rig.say_bytes(rig.encode(r.Ping(1))[:-1])
    rig.machine.connection_lost(None, rig.now)
    result = settle(rig)
    assert result.outcome is expected(rig, state)
    assert isinstance(rig.machine._account.error, Exception)
    if state is not D.HANDING_BACK:
        assert rig.machine._account.error.code is ErrorCode.TRUNCATED


@LIVING
def test_rubbish(rig, state):
    """[HDR-2] [CON-65] [CON-66] [ABT-2] [FRM-14]"""
    rig = rig().until(state)
    sequence = rig.said
    frame = bytearray(rig.encode(r.Ping(1)))
    frame[-9] ^= 1  # in the header's checksum, or in the header
    silent = not rig.machine._can_speak
    rig.say_bytes(bytes(frame))
    if not silent:
        last = rig.last()
        assert isinstance(last, r.Abort)
        assert (last.code, last.phase) == (ErrorCode.HEADER_CHECKSUM, PHASES[state])
        assert (last.frame, last.sequence) == (0, sequence)
        assert last.text == ERRORS[ErrorCode.HEADER_CHECKSUM].text
    result = settle(rig)
    assert result.outcome is expected(rig, state)
    ended_well(rig, state, result)


@LIVING
def test_a_first_frame_that_is_refused(rig, state):
    """[ABT-2] Its number is what it is, the first one's 0."""
    rig = rig().until(state)
    sequence = rig.said
    start = unchecked.preface() if rig.preface else b""
    rig.say_bytes(start + unchecked.frame(0x8777, sequence=sequence))
    if rig.machine._outbox or rig.machine.has_unsent:
        last = rig.last()
        assert (last.code, last.frame, last.sequence) == (ErrorCode.UNKNOWN_CRITICAL, 0x8777, sequence)
    assert settle(rig).outcome is expected(rig, state)


@LIVING
def test_cancelling(rig, state):
    """[CON-71] [CON-72]"""
    rig = rig().until(state)
    if state in COMMITTED:
        before = (rig.machine.state, rig.wishes)
        with pytest.raises(LocalProtocolError) as caught:
            rig.machine.cancel(rig.now)
        assert caught.value.code is ErrorCode.TOO_LATE
        assert (rig.machine.state, rig.wishes) == before
        assert rig.machine.result is None
        assert rig.drain() == []
        return
    rig.machine.cancel(rig.now, "the operator changed his mind")
    assert code_of(rig) is ErrorCode.CANCELLED
    assert isinstance(rig.heard[-1], r.Abort)
    rig.machine.cancel(rig.now)  # is under way
    result = settle(rig)
    assert (result.outcome, result.code) == (expected(rig, state), ErrorCode.CANCELLED)
    assert "changed his mind" in str(result.error)
    ended_well(rig, state, result)
    rig.machine.cancel(rig.now)  # the guest is where it should be
    assert rig.machine.result is result


@LIVING
def test_a_session_that_its_driver_abandons(rig, state):
    """[TLS-18] The peer is told why, as long as the session may end; afterwards it goes on."""
    rig = rig().until(state)
    before = (rig.machine.state, rig.wishes)
    rig.machine.abandon(TransportError(ErrorCode.UNSUPPORTED, "the key is used up"), rig.now)
    if state in COMMITTED:
        assert (rig.machine.state, rig.wishes) == before
        assert rig.machine.result is None
        assert rig.drain() == []
        return
    assert code_of(rig) is ErrorCode.UNSUPPORTED
    assert isinstance(rig.heard[-1], r.Abort)
    result = settle(rig)
    assert (result.outcome, result.code, result.by_peer) == (
        expected(rig, state),
        ErrorCode.UNSUPPORTED,
        False,
    )
    ended_well(rig, state, result)


@LIVING
def test_a_request_that_fails(rig, state):
    """[CON-62] [ONE-18] [ONE-19] [ONE-25] [ONE-26] [ONE-35]"""
    rig = rig().until(state)
    if not rig.wishes:
        return
    request = rig.take()
    rig.machine.fail(request, GuestError("broken", ErrorCode.RECORD_FAILED), rig.now)
    if isinstance(request, (e.Prepare, e.ReleaseImage)):
        assert rig.machine.result is None  # NOT_READY, and RELEASE all the same
        return
    result = settle(rig)
    undecided = {D.RECORDING, D.CLAIMING, D.HANDING_BACK, D.STARTING}
    if state in undecided:
        assert result.outcome is Outcome.UNDECIDED
    else:  # without START the guest is handed back, and with it it runs, whatever becomes of COMPLETE
        assert result.outcome is (Outcome.ROLLED_BACK if state is D.COMMITTING else expected(rig, state))
    assert result.code is (ErrorCode.GUEST_FAILED if state is D.HANDING_BACK else ErrorCode.RECORD_FAILED)
    if state is D.COMMITTING:
        assert rig.last() == r.HandBack(EPOCH + 1, THERE)
    else:
        assert code_of(rig) is ErrorCode.RECORD_FAILED


@LIVING
def test_an_answer_that_comes_after_the_loss(rig, state):
    """What the driver was at when the session was lost is answered all the same, and changes nothing."""
    for good in (True, False):
        each = rig().until(state)
        if not each.wishes or (not good and state in COMMITTED):
            continue  # the permission was given: a failure counts, see above
        request = each.take()
        each.machine.connection_lost(None, each.now)
        if good:
            each.machine.complete(request, each.answer(request), each.now)
        else:
            each.machine.fail(request, GuestError("too late"), each.now)
        result = settle(each)
        assert result.outcome is expected(each, state)
        if result.outcome is Outcome.ROLLED_BACK and state is not D.HANDING_BACK:
            assert result.code is ErrorCode.CONNECTION_LOST


@LIVING
def test_what_nobody_has_taken_is_withdrawn(rig, state):
    """A roll-back does not wait for a state to be saved that nobody wants any more."""
    rig = rig().until(state)
    if state in COMMITTED:
        return
    rig.machine.connection_lost(None, rig.now)
    wishes = {
        S.GRANTING: [e.Persist],  # VOIDED; the roll-back comes after it
        S.RECORDING: [e.Persist],
        S.ASKING: [],
        D.ANSWERING: [],
    }
    assert rig.wishes == wishes.get(state, [e.RollBack if isinstance(rig, SourceRig) else e.Discard])


# ---- frames that no state takes ----

TELLERS = {Sender.SOURCE: DestinationRig, Sender.DESTINATION: SourceRig}

# One of each type, right in itself and, as far as numbers go, in the conversation.
SAMPLES = {
    record.type: record
    for record in (
        r.Hello(Mode.OPEN, (1,), (), {}, bytes(16), 0, THERE),
        r.Welcome(1, b"\1" * 16, bytes(32), (), {}),
        r.Refuse(1),
        GUEST,
        r.Accept(4 * PAGE),
        r.Attach(b"\1" * 16, bytes(32), 0, 0),
        r.Attached(0, 0, 0),
        r.Held(1, 0, False, 0, 4, 0, b"\0"),
        r.Round(1, 1, 4),
        r.RoundEnd(1, 1, 0, 0),
        r.RoundAck(1, 1, 0, 0),
        r.Switchover(1, Style.STOP_AND_COPY),
        r.Ready(1),
        r.NotReady(1, 1),
        r.DirtyBitmap(1, 0, 0, 4, 0, b"\0"),
        r.State(1, 0, 0, 1, 1, 0, 0, 0, True, b""),
        r.Seal(1, 3, bytes(16), bytes(16), 0, 0),
        r.Loaded(1, bytes(16)),
        r.Handover(1, EPOCH),
        r.Running(EPOCH + 1, THERE),
        r.HandBack(EPOCH + 1, THERE),
        r.PageRequest(0, 0, 1),
        r.Complete(EPOCH + 1, bytes(16)),
        r.Release(EPOCH + 1),
        r.Bye(),
        r.Verdict(0, 0),
        r.End(0),
    )
}


def test_there_is_a_sample_of_every_frame():
    anywhere = {FrameType.PING, FrameType.PONG, FrameType.PROGRESS, FrameType.ABORT, FrameType.PAGES}
    assert set(FrameType) - anywhere == set(SAMPLES)


@LIVING
def test_frames_that_the_state_does_not_allow(rig, state):
    """[CON-3] [CON-4] Unasked answers, frames out of order, repeated, of the wrong side."""
    role = rig().machine._role
    table = rig().machine._table
    for kind, sample in SAMPLES.items():
        row = table.get((state, kind))
        if row is not None:
            continue
        each = rig().until(state)
        if not each.machine._can_speak:
            return
        each.say(sample)
        sender = FRAMES[kind].sender
        code = ErrorCode.WRONG_DIRECTION if sender is role else ErrorCode.UNEXPECTED_FRAME
        last = each.last()
        assert isinstance(last, r.Abort), (kind, last)
        assert (ErrorCode(last.code), last.frame) == (code, kind), kind
        assert last.phase == PHASES[state]
        assert settle(each).outcome is expected(each, state)


@LIVING
@pytest.mark.parametrize("by_peer", [True, False])
def test_frames_after_the_end_are_read_and_ignored(rig, state, by_peer):
    """[CON-67] [FRM-11] Whatever they are, and however they come, and whoever has sent ABORT."""
    rig = rig().until(state)
    rig.say(r.Abort(ErrorCode.CANCELLED, 0)) if by_peer else rig.say_bytes(unchecked.frame(0x8999))
    rig.drain()
    left = rig.machine.state
    rig.say(*SAMPLES.values(), r.Ping(1))
    rig.say_bytes(b"not even a frame")
    view = rig.machine.get_buffer()
    view[:3] = b"abc"
    rig.machine.buffer_updated(3, rig.now)
    assert rig.machine.state is left
    assert rig.drain() == []
    assert rig.machine.result is None or rig.machine.result.outcome is expected(rig, state)


# ---- PING, PONG, PROGRESS ----


@CONVERSING
def test_a_ping_is_answered_in_every_state(rig, state):
    """[CON-1] [CON-6] [CON-78] [PNG-1]"""
    rig = rig().until(state)
    if not rig.machine._can_speak:
        return
    left = rig.machine.state
    before = rig.wishes
    rig.say(r.Ping(4711), r.Ping(4712))
    answers = [each for each in rig.drain() if isinstance(each, r.Pong)]
    assert answers == [r.Pong(4711), r.Pong(4712)]
    if left not in {S.ROUND, S.BLACKOUT}:  # there, what is drained leads on
        assert rig.machine.state is left
    assert rig.wishes == before + [e.CollectDirty] * (left is S.ROUND)


@pytest.mark.parametrize(
    ("rig", "state"), [(SourceRig, S.IDLE), (SourceRig, S.GREETING), (DestinationRig, D.IDLE)]
)
def test_a_ping_that_comes_too_early_is_no_reason_to_speak(rig, state):
    """[CON-2] [CON-7] [CON-8]"""
    rig = rig().until(state)
    for number in range(100):
        rig.say(r.Ping(number))
    assert rig.drain() == []
    assert rig.machine.state is state


@CONVERSING
def test_a_pong_that_answers_nothing(rig, state):
    """[PNG-2]"""
    rig = rig().until(state)
    if not rig.machine._can_speak:
        return
    rig.say(r.Pong(4711))
    assert code_of(rig) is ErrorCode.UNSOLICITED


@CONVERSING
def test_progress_of_the_peer_is_shown_and_changes_nothing(rig, state):
    """[CON-6] [PRG-2]"""
    rig = rig().until(state)
    if not rig.machine._can_speak:
        return
    progress = r.Progress(Phase.ROUNDS, 3, 4, 2, 9000, 0, 0, 0)
    rig.events()
    rig.say(progress)
    assert rig.events() == [e.PeerProgress(progress)]
    assert rig.machine.state is state


@ROLES
def test_progress_that_was_not_selected(rig):
    """[PRG-1] [NEG-7]"""
    plain = tuple(each for each in ALL_FEATURES if each.id != Feature.PROGRESS)
    if rig is SourceRig:
        rig = rig().until(S.GREETING)
        rig.say(rig.welcome(features=plain))
    else:
        rig = rig()
        rig.say(rig.hello(features=tuple(each for each in offer() if each.id != Feature.PROGRESS)))
        rig.do(e.Admit, ADMISSION)
    rig.pass_time(1.5)
    assert not [each for each in rig.heard if isinstance(each, r.Progress)]
    rig.say(r.Progress(Phase.ROUNDS, 3, 4, 2, 9000, 0, 0, 0))
    assert code_of(rig) is ErrorCode.NOT_SELECTED


@ROLES
def test_a_flood_of_progress(rig):
    """[PRG-1]"""
    rig = rig().until(S.ACKING if rig is SourceRig else D.STANDBY)
    progress = r.Progress(Phase.ROUNDS, 3, 4, 2, 9000, 0, 0, 0)
    for _ in range(30):
        rig.say(progress)
    assert code_of(rig) is ErrorCode.LIMIT_RATE


@ROLES
def test_a_peer_that_pings_and_does_not_read(rig):
    """[CON-79] What it is owed is bounded; what has left is owed no more."""
    rig = rig().until(S.ACKING if rig is SourceRig else D.STANDBY)
    for round_ in range(3):
        for number in range(PONGS_OWED_MAX):
            rig.say(r.Ping(round_ * 100 + number))
        assert len(rig.drain()) == PONGS_OWED_MAX
    for number in range(PONGS_OWED_MAX + 1):
        rig.say(r.Ping(number))
    assert rig.machine.state in DEAF
    rig.drain()
    assert [type(each) for each in rig.heard[-2:]] == [r.Pong, r.Abort]
    assert code_of(rig) is ErrorCode.LIMIT_RATE


@ROLES
def test_pongs_that_were_taken_but_have_not_left_are_owed(rig):
    """[CON-79]"""
    rig = rig().until(S.ACKING if rig is SourceRig else D.STANDBY)
    for number in range(PONGS_OWED_MAX):
        rig.say(r.Ping(number))
    rig.drain(leave=False)
    rig.say(r.Ping(99))
    assert rig.machine.state in DEAF


# ---- GREASE ----


@ROLES
def test_grease_changes_nothing(rig):
    """[FRM-7] [FRM-9] Neither what is sent nor what comes."""
    grease = tuple(Grease(after, GREASE_FIRST + after, bytes(after)) for after in (0, 1, 3, 5, 5, 80))
    rig = rig(grease=grease)
    end = S.CLOSED if isinstance(rig, SourceRig) else D.CLOSED
    for _, step in rig.script:
        step(rig)
        rig.drain()
        if rig.machine._greeted:
            rig.say_bytes(unchecked.frame(GREASE_LAST, b"grease", sequence=rig.said))
            rig.said += 1
    assert rig.machine.state is end
    assert rig.machine.result.outcome is Outcome.COMPLETED
    assert rig.unknown == [GREASE_FIRST + after for after in (0, 1, 3, 5, 5)]
    assert isinstance(rig.heard[-1], r.Bye)


@ROLES
def test_no_grease_after_the_last_frame(rig):
    """[ABT-1]"""
    rig = rig(grease=tuple(Grease(after, GREASE_FIRST) for after in range(9, 30)))
    rig.until(S.COLLECTING if isinstance(rig, SourceRig) else D.READY)
    rig.machine.cancel(rig.now)
    sent = len(rig.unknown)
    assert code_of(rig) is ErrorCode.CANCELLED
    assert len(rig.unknown) == sent


# ---- the clocks ----


def waits():
    return [(rig, state) for rig, state in LIVE if state in WAITS]


@pytest.mark.parametrize(
    ("rig", "state"), waits(), ids=lambda each: each.name if each in {*S, *D} else each.__name__[:-3]
)
def test_every_wait_for_the_peer_ends(rig, state):
    """[CON-74] [SEC-16] Although the peer is alive."""
    rig = rig(deadlines=Deadlines(**{WAITS[state]: 3.0, "silence_s": 1000.0})).until(state)
    silent = not rig.machine._can_speak
    end = rig.now + 3.0
    assert rig.machine.poll_timeout() <= end
    while rig.now < end + 0.9:
        rig.now += 0.3
        rig.machine.handle_timeout(rig.now)
        if rig.machine._can_speak and rig.machine._greeted:
            rig.say(r.Ping(1))
        rig.drain()
    assert rig.machine.result is None  # it is looked at twice
    rig.pass_time(1.0)
    result = settle(rig)
    assert result.outcome is expected(rig, state)
    if result.outcome is not Outcome.COMPLETED:
        assert result.code is ErrorCode.PHASE_DEADLINE
        assert code_of(rig) is ErrorCode.PHASE_DEADLINE
    if silent:
        assert isinstance(rig.heard[-1], r.Bye)  # [PNG-3] no ABORT after it


@CONVERSING
def test_a_silent_peer(rig, state):
    """[CON-75] [CON-73] Noticed in every state, in seconds; what follows is what follows from any loss."""
    rig = rig(deadlines=STEADY).until(state)
    rig.pass_time(4.9)
    assert rig.machine.result is None
    rig.pass_time(2.0)
    result = settle(rig)
    assert result.outcome is expected(rig, state)
    if result.outcome is not Outcome.COMPLETED and state is not D.HANDING_BACK:
        assert result.code is ErrorCode.PEER_SILENT


@CONVERSING
def test_any_byte_is_a_sign_of_life(rig, state):
    """[CON-75] Half a header is."""
    rig = rig(deadlines=STEADY).until(state)
    data = rig.encode(r.Ping(1))
    for at in range(3):
        rig.pass_time(4.5)
        rig.say_bytes(data[at : at + 1])
    assert rig.machine.result is None
    assert rig.machine.state not in DEAF


@CONVERSING
def test_a_side_with_nothing_to_say_shows_that_it_lives(rig, state):
    """[CON-76]"""
    rig = rig(deadlines=STEADY).until(state)
    if not rig.machine._can_speak:
        return  # BYE was the last word [PNG-3]
    rig.drain()
    said = len(rig.heard)
    for _ in range(4):
        rig.pass_time(1.0)
        rig.say_bytes(rig.encode(r.Ping(1)))
        rig.drain()
    beats = [each for each in rig.heard[said:] if isinstance(each, (r.Ping, r.Progress))]
    assert len(beats) >= 3


@ROLES
def test_before_welcome_nobody_has_to_speak(rig):
    """[CON-2] [CON-7]"""
    rig = rig().until(S.GREETING if rig is SourceRig else D.ADMITTING)
    said = len(rig.heard)
    rig.pass_time(9.0)
    assert len(rig.heard) == said
    assert rig.machine.result is None


def test_a_host_that_admits_slowly_does_not_find_its_peer_silent():
    """[CON-75] The source owes nothing before WELCOME: its silence begins with it."""
    rig = DestinationRig(deadlines=STEADY).until(D.ADMITTING)
    rig.pass_time(30.0)
    rig.do(e.Admit, ADMISSION)
    rig.pass_time(4.5)
    assert rig.machine.state is D.WELCOMED


@ROLES
def test_a_process_that_slept_looks_twice(rig):
    """[CON-75] What the peer has sent meanwhile waits in the socket."""
    rig = rig(deadlines=Deadlines(round_s=1e6)).until(S.ACKING if rig is SourceRig else D.STANDBY)
    state = rig.machine.state
    rig.now += 600.0
    rig.machine.handle_timeout(rig.now)
    rig.drain()
    assert rig.machine.state is state
    rig.now += 0.5
    # The peer was awake: its heartbeats are there.
    rig.say(r.Ping(1))
    rig.machine.handle_timeout(rig.now)
    rig.drain()
    assert rig.machine.state is state
    # It was not.
    rig.now += 1200.0
    rig.machine.handle_timeout(rig.now)
    assert rig.machine.state is state
    assert rig.machine.poll_timeout() == rig.now + 1.0
    rig.now += 1.0
    rig.machine.handle_timeout(rig.now)
    assert rig.machine.state in DEAF


@LIVING
def test_a_peer_that_stops_reading(rig, state):
    """[CON-77]"""
    rig = rig(deadlines=Deadlines(stall_s=2.0, handshake_s=50, close_s=50)).until(state)
    if state not in {S.ROUND, S.BLACKOUT}:
        if state in UNGREETED:
            rig = type(rig)(deadlines=Deadlines(stall_s=2.0, handshake_s=50))
            state = rig.machine.state
        elif rig.machine._can_speak:
            rig.say(r.Ping(1))
        else:
            return
    assert rig.machine.poll_transmit(rig.now)
    left = rig.machine.state
    rig.now += 1.5
    rig.machine.transmitted(1, rig.now)
    rig.now += 1.9
    rig.machine.handle_timeout(rig.now)
    rig.now += 0.2
    rig.machine.handle_timeout(rig.now)
    assert rig.machine.state is left
    rig.now += 1.0
    rig.machine.handle_timeout(rig.now)
    result = settle(rig)
    assert result.outcome is expected(rig, left)
    if result.outcome is not Outcome.COMPLETED and state is not D.HANDING_BACK:
        assert result.code is ErrorCode.PEER_STALLED
    assert not rig.machine.has_unsent
    assert rig.machine.poll_timeout() is None


@ROLES
def test_last_words_that_nobody_takes(rig):
    """[CON-77] After an error, too, something waits: the connection is given up, and the driver with it."""
    rig = rig(deadlines=Deadlines(stall_s=2.0)).until(S.ACKING if rig is SourceRig else D.STANDBY)
    rig.machine.cancel(rig.now)
    assert rig.machine.poll_transmit(rig.now)
    assert rig.machine.has_unsent
    assert rig.machine.poll_timeout() == rig.now + 2.0
    for _ in range(2):
        rig.now = rig.machine.poll_timeout()
        rig.machine.handle_timeout(rig.now)
    assert not rig.machine.has_unsent
    assert rig.machine.poll_timeout() is None
    assert rig.machine.result is None  # the guest is still to be set running, or freed
    assert settle(rig).outcome is Outcome.ROLLED_BACK


@ROLES
def test_a_heartbeat_does_not_queue_behind_what_does_not_leave(rig):
    rig = rig(deadlines=STEADY).until(S.ACKING if rig is SourceRig else D.STANDBY)
    rig.say(r.Ping(1))
    rig.now += 3.0
    rig.machine.handle_timeout(rig.now)
    (pong,) = rig.drain(leave=False)
    assert pong == r.Pong(1)
    rig.now += 3.0
    rig.machine.handle_timeout(rig.now)
    assert rig.drain(leave=False) == []


@ROLES
def test_a_peer_that_answers_no_ping(rig):
    """[CON-79] One more would oblige it to end the session; so this side does, and its memory is bounded."""
    plain = tuple(each for each in ALL_FEATURES if each.id != Feature.PROGRESS)
    deadlines = Deadlines(**dict.fromkeys(("describe_s", "handshake_s", "silence_s"), 500.0))
    if rig is SourceRig:
        rig = rig(deadlines=deadlines).until(S.GREETING)
        rig.say(rig.welcome(features=plain))
    else:
        rig = rig(deadlines=deadlines)
        rig.say(rig.hello(features=tuple(each for each in offer() if each.id != Feature.PROGRESS)))
        rig.do(e.Admit, ADMISSION)
    rig.pass_time(60.0)
    assert sum(isinstance(each, r.Ping) for each in rig.heard) == PONGS_OWED_MAX
    assert code_of(rig) is ErrorCode.PEER_SILENT


@LIVING
def test_a_driver_that_sleeps_until_the_timeout_comes_to_an_end(rig, state):
    """Nothing is due for ever, and a peer that is gone is noticed wherever something is expected of it."""
    rig = rig(deadlines=STEADY).until(state)
    for _ in range(100):
        at = rig.machine.poll_timeout()
        if at is None:
            break
        assert at >= rig.now
        rig.now = at
        rig.machine.handle_timeout(rig.now)
        later = rig.machine.poll_timeout()
        assert later is None or later > at
        if state not in {S.ROUND, S.BLACKOUT}:
            rig.drain()
    assert at is None
    if state in {S.IDLE, D.ADMITTING, D.ANSWERING}:  # it is the host's turn
        assert rig.machine.state is state
    else:
        assert settle(rig).outcome is expected(rig, state)


@LIVING
def test_a_call_too_early_does_nothing(rig, state):
    rig = rig().until(state)
    rig.machine.handle_timeout(rig.now)
    assert rig.machine.state is state
    assert rig.machine.result is None


# ---- bytes ----


@ROLES
def test_both_doors_for_bytes_lead_to_the_same(rig):
    """[FRM-13]"""
    end = S.CLOSED if rig is SourceRig else D.CLOSED
    for door in ("receive_data", "get_buffer"):
        each = rig()
        if door == "get_buffer":

            def by_buffer(data, now, machine=each.machine):
                view = memoryview(data)
                while view:
                    place = machine.get_buffer()
                    count = min(len(place), len(view), 1000)
                    place[:count] = view[:count]
                    machine.buffer_updated(count, now)
                    view = view[count:]

            each.machine.receive_data = by_buffer
        each.until(end)
        assert each.machine.result.bytes_received > 0
        if isinstance(each, DestinationRig):
            assert each.memory[0] == each.image


def test_a_session_counts_its_bytes_and_seconds():
    rig = SourceRig()
    rig.now = 103.0
    rig.until(S.CLOSING).until(S.CLOSED)
    result = rig.machine.result
    assert result.seconds == 3.0
    assert result.bytes_sent == rig.machine._outbox.queued_bytes
    assert result.bytes_received > 300
    assert not rig.machine.has_unsent


def test_the_round_trip_is_measured():
    """The first PING goes out with GUEST."""
    rig = SourceRig().until(S.DESCRIBING)
    assert rig.machine.rtt_s is None
    (ping,) = (each for each in rig.heard if isinstance(each, r.Ping))
    rig.now += 0.125
    rig.say(r.Pong(ping.id))
    assert rig.machine.rtt_s == 0.125


@EVERY
def test_a_ping_by_the_driver_is_sent_where_it_may_be(rig, state):
    """[CON-2] [PNG-3]"""
    rig = rig().until(state)
    rig.machine.ping(rig.now)
    sent = [each for each in rig.drain() if isinstance(each, r.Ping)]
    assert bool(sent) == (state not in UNGREETED | TERMINAL | {S.CLOSING})


def test_phases_are_told_in_order():
    rig = SourceRig().until(S.CLOSED)
    assert [event.phase for event in rig.events(e.PhaseEntered)] == [
        Phase.DESCRIBE, Phase.ROUNDS, Phase.PREPARE, Phase.BLACKOUT, Phase.COMMIT, Phase.AFTER,
    ]  # fmt: skip
    rig = DestinationRig().until(D.CLOSED)
    assert [event.phase for event in rig.events(e.PhaseEntered)] == [
        Phase.DESCRIBE, Phase.ROUNDS, Phase.PREPARE, Phase.BLACKOUT, Phase.COMMIT, Phase.AFTER,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rig", "state", "stands"),
    [
        (SourceRig, S.PREPARING, False),
        (SourceRig, S.PAUSING, True),
        (SourceRig, S.HANDED_OVER, True),
        (SourceRig, S.CLOSED, False),
        (DestinationRig, D.PREPARING, False),
        (DestinationRig, D.READY, True),
        (DestinationRig, D.STARTING, True),
        (DestinationRig, D.COMPLETING, False),
    ],
)
def test_from_the_order_to_pause_until_it_runs_the_guest_stands_still(rig, state, stands):
    assert rig().until(state).machine.guest_stands is stands


# ---- misuse ----


def snapshot(rig):
    machine = rig.machine
    return (
        machine.state,
        rig.wishes,
        machine._requests.taken,
        machine._outbox.queued_bytes,
        machine.result,
    )


@LIVING
def test_a_request_is_answered_once_and_in_turn(rig, state):
    rig = rig().until(state)
    if not rig.wishes:
        return
    wanted = next(iter(rig.machine._requests))
    before = snapshot(rig)
    for request in (wanted, e.Pause(), e.Discard()):
        for call in (
            lambda each: rig.machine.complete(each, None, rig.now),
            lambda each: rig.machine.fail(each, GuestError("no"), rig.now),
        ):
            with pytest.raises(LocalProtocolError, match="not the next request"):
                call(request)  # nobody has taken it, or there is no such request
    assert snapshot(rig) == before
    request = rig.take()
    rig.machine.complete(request, rig.answer(request), rig.now)
    before = snapshot(rig)
    with pytest.raises(LocalProtocolError, match="not the next request"):
        rig.machine.complete(request, None, rig.now)
    with pytest.raises(LocalProtocolError, match="not the next request"):
        rig.machine.fail(request, GuestError("no"), rig.now)
    assert snapshot(rig) == before


def test_requests_are_answered_in_their_order():
    """The state is saved after the last collect, and a roll-back comes after what it undoes."""
    rig = SourceRig().until(S.FREEZING)
    collect, save = rig.take(e.CollectDirty), rig.take(e.SaveState)
    with pytest.raises(LocalProtocolError, match="SaveState is not the next"):
        rig.machine.complete(save, (), rig.now)
    rig.machine.complete(collect, {}, rig.now)
    rig.machine.complete(save, (), rig.now)


@LIVING
def test_an_exception_is_no_answer(rig, state):
    rig = rig().until(state)
    if not rig.wishes:
        return
    request = rig.take()
    before = snapshot(rig)
    with pytest.raises(LocalProtocolError, match="is answered with"):
        rig.machine.complete(request, GuestError("no"), rig.now)
    assert snapshot(rig) == before
    rig.machine.fail(request, GuestError("no"), rig.now)


@ROLES
def test_no_more_leaves_than_was_given(rig):
    rig = rig()
    (preface,) = rig.machine.poll_transmit(rig.now)
    with pytest.raises(LocalProtocolError):
        rig.machine.transmitted(len(preface) + 1, rig.now)
    rig.machine.transmitted(len(preface), rig.now)
    assert not rig.machine.has_unsent


@pytest.mark.parametrize("end", [S.CLOSED, D.CLOSED])
def test_calls_after_the_end(end):
    rig = (SourceRig if end is S.CLOSED else DestinationRig)().until(end)
    result = rig.machine.result
    for call in (
        lambda: rig.machine.complete(rig.asked[-1], None, rig.now),
        lambda: rig.machine.fail(rig.asked[-1], GuestError("no"), rig.now),
        lambda: rig.machine.cancel(rig.now),
    ):
        with pytest.raises(LocalProtocolError):
            call()
    rig.say(r.Ping(1))
    rig.machine.handle_timeout(rig.now + 1000)
    rig.machine.connection_lost(None, rig.now)
    rig.machine.transmitted(0, rig.now)
    assert rig.machine.poll_timeout() is None
    assert rig.machine.poll_request() is None
    assert rig.machine.result is result
    assert result.outcome is Outcome.COMPLETED
    assert result.code is None
    rig.events()
    assert rig.machine.poll_event() is None


def test_regions_of_the_rig_are_those_of_the_tests():
    assert REGION.pages == 4


def test_a_request_that_can_be_carried_out_at_once():
    """Only in its turn: answers come in the order of the requests."""
    rig = SourceRig()
    assert rig.machine.prompt_request is None
    rig.machine._ask(first := e.Pause())
    rig.machine._ask(second := e.SaveState())
    assert rig.machine.prompt_request is first
    assert rig.machine.poll_request() is first
    assert rig.machine.prompt_request is None
    rig.machine._requests.answered(first)
    assert rig.machine.prompt_request is second
