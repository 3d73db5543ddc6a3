"""The one judge of what came of an attack.

`judge` looks at what must hold whatever was done:

- the session has ended once, with one code of the registry, and no other exception came out,
- the peer was told that code by ABORT or REFUSE, in the registry's words, as the last thing said [CON-65]
  [FRM-14],
- the attack made this side hold no more than it has announced [bounded],
- the guest runs on at the source with nothing lost if HANDOVER had not left, and never at the destination
  without HANDOVER; else it runs at one side, or is paused and the outcome says `undecided` [one-runner]
  [rollback].
"""

from __future__ import annotations

from typing import Final

from withstand_support import EPOCH, Victim

from sterna.core import events as e
from sterna.core.events import Outcome, Result
from sterna.errors import PeerAborted, RemoteProtocolError
from sterna.limits import Limits
from sterna.registry import ERRORS, ErrorCode, FrameType, Phase
from sterna.wire import decode_body
from sterna.wire import records as r

# A machine that fails drops its reader for a new one: a read buffer of 64 KiB, and what exceptions hold.
FIXED_BYTES: Final = 128 * 1024
# A body is copied once, and what is read from it is Python objects: 210 KB was the most that any attack held.
DECODED_FACTOR: Final = 4


def allowed_bytes(limits: Limits) -> int:
    """What a peer may make a machine hold beside the guest's memory, by what was announced to it."""
    return FIXED_BYTES + DECODED_FACTOR * limits.control_bytes + limits.state_bytes + limits.bulk_bytes


def judge_accepted(victim: Victim) -> None:
    """What was done is legal here: nothing has ended, and the loss of the connection is all that does."""
    assert victim.machine.result is None, victim.machine.result
    victim.end(ErrorCode.CONNECTION_LOST)
    judge(victim, told=False)


def judge_any(victim: Victim) -> Result | None:
    """Refused with one code, or legal; the result in the first case."""
    result = victim.machine.result
    if result is None:
        judge_accepted(victim)
        return None
    if result.error is None:  # it was an honest end: of a migration, or of a question
        assert result.outcome in {Outcome.COMPLETED, Outcome.ANSWERED}
        check_guest(victim, result)
        return None
    return judge(victim, by_peer=result.by_peer, told=not result.by_peer)


def judge(
    victim: Victim, *codes: ErrorCode, clause: str | None = None, told: bool = True, by_peer: bool = False
) -> Result:
    """Everything that must hold when an attack has ended the session; see the module's text.

    Args:
        victim: attacked and settled.
        codes: one of them is right; any code if none is given.
        clause: id of the clause that was broken, where the specification names one.
        told: whether the connection still took bytes, so that the peer has to know.
        by_peer: whether the session was ended by the peer's word.
    """
    result = victim.machine.result
    assert result is not None, f"goes on: {victim.machine.state}"
    assert len(victim.finished) == 1
    assert victim.finished[0].result == result
    if result.outcome is Outcome.COMPLETED:  # lost after the source's BYE, which changes nothing [CON-70]
        assert result.code is None
        assert result.error is not None
    else:
        assert result.error is not None
        assert result.error.code == result.code
    assert result.error.code in ERRORS
    assert not codes or result.error.code in codes, f"{result.error}"
    assert isinstance(result.error, PeerAborted) == by_peer, f"{result.error}"
    assert result.by_peer == (by_peer and result.code is not None)
    if clause is not None:
        assert isinstance(result.error, RemoteProtocolError)
        assert result.error.clause == clause, f"{result.error}"
    if told and (result.verdict is None or not result.verdict.handed_back):  # nobody has to be told of that
        check_told(victim, result)
    if by_peer:  # who is told to end does not answer [CON-68]
        assert not {FrameType.ABORT, FrameType.REFUSE} & {said.frame for said in victim.spoken}
    assert victim.growth_bytes <= allowed_bytes(victim.limits), f"{victim.growth_bytes} bytes"
    check_guest(victim, result)
    return result


def check_told(victim: Victim, result: Result) -> None:
    """The last thing said is ABORT or REFUSE with the code and the registry's sentence [CON-65] [FRM-14]."""
    last = victim.spoken[-1]
    farewells = [said for said in victim.spoken if said.frame in {FrameType.ABORT, FrameType.REFUSE}]
    if last.frame == FrameType.BYE and not farewells:
        return  # it has said that it will say nothing more [PNG-4]
    assert farewells == [last], f"{result.error}"
    words = decode_body(last.frame, last.body)
    assert isinstance(words, r.Abort | r.Refuse)
    assert result.error is not None
    assert words.code == result.error.code
    assert words.text == ERRORS[ErrorCode(words.code)].text
    if isinstance(words, r.Refuse):
        assert words.items == ()
    else:
        assert words.phase in set(Phase)


def check_guest(victim: Victim, result: Result) -> None:
    """Where the guest is, whether it is whole, and whether the outcome says so."""
    (check_source if victim.role == "source" else check_destination)(victim, result)


def check_source(victim: Victim, result: Result) -> None:
    """[rollback] before HANDOVER has left; [ONE-20] afterwards."""
    guest = victim.guest
    if not victim.handed_over:
        assert result.outcome is Outcome.ROLLED_BACK
        assert guest.running
        assert guest.machine.throttle == 0.0
        assert guest._collected_at is None
        assert guest.granted_epoch is None
        assert not guest.released
        assert guest.advance(5.0) > 0
        assert (guest.workload.errors, guest.workload.audit().errors) == (0, 0)
        return
    assert not guest.running
    assert "resume" not in guest.calls
    assert result.outcome in {Outcome.UNDECIDED, Outcome.MOVED, Outcome.COMPLETED}
    if result.outcome is Outcome.UNDECIDED:
        assert not guest.released
        assert guest.granted_epoch == EPOCH + 1
        assert guest.workload.audit().errors == 0


def check_destination(victim: Victim, result: Result) -> None:
    """[CON-63] without HANDOVER; [ONE-30] [CON-64] with it."""
    room = victim.room
    if room.has_run:
        assert victim.handed_over, "the guest was run without permission"
        assert room.running
        assert result.outcome in {Outcome.MOVED, Outcome.COMPLETED}
        room.advance(5.0)
        assert (room.workload.errors, room.workload.audit().errors) == (0, 0)
    elif e.AnswerVerdict in victim.asked:
        assert result.outcome in {Outcome.ANSWERED, Outcome.UNDECIDED}
        assert e.Reserve not in victim.asked
    elif result.outcome is Outcome.UNDECIDED:  # permission was taken, and could not be used
        assert victim.handed_over
        assert "claiming" in victim.records
    else:
        assert result.outcome is Outcome.ROLLED_BACK
        assert "start" not in victim.records
        assert room.machine is room._memory is room.description is None
