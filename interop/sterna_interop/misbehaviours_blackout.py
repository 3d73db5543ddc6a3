"""What a source can do wrong from SWITCHOVER to BYE, where it is dangerous."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from sterna.registry import (
    BitmapEncoding,
    Checksum,
    Phase,
    Style,
)
from sterna.wire import (
    Abort,
    Attach,
    Bye,
    DirtyBitmap,
    Handover,
    Ping,
    Seal,
)
from sterna_interop import peer_acts as do
from sterna_interop.contract import Do, Order, Role
from sterna_interop.guest import GuestSpec, SectionSpec
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
from sterna_interop.misbehaviours_source import FRAGMENT, SEALED, a_page
from sterna_interop.peer_steps import Act, End, Place, Say, Wait

row = partial(misbehaviour, Role.SOURCE)

_GUEST: Final = Place(F.GUEST)
_ROUND: Final = Place(F.ROUND)
_SWITCH: Final = Place(F.SWITCHOVER)
_SEAL: Final = Place(F.SEAL)
_HANDOVER: Final = Place(F.HANDOVER)
_RELEASE: Final = Place(F.RELEASE)
_BITMAP: Final = DirtyBitmap(1, 1, 0, 8, BitmapEncoding.PLAIN, b"\xff")
_ATTACH: Final = Attach(b"some session id.", bytes(32), 0, 0)


def of_blackout() -> tuple[Misbehaviour, ...]:
    """All rows."""
    return tuple(each for table in (_switchover(), _state(), _seal(), _commit()) for each in table)


def _switchover() -> Rows:
    def switch(**fields: object) -> tuple[Place, Act]:
        return _SWITCH, do.change(**fields)

    unlike = E.NOT_SELECTED, E.UNSUPPORTED
    return [
        row(
            "switch-001 style-bitmap: wants what was not selected [SWI-1]",
            *switch(style=Style.BITMAP),
            *unlike,
        ),
        row("switch-002 style-unknown: wants an unknown style [FRM-4]", *switch(style=9), E.BAD_VALUE),
        row("switch-003 attempt-far: switches attempt 9 over [CON-23]", *switch(attempt=9), E.BAD_ATTEMPT),
        row(
            "switch-004 reserved-set: sets reserved bits of SWITCHOVER [FRM-3]",
            _SWITCH,
            do.patch(32 + 6, b"\1"),
            E.BAD_VALUE,
        ),
        row("switch-005 twice: says SWITCHOVER twice [CON-3]", _SWITCH, do.twice(), E.UNEXPECTED_FRAME),
        row(
            "switch-006 bitmap-reserved: sends DIRTY_BITMAP [CON-5]",
            *(Place(F.READY, heard=True), do.after(Say(_BITMAP)), E.UNSUPPORTED, E.UNEXPECTED_FRAME),
        ),
        row(
            "switch-007 attach: says ATTACH on the control connection [ATT-1 CON-5]",
            *(_GUEST, do.instead(Say(_ATTACH)), E.UNEXPECTED_FRAME, E.UNSUPPORTED),
        ),
        row(
            "switch-008 end-reserved: says END, which only stored streams have [CON-5]",
            *(_ROUND, do.instead(do.frame(F.END, bytes(8))), E.UNEXPECTED_FRAME),
        ),
        row(
            "switch-009 no-round-in-blackout: sends state without a last round [CON-44 CON-45]",
            *(Place(F.ROUND), do.instead(Say(FRAGMENT)), E.UNEXPECTED_FRAME),
            plan={"rounds": 0},
            **LOST,
        ),
    ]


def _state() -> Rows:
    def fragment(head: str, nth: int, act: Act, /, *codes: E, **more: object) -> Misbehaviour:
        return row(head, Place(F.STATE, nth), act, *codes, **more)

    # The first section has 600 bytes, in fragments of 256: three frames.
    bad, empty = E.BAD_FRAGMENT, replace(FRAGMENT, data=b"", last=False, total_bytes=16)
    return [
        fragment("state-001 gap: leaves a fragment out [STA-5]", 2, do.instead(), bad, **LOST),
        fragment("state-002 repeated: sends a fragment twice [STA-5]", 2, do.twice(), bad),
        fragment("state-003 last-early: ends a section too early [STA-3]", 2, do.change(last=True), bad),
        fragment("state-004 last-missing: does not end a section [STA-3]", 3, do.change(last=False), bad),
        fragment(
            "state-005 beyond-total: sends past a section's end [STA-2]", 1, do.change(total_bytes=9), bad
        ),
        fragment("state-006 empty: sends an empty fragment [STA-4]", 1, do.before(Say(empty)), bad),
        fragment(
            "state-007 interleaved: begins a section within one [STA-5]", 2, do.before(Say(FRAGMENT)), bad
        ),
        fragment("state-008 section-twice: sends a section twice [STA-8]", 4, do.twice(), bad),
        fragment(
            "state-009 vcpu-unknown: has state of a vCPU too many [STA-9]", 4, do.change(vcpu=9), E.BAD_VALUE
        ),
        fragment("state-010 bool-2: has a boolean of 2 [FRM-5]", 1, do.patch(32 + 40, b"\2"), E.BAD_VALUE),
        fragment(
            "state-011 too-large: sends more state than GUEST said [STA-1 LIM-4]",
            *(1, do.change(total_bytes=GuestSpec().state_bytes + 1, last=False), E.LIMIT_STATE),
            **DOS,
        ),
        row(
            "state-012 too-many-sections: sends more sections than were announced [STA-7]",
            *(None, None, E.LIMIT_STATE),
            limits={"state_sections": 2},
            **DOS,
        ),
        row(
            "state-013 kind-unknown: sends state that nobody understands [STA-6]",
            *(None, None, E.UNKNOWN_STATE),
            guest=GuestSpec(sections=(SectionSpec(33, kind=0x00FE),)),
            **LOST,
        ),
        fragment(
            "state-014 other-attempt: sends state of attempt 9 [CON-23]",
            1,
            do.change(attempt=9),
            E.BAD_ATTEMPT,
        ),
        row(
            "state-015 before-round-end: sends state within the last round [CON-44]",
            *(Place(F.ROUND_END), do.before(Say(FRAGMENT)), E.UNEXPECTED_FRAME),
            plan={"rounds": 0},
        ),
        row(
            "state-016 after-seal: sends state behind SEAL [CON-44]",
            _SEAL,
            do.after(Say(FRAGMENT)),
            E.UNEXPECTED_FRAME,
        ),
        row(
            "state-017 rejected: brings state that the guest does not take [CON-51]",
            *(None, None, E.STATE_REJECTED),
            order=Order(Do.REJECT_STATE),
            **LOST,
        ),
    ]


def _seal() -> Rows:
    def seal(**fields: object) -> tuple[Place, Act]:
        return _SEAL, do.change(**fields)

    worse = do.alter(Seal, lambda seal: replace(seal, state_bytes=seal.state_bytes + 1))
    differ = E.DIGEST_MISMATCH
    return [
        row(
            "seal-001 digest: seals another image [MEM-15 SEA-4]", *seal(digest=OTHER_DIGEST), differ, **LOST
        ),
        row(
            "seal-002 state-digest: seals another state [MEM-19]",
            *seal(state_digest=OTHER_DIGEST),
            differ,
            **LOST,
        ),
        row("seal-003 sections: counts no sections [SEA-3]", *seal(state_sections=0), E.COUNT_MISMATCH),
        row("seal-004 state-bytes: counts a byte of state too much [SEA-3]", _SEAL, worse, E.COUNT_MISMATCH),
        row(
            "seal-005 sequences: repeats no last sequences [STR-8]",
            *seal(last_sequences=()),
            E.COUNT_MISMATCH,
        ),
        row("seal-006 algorithm: digests with CRC-32 [SEA-1]", *seal(algorithm=Checksum.CRC32), E.BAD_VALUE),
        row("seal-007 attempt-far: seals attempt 9 [CON-23]", *seal(attempt=9), E.BAD_ATTEMPT),
        row(
            "seal-008 open-section: seals before the last fragment [SEA-3]",
            *(Place(F.STATE, 5), do.instead(), E.COUNT_MISMATCH),
            **LOST,
        ),
        row(
            "seal-009 before-round-end: seals within the last round [CON-44]",
            *(Place(F.ROUND_END), do.instead(Say(SEALED)), E.UNEXPECTED_FRAME),
            plan={"rounds": 0},
            **LOST,
        ),
    ]


def _commit() -> Rows:
    def handover(**fields: object) -> tuple[Place, Act]:
        return _HANDOVER, do.change(**fields)

    early = do.instead(Say(Handover(1, 7)))
    enough = Say(Abort(E.CANCELLED, Phase.COMMIT, text="too late"))
    late = E.PHASE_DEADLINE, E.PEER_SILENT
    return [
        row(
            "commit-001 handover-in-round: hands over instead of a round [CON-3 ONE-25]",
            *(_ROUND, early, E.UNEXPECTED_FRAME),
            **SPLIT,
        ),
        row(
            "commit-002 handover-for-seal: hands over without SEAL [CON-3 CON-50 ONE-24]",
            *(_SEAL, early, E.UNEXPECTED_FRAME),
            **SPLIT,
        ),
        row(
            "commit-003 epoch-later: hands over a later epoch [HND-1]",
            *handover(epoch=8),
            E.BAD_EPOCH,
            **SPLIT,
        ),
        row(
            "commit-004 epoch-earlier: hands over an old epoch [HND-1]",
            *handover(epoch=6),
            E.BAD_EPOCH,
            **SPLIT,
        ),
        row(
            "commit-005 epoch-last: hands over the last epoch [HND-3]",
            *handover(epoch=2**64 - 1),
            E.BAD_VALUE,
        ),
        row(
            "commit-006 attempt-far: hands attempt 9 over [CON-23]",
            *handover(attempt=9),
            E.BAD_ATTEMPT,
            **SPLIT,
        ),
        row(
            "commit-007 handover-never: does not hand over [CON-74 CON-63 ONE-24]",
            *(_HANDOVER, do.instead(End.SILENCE), *late),
            deadline_s=IMPATIENT_S,
            **SPLIT,
        ),
        row(
            "commit-008 abort-for-handover: aborts instead of handing over [CON-63]",
            *(_HANDOVER, do.instead(enough, Wait(ENDLESS_S)), E.CANCELLED),
            by_peer=True,
            **SPLIT,
        ),
        row(
            "commit-009 cut-before-handover: ends where HANDOVER is due [CON-63 CON-69]",
            *(_HANDOVER, do.instead(End.PROPER), E.CONNECTION_LOST),
            mute=True,
            **SPLIT,
        ),
        row(
            "commit-010 half-handover: ends inside HANDOVER [CON-63 FRM-10]",
            *(_HANDOVER, do.part(0.9, End.PROPER), E.TRUNCATED),
            mute=True,
            **SPLIT,
        ),
        row(
            "commit-011 cut-after-handover: ends behind HANDOVER [ONE-30 CON-64]",
            *(_HANDOVER, do.after(End.PROPER), E.CONNECTION_LOST),
            stage=Stage.GRANTED,
            mute=True,
            **SPLIT,
        ),
        row(
            "commit-012 abort-after-handover: aborts behind HANDOVER [ONE-30 CON-64]",
            *(_HANDOVER, do.after(enough, Wait(ENDLESS_S)), E.CANCELLED),
            stage=Stage.GRANTED,
            by_peer=True,
            **SPLIT,
        ),
        row(
            "commit-013 handover-twice: hands over twice [CON-55]",
            *(_HANDOVER, do.twice(), E.UNEXPECTED_FRAME),
            stage=Stage.GRANTED,
            **SPLIT,
        ),
        row(
            "commit-014 pages-after-handover: sends PAGES behind HANDOVER [CON-55]",
            *(_HANDOVER, do.after(Say(a_page(1, 3))), E.UNEXPECTED_FRAME),
            stage=Stage.GRANTED,
            **LOST,
        ),
        row(
            "commit-015 release-epoch: releases another epoch [CMP-4]",
            *(_RELEASE, do.change(epoch=7), E.BAD_EPOCH),
            stage=Stage.AFTER,
        ),
        row(
            "commit-016 bye-without-release: says BYE, and not RELEASE [CON-3]",
            *(_RELEASE, do.instead(Say(Bye())), E.UNEXPECTED_FRAME),
            stage=Stage.AFTER,
        ),
        row(
            "commit-017 release-never: does not release [CON-74 CON-64]",
            *(_RELEASE, do.instead(End.SILENCE), *late),
            stage=Stage.AFTER,
            deadline_s=IMPATIENT_S,
        ),
        row(
            "commit-018 cut-after-release: ends behind RELEASE, without BYE [CON-69 CON-64]",
            *(_RELEASE, do.after(End.PROPER), E.CONNECTION_LOST),
            stage=Stage.DONE,
            mute=True,
        ),
        row(
            "commit-019 ping-after-bye: goes on after BYE [PNG-3 CON-70]",
            *(Place(F.BYE), do.after(Say(Ping(0x5EED))), E.UNEXPECTED_FRAME),
            stage=Stage.DONE,
            mute=True,
        ),
    ]
