"""What a destination can do wrong from READY to BYE, where it is dangerous."""

from __future__ import annotations

from functools import partial
from typing import Final

from sterna.registry import Owner, Phase
from sterna.wire import (
    Abort,
    Bye,
    Complete,
    HandBack,
    Loaded,
    NotReady,
    PageRequest,
    Ready,
    RoundAck,
    Runner,
    Running,
    Verdict,
)
from sterna_interop import peer_acts as do
from sterna_interop.contract import Role
from sterna_interop.misbehaviours import (
    DOS,
    ENDLESS_S,
    IMPATIENT_S,
    LOST,
    OTHER_DIGEST,
    SPLIT,
    E,
    F,
    Misbehaviour,
    Rows,
    Stage,
    misbehaviour,
)
from sterna_interop.peer_steps import Act, End, Place, Say, Wait

row = partial(misbehaviour, Role.DESTINATION)

_ACCEPT: Final = Place(F.ACCEPT)
_READY: Final = Place(F.READY)
_LOADED: Final = Place(F.LOADED)
_RUNNING: Final = Place(F.RUNNING)
_COMPLETE: Final = Place(F.COMPLETE)
_RUNNER: Final = Runner("elsewhere", b"some other runs.")


def of_takeover() -> tuple[Misbehaviour, ...]:
    """All rows."""
    return tuple(each for table in (_answers(), _commit()) for each in table)


def _answers() -> Rows:
    ready = Say(Ready(1))
    state = Place(F.STATE, heard=True)
    return [
        row("ready-001 unasked: is ready unasked [CON-3]", _ACCEPT, do.after(ready), E.UNEXPECTED_FRAME),
        row(
            "ready-002 attempt-zero: is ready for attempt 0 [SWI-3]",
            _READY,
            do.change(attempt=0),
            E.BAD_ATTEMPT,
        ),
        row(
            "ready-003 attempt-far: is ready for attempt 9 [SWI-3]",
            _READY,
            do.change(attempt=9),
            E.BAD_ATTEMPT,
        ),
        row("ready-004 twice: is ready twice [CON-38]", _READY, do.twice(), E.UNEXPECTED_FRAME),
        row(
            "ready-005 both: is ready, and then is not [CON-38]",
            _READY,
            do.after(Say(NotReady(1, E.NOT_READY))),
            E.UNEXPECTED_FRAME,
        ),
        row(
            "ready-006 never: is never ready [CON-43]",
            None,
            None,
            E.NOT_READY,
            plan={"not_ready": 1 << 20},
            by_peer=None,
            **DOS,
        ),
        row(
            "ready-007 code-unknown: is not ready for a reason that nobody knows [CON-42]",
            *(Place(F.NOT_READY), do.change(code=0x7777)),
            plan={"not_ready": 1},
        ),
        row(
            "ready-008 old-attempt: says once more what belongs to an attempt that is over [CON-25]",
            *(
                _READY,
                do.before(
                    ready, Say(NotReady(1, E.FULL)), Say(RoundAck(1, 1, 0, 0)), Say(Loaded(1, OTHER_DIGEST))
                ),
            ),
            plan={"not_ready": 1},
            **LOST,
        ),
        row(
            "ready-009 loaded-for-ready: is loaded when it should be ready [CON-3]",
            _READY,
            do.instead(Say(Loaded(1, OTHER_DIGEST))),
            E.UNEXPECTED_FRAME,
            **LOST,
        ),
        row(
            "loaded-001 ack-in-blackout: acknowledges the last round [CON-46]",
            *(state, do.after(Say(RoundAck(1, 1, 0, 0))), E.UNEXPECTED_FRAME),
        ),
        row(
            "loaded-002 digest: has loaded another image [CON-53 ONE-17]",
            _LOADED,
            do.change(digest=OTHER_DIGEST),
            E.DIGEST_MISMATCH,
            **LOST,
        ),
        row(
            "loaded-003 attempt-far: has loaded attempt 9 [CON-25]",
            _LOADED,
            do.change(attempt=9),
            E.BAD_ATTEMPT,
        ),
        row(
            "loaded-004 attempt-zero: has loaded attempt 0 [CON-25]",
            _LOADED,
            do.change(attempt=0),
            E.BAD_ATTEMPT,
        ),
        row(
            "loaded-005 never: does not load [CON-74 CON-62]",
            _LOADED,
            do.instead(End.SILENCE),
            E.PHASE_DEADLINE,
            E.PEER_SILENT,
            deadline_s=IMPATIENT_S,
            **SPLIT,
        ),
        row(
            "loaded-006 aborts: aborts in the blackout [CON-62]",
            _LOADED,
            do.instead(Say(Abort(E.STATE_REJECTED, Phase.BLACKOUT)), Wait(ENDLESS_S)),
            E.STATE_REJECTED,
            by_peer=True,
            **SPLIT,
        ),
        row(
            "loaded-007 cut: ends in the blackout [CON-62 CON-69]",
            _LOADED,
            do.instead(End.PROPER),
            E.CONNECTION_LOST,
            mute=True,
            **SPLIT,
        ),
        row(
            "loaded-008 reset: is gone in the blackout [CON-62 CON-69]",
            _LOADED,
            do.instead(End.RESET),
            E.CONNECTION_LOST,
            mute=True,
            **SPLIT,
        ),
        row(
            "loaded-009 cut-inside: ends inside LOADED [FRM-10 CON-62]",
            _LOADED,
            do.part(0.9, End.PROPER),
            E.TRUNCATED,
            mute=True,
            **SPLIT,
        ),
    ]


