"""Good frames at the wrong moment: in every state, twice, left out, swapped, of another attempt, after all.

The state tables say what is due: every type of frame is said in every state in which either machine can be
found, led there by an honest conversation. Then whole conversations are said with one frame doubled, missing
or swapped with its neighbour, with and without the sequence numbers set right, and again after the end.

Published bugs of this class: QEMU went on reading commands behind the end of its stream; Cloud Hypervisor set
the source's guest running again after `Complete`, and ended by assertion on frames that it did not expect;
CVE-2017-16845 (an index that is valid only together with another field).

[CON-1] [CON-3] [CON-4] [CON-5] [CON-22] [CON-23] [CON-24] [CON-25] [CON-26] [CON-82] [HDR-6] [FRM-11]
[ONE-20]
"""

from __future__ import annotations

import pytest
from withstand_fields import leaves
from withstand_judge import judge, judge_accepted, judge_any
from withstand_support import (
    ROLES,
    UNVISITED,
    Said,
    Victim,
    itinerary,
    recording,
    sample,
    sample_bulk,
    states,
)

from sterna.core.deadlines import Deadlines
from sterna.core.events import Outcome
from sterna.core.tables import (
    DEAF,
    DESTINATION,
    SOURCE,
    TERMINAL,
    DestinationInput,
    DestinationState,
    SourceState,
    State,
)
from sterna.errors import GuestError
from sterna.registry import FRAMES, ErrorCode, FrameType, Sender

F, C = FrameType, ErrorCode
TABLES = {"source": SOURCE, "destination": DESTINATION}
SELF = {"source": Sender.SOURCE, "destination": Sender.DESTINATION}
ANY_TIME = {F.PING, F.PONG, F.PROGRESS, F.ABORT}

PLACES = [(role, *place) for role in ROLES for place in itinerary(role) if place[0] not in TERMINAL]
places = pytest.mark.parametrize(
    ("role", "state", "coming"),
    PLACES,
    ids=[
        f"{role}-{state.name}-before-{F(coming).name if coming else None}" for role, state, coming in PLACES
    ],
)


def say(victim: Victim, frame: FrameType, **numbers: int) -> Victim:
    """An honest frame of a type, with some of its numbers changed."""
    body = bytearray(sample(frame))
    for leaf in leaves(frame):
        if leaf.path in numbers:
            body[leaf.offset : leaf.offset + leaf.size] = numbers[leaf.path].to_bytes(leaf.size, "little")
    return victim.attack(victim.frame(frame, bytes(body), sample_bulk(frame)))


def check_any_time(victim: Victim, frame: FrameType) -> None:
    """[CON-1] Legal always; what they mean may still be wrong."""
    if frame is F.ABORT:
        judge(victim, C.CANCELLED, told=False, by_peer=True)
    elif frame is F.PONG:
        judge(victim, C.UNSOLICITED, clause="PNG-2") if victim.machine.result else judge_accepted(victim)
    elif frame is F.PROGRESS and victim.machine.result is not None:
        judge(victim, C.NOT_SELECTED, clause="PRG-1")  # before WELCOME
    else:
        judge_accepted(victim)


@places
def test_every_frame_in_every_state(role: str, state: State, coming: int | None) -> None:
    """[CON-82] Who may send it, then its attempt, then the state: what no row allows is refused."""
    for frame in FrameType:
        victim = Victim(role).until(state, coming)
        row = TABLES[role].get((state, frame))
        regions = victim.machine._lanes.control.reader.bounds.regions
        limits = victim.machine._greeted
        say(victim, frame)
        if frame is F.PAGES and not limits:
            judge(victim, C.LIMIT_BULK, clause="LIM-5")
        elif frame is F.PAGES and regions is None:
            judge(victim, C.UNEXPECTED_FRAME, clause="PGS-1")
        elif FRAMES[frame].sender is SELF[role]:
            judge(victim, C.WRONG_DIRECTION, clause="CON-4")
        elif frame in ANY_TIME:
            check_any_time(victim, frame)
        elif row is None:
            judge(victim, C.UNEXPECTED_FRAME, clause="CON-3")
        else:
            judge_any(victim)


NUMBERED = [
    (role, frame)
    for role in ROLES
    for frame in FrameType
    if FRAMES[frame].sender not in {SELF[role], Sender.BOTH}
    and any(leaf.path == "attempt" for leaf in leaves(frame))
]


@places
def test_attempts_that_never_were(role: str, state: State, coming: int | None) -> None:
    """[CON-22] [CON-23] [CON-25] 0, the next one, the last one: refused in every state."""
    for frame in (frame for side, frame in NUMBERED if side == role):
        for attempt in 0, 2, (1 << 32) - 1:
            victim = Victim(role).until(state, coming)
            if frame is F.PAGES and victim.machine._lanes.control.reader.bounds.regions is None:
                continue  # it is refused before
            begins = (
                frame is F.ROUND and attempt == 2 and (state, DestinationInput.NEW_ATTEMPT) in DESTINATION
            )
            say(victim, frame, attempt=attempt)
            if begins:  # which is legal; but the rounds before it count [CON-58] [CON-20]
                judge_any(victim) if victim.machine.result is None else judge(victim, C.BAD_ROUND)
            else:
                theirs = "CON-25" if role == "source" else "CON-23" if attempt else "CON-22"
                judge(victim, C.BAD_ATTEMPT, clause=theirs)


