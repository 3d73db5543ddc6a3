"""Peers that are slow on purpose, silent, gone without a word, or that never read.

Real endpoints in virtual time. They are brought to every place in which they wait for their peer, read from
the recording and the states that have a deadline; there the peer dribbles a byte at a time, or keeps itself
alive with frames that mean nothing, or says nothing, or vanishes, or stops reading. A deadline ends each of
them, and none decides who runs the guest.

Published bugs of this class: Firecracker and xenopsd waited without a deadline for peers that had gone
(xenopsd #722), Cloud Hypervisor got its deadlines after the fact (fa74e7a84); slow-loris and half-open
connections are the classics of every server.

[CON-67] [CON-73] [CON-74] [CON-75] [CON-76] [CON-77] [CON-79] [FRM-8] [SEC-16] [ONE-49]
"""

from __future__ import annotations

import pytest
import trio
from withstand_judge import judge
from withstand_siege import Siege, arrivals, besiege
from withstand_support import ROLES, UNVISITED, Victim, recording

from sterna.core.deadlines import WAITS, Deadlines
from sterna.core.events import Outcome, Result
from sterna.core.heartbeat import PONGS_OWED_MAX
from sterna.core.tables import DestinationState, SourceState
from sterna.net.pump import FLUSH_S
from sterna.registry import ErrorCode, FrameType
from sterna.wire import records as r
from sterna.wire import unchecked

F, C = FrameType, ErrorCode
DEADLINES = Deadlines()
# A clock that has run out is looked at once more; then come the last words, and the wait for the peer's end.
AFTERWARDS_S = 2 * DEADLINES.heartbeat_s + FLUSH_S

PLACES = [(role, number) for role in ROLES for number in range(len(arrivals(role)))]
places = pytest.mark.parametrize(
    ("role", "number"),
    PLACES,
    ids=[f"{role}-{arrivals(role)[n].name}-{F(recording()[role][n].frame).name}" for role, n in PLACES],
)


def greeted(role: str, number: int) -> bool:
    """Whether WELCOME has gone over, so that silence ends a session sooner than a deadline."""
    return number > 0


def patience_s(role: str, number: int) -> float:
    """How long the deadline of this wait is."""
    return float(getattr(DEADLINES, WAITS[arrivals(role)[number]]))


def check_bounded(siege: Siege, result: Result, most_s: float, *codes: ErrorCode, told: bool = True) -> None:
    judge(siege, *codes, told=told)  # type: ignore[arg-type]
    assert siege.seconds <= most_s + AFTERWARDS_S, f"{siege.seconds:.1f} s"
    assert result is siege.endpoint.result


async def forever() -> None:
    await trio.sleep_forever()


@places
def test_a_byte_at_a_time(role: str, number: int) -> None:
    """[CON-74] Always just before silence would end it: the wait's deadline does, or unanswered PINGs."""

    async def dribble(siege: Siege) -> None:
        for byte in siege.again(recording()[role][number]):
            await siege.say(bytes([byte]))
            await trio.sleep(DEADLINES.silence_s * 0.9)

    siege, result = besiege(role, number, dribble)
    check_bounded(siege, result, patience_s(role, number), C.PHASE_DEADLINE, C.PEER_SILENT)
    assert siege.seconds >= min(patience_s(role, number), PONGS_OWED_MAX) - 1


@places
def test_signs_of_life_and_nothing_else(role: str, number: int) -> None:
    """[CON-74] PING, PONG, PROGRESS and frames to be skipped prolong no wait."""

    async def babble(siege: Siege) -> None:
        while True:
            await siege.say(siege.pongs())
            await siege.say(siege.frame(F.PING, unchecked.body(r.Ping(1))))
            await siege.say(siege.frame(0x7F00, b"grease"))
            await trio.sleep(1)

    siege, result = besiege(role, number, babble)
    check_bounded(siege, result, patience_s(role, number), C.PHASE_DEADLINE)


@places
def test_silence(role: str, number: int) -> None:
    """[CON-75] Connected, reading, answering nothing."""

    async def be_silent(_siege: Siege) -> None:
        await forever()

    siege, result = besiege(role, number, be_silent)
    most_s = DEADLINES.silence_s if greeted(role, number) else patience_s(role, number)
    check_bounded(siege, result, most_s, C.PEER_SILENT, C.PHASE_DEADLINE)


@places
def test_a_host_that_is_gone(role: str, number: int) -> None:
    """[CON-75] Half-open: no reset, no end, nothing ever arrives any more, in either direction."""

    async def vanish(siege: Siege) -> None:
        siege.peer.vanish()
        await forever()

    siege, result = besiege(role, number, vanish)
    most_s = DEADLINES.silence_s if greeted(role, number) else patience_s(role, number)
    check_bounded(siege, result, most_s, C.PEER_SILENT, C.PHASE_DEADLINE, told=False)


