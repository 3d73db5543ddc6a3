"""What can be wrong with the pages that a source sends: tables, sizes, hashes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from sterna.limits import Limits
from sterna.registry import (
    BitmapEncoding,
    Checksum,
    Encoding,
    StateKind,
    Transfer,
)
from sterna.wire import (
    NO_VCPU,
    Attach,
    DirtyBitmap,
    Handover,
    PageRange,
    Pages,
    Region,
    RoundEnd,
    Seal,
    State,
    make_runs,
)
from sterna_interop import peer_acts as do
from sterna_interop.case import Severity
from sterna_interop.contract import Role
from sterna_interop.guest import GuestSpec
from sterna_interop.misbehaviours import E, F, Misbehaviour, Rows, misbehaviour
from sterna_interop.peer_steps import Act, Manner, Place, Say

row = partial(misbehaviour, Role.SOURCE)

_HELLO, _GUEST, _ROUND, _PAGES = (Place(each) for each in (F.HELLO, F.GUEST, F.ROUND, F.PAGES))
_END, _SWITCH, _SEAL = Place(F.ROUND_END), Place(F.SWITCHOVER), Place(F.SEAL)
_HANDOVER, _RELEASE = Place(F.HANDOVER), Place(F.RELEASE)
_STATE = Place(F.STATE)
_OTHER: Final = b"sixteen others.."
_LOST = {"severity": Severity.DATA_LOSS}
_SPLIT = {"severity": Severity.SPLIT_BRAIN}
_DOS = {"severity": Severity.DOS}
_UNKNOWN_FEATURE: Final = 0x7ABC
_UNKNOWN_LIMIT: Final = 0x7ABC
_FUTURE: Final = 99 << 16
# More pages than may be rejected in any case.
_LARGE: Final = GuestSpec(regions=(Region(1, 0, 2048 << 12),), writes=())


_FIRST_CHUNK: Final = (PageRange(1, 0, 2),)  # of region 1; its third page is zero
_NO_HASHES: Final = np.array([], "<u8")
_BITMAP: Final = DirtyBitmap(1, 1, 0, 8, BitmapEncoding.PLAIN, b"\xff")
_ATTACH: Final = Attach(b"some session id.", bytes(32), 0, 0)
_FRAGMENT: Final = State(1, 0, NO_VCPU, StateKind.OPAQUE, 1, 77, 16, 0, True, bytes(16))
_SEALED: Final = Seal(1, Checksum.XXH3_128, _OTHER, _OTHER, 0, 0)


def _a_page(attempt: int, round_number: int) -> Pages:
    """A table of one page of zeros."""
    return Pages(attempt, round_number, 1, make_runs([(0, 1, Encoding.ZERO)], 12), _NO_HASHES)


def _rubbish(attempt: int) -> Iterable[Say]:
    """What a source says in an attempt, and nothing of it true."""
    yield Say(_a_page(attempt, 9))
    yield Say(RoundEnd(attempt, 9, 5, 5))
    yield Say(replace(_FRAGMENT, attempt=attempt))
    yield Say(replace(_SEALED, attempt=attempt))
    yield Say(Handover(attempt, 99))


def of_pages() -> tuple[Misbehaviour, ...]:
    """All rows."""
    return tuple(each for table in (_tables(), _hashes()) for each in table)


def _tables() -> Rows:
    def wrong(head: str, act: Act, /, *codes: E, **more: object) -> Misbehaviour:
        return row(head, _PAGES, act, *codes, **more)

    # The first batch has 64 pages of region 1, zero ones among them: more than two runs.
    overlap = do.alter(Pages, lambda table: do.with_run(table, 1, first=int(table.runs["first"][0])))
    zero = do.table([(0, 17, Encoding.ZERO)])
    many = do.table([(page, 1, Encoding.ZERO) for page in range(0, 10, 2)])
    fewer = do.alter(Pages, lambda table: replace(table, hashes=table.hashes[:-1]))
    unlike = E.NOT_SELECTED, E.UNSUPPORTED
    return [
        wrong(
            "pages-001 region-unknown: sends pages of no region [PGS-2]",
            do.change(region=99),
            E.OUTSIDE_REGION,
        ),
        wrong(
            "pages-002 outside: sends pages past a region's end [PGS-7]",
            do.run(-1, first=256),
            E.OUTSIDE_REGION,
        ),
        wrong(
            "pages-003 wraps: sends pages past 2^64 [PGS-7]", do.run(-1, first=2**64 - 1), E.OUTSIDE_REGION
        ),
        wrong("pages-004 overlap: sends a page twice in a table [PGS-8]", overlap, E.OVERLAPPING_RUNS),
        wrong("pages-005 run-empty: has a run of no pages [PGS-6]", do.run(0, count=0), E.BAD_VALUE),
        wrong("pages-006 table-empty: has no runs [PGS-4]", do.table([]), E.BAD_VALUE),
        wrong(
            "pages-007 encoding-unknown: encodes as nobody does [FRM-4]", do.run(0, encoding=9), E.BAD_VALUE
        ),
        wrong(
            "pages-008 encoding-reserved: compresses, which was not selected [PGS-9 NEG-7]",
            *(do.run(0, encoding=Encoding.ZSTD), *unlike),
        ),
        wrong(
            "pages-009 size-wrong: has a raw run of the wrong size [PGS-10]",
            do.run(0, size_bytes=1),
            E.BAD_VALUE,
        ),
        wrong(
            "pages-010 reserved-set: sets reserved bits of a run [FRM-3]", do.run(0, reserved=1), E.BAD_VALUE
        ),
        wrong("pages-011 hash-missing: has a hash too few [PGS-12]", fewer, E.COUNT_MISMATCH),
        wrong("pages-012 bulk-short: sends a byte too few [PGS-14]", do.bulk_cut(1), E.MALFORMED),
        wrong(
            "pages-013 zero-unselected: sends zero pages, which were not selected [PGS-9]",
            *(do.table([(0, 2, Encoding.ZERO)]), E.NOT_SELECTED),
            plan={"features": (), "guest": GuestSpec(zero_one_in=0)},
            guest=GuestSpec(zero_one_in=0),
        ),
        wrong(
            "pages-014 too-many-runs: has more runs than were announced [PGS-5 LIM-4]",
            *(many, E.LIMIT_RUNS),
            limits={"batch_runs": 4},
            **_DOS,
        ),
        wrong(
            "pages-015 zero-beyond-bulk: fills more with zeros than a frame may carry [PGS-21]",
            *(zero, E.LIMIT_BULK),
            limits={"bulk_bytes": 1 << 16},
            **_DOS,
        ),
        wrong(
            "pages-016 bulk-too-long: sends a longer bulk part than was announced [HDR-9 LIM-4]",
            *(do.header(bulk_bytes=1 << 17), E.LIMIT_BULK),
            limits={"bulk_bytes": 1 << 16},
            **_DOS,
        ),
        wrong(
            "pages-017 counts-huge: counts more runs than the body can hold [FRM-12]",
            *(do.patch(32 + 12, (1 << 13).to_bytes(4, "little")), E.MALFORMED),
            **_DOS,
        ),
        wrong(
            "pages-018 not-copied: sends pages of shared memory [PGS-3]",
            do.change(region=3),
            E.BAD_VALUE,
            guest=GuestSpec(
                regions=(*GuestSpec().regions, Region(3, 1 << 40, 1 << 16, transfer=Transfer.SHARED))
            ),
        ),
    ]


def _hashes() -> Rows:
    torn = do.wrong_hash(0)
    return [
        row(
            "hash-001 page-hash-running: has a wrong hash while the guest runs, which costs a chunk [CON-35]",
            *(_PAGES, torn),
            plan={"rejected": _FIRST_CHUNK},
            **_LOST,
        ),
        row(
            "hash-002 page-hash-blackout: has a wrong hash while the guest is paused [CON-47 PGS-13]",
            *(Place(F.PAGES, 1), torn, E.PAGE_HASH),
            plan={"rounds": 0},
            **_LOST,
        ),
        row(
            "hash-003 too-many-rejected: has nothing but wrong hashes [RAK-5]",
            *(Place(F.PAGES, 0), do.wrong_hash(), E.TOO_MANY_REJECTED),
            guest=_LARGE,
            **_DOS,
        ),
        row(
            "hash-004 too-many-ranges: has more wrong chunks than a ROUND_ACK to it may list [RAK-5]",
            *(_PAGES, do.wrong_hash(0, 2), E.TOO_MANY_REJECTED),
            guest=GuestSpec(zero_one_in=0),
            manner=Manner(limits=Limits(rejected_runs=1)),
            **_DOS,
        ),
        row(
            "hash-005 rejected-not-resent: does not send again what was rejected [RAK-4 MEM-11 CON-34]",
            *(_PAGES, torn, E.DIGEST_MISMATCH),
            plan={"rejected": _FIRST_CHUNK, "resends": False, "rounds": 1},
            guest=GuestSpec(writes=()),
            **_LOST,
        ),
        row(
            "hash-006 page-never-sent: leaves a page out, and says so in no place [MEM-11]",
            *(None, None, E.DIGEST_MISMATCH),
            plan={"omitted": ((1, 77),)},
            **_LOST,
        ),
    ]