def second_attempt(role: str) -> Victim:
    """A victim whose first attempt has ended with NOT_READY, and that can be told anything."""
    if role == "source":
        victim = Victim(role).until(SourceState.PREPARING)
        say(victim, F.NOT_READY)
        assert victim.machine._attempt == 2
        return victim
    victim = Victim(role).until(DestinationState.PREPARING)
    victim.room.fail_on["prepare"] = GuestError("busy")
    victim.settle()
    assert victim.machine.state is DestinationState.STANDBY
    assert victim.machine._attempt == 2
    return victim


@pytest.mark.parametrize(("role", "frame"), NUMBERED, ids=[f"{f.name}-to-{role}" for role, f in NUMBERED])
def test_frames_of_an_attempt_that_is_over_are_ignored(role: str, frame: FrameType) -> None:
    """[CON-24] [CON-25] Whatever the state: nothing moves, nothing is written, and the session goes on."""
    victim = second_attempt(role)
    state, memory = victim.machine.state, bytes(victim.room._memory) if role == "destination" else b""
    for _ in range(3):
        say(victim, frame)
    assert victim.machine.state is state
    if role == "destination":
        assert bytes(victim.room._memory) == memory
    judge_accepted(victim)


# ---- conversations with one frame out of place ----

FRAMES_SAID = [(role, number) for role in ROLES for number in range(len(recording()[role]))]
frames_said = pytest.mark.parametrize(
    ("role", "number"),
    FRAMES_SAID,
    ids=[f"{role}-{number}-{F(recording()[role][number].frame).name}" for role, number in FRAMES_SAID],
)


def converse(role: str, said: list[Said], *, numbered: bool = True) -> Victim:
    """A victim that hears these frames, one after the other, and then nothing more."""
    victim = Victim(role).settle()
    if role == "source":
        victim.until(SourceState.GREETING)
    for one in said:
        if victim.machine.result is not None:
            break
        victim.attack(victim.again(one) if numbered else one.raw)
    return victim.starve()


def check_end(victim: Victim) -> None:
    """One end: a code, or the honest one."""
    assert victim.machine.result is not None, victim.machine.state
    judge_any(victim)


@frames_said
def test_a_frame_twice(role: str, number: int) -> None:
    """[CON-3] [CON-26] [CON-30] [CON-38] Right behind itself, replayed HANDOVER and COMPLETE among them."""
    said = list(recording()[role])
    check_end(converse(role, [*said[: number + 1], *said[number:]]))


@frames_said
def test_a_frame_twice_byte_for_byte(role: str, number: int) -> None:
    """[HDR-6] A repeated sequence number."""
    said = list(recording()[role])
    victim = converse(role, [*said[: number + 1], *said[number:]], numbered=False)
    if F(said[number].frame) is F.BYE:
        check_end(victim)
    else:
        judge(victim, C.BAD_SEQUENCE, clause="HDR-6")


@frames_said
def test_a_frame_is_missing(role: str, number: int) -> None:
    """Its sequence number is missing too, or nothing shows it but its absence."""
    said = list(recording()[role])
    rest = said[:number] + said[number + 1 :]
    check_end(converse(role, rest))
    if number < len(said) - 1:
        judge(converse(role, rest, numbered=False), C.BAD_SEQUENCE, clause="HDR-6")


@frames_said
def test_a_frame_changes_places_with_the_next(role: str, number: int) -> None:
    said = list(recording()[role])
    said[number : number + 2] = reversed(said[number : number + 2])
    check_end(converse(role, said))


# ---- after the end ----


@pytest.mark.parametrize("role", ROLES)
def test_the_whole_conversation_again_after_the_end(role: str) -> None:
    """[FRM-11] [CON-70] Read and ignored: the outcome is what it was, and nothing is said."""
    victim = Victim(role).live()
    result, told = victim.machine.result, bytes(victim.told)
    assert result is not None
    assert result.outcome is Outcome.COMPLETED
    for raw in [said.raw for said in recording()[role]] * 2:
        victim.attack(raw)
    assert victim.machine.result is result
    assert bytes(victim.told) == told
    assert victim.growth_bytes < 64 * 1024
    assert len(victim.finished) == 1
    assert victim.room.running == (role == "destination")


@places
def test_the_whole_conversation_again_after_a_failure(role: str, state: State, coming: int | None) -> None:
    """[CON-67] [CON-68] [FRM-11] Who has failed is deaf, whatever comes and in whatever state it failed."""
    victim = Victim(role).until(state, coming)
    victim.attack(b"\xff" * 64)
    settled = victim.machine.result
    assert settled is not None
    told = bytes(victim.told)
    for said in recording()[role]:
        victim.attack(said.raw)
    victim.attack(b"not a frame at all")
    assert victim.machine.result == settled
    assert bytes(victim.told) == told
    judge_any(victim)


def test_the_states_of_this_file_are_all_that_there_are() -> None:
    """What is left out is an end, cannot be rested in, or is of another conversation."""
    for role, states_of in ("source", SourceState), ("destination", DestinationState):
        # the policy answers at once, and no store has to be asked
        passed = UNVISITED | {SourceState.DECIDING, SourceState.CONFIRMING}
        assert set(states_of) - set(states(role)) <= DEAF | passed


def test_no_wait_is_longer_than_a_judge_waits() -> None:
    """`Victim.starve` sees every end."""
    deadlines = Deadlines()
    longest = max(getattr(deadlines, name) for name in Deadlines.__slots__)
    assert longest + 2 * deadlines.heartbeat_s < 200
