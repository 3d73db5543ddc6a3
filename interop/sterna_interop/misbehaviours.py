"""The misbehaviours of scripted peers: what each does, what that breaks, and what must come of it.

This module has what any peer can do wrong; `misbehaviours_source` and `misbehaviours_destination` have what
belongs to a role. A row needs few words, as the conversation around it is always the honest one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

from sterna.registry import GREASE_FIRST, ErrorCode, Feature, FrameType, Phase
from sterna.wire import Abort, Bye, Pong, Progress, Region, unchecked
from sterna_interop import peer_acts as do
from sterna_interop.case import Severity, Wire
from sterna_interop.contract import Order, Role
from sterna_interop.guest import GuestSpec
from sterna_interop.peer_early import EarlyPlan
from sterna_interop.peer_lanes import LanePlan
from sterna_interop.peer_steps import Act, Ear, End, Manner, Place, Raw, Say, Wait

E = ErrorCode
F = FrameType

# What many rows share: what it would cost, and what is wrong in many ways.
LOST: Final[dict[str, object]] = {"severity": Severity.DATA_LOSS}
SPLIT: Final[dict[str, object]] = {"severity": Severity.SPLIT_BRAIN}
DOS: Final[dict[str, object]] = {"severity": Severity.DOS}
OTHER_DIGEST: Final = b"sixteen others.."
FUTURE_VERSION: Final = 99 << 16
UNKNOWN_ID: Final = 0x7ABC  # of a feature or a limit
ROUNDS: Final = Order(rounds=2)
LARGE: Final = GuestSpec(regions=(Region(1, 0, 2048 << 12),), writes=())  # more pages than may be rejected

IMPATIENT_S: Final = 0.4  # what an endpoint is told about waiting where a peer does not go on
ENDLESS_S: Final = 3600.0


class Stage(Enum):
    """How far the session has come for the endpoint under test; decides what becomes of the guest."""

    BEFORE = "HANDOVER has not gone over"
    GRANTED = "HANDOVER has gone over, RUNNING has not"
    AFTER = "RUNNING has gone over"
    DONE = "nothing can change the outcome any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Misbehaviour:
    """One way to misbehave, or something odd that is none and has to be borne.

    Attributes:
        case: id of the endpoint case that is made of it.
        name: unique among those of its role.
        role: who misbehaves.
        what: what it does, for people.
        clauses: what it breaks, or what says that it has to be borne.
        place, act: see `sterna_interop.peer`.
        codes: with which the endpoint may end the session; none: the whole conversation has to be had.
        mute: the endpoint need not name the code to this peer, or cannot.
        refused: it has to be named in REFUSE.
        by_peer: the code is the peer's own, from its ABORT or REFUSE; None where it may be seen so.
        named: its ABORT has to name the frame.
        optional: an endpoint need not come to the place, and then completes.
        about: the optional feature that the row is about: an endpoint that does without it completes.
        understood: an endpoint may know what is said; it then says nothing, and reports `undecided`.
        legal: an endpoint may know what is done, and then completes; the codes are of one that does not.
        plan, manner: what is changed of the honest conversation.
        guest, order, limits, deadline_s: what the endpoint is told.
        unverified: whether the endpoint is told to go without page hashes; it need not.
        lanes: what is done with data connections; without any the session has none.
        early: what is done with the demand connection; without it no page follows the guest.
        chooses: whether the endpoint is told that the source decides whether pages follow.
        wire: what lies between the endpoint and the peer.
    """

    case: str
    name: str
    role: Role
    what: str
    clauses: tuple[str, ...]
    place: Place | None
    act: Act | None
    codes: tuple[ErrorCode, ...] = ()
    stage: Stage = Stage.BEFORE
    severity: Severity = Severity.INTEROP
    mute: bool = False
    refused: bool = False
    by_peer: bool | None = False
    named: bool = False
    optional: bool = False
    about: Feature | None = None
    understood: bool = False
    legal: bool = False
    plan: dict[str, object] = field(default_factory=dict)
    manner: Manner = field(default_factory=Manner)
    guest: GuestSpec = field(default_factory=GuestSpec)
    order: Order = field(default_factory=Order)
    limits: dict[str, int] = field(default_factory=dict)
    deadline_s: float = 0.0
    unverified: bool = False
    lanes: LanePlan | None = None
    early: EarlyPlan | None = None
    chooses: bool = False
    wire: Wire = Wire.PLAIN


_HEAD: Final = re.compile(r"([a-z]+-\d{3}) ([a-z0-9-]+): (.+) \[([A-Z0-9 -]+)\]")


def misbehaviour(
    role: Role, head: str, place: Place | None, act: Act | None, /, *codes: ErrorCode, **more: object
) -> Misbehaviour:
    """A row of a table. The head is ``case name: what it does [CLAUSE-1 CLAUSE-2]``.

    The name gets the area of the case before it, so that it is unique among those of its role.
    """
    found = _HEAD.fullmatch(head)
    assert found is not None, head
    case, word, what, clauses = found.groups()
    area, _, _ = case.partition("-")
    name = word if word.startswith(area) else f"{area}-{word}"
    fields: dict[str, object] = {"case": case, "name": name, "role": role, "what": what, "place": place}
    fields |= {"act": act, "codes": codes, "clauses": tuple(clauses.split())}
    return Misbehaviour(**fields | more)  # type: ignore[arg-type]


Row: TypeAlias = Callable[..., Misbehaviour]  # `misbehaviour`, of a role
Rows: TypeAlias = list[Misbehaviour]

# ---- what any peer can do wrong ----

# A frame of each stage of the conversation, as each role says it.
_DESCRIBED: Final = {Role.SOURCE: F.GUEST, Role.DESTINATION: F.ACCEPT}
_GOING: Final = {Role.SOURCE: F.ROUND, Role.DESTINATION: F.READY}
_OF_THE_OTHER: Final = {Role.SOURCE: F.READY, Role.DESTINATION: F.RELEASE}  # with a body of 8 bytes
_START: Final = Place(None)
_HTTP: Final = b"GET / HTTP/1.1\r\nHost: sterna\r\n\r\n"
_TLS: Final = bytes.fromhex("16030100c0010000bc0303") + bytes(200)
_SSH: Final = b"SSH-2.0-OpenSSH_9.9\r\n"
_PREFACE: Final = unchecked.preface()
_SKIP: Final = do.frame(GREASE_FIRST, b"skip me")


def of_any(role: Role) -> tuple[Misbehaviour, ...]:
    """The rows of this module for one role. Their cases have numbers from 101 where the source is tested."""

    def row(
        head: str, place: Place | None, act: Act | None, /, *codes: ErrorCode, **more: object
    ) -> Misbehaviour:
        if role is Role.DESTINATION:
            head = re.sub(r"-0(\d\d) ", r"-1\1 ", head, count=1)
        return misbehaviour(role, head, place, act, *codes, **more)

    tables = (_prefaces, _headers, _skipped, _talk, _endings, _times)
    return tuple(each for table in tables for each in table(row, role))


def _prefaces(row: Row, _: Role) -> Rows:
    def starts(*data: bytes) -> Act:
        parts = [Raw(lambda _, one=one: one, 0) for one in data]  # type: ignore[misc]
        return do.instead(*parts, Wait(ENDLESS_S))

    damaged = _PREFACE.replace(b"\r\n", b"\n")
    seven_bits = bytes(each & 0x7F for each in _PREFACE)
    newer = do.instead(Raw(lambda _: unchecked.preface(major=99), 0))
    longer = do.instead(Raw(lambda _: _PREFACE * 4, 0))  # a preface, a header and a bit
    cut = do.instead(Raw(lambda _: _PREFACE[:9], 0), End.PROPER)
    deaf = {"mute": True}
    return [
        row("preface-001 http-bytes: speaks HTTP [PRE-5]", _START, starts(_HTTP), E.HTTP_ON_PLAIN, **deaf),
        row("preface-002 tls-bytes: speaks TLS [PRE-4]", _START, starts(_TLS), E.TLS_ON_PLAIN, **deaf),
        row("preface-003 ssh-bytes: speaks SSH [PRE-2]", _START, starts(_SSH), E.BAD_MAGIC, **deaf),
        row(
            "preface-004 one-wrong-byte: sends a byte that begins no preface, and waits [PRE-2]",
            *(_START, starts(b"\0"), E.BAD_MAGIC),
            mute=True,
        ),
        row(
            "preface-005 crlf-damage: has come through a transfer that converts line ends [PRE-3]",
            *(_START, starts(damaged), E.TEXT_MODE_DAMAGE),
            mute=True,
        ),
        row(
            "preface-006 seven-bit-damage: has come through a channel of seven bits [PRE-3]",
            *(_START, starts(seven_bits), E.TEXT_MODE_DAMAGE),
            mute=True,
        ),
        row("preface-007 preface-cut: ends inside its preface [PRE-7]", _START, cut, E.TRUNCATED, **deaf),
        row("preface-008 preface-newer: names a newer version in its preface [PRE-6]", _START, newer),
        row(
            "preface-009 preface-repeated: sends its preface again and again [PRE-1 HDR-1]",
            *(_START, longer, E.HEADER_CHECKSUM),
        ),
    ]


def _headers(row: Row, role: Role) -> Rows:
    at = Place(_DESCRIBED[role])
    damage = do.patch(28, b"....", repair=False)
    return [
        row("header-001 header-checksum: damages a header [HDR-2]", at, damage, E.HEADER_CHECKSUM),
        row("header-002 header-flags: sets a flag [HDR-3]", at, do.patch(2, b"\1"), E.BAD_HEADER),
        row("header-003 header-reserved: sets reserved bits [HDR-4]", at, do.patch(6, b"\1"), E.BAD_HEADER),
        row("header-004 header-stream: names another stream [HDR-5]", at, do.patch(4, b"\1"), E.BAD_HEADER),
        row("header-005 sequence-gap: leaves a number out [HDR-6]", at, do.numbered(1), E.BAD_SEQUENCE),
        row("header-006 sequence-repeat: uses a number twice [HDR-6]", at, do.numbered(-1), E.BAD_SEQUENCE),
        row(
            "header-007 body-huge: announces a body of 2 GiB [HDR-7 LIM-4]",
            *(at, do.header(body_bytes=1 << 31), E.LIMIT_CONTROL),
            severity=Severity.DOS,
        ),
        row(
            "header-008 bulk-on-control: gives a frame a bulk part that may not have one [HDR-8]",
            *(at, do.header(bulk_bytes=8), E.BAD_HEADER),
        ),
        row(
            "header-009 body-checksum: damages a body [HDR-10 CON-65]",
            at,
            do.header(body_crc=1),
            E.BODY_CHECKSUM,
        ),
        row("header-010 body-short: leaves out a body's last byte [FRM-1]", at, do.resize(-1), E.MALFORMED),
        row("header-011 body-long: adds a byte to a body [FRM-2]", at, do.resize(1), E.TRAILING_BYTES),
        row("header-012 body-missing: sends no body [FRM-1]", at, do.resize(-(1 << 20)), E.MALFORMED),
        row(
            "header-014 header-and-sequence: makes two mistakes, of which the flag comes first [HDR-11]",
            *(at, do.header(flags=1, sequence=99), E.BAD_HEADER),
        ),
        row(
            "header-015 sequence-and-type: makes two mistakes, of which the number comes first [HDR-11]",
            *(at, do.instead(do.frame(0x8FFF, sequence=99)), E.BAD_SEQUENCE),
        ),
        row(
            "header-013 body-long-named: adds a byte to a body, and wants to know to which [ABT-2 CON-66]",
            *(Place(_GOING[role]), do.resize(1), E.TRAILING_BYTES),
            named=True,
        ),
    ]


def _skipped(row: Row, role: Role) -> Rows:
    at = Place(_GOING[role])
    damaged = do.before(do.frame(GREASE_FIRST, b"skip me", body_crc=1))
    return [
        row(
            "skip-001 unknown-critical: sends a critical frame of unknown type [FRM-6]",
            *(at, do.before(do.frame(0x8FFF)), E.UNKNOWN_CRITICAL),
        ),
        row(
            "skip-002 unknown-optional-256: sends 256 frames in a row that are to be skipped [FRM-7 FRM-8]",
            *(at, do.before(_skips(256))),
        ),
        row(
            "skip-003 unknown-optional-flood: sends 257 frames in a row that are to be skipped [FRM-8]",
            *(at, do.before(_skips(257)), E.LIMIT_RATE),
            severity=Severity.DOS,
        ),
        row(
            "skip-004 skipped-damaged: damages the body of a frame that is to be skipped [FRM-7 HDR-10]",
            *(at, damaged, E.BODY_CHECKSUM),
        ),
        row(
            "skip-005 skipped-bulk: gives a frame that is to be skipped a bulk part [HDR-8]",
            *(at, do.before(do.frame(GREASE_FIRST, bulk_bytes=8)), E.BAD_HEADER),
        ),
        row(
            "skip-006 skipped-huge: announces 2 GiB that are to be skipped [HDR-7 LIM-4]",
            *(at, do.before(do.frame(GREASE_FIRST, body_bytes=1 << 31)), E.LIMIT_CONTROL),
            severity=Severity.DOS,
        ),
    ]


def _talk(row: Row, role: Role) -> Rows:
    at = Place(_GOING[role])

    def says(text: bytes) -> Act:
        return do.instead(Say(Abort(E.CANCELLED, Phase.ROUNDS, text=text)))  # type: ignore[arg-type]

    progress = do.before(Say(Progress(Phase.ROUNDS, 1, 1, 1, 1, 0, 0, 0)))
    other = do.before(do.frame(_OF_THE_OTHER[role], (1).to_bytes(8, "little")))
    return [
        row(
            "talk-001 pong-unsolicited: answers a PING that nobody has sent [PNG-2]",
            *(at, do.before(Say(Pong(0x5EED))), E.UNSOLICITED),
        ),
        row(
            "talk-002 progress-unselected: sends PROGRESS, which was not selected [PRG-1]",
            *(at, progress, E.NOT_SELECTED),
        ),
        row(
            "talk-003 wrong-direction: sends a frame of the other role [CON-4]", at, other, E.WRONG_DIRECTION
        ),
        row("talk-004 text-with-nul: puts NUL into a text [TXT-3]", at, says(b"stop\0"), E.BAD_TEXT),
        row(
            "talk-005 text-not-utf8: sends a text that is no UTF-8 [TXT-2]", at, says(b"\xc0\x80"), E.BAD_TEXT
        ),
        row(
            "talk-006 bye-early: says BYE in the middle [PNG-4 CON-3 CON-65 CON-67 FRM-14]",
            *(at, do.instead(Say(Bye())), E.UNEXPECTED_FRAME),
        ),
    ]


def _endings(row: Row, role: Role) -> Rows:
    at = Place(_GOING[role])

    def aborts(code: int) -> Say:
        return Say(Abort(code, Phase.ROUNDS, text="the scripted peer has had enough"))

    enough, unknown = aborts(E.CANCELLED), aborts(0x7777)
    lost, gone = (do.instead(End.PROPER), E.CONNECTION_LOST), (do.instead(End.RESET), E.CONNECTION_LOST)
    return [
        row(
            "end-001 abort: aborts in the middle [CON-68 CON-62 CON-63]",
            *(at, do.instead(enough, Wait(ENDLESS_S)), E.CANCELLED),
            by_peer=True,
        ),
        row(
            "end-002 abort-unknown-code: aborts with a code that nobody knows [ABT-3]",
            *(at, do.instead(unknown, Wait(ENDLESS_S)), E.INTERNAL),
            by_peer=True,
        ),
        row(
            "end-003 abort-then-more: aborts, and goes on as if it had not [ABT-1 CON-68 FRM-11]",
            *(at, do.before(enough), E.CANCELLED),
            by_peer=True,
        ),
        row("end-004 cut-between-frames: ends properly, without BYE [CON-69]", at, *lost, mute=True),
        row(
            "end-005 cut-inside-frame: ends properly inside a frame [FRM-10]",
            *(at, do.part(0.5, End.PROPER), E.TRUNCATED),
            mute=True,
        ),
        row("end-006 reset-between-frames: is gone without a proper end [CON-69]", at, *gone, mute=True),
        row(
            "end-007 reset-inside-frame: is gone inside a frame [CON-69 FRM-10]",
            *(at, do.part(0.5, End.RESET), E.CONNECTION_LOST, E.TRUNCATED),
            mute=True,
        ),
        row("end-008 cut-at-once: connects, and ends without a byte [CON-69]", _START, *lost, mute=True),
    ]


def _times(row: Row, role: Role) -> Rows:
    at = Place(_GOING[role])
    silent = (do.instead(End.SILENCE), E.PHASE_DEADLINE, E.PEER_SILENT)

    def slow(head: str, place: Place, act: Act, *codes: ErrorCode, mute: bool = False) -> Misbehaviour:
        return row(head, place, act, *codes, deadline_s=IMPATIENT_S, severity=Severity.DOS, mute=mute)

    return [
        # Who has sent no preface need not be told why (CON-65).
        slow("time-001 silence-at-once: connects, and says nothing [CON-74]", _START, *silent, mute=True),
        slow(
            "time-002 silence-after-preface: says nothing after its preface [CON-74 CON-8]",
            *(_START, do.after(End.SILENCE), *silent[1:]),
        ),
        slow("time-003 silence-in-the-middle: falls silent [CON-74 CON-75 SEC-16]", at, *silent),
        slow(
            "time-004 pings-only: goes on with PING, and with nothing else [CON-74]",
            *(at, do.instead(Wait(ENDLESS_S)), E.PHASE_DEADLINE),
        ),
        slow(
            "time-005 skipped-only: goes on with frames that are to be skipped [CON-74]",
            *(at, do.for_ever(_SKIP, IMPATIENT_S / 10), E.PHASE_DEADLINE),
        ),
        slow(
            "time-006 slow-loris: sends a frame byte by byte, for ever [CON-74]",
            *(at, do.drip(IMPATIENT_S / 5), E.PHASE_DEADLINE),
        ),
        row(
            # Who does not read on while it owes an answer owes only one; then one of the clocks ends it.
            "time-007 ping-flood: asks PING after PING, and reads no answer [CON-79 CON-77 CON-74]",
            *(at, do.instead(Ear.DEAF, *[_flood(1000)] * 60, Wait(ENDLESS_S))),
            *(E.LIMIT_RATE, E.PEER_STALLED, E.PHASE_DEADLINE),
            deadline_s=3.0,
            mute=True,
            severity=Severity.DOS,
        ),
    ]


def _flood(count: int) -> Raw:
    """So many PINGs in one piece."""
    return _many(count, F.PING, bytes(8))


def _skips(count: int) -> Raw:
    """So many frames that are to be skipped, with no PING or PONG between them."""
    return _many(count, GREASE_FIRST, b"skip me")


def _many(count: int, frame_type: int, body: bytes) -> Raw:
    return Raw(
        lambda number: b"".join(
            unchecked.frame(frame_type, body, sequence=number + more) for more in range(count)
        ),
        count,
    )
