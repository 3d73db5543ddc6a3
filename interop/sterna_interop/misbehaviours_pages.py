"""What can be wrong with the pages that a source sends: tables, sizes, hashes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from sterna.limits import Limits
from sterna.registry import (
    Encoding,
    Transfer,
)
from sterna.wire import (
    PageRange,
    Pages,
    Region,
)
from sterna_interop import peer_acts as do
from sterna_interop.contract import Role
from sterna_interop.guest import GuestSpec
from sterna_interop.misbehaviours import (
    DOS,
    LARGE,
    LOST,
    E,
    F,
    Misbehaviour,
    Rows,
    misbehaviour,
)
from sterna_interop.peer_steps import Act, Manner, Place

row = partial(misbehaviour, Role.SOURCE)

_PAGES: Final = Place(F.PAGES)
_FIRST_CHUNK: Final = (PageRange(1, 0, 2),)  # of region 1; its third page is zero


def of_pages() -> tuple[Misbehaviour, ...]:
    """All rows."""
    return tuple(each for table in (_tables(), _hashes()) for each in table)


def _tables() -> Rows:
    def wrong(head: str, act: Act, /, *codes: E, **more: object) -> Misbehaviour:
        return row(head, _PAGES, act, *codes, **more)

    # The first batch has 64 pages of region 1, zero ones among them: more than two runs.
    overlap = do.alter(Pages, lambda table: do.with_run(table, 1, first=int(table.runs["first"][0])))
    zero = do.table([(0, 65, Encoding.ZERO)])
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
            "pages-002 outside: sends pages past a region's end [PGS-7 SEC-9]",
            do.run(-1, first=256),
            E.OUTSIDE_REGION,
        ),
        wrong(
            "pages-003 wraps: sends pages past 2^64 [PGS-7 SEC-10]",
            do.run(-1, first=2**64 - 1),
            E.OUTSIDE_REGION,
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
            **DOS,
        ),
        wrong(
            "pages-015 zero-beyond-bulk: fills more with zeros than one frame may [PGS-24]",
            *(zero, E.LIMIT_BULK),
            limits={"bulk_bytes": 1 << 12},
            **DOS,
        ),
        wrong(
            "pages-016 bulk-too-long: sends a longer bulk part than was announced [HDR-9 LIM-4]",
            *(do.header(bulk_bytes=1 << 17), E.LIMIT_BULK),
            limits={"bulk_bytes": 1 << 16},
            **DOS,
        ),
        wrong(
            "pages-017 counts-huge: counts more runs than the body can hold [FRM-12]",
            *(do.patch(32 + 12, (1 << 13).to_bytes(4, "little")), E.MALFORMED),
            **DOS,
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
            **LOST,
        ),
        row(
            "hash-002 page-hash-blackout: has a wrong hash while the guest is paused [CON-47 PGS-13]",
            *(Place(F.PAGES, 1), torn, E.PAGE_HASH),
            plan={"rounds": 0},
            **LOST,
        ),
        row(
            "hash-003 too-many-rejected: has nothing but wrong hashes [RAK-5]",
            *(Place(F.PAGES, 0), do.wrong_hash(), E.TOO_MANY_REJECTED),
            guest=LARGE,
            **DOS,
        ),
        row(
            "hash-004 too-many-ranges: has more wrong chunks than a ROUND_ACK to it may list [RAK-5]",
            *(_PAGES, do.wrong_hash(0, 2), E.TOO_MANY_REJECTED),
            guest=GuestSpec(zero_one_in=0),
            manner=Manner(limits=Limits(rejected_runs=1)),
            **DOS,
        ),
        row(
            "hash-005 rejected-not-resent: does not send again what was rejected [RAK-4 MEM-11 CON-34]",
            *(_PAGES, torn, E.DIGEST_MISMATCH),
            plan={"rejected": _FIRST_CHUNK, "resends": False, "rounds": 1},
            guest=GuestSpec(writes=()),
            **LOST,
        ),
        row(
            "hash-006 page-never-sent: leaves a page out, and says so in no place [MEM-11 MEM-7 MEM-10]",
            *(None, None, E.DIGEST_MISMATCH),
            plan={"omitted": ((1, 77),)},
            **LOST,
        ),
    ]
