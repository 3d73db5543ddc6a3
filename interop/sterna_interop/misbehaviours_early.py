"""What can go wrong with pages that come early (13.3), at either side.

Whatever it is, it ends the demand connection at the most, and the session is to be whole: nearly no row has a
code. An endpoint that goes without the feature, or makes no use of the connection, has tried nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from sterna.limits import Limits
from sterna.registry import GREASE_FIRST, Encoding, Feature, Phase
from sterna.wire import (
    Abort,
    Attached,
    FeatureChoice,
    FeatureOffer,
    PageRequest,
    Pages,
    Ping,
    Welcome,
    unchecked,
)
from sterna_interop import peer_acts as do
from sterna_interop.case import Wire
from sterna_interop.contract import Role
from sterna_interop.misbehaviours import DOS, ENDLESS_S, LOST, ROUNDS, E, F, Misbehaviour, Rows, misbehaviour
from sterna_interop.peer_destination import SESSION, TOKEN
from sterna_interop.peer_early import LAST_WRITTEN, EarlyPlan
from sterna_interop.peer_lanes import LanePlan, attempt
from sterna_interop.peer_steps import Act, Ear, End, Manner, Place, Raw, Say, Step, Wait

_OFFERED: Final = tuple(
    FeatureOffer(each) for each in (Feature.ENCODING_ZERO, Feature.POST_COPY, Feature.EARLY_PAGES)
)
_BEHIND_ROUNDS: Final = (_OFFERED[0], FeatureOffer(Feature.BITMAP), _OFFERED[2])
_ASKED: Final = (Feature.ENCODING_ZERO, Feature.POST_COPY, Feature.EARLY_PAGES)
_LANES: Final = LanePlan(count=1)
_PAGE: Final = Place(F.PAGES, 2)
_REQUEST: Final = Place(F.PAGE_REQUEST, 2)
_ATTACHED: Final = Place(F.ATTACHED)
_FEW: Final = Limits(memory_bytes=1 << 26, bulk_bytes=1 << 20, page_requests=20)


def of_early(role: Role) -> tuple[Misbehaviour, ...]:
    """The rows of one role."""
    tables = (_uses, _attempts, _answers, _bare) if role is Role.SOURCE else (_choices, _attached, _requests)
    return tuple(row for table in tables for row in table())


_source = partial(misbehaviour, Role.SOURCE, about=Feature.EARLY_PAGES, plan={"features": _OFFERED})
_destination = partial(
    misbehaviour, Role.DESTINATION, about=Feature.EARLY_PAGES, plan={"features": _ASKED}, lanes=_LANES
)


def _unknown(stream: int) -> Raw:
    """A frame of a type that nobody knows, which is skipped elsewhere [FRM-7]."""
    return Raw(lambda number: unchecked.frame(GREASE_FIRST, b"skip me", stream=stream, sequence=number))


def _garbage() -> Raw:
    """8 KiB that are no frame."""
    return Raw(lambda _: bytes(range(1, 256)) * 32, 0)


# ---- the source's ----


def _uses() -> Rows:
    """Whether there is a demand connection, and what for."""

    def row(head: str, early: EarlyPlan, **more: object) -> Misbehaviour:
        return _source(head, None, None, early=early, **more)

    return [
        row(
            "early-001 early-honest: sends pages early, each by itself [PCY-26 PCY-27 PCY-28 PCY-31 PCY-32]",
            EarlyPlan(),
            **LOST,
        ),
        row(
            "early-002 early-tls: sends pages early over TLS [PCY-26 PCY-28 PCY-31 PCY-32]",
            EarlyPlan(),
            wire=Wire.TLS,
        ),
        row("early-003 early-unopened: opens no demand connection [PCY-26 PCY-9]", EarlyPlan(opens=False)),
        row(
            "early-004 early-alone: offers early pages, and none that follow the guest [PCY-25]",
            EarlyPlan(),
            plan={"features": (_OFFERED[0], _OFFERED[2])},
            about=None,
        ),
        row(
            "early-005 early-unoffered: lets pages follow the guest, and offers none early [NEG-5 PCY-12]",
            EarlyPlan(),
            plan={"features": _OFFERED[:2]},
            about=Feature.POST_COPY,
        ),
        row(
            "early-006 early-differs: brings other bytes with a group than came early [PCY-35 MEM-5]",
            EarlyPlan(differs=True),
            **LOST,
        ),
        row(
            "early-007 early-unanswered: answers no request there [PCY-30 PCY-9]",
            EarlyPlan(answers=False),
            **DOS,
        ),
        row(
            "early-008 early-few: takes 20 pages at a time, and answers none [PCY-29 PCY-30]",
            EarlyPlan(answers=False),
            manner=Manner(limits=_FEW),
        ),
        row(
            "early-009 early-bitmap: sends rounds, and early what they have left [PCY-1 PCY-3 PCY-26 PCY-32]",
            EarlyPlan(),
            plan={"features": _BEHIND_ROUNDS},
        ),
    ]


def _bare() -> Rows:
    """Without page hashes."""
    offered = (*_OFFERED, FeatureOffer(Feature.UNHASHED))
    bare = {"plan": {"features": offered, "unhashed": True}, "unverified": True, "about": Feature.UNHASHED}

    def row(head: str, early: EarlyPlan, **more: object) -> Misbehaviour:
        return _source(head, None, None, early=early, **bare | more)

    hashes = EarlyPlan(place=_PAGE, act=do.wrong_hash(), ends=True)
    return [
        row("early-050 early-bare: sends pages early without hashes [PCY-27 MEM-20 PGS-25]", EarlyPlan()),
        row(
            "early-051 early-bare-differs: brings other bytes than came early, and nobody compares [PCY-32]",
            EarlyPlan(differs=True),
            **LOST,
        ),
        row("early-052 early-bare-hash: has a hash there nevertheless [PCY-27 PGS-25]", hashes),
    ]


def _attempts() -> Rows:
    """Connections that have to be refused, while the session goes on."""

    def row(head: str, place: Place, step: Step, /, **more: object) -> Misbehaviour:
        return _source(head, place, do.before(step), **{"early": EarlyPlan()} | more)

    seal, unopened = Place(F.SEAL), EarlyPlan(opens=False)
    early = (E.BAD_TOKEN, E.BAD_VALUE, E.UNEXPECTED_FRAME)
    resume = FeatureOffer(Feature.RESUME, parameter=5)
    return [
        row(
            "early-010 demand-token: opens a demand connection with another token [ATT-3 PCY-30]",
            *(seal, attempt(E.BAD_TOKEN, generation=1, token=TOKEN)),
            **LOST,
        ),
        row(
            "early-011 demand-session: opens one of another session [ATT-3 PCY-30]",
            *(seal, attempt(E.BAD_TOKEN, generation=1, session=SESSION)),
        ),
        row(
            "early-012 demand-index: opens one behind the demand connection [ATT-2 PCY-30]",
            *(seal, attempt(E.BAD_VALUE, index=1)),
            **DOS,
        ),
        row(
            "early-013 demand-twice: opens the demand connection twice [PCY-26 STR-5]",
            *(seal, attempt(*early)),
        ),
        row(
            "early-014 demand-header: opens one under another number than its index [HDR-5]",
            *(seal, attempt(E.BAD_HEADER, stream=2)),
            early=unopened,
        ),
        row(
            "early-015 demand-before: opens one before there is a guest [PCY-26 PCY-30]",
            *(Place(F.GUEST), attempt(*early)),
        ),
        row(
            "early-016 demand-unselected: opens one that was not offered [ATT-2 PCY-26]",
            *(seal, attempt(E.BAD_VALUE)),
            plan={"features": _OFFERED[:2]},
            about=Feature.POST_COPY,
        ),
        row(
            "early-017 demand-resumed: opens one in a session that was resumed [PCY-26 RES-5 RES-8 RES-14]",
            *(seal, attempt(*early, generation=1)),
            early=EarlyPlan(resumes=True),
            plan={"features": (*_BEHIND_ROUNDS, resume)},
            about=Feature.RESUME,
        ),
    ]


def _answers() -> Rows:
    """What comes on it."""

    def row(head: str, act: Act, /, **more: object) -> Misbehaviour:
        return _source(head, None, None, early=EarlyPlan(place=_PAGE, act=act, ends=True), **more)

    def ended(head: str, act: Act) -> Misbehaviour:
        return _source(head, None, None, early=EarlyPlan(place=_PAGE, act=act))

    def moved(table: Pages, by: int) -> Pages:
        return do.with_run(table, 0, first=int(table.runs["first"][0]) + by)

    def zero(table: Pages) -> Pages:
        return do.with_run(table, 0, encoding=Encoding.ZERO)

    return [
        ended("early-020 early-closed: closes the demand connection [PCY-30 PCY-9]", do.instead(End.PROPER)),
        ended("early-021 early-lost: loses the demand connection [PCY-30 PCY-9]", do.instead(End.RESET)),
        ended("early-022 early-cut: closes it inside a page [PCY-30 PCY-9]", do.part(0.5, End.PROPER)),
        ended("early-023 early-stops: goes on with it no more [PCY-30 PCY-9]", do.instead(Wait(ENDLESS_S))),
        ended(
            "early-024 early-slow: goes on inside a page no more [PCY-30 PCY-9]", do.part(0.5, End.SILENCE)
        ),
        row(
            "early-030 early-other-page: answers with another page [PCY-28 PCY-30]",
            do.alter(Pages, partial(moved, by=1)),
            **LOST,
        ),
        row(
            "early-031 early-other-region: answers with a page of another region [PCY-28 PCY-30]",
            do.alter(Pages, lambda table: replace(table, region=3 - table.region)),
            **LOST,
        ),
        row(
            "early-032 early-hash: sends a page that is not as its hash says [PCY-34 PCY-30]",
            do.wrong_hash(),
            **LOST,
        ),
        row("early-033 early-attempt: sends a page of another attempt [PCY-27 PCY-8]", do.change(attempt=2)),
        row("early-034 early-round: sends a page of another round [PCY-27 PCY-8]", do.change(round=1)),
        row("early-035 early-zero: sends a page without bytes [PCY-27]", do.alter(Pages, zero)),
        row("early-036 early-twice: sends a page twice [PCY-28]", do.twice()),
        row("early-037 early-ping: says PING there [PCY-27]", do.before(Say(Ping(1), stream=1))),
        row(
            "early-038 early-grease: has an unknown frame there [PCY-27]",
            do.before(_unknown(stream=1)),
        ),
        row("early-039 early-gap: leaves out a number there [PCY-26 HDR-6]", do.numbered(1)),
        row("early-040 early-garbage: sends there what is no frame [PCY-30]", do.before(_garbage()), **DOS),
        row(
            "early-041 early-damage: damages a page table there [PCY-30 HDR-10]",
            do.patch(40, b"\x55", repair=False),
        ),
    ]


# ---- the destination's ----


def _choices() -> Rows:
    """What it selects, and asks for."""

    def selects(*features: Feature) -> Act:
        chosen = tuple(FeatureChoice(each) for each in features)
        return do.alter(Welcome, lambda welcome: replace(welcome, features=welcome.features + chosen))

    none: dict[str, object] = {"features": (Feature.ENCODING_ZERO,)}
    return [
        _destination(
            "early-101 early-honest: asks for pages one by one [PCY-26 PCY-27 PCY-28 PCY-8 PCY-13]",
            *(None, None),
            early=EarlyPlan(),
            **LOST,
        ),
        _destination(
            "early-102 early-tls: asks for pages one by one over TLS [PCY-26 PCY-28]",
            *(None, None),
            early=EarlyPlan(),
            wire=Wire.TLS,
        ),
        _destination(
            "early-103 early-unasked: asks for no page there [PCY-13 PCY-30]",
            *(None, None),
            early=EarlyPlan(asks=()),
        ),
        _destination(
            "early-106 early-bitmap: takes rounds, and asks for what they have left [PCY-1 PCY-2 PCY-28]",
            *(None, None),
            early=EarlyPlan(asks=LAST_WRITTEN),
            plan={"features": (Feature.ENCODING_ZERO, Feature.BITMAP, Feature.EARLY_PAGES)},
            order=ROUNDS,
            chooses=True,
        ),
        _destination(
            "early-107 early-bare: asks for pages one by one, and takes them without hashes [PCY-27 PGS-25]",
            *(None, None),
            early=EarlyPlan(),
            plan={"features": (*_ASKED, Feature.UNHASHED), "unhashed": True},
            unverified=True,
            about=Feature.UNHASHED,
        ),
        _destination(
            "early-104 early-alone: selects early pages, and none that follow the guest [PCY-25]",
            *(Place(F.WELCOME), selects(Feature.EARLY_PAGES), E.UNSOLICITED, E.MISSING_FEATURE),
            early=EarlyPlan(),
            plan=none,
            about=None,
        ),
        _destination(
            "early-105 early-unoffered: selects early pages, which nobody has offered [NEG-5]",
            *(Place(F.WELCOME), selects(Feature.POST_COPY, Feature.EARLY_PAGES), E.UNSOLICITED),
            plan=none,
            about=None,
            lanes=None,
        ),
    ]


def _attached() -> Rows:
    """How it answers ATTACH."""

    def row(head: str, act: Act, *, ends: bool = True) -> Misbehaviour:
        return _destination(head, None, None, early=EarlyPlan(place=_ATTACHED, act=act, ends=ends))

    refused = Abort(E.BAD_TOKEN, Phase.STREAMS, text="no")
    return [
        row(
            "early-110 demand-index: answers its ATTACH with another index [ATT-6 PCY-30]",
            do.alter(Attached, lambda one: replace(one, index=one.index - 1)),
        ),
        row("early-111 demand-generation: answers with another generation [ATT-6]", do.change(generation=1)),
        row("early-112 demand-far: has applied what was never sent [ATT-6]", do.change(last_sequence=5)),
        row("early-113 demand-never: does not answer [PCY-30]", do.instead(Wait(ENDLESS_S)), ends=False),
        row("early-114 demand-closed: closes it instead [PCY-30]", do.instead(End.PROPER), ends=False),
        row(
            "early-115 demand-refused: refuses it [PCY-30 STR-4]",
            do.instead(Say(refused, stream=2)),
            ends=False,
        ),
    ]


def _requests() -> Rows:
    """What it asks for."""

    def row(head: str, act: Act, /, **more: object) -> Misbehaviour:
        return _destination(head, None, None, early=EarlyPlan(place=_REQUEST, act=act, ends=True), **more)

    def ended(head: str, act: Act) -> Misbehaviour:
        return _destination(head, None, None, early=EarlyPlan(place=_REQUEST, act=act))

    ping = Say(Ping(1), stream=2)
    return [
        row("early-120 early-patient: asks for what nobody waits for [PCY-27]", do.change(urgent=False)),
        row("early-121 early-border: asks for pages of two blocks [PCY-27]", do.change(first=40, count=16)),
        row("early-122 early-region: asks for pages of no region [PCY-27 PCY-28]", do.change(region=9)),
        row(
            "early-123 early-behind: asks for pages behind the region's end [PCY-28]",
            do.change(first=1 << 20),
            **LOST,
        ),
        row("early-124 early-none: asks for no page [PCY-27]", do.change(count=0)),
        row(
            "early-125 early-many: asks for more pages than there are [PCY-27]",
            do.change(count=1 << 40),
            **DOS,
        ),
        row("early-126 early-ping: says PING there [PCY-27]", do.before(ping)),
        row(
            "early-127 early-grease: has an unknown frame there [PCY-27]",
            do.before(_unknown(stream=2)),
        ),
        row("early-128 early-gap: leaves out a number there [PCY-26 HDR-6]", do.numbered(1)),
        row("early-129 early-garbage: sends there what is no frame [PCY-30]", do.before(_garbage()), **DOS),
        ended("early-130 early-closed: closes it [PCY-30]", do.instead(End.PROPER)),
        ended("early-131 early-lost: loses it behind a request [PCY-30]", do.after(End.RESET)),
        ended("early-132 early-cut: closes it inside a request [PCY-30]", do.part(0.5, End.PROPER)),
        ended(
            "early-133 early-flood: asks for more than it may, and takes no answer [PCY-29 PCY-30]",
            do.instead(Ear.DEAF, *[Say(PageRequest(1, 0, 16), stream=2)] * 1000, End.SILENCE),
        ),
    ]
