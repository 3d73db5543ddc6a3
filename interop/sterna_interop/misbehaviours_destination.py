"""What a destination can do wrong up to the last round, and what the source under test must say to it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from sterna.registry import BitmapEncoding, Feature, Owner, Phase
from sterna.wire import (
    Abort,
    Accept,
    Attached,
    FeatureChoice,
    Held,
    Loaded,
    PageRange,
    PageRequest,
    Refuse,
    RoundAck,
    Verdict,
    Welcome,
)
from sterna_interop import peer_acts as do
from sterna_interop.contract import Role
from sterna_interop.misbehaviours import (
    DOS,
    ENDLESS_S,
    FUTURE_VERSION,
    IMPATIENT_S,
    LARGE,
    LOST,
    OTHER_DIGEST,
    ROUNDS,
    UNKNOWN_ID,
    E,
    F,
    Misbehaviour,
    Rows,
    misbehaviour,
)
from sterna_interop.peer_steps import Act, Ear, Place, Say, Wait

row = partial(misbehaviour, Role.DESTINATION)

_WELCOME: Final = Place(F.WELCOME)
_ACCEPT: Final = Place(F.ACCEPT)
_ACK: Final = Place(F.ROUND_ACK)
_HELD: Final = Held(1, 1, False, 0, 8, BitmapEncoding.PLAIN, b"\xff")


def of_destination() -> tuple[Misbehaviour, ...]:
    """All rows."""
    return tuple(each for table in (_greeting(), _acks()) for each in table)


def _greeting() -> Rows:
    def welcome(**fields: object) -> tuple[Place, Act]:
        return _WELCOME, do.change(**fields)

    def chooses(*features: FeatureChoice) -> tuple[Place, Act]:
        more = do.alter(Welcome, lambda welcome: replace(welcome, features=welcome.features + features))
        return _WELCOME, more

    def limits(stated: dict[int, int]) -> tuple[Place, Act]:
        return _WELCOME, do.alter(Welcome, lambda welcome: replace(welcome, limits=welcome.limits | stated))

    def refuses(place: Place, code: int) -> tuple[Place, Act]:
        words = Refuse(code, 1500, ("memory", "a second reason"), "the scripted peer refuses")
        return place, do.instead(Say(words), Wait(ENDLESS_S))

    lean = welcome(features=(FeatureChoice(Feature.STOP_AND_COPY),))
    abort = do.instead(Say(Abort(E.FULL, Phase.HANDSHAKE, text="no room")), Wait(ENDLESS_S))
    unsolicited, early = E.UNSOLICITED, do.before(Say(Accept(1 << 30)))
    twice = FeatureChoice(Feature.ENCODING_ZERO)
    return [
        row(
            "welcome-020 verdict: answers an opening with VERDICT [CON-9 ONE-14]",
            *(_WELCOME, do.instead(Say(Verdict(Owner.DESTINATION, 8)), Wait(ENDLESS_S))),
            *(E.STALE_EPOCH, E.UNEXPECTED_FRAME, E.UNSUPPORTED),  # by who knows it, and by who does not
            mute=True,
            by_peer=None,
        ),
        row(
            "welcome-001 selects-unoffered: selects a feature that was not offered [NEG-5]",
            *(*chooses(FeatureChoice(Feature.ENCODING_ZSTD, 20)), unsolicited),
        ),
        row(
            "welcome-002 selects-unknown: selects a feature that nobody knows [NEG-5]",
            *(*chooses(FeatureChoice(UNKNOWN_ID)), unsolicited),
        ),
        row(
            "welcome-003 version-unoffered: selects another version [NEG-2]",
            *welcome(version=FUTURE_VERSION),
            unsolicited,
        ),
        row(
            "welcome-004 lacks-required: does not select page hashes [NEG-6 MEM-17]", *lean, E.MISSING_FEATURE
        ),
        row("welcome-005 selects-twice: selects a feature twice [WEL-1]", *chooses(twice), E.BAD_VALUE),
        row("welcome-006 session-zero: opens session zero [WEL-4]", *welcome(session=bytes(16)), E.BAD_VALUE),
        row(
            "welcome-007 resumes: says what belongs to a resumption [WEL-4]",
            *welcome(generation=1),
            E.BAD_VALUE,
        ),
        row("welcome-008 no-bodies: takes no frame body [LIM-7]", *limits({1: 65535}), E.LIMIT_MISMATCH),
        row("welcome-009 no-runs: takes no runs [LIM-7]", *limits({7: 0}), E.LIMIT_MISMATCH),
        row("welcome-010 no-memory: has room for one page [LIM-6]", *limits({4: 4096}), E.LIMIT_MISMATCH),
        row("welcome-011 one-region: has room for one region [LIM-6]", *limits({3: 1}), E.LIMIT_MISMATCH),
        row("welcome-012 no-state: takes no state [LIM-6]", *limits({5: 0}), E.LIMIT_MISMATCH),
        row("welcome-013 twice: says WELCOME twice [CON-9 CON-3]", _WELCOME, do.twice(), E.UNEXPECTED_FRAME),
        row("welcome-014 accept-first: says ACCEPT first [CON-3]", _WELCOME, early, E.UNEXPECTED_FRAME),
        row("welcome-015 unknown-limit: states a limit that nobody knows [LIM-2]", *limits({0x7ABC: 0})),
        row("welcome-016 no-limits: states no limits [LIM-3]", *welcome(limits={})),
        row(
            "welcome-017 refuses: refuses the session [CON-9 REF-2]",
            *refuses(_WELCOME, E.FULL),
            E.FULL,
            by_peer=True,
        ),
        row(
            "welcome-018 refuses-unknown: refuses for a reason that nobody knows [REF-3]",
            *(*refuses(_WELCOME, 0x7777), E.INTERNAL),
            by_peer=True,
        ),
        row("welcome-019 aborts: aborts instead of refusing [CON-12]", _WELCOME, abort, E.FULL, by_peer=True),
        row(
            "accept-001 refuses: refuses the guest [CON-14]",
            *refuses(_ACCEPT, E.ARCHITECTURE),
            E.ARCHITECTURE,
            by_peer=True,
        ),
        row(
            "accept-002 reserves-less: reserves a byte too few [CON-17]",
            *(_ACCEPT, do.alter(Accept, lambda accept: Accept(accept.reserved_bytes - 1)), E.BAD_VALUE),
            **LOST,
        ),
        row(
            "accept-003 data-streams: wants data connections, which were not selected [ACC-3]",
            *(_ACCEPT, do.change(data_streams=2), E.NOT_SELECTED, E.UNSUPPORTED),
        ),
        row(
            "accept-004 data-streams-17: wants 17 data connections [ACC-2]",
            *(_ACCEPT, do.change(data_streams=17), E.BAD_VALUE),
        ),
        row("accept-005 twice: says ACCEPT twice [CON-3]", _ACCEPT, do.twice(), E.UNEXPECTED_FRAME),
        row(
            "accept-006 refuses-late: refuses after ACCEPT [CON-3]",
            _ACCEPT,
            do.after(Say(Refuse(E.FULL))),
            E.UNEXPECTED_FRAME,
        ),
    ]


def _acks() -> Rows:
    def ack(head: str, act: Act, /, *codes: E, **more: object) -> Misbehaviour:
        return row(head, _ACK, act, *codes, order=ROUNDS, optional=True, **more)

    fewer = do.alter(RoundAck, lambda record: replace(record, pages=record.pages - 1))
    begun = Place(F.ROUND, heard=True)
    first = PageRange(1, 0, 1)
    return [
        ack("ack-001 other-round: acknowledges round 9 [CON-30]", do.change(round=9), E.BAD_ROUND),
        ack("ack-002 round-zero: acknowledges round 0 [RAK-1]", do.change(round=0), E.BAD_VALUE),
        ack("ack-003 attempt-zero: acknowledges for attempt 0 [CON-25]", do.change(attempt=0), E.BAD_ATTEMPT),
        ack("ack-004 attempt-far: acknowledges for attempt 9 [CON-25]", do.change(attempt=9), E.BAD_ATTEMPT),
        ack("ack-005 fewer-pages: acknowledges a page less [CON-32]", fewer, E.COUNT_MISMATCH, **LOST),
        row(
            "ack-006 before-end: acknowledges a round that has only begun [CON-31 CON-3]",
            # A fast source has sent the rest of it meanwhile; then it is the count that is wrong.
            *(begun, do.after(Say(RoundAck(1, 1, 0, 0))), E.UNEXPECTED_FRAME, E.COUNT_MISMATCH),
            order=ROUNDS,
            **LOST,
        ),
        ack("ack-007 twice: acknowledges twice [CON-30]", do.twice(), E.UNEXPECTED_FRAME, E.BAD_ROUND),
        ack(
            "ack-008 rejects-outside: rejects pages past a region's end [CON-33 FRM-18]",
            *(do.rejects(PageRange(1, 250, 10)), E.OUTSIDE_REGION),
        ),
        ack(
            "ack-009 rejects-nowhere: rejects pages of no region [CON-33]",
            do.rejects(PageRange(9, 0, 1)),
            E.OUTSIDE_REGION,
        ),
        ack("ack-010 rejects-none: rejects no pages [FRM-17]", do.rejects(PageRange(1, 0, 0)), E.BAD_VALUE),
        ack(
            "ack-011 rejects-twice: rejects a page twice [RAK-3]",
            do.rejects(first, first),
            E.OVERLAPPING_RUNS,
        ),
        row(
            "ack-012 rejects-unsent: rejects a page that was not sent in that round [CON-33]",
            *(Place(F.ROUND_ACK, 2), do.rejects(PageRange(1, 100, 1)), E.COUNT_MISMATCH),
            order=ROUNDS,
            optional=True,
        ),
        ack(
            "ack-013 too-many-ranges: lists more ranges than were announced [RAK-2 LIM-4]",
            *(do.rejects(first, PageRange(1, 2, 1)), E.LIMIT_REJECTED),
            limits={"rejected_runs": 1},
            **DOS,
        ),
        ack(
            "ack-014 rejects-everything: rejects a whole large round [RAK-5]",
            *(do.rejects(PageRange(1, 0, 2048)), E.TOO_MANY_REJECTED),
            guest=LARGE,
            **DOS,
        ),
        row(
            "ack-019 stalls: stops reading within a round [CON-77 CON-74]",
            # Buffers on the way may take all of the round; then it is ROUND_ACK that does not come.
            *(begun, do.after(Ear.DEAF, Wait(ENDLESS_S)), E.PEER_STALLED, E.PHASE_DEADLINE),
            guest=LARGE,
            deadline_s=IMPATIENT_S,
            mute=True,
            **DOS,
        ),
        ack(
            "ack-015 loaded-for-ack: says LOADED to a round [CON-3]",
            do.instead(Say(Loaded(1, OTHER_DIGEST))),
            E.UNEXPECTED_FRAME,
        ),
        ack(
            "ack-016 page-request: asks for pages before the switchover [CON-5]",
            do.instead(Say(PageRequest(1, 0, 1))),
            E.UNEXPECTED_FRAME,
            E.UNSUPPORTED,
        ),
        ack(
            "ack-017 held: says HELD, which belongs to a resumption [CON-5]",
            do.instead(Say(_HELD)),
            E.UNEXPECTED_FRAME,
        ),
        ack(
            "ack-018 attached: says ATTACHED, though nothing was to be attached [CON-5]",
            do.instead(Say(Attached(0, 0, 0))),
            E.UNEXPECTED_FRAME,
            E.UNSUPPORTED,
        ),
    ]