def _commit() -> Rows:
    running = Say(Running(8, _RUNNER))
    enough = Say(Abort(E.GUEST_FAILED, Phase.COMMIT, text="it does not start"))

    def granted(head: str, act: Act, /, *codes: E, **more: object) -> Misbehaviour:
        return row(head, _RUNNING, act, *codes, stage=Stage.GRANTED, **SPLIT | more)

    def moved(head: str, act: Act, /, *codes: E, **more: object) -> Misbehaviour:
        return row(head, _COMPLETE, act, *codes, stage=Stage.AFTER, **LOST | more)

    late = E.PHASE_DEADLINE, E.PEER_SILENT
    optional = E.UNEXPECTED_FRAME, E.UNSUPPORTED  # by who knows the frame, and by who does not [CON-5]
    handed_back = do.instead(Say(HandBack(8, _RUNNER)))
    verdict = do.instead(Say(Verdict(Owner.SOURCE, 7)))
    complete = do.before(Say(Complete(8, OTHER_DIGEST)))
    return [
        row(
            "running-001 for-loaded: runs without having been handed over [CON-3 ONE-25 ONE-17]",
            _LOADED,
            do.instead(running),
            E.UNEXPECTED_FRAME,
            **SPLIT,
        ),
        row(
            "running-002 in-round: runs before the switchover [CON-3 ONE-25]",
            _READY,
            do.instead(running),
            E.UNEXPECTED_FRAME,
            **SPLIT,
        ),
        granted(
            "running-003 epoch-same: runs under the source's epoch [RUN-1]", do.change(epoch=7), E.BAD_EPOCH
        ),
        granted("running-004 epoch-later: runs under a later epoch [RUN-1]", do.change(epoch=9), E.BAD_EPOCH),
        granted(
            "running-005 complete-first: is complete before it runs [CON-57 CON-3]",
            complete,
            E.UNEXPECTED_FRAME,
        ),
        granted(
            "running-006 hands-back: hands back what it cannot run [ONE-20 ONE-37]",
            handed_back,
            *optional,
            understood=True,
        ),
        granted("running-007 verdict: tells the verdict, unasked [CON-3]", verdict, *optional),
        granted(
            "running-014 hands-back-another: hands back another epoch [HND-2 ONE-37]",
            do.instead(Say(HandBack(7, _RUNNER))),
            *(E.BAD_EPOCH, *optional),
        ),
        granted(
            "running-015 hands-back-and-runs: hands back, and then runs [ONE-20 ONE-37]",
            do.instead(Say(HandBack(8, _RUNNER)), running),
            *optional,
            understood=True,
        ),
        row(
            "running-016 hands-back-for-loaded: hands back what it was not given [CON-3]",
            *(_LOADED, handed_back, E.UNEXPECTED_FRAME),
        ),
        granted(
            "running-008 aborts: aborts after HANDOVER [ONE-49]",
            do.instead(enough, Wait(ENDLESS_S)),
            E.GUEST_FAILED,
            by_peer=True,
        ),
        granted(
            "running-009 cut: ends after HANDOVER [ONE-49 CON-69 ONE-43 ONE-47]",
            do.instead(End.PROPER),
            E.CONNECTION_LOST,
            mute=True,
        ),
        granted(
            "running-010 reset: is gone after HANDOVER [ONE-49 CON-69 ONE-43]",
            do.instead(End.RESET),
            E.CONNECTION_LOST,
            mute=True,
        ),
        granted(
            "running-011 never: is silent after HANDOVER [ONE-49 CON-74]",
            do.instead(End.SILENCE),
            *late,
            deadline_s=IMPATIENT_S,
        ),
        granted(
            "running-012 bye: says BYE for RUNNING [ONE-49 CON-3]", do.instead(Say(Bye())), E.UNEXPECTED_FRAME
        ),
        granted(
            "running-013 old-loaded: says LOADED again [ONE-49 CON-3]",
            do.instead(Say(Loaded(1, OTHER_DIGEST))),
            E.UNEXPECTED_FRAME,
        ),
        moved(
            "complete-001 digest: completes another image [CMP-1 ONE-40]",
            do.change(digest=OTHER_DIGEST),
            E.MEMORY_MISMATCH,
        ),
        moved("complete-002 epoch: completes under another epoch [CMP-4]", do.change(epoch=7), E.BAD_EPOCH),
        moved("complete-003 running-twice: runs twice [CON-3]", do.instead(running), E.UNEXPECTED_FRAME),
        moved("complete-010 hands-back: hands back what runs [CON-3]", handed_back, E.UNEXPECTED_FRAME),
        moved(
            "complete-004 page-request: asks for pages after stop-and-copy [CON-5 NEG-7]",
            do.instead(Say(PageRequest(1, 0, 1))),
            E.UNSUPPORTED,
            E.NOT_SELECTED,
        ),
        moved(
            "complete-005 never: does not complete [CMP-2 CON-74]",
            do.instead(End.SILENCE),
            *late,
            deadline_s=IMPATIENT_S,
        ),
        moved(
            "complete-006 cut: ends after RUNNING [CMP-2 CON-64]",
            do.instead(End.PROPER),
            E.CONNECTION_LOST,
            mute=True,
        ),
        moved(
            "complete-007 bye: says BYE for COMPLETE [CMP-2 CON-3]",
            do.instead(Say(Bye())),
            E.UNEXPECTED_FRAME,
        ),
        row(
            "complete-008 bye-never: does not say BYE [CON-70]",
            Place(F.BYE),
            do.instead(End.SILENCE),
            *late,
            stage=Stage.DONE,
            mute=True,
            deadline_s=IMPATIENT_S,
        ),
        row(
            "complete-009 cut-before-bye: ends without BYE [CON-70]",
            Place(F.BYE),
            do.instead(End.PROPER),
            E.CONNECTION_LOST,
            stage=Stage.DONE,
            mute=True,
        ),
    ]
