"""What a source can do wrong up to its last round, and what the destination under test must say to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from sterna.registry import (
    Architecture,
    Checksum,
    Encoding,
    Feature,
    Mode,
    StateKind,
    Style,
)
from sterna.wire import (
    NO_VCPU,
    FeatureOffer,
    Guest,
    Handover,
    Hello,
    Pages,
    Region,
    Round,
    RoundEnd,
    Seal,
    State,
    Switchover,
    make_runs,
)
from sterna_interop import peer_acts as do
from sterna_interop.contract import Do, Order, Role
from sterna_interop.guest import GuestSpec
from sterna_interop.misbehaviours import (
    DOS,
    FUTURE_VERSION,
    LOST,
    OTHER_DIGEST,
    SPLIT,
    UNKNOWN_ID,
    E,
    F,
    Misbehaviour,
    Rows,
    misbehaviour,
)
from sterna_interop.peer_steps import Act, Place, Say

row = partial(misbehaviour, Role.SOURCE)

_HELLO: Final = Place(F.HELLO)
_GUEST: Final = Place(F.GUEST)
_ROUND: Final = Place(F.ROUND)
_PAGES: Final = Place(F.PAGES)
_END: Final = Place(F.ROUND_END)
_NO_HASHES: Final = np.array([], "<u8")
FRAGMENT: Final = State(1, 0, NO_VCPU, StateKind.OPAQUE, 1, 77, 16, 0, True, bytes(16))
SEALED: Final = Seal(1, Checksum.XXH3_128, OTHER_DIGEST, OTHER_DIGEST, 0, 0)


def a_page(attempt: int, round_number: int) -> Pages:
    """A table of one page of zeros."""
    return Pages(attempt, round_number, 1, make_runs([(0, 1, Encoding.ZERO)], 12), _NO_HASHES)


def _rubbish(attempt: int) -> Iterable[Say]:
    """What a source says in an attempt, and nothing of it true."""
    yield Say(a_page(attempt, 9))
    yield Say(RoundEnd(attempt, 9, 5, 5))
    yield Say(replace(FRAGMENT, attempt=attempt))
    yield Say(replace(SEALED, attempt=attempt))
    yield Say(Handover(attempt, 99))


def of_source() -> tuple[Misbehaviour, ...]:
    """All rows."""
    return tuple(each for table in (_hello(), _guest(), _rounds()) for each in table)


def _hello() -> Rows:
    def hello(**fields: object) -> tuple[Place, Act]:
        return _HELLO, do.change(**fields)

    def offers(*features: FeatureOffer) -> tuple[Place, Act]:
        return _HELLO, do.alter(Hello, lambda hello: replace(hello, features=hello.features + features))

    def limits(stated: dict[int, int]) -> tuple[Place, Act]:
        return _HELLO, do.alter(Hello, lambda hello: replace(hello, limits=hello.limits | stated))

    unknown = FeatureOffer(UNKNOWN_ID, required=True)
    zero_twice = FeatureOffer(Feature.ENCODING_ZERO)
    some = b"some session id."
    nonsense = {"mode": 9, "session": some, "generation": 7, "versions": (FUTURE_VERSION,)}
    return [
        row("hello-001 hello-twice: says HELLO twice [CON-7 CON-3]", _HELLO, do.twice(), E.UNEXPECTED_FRAME),
        row(
            "hello-002 hello-missing: begins with GUEST [HEL-1 CON-3]",
            *(_HELLO, do.instead(Say(GuestSpec().description.to_record())), E.UNEXPECTED_FRAME),
        ),
        row(
            "hello-003 version-unknown: speaks only a version of the future [NEG-1 VRS-3 CON-11]",
            *(*hello(versions=(FUTURE_VERSION,)), E.NO_COMMON_VERSION),
            refused=True,
        ),
        row(
            "hello-004 hello-of-the-future: sends a HELLO of the future [VRS-3 NEG-1 FRM-15]",
            *(*hello(**nonsense), E.NO_COMMON_VERSION),
            refused=True,
        ),
        row("hello-005 version-none: lists no version [HEL-2]", *hello(versions=()), E.BAD_VALUE),
        row(
            "hello-006 required-unknown-feature: requires a feature that nobody knows [NEG-4 CON-11]",
            *(*offers(unknown), E.MISSING_FEATURE),
            refused=True,
        ),
        row(
            "hello-007 unknown-feature: offers a feature that nobody knows [NEG-3]",
            *offers(FeatureOffer(UNKNOWN_ID, parameter=12)),
        ),
        row("hello-008 unknown-limit: states an unknown limit [LIM-2]", *limits({UNKNOWN_ID: 1})),
        row("hello-009 no-limits: states no limits [LIM-3]", *hello(limits={})),
        row(
            "hello-010 no-page-hashes: does not offer page hashes [MEM-17 NEG-4]",
            *(*hello(features=(FeatureOffer(Feature.STOP_AND_COPY, required=True),)), E.MISSING_FEATURE),
            refused=True,
            **LOST,
        ),
        row(
            "hello-011 mode-resume: resumes a session that never was [CON-10]",
            *(*hello(mode=Mode.RESUME, session=some), E.UNSUPPORTED, E.BAD_TOKEN),
            refused=True,
        ),
        row("hello-012 mode-unknown: wants something unknown [FRM-4]", *hello(mode=9), E.BAD_VALUE),
        row("hello-013 session-in-open: names a session [HEL-5]", *hello(session=some), E.BAD_VALUE),
        row("hello-014 epoch-too-high: has no epochs left [HEL-8]", *hello(epoch=2**64 - 2), E.BAD_VALUE),
        row("hello-015 feature-twice: offers a feature twice [HEL-3]", *offers(zero_twice), E.BAD_VALUE),
        row("hello-016 limits-too-small: takes no frame body [LIM-7]", *limits({1: 65535}), E.LIMIT_MISMATCH),
        row(
            "hello-018 body-huge: announces a HELLO of 65537 bytes [LIM-5 SEC-7]",
            *(_HELLO, do.header(body_bytes=65537), E.LIMIT_CONTROL),
            **DOS,
        ),
        row("hello-017 no-bulk: takes no pages [LIM-7]", *limits({2: 0}), E.LIMIT_MISMATCH),
    ]


def _guest() -> Rows:
    def region(**fields: object) -> tuple[Place, Act]:
        def changed(record: Guest) -> Guest:
            last = replace(record.regions[-1], **fields)  # type: ignore[arg-type]
            return replace(record, regions=(*record.regions[:-1], last))

        return _GUEST, do.alter(Guest, changed)

    def guest(**fields: object) -> tuple[Place, Act]:
        return _GUEST, do.change(**fields)

    bad, page = E.BAD_REGION, 1 << 12
    return [
        row("guest-001 regions-overlap: describes regions that overlap [GST-8]", *region(address=page), bad),
        row("guest-002 region-twice: uses a region id twice [GST-3]", *region(id=1), bad),
        row(
            "guest-003 region-unaligned: has a region off its pages [GST-6]",
            *region(address=0x100000800),
            bad,
        ),
        row("guest-004 region-empty: has an empty region [GST-6]", *region(size_bytes=0), bad),
        row("guest-005 region-wraps: has a region past 2^64 [GST-7]", *region(address=2**64 - page), bad),
        row("guest-006 granule-2k: has pages of 2 KiB [GST-4]", *region(granule_log2=11), bad),
        row("guest-007 no-regions: has no memory [GST-1]", *guest(regions=()), bad),
        row(
            "guest-008 guest-too-large: brings more memory than was announced [GST-9 LIM-4]",
            *(*region(size_bytes=1 << 40), E.LIMIT_MEMORY),
            limits={"memory_bytes": 1 << 24},
            **DOS,
        ),
        row(
            "guest-009 too-many-regions: brings more regions than were announced [GST-2]",
            *(None, None, E.LIMIT_REGIONS),
            limits={"regions": 1},
            **DOS,
        ),
        row(
            "guest-010 state-too-large: announces more state than was announced to it [GST-10]",
            *(*guest(state_bytes=1 << 20), E.LIMIT_STATE),
            limits={"state_bytes": 1 << 16},
            **DOS,
        ),
        row("guest-011 guest-twice: says GUEST twice [GST-13 CON-3]", _GUEST, do.twice(), E.UNEXPECTED_FRAME),
        row(
            "guest-012 granule-above-bulk: has pages that no frame may carry [CON-15 LIM-6]",
            *(None, None, E.PAGE_SIZE),
            guest=GuestSpec(regions=(Region(1, 0, 1 << 20, 16),), writes=()),
            limits={"bulk_bytes": 1 << 15},
            refused=True,
        ),
        row(
            "guest-013 feature-names-twice: relies on a CPU feature twice [GST-12]",
            *(*guest(cpu_features=("fpu", "fpu")), E.BAD_VALUE),
        ),
        row(
            "guest-014 refused-full: brings a guest to a host that is full [CON-11 CON-15]",
            *(None, None, E.FULL),
            order=Order(Do.REFUSE, code="full"),
            refused=True,
        ),
        row(
            "guest-015 refused-architecture: brings a guest of another architecture [CON-14 CON-15]",
            *(None, None, E.ARCHITECTURE),
            guest=GuestSpec(architecture=Architecture.AARCH64),
            order=Order(Do.REFUSE, code="architecture"),
            refused=True,
        ),
    ]


def _rounds() -> Rows:
    early = do.before(Say(Round(1, 1, 1)))
    again, over = Place(F.ROUND, 2), Place(F.SWITCHOVER, 2)
    later = do.alter(RoundEnd, lambda end: replace(end, last_sequences=((0, end.last_sequences[0][1] + 1),)))
    more = do.alter(RoundEnd, lambda end: replace(end, pages=end.pages + 1))
    bulkier = do.alter(RoundEnd, lambda end: replace(end, bulk_bytes=end.bulk_bytes + 1))
    page = do.before(Say(a_page(1, 1)))
    switch = do.instead(Say(Switchover(1, Style.STOP_AND_COPY)))
    return [
        row("round-001 round-before-accept: begins before ACCEPT [CON-3]", _GUEST, early, E.UNEXPECTED_FRAME),
        row(
            "round-002 pages-before-guest: sends PAGES before GUEST [PGS-1]", _GUEST, page, E.UNEXPECTED_FRAME
        ),
        row("round-003 round-skipped: begins with round 2 [CON-20]", _ROUND, do.change(round=2), E.BAD_ROUND),
        row("round-023 pages-boasted: means to send 2^63 pages [CON-29]", _ROUND, do.change(pages=1 << 63)),
        row(
            "round-024 pages-denied: means to send no page, and sends all [CON-29]",
            _ROUND,
            do.change(pages=0),
        ),
        row(
            "round-025 attempt-and-state: ends attempt 9, where no round is open [CON-82]",
            *(_ROUND, do.instead(Say(RoundEnd(9, 1, 0, 0))), E.BAD_ATTEMPT),
        ),
        row(
            "round-004 round-repeated: begins round 1 twice [CON-20]",
            *(again, do.change(round=1), E.BAD_ROUND),
            **LOST,
        ),
        row("round-005 round-zero: begins round 0 [RND-1]", _ROUND, do.change(round=0), E.BAD_VALUE),
        row("round-006 attempt-zero: names attempt 0 [CON-22]", _ROUND, do.change(attempt=0), E.BAD_ATTEMPT),
        row("round-007 attempt-far: names attempt 9 [CON-23]", _ROUND, do.change(attempt=9), E.BAD_ATTEMPT),
        row(
            "round-008 attempt-taken-back: takes its attempt back in a round [CON-58 CON-59 CON-60]",
            *(None, None, E.UNSUPPORTED),
            legal=True,
            plan={"takes_back": True},
        ),
        row("round-009 round-in-round: begins a round twice [CON-3]", _ROUND, do.twice(), E.UNEXPECTED_FRAME),
        row(
            "round-010 pages-outside-round: sends PAGES before a round [CON-3]",
            _ROUND,
            page,
            E.UNEXPECTED_FRAME,
        ),
        row(
            "round-011 pages-other-round: sends PAGES of round 9 [CON-21 PGS-15]",
            _PAGES,
            do.change(round=9),
            E.BAD_ROUND,
        ),
        row(
            "round-012 pages-other-attempt: sends PAGES of attempt 9 [CON-23 PGS-15]",
            *(_PAGES, do.change(attempt=9), E.BAD_ATTEMPT),
        ),
        row(
            "round-013 old-attempt: says again, wrongly, what is of an attempt that is over [CON-24 ONE-24]",
            *(over, do.before(*_rubbish(attempt=1))),
            order=Order(Do.NOT_READY, times=1),
            plan={"not_ready": 1},
            **SPLIT,
        ),
        row(
            "round-014 pages-twice: sends every batch twice in a round [CON-27]",
            *(Place(F.PAGES, 0), do.twice(), E.COUNT_MISMATCH),
            **DOS,
        ),
        row("round-015 end-wrong-pages: counts a page too much [RND-3]", _END, more, E.COUNT_MISMATCH),
        row("round-016 end-wrong-bytes: counts a byte too much [RND-3]", _END, bulkier, E.COUNT_MISMATCH),
        row(
            "round-017 end-wrong-sequence: ends behind a frame to come [STR-9 RND-4]",
            _END,
            later,
            E.COUNT_MISMATCH,
        ),
        row(
            "round-018 end-no-sequence: does not say which frame was the last [STR-8]",
            *(_END, do.change(last_sequences=()), E.COUNT_MISMATCH),
        ),
        row(
            "round-019 end-stream-17: names a stream that there cannot be [RND-2]",
            *(_END, do.change(last_sequences=((17, 1),)), E.BAD_VALUE),
        ),
        row("round-020 end-other-round: ends round 9 [CON-21]", _END, do.change(round=9), E.BAD_ROUND),
        row("round-021 end-twice: ends a round twice [CON-3]", _END, do.twice(), E.UNEXPECTED_FRAME),
        row("round-022 end-missing: switches over within a round [SWI-2]", _END, switch, E.UNEXPECTED_FRAME),
    ]