@places
def test_half_a_connection(role: str, number: int) -> None:
    """[CON-69] The peer has ended its direction and goes on reading: that is an end, and no success."""

    async def half_close(siege: Siege) -> None:
        siege.peer._outgoing.end(None)
        await forever()

    siege, result = besiege(role, number, half_close)
    check_bounded(siege, result, 0.0, C.CONNECTION_LOST, told=False)


@pytest.mark.parametrize("capacity_bytes", [1, 64, 1000])
@pytest.mark.parametrize("role", ROLES)
def test_a_peer_that_never_reads(role: str, capacity_bytes: int) -> None:
    """[CON-77] Its socket fills with the first bytes that it does not take."""

    async def wait(_siege: Siege) -> None:
        await forever()

    siege, result = besiege(role, 0, wait, listens=False, capacity_bytes=capacity_bytes)
    codes = C.PEER_STALLED, C.PHASE_DEADLINE
    check_bounded(siege, result, DEADLINES.stall_s, *codes, told=False)


@places
def test_a_peer_that_stops_reading(role: str, number: int) -> None:
    """[CON-77] [CON-79] And goes on asking: PINGs whose answers it never takes."""

    async def ask(siege: Siege) -> None:
        siege.peer.stall()
        while True:
            await siege.say(siege.frame(F.PING, unchecked.body(r.Ping(1))))
            await trio.sleep(0.3)

    siege, result = besiege(role, number, ask, capacity_bytes=9000)
    codes = {C.PEER_STALLED, C.LIMIT_RATE, C.PHASE_DEADLINE}
    judge(siege, *codes, told=False)  # type: ignore[arg-type]
    assert siege.seconds <= patience_s(role, number) + AFTERWARDS_S
    assert result.code in {*codes, None}


@places
def test_last_words_that_nobody_reads(role: str, number: int) -> None:
    """[CON-67] A refused frame, to a peer that has stopped reading and stays: the wait for it is bounded."""

    async def offend(siege: Siege) -> None:
        siege.peer.stall()
        await siege.say(b"\0" * 32)
        await forever()

    siege, result = besiege(role, number, offend)
    check_bounded(siege, result, 0.0, C.HEADER_CHECKSUM, told=False)


@places
def test_a_peer_that_goes_on_talking_after_the_end(role: str, number: int) -> None:
    """[CON-67] [FRM-11] For ever, as fast as it can: nobody listens for longer than a short deadline."""

    async def talk(siege: Siege) -> None:
        await siege.say(b"\0" * 32)
        while True:
            await siege.say(bytes(65536))
            await trio.sleep(0.01)

    siege, result = besiege(role, number, talk)
    check_bounded(siege, result, 0.0, C.HEADER_CHECKSUM)


def test_a_preface_a_byte_at_a_time_in_the_largest_frame() -> None:
    """[SEC-7] [LIM-5] HELLO of 64 KiB, dribbled: the handshake's deadline, with one body in memory."""

    async def dribble(siege: Siege) -> None:
        await siege.say(siege.frame(F.HELLO, body_bytes=65536))
        while True:
            await siege.say(b"\0")
            await trio.sleep(0.01)

    siege, result = besiege("destination", 0, dribble)
    check_bounded(siege, result, DEADLINES.handshake_s, C.PHASE_DEADLINE)


def test_no_place_waits_without_a_deadline() -> None:
    """[CON-74] Every state in which a recorded frame is waited for has one, and each of these is a place."""
    assert {*arrivals("source"), *arrivals("destination")} == set(WAITS) - UNVISITED
    assert {type(state) for state in WAITS} == {SourceState, DestinationState}


def test_a_question_that_nobody_answers() -> None:
    """[CON-74] [ONE-60] Whoever asks for the verdict does not wait for ever, and touches nothing."""
    victim = Victim("source")
    victim.machine.ask(b"s" * 16, b"t" * 32, victim.now)  # type: ignore[attr-defined]
    victim.settle().starve()
    result = victim.machine.result
    assert result is not None
    assert (result.outcome, result.code) == (Outcome.UNDECIDED, C.PHASE_DEADLINE)
    assert victim.guest.running
    assert victim.asked == []


def test_time_gives_the_guest_to_nobody() -> None:
    """[CON-73] [ONE-49] Whoever falls silent: the source resumes only what it has not granted."""
    outcomes = {}

    async def script(_siege: Siege) -> None:
        await forever()

    for role in ROLES:
        for number, state in enumerate(arrivals(role)):
            outcomes[state] = besiege(role, number, script)[1].outcome
    assert outcomes[SourceState.SEALED] is Outcome.ROLLED_BACK
    assert outcomes[SourceState.HANDED_OVER] is Outcome.UNDECIDED
    assert outcomes[SourceState.MOVED] is Outcome.MOVED
    assert outcomes[DestinationState.LOADED] is Outcome.ROLLED_BACK
    assert outcomes[DestinationState.RUNNING] is Outcome.MOVED
