"""What can be wrong with pages that travel packed: frames that lie about themselves, and changes of nothing.

An endpoint that does not take packed pages is sent none, and the conversation is the honest one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, TypeAlias

import numpy as np

from sterna.registry import Encoding, Feature
from sterna.testing.zstd_frames import frame, raw_frame, zeros
from sterna.wire import FeatureOffer, PageRange, page_hash
from sterna.wire.records import RUN_DTYPE
from sterna_interop.contract import Role
from sterna_interop.misbehaviours import DOS, LOST, E, Misbehaviour, Rows, misbehaviour
from sterna_interop.peer_image import Batch, chunks_of, leading_run

_EXPANDS: Final = {"expansion": 1 << 17}
row = partial(misbehaviour, Role.SOURCE, limits=_EXPANDS)

WINDOW_LOG2: Final = 20
FEATURES: Final = (
    FeatureOffer(Feature.ENCODING_ZERO),
    FeatureOffer(Feature.ENCODING_ZSTD, parameter=WINDOW_LOG2),
    FeatureOffer(Feature.ENCODING_DELTA, parameter=1 << 20),
)
# What makes the bulk bytes of a run of the bytes of its pages, and of those that were sent before.
Make: TypeAlias = Callable[[bytes, bytes], bytes]

_MOST: Final = (PageRange(1, 0, 40),)  # of the first batch of a second round
_PAGE_LOG2: Final = 12
_BOMB_BYTES: Final = 64 << 20


def of_packed() -> tuple[Misbehaviour, ...]:
    """All rows."""
    return tuple(each for table in (_frames(), _sizes(), _deltas()) for each in table)


def packs(
    make: Make,
    encoding: Encoding = Encoding.ZSTD,
    *,
    round_number: int = 1,
    pages: int | None = None,
    size_bytes: int | None = None,
    wrong_hash: bool = False,
    **plan: object,
) -> dict[str, object]:
    """A plan by which the first run of a round is packed, with the zeros in it.

    Args:
        make: the run's bulk bytes.
        encoding: the run's.
        round_number: which round; there have been no versions before the first.
        pages: that the table counts in it; None for as many as there are.
        size_bytes: that the table says of it; None for what it has.
        wrong_hash: whether the hash of its first chunk is another.
        plan: more of the plan.
    """

    def packed(batch: Batch, older: Callable[[int], bytes]) -> Batch:
        first, count, content, rest = leading_run(batch)
        bulk = make(content, b"".join(older(page) for page in range(first, first + count)))
        stated = len(bulk) if size_bytes is None else size_bytes
        runs = np.zeros(1 + len(rest.table.runs), RUN_DTYPE)
        runs[0] = (first, count if pages is None else pages, stated, encoding, (0,) * 7)
        runs[1:] = rest.table.runs
        counted = content if pages is None else content.ljust(pages << _PAGE_LOG2, b"\0")
        hashes = np.array([page_hash(chunk) for chunk in chunks_of(counted)], "<u8")
        hashes[0] ^= np.uint64(wrong_hash)
        table = replace(batch.table, runs=runs, hashes=np.concatenate([hashes, rest.table.hashes]))
        return Batch(table, bulk + rest.bulk)

    return {"features": FEATURES, "packed": (round_number, packed), **plan}


def change(content: bytes, base: bytes, *, of: bytes | None = None) -> bytes:
    """A `delta` run from these versions to those; `of`: what it says that it is a change of."""
    new, old = (np.frombuffer(each, np.uint8) for each in (content, base))
    stated = base if of is None else of
    head = b"".join(page_hash(chunk).to_bytes(8, "little") for chunk in chunks_of(stated))
    return head + frame((new ^ old).tobytes())


def _size(content: bytes) -> bytes:
    return len(content).to_bytes(4, "little")


def _frames() -> Rows:
    def wrong(head: str, make: Callable[[bytes], bytes], /, *codes: E, **more: object) -> Misbehaviour:
        return row(
            head, None, None, *codes, **{"plan": packs(lambda new, _: make(new)), "optional": True, **more}
        )

    odd, bad = b"\x2a" * 4, E.MALFORMED
    torn = frame(b"a" * 4096, write_checksum=True)[-4:]
    return [
        row("packed-001 zstd: packs pages [PGS-16]", None, None, plan=packs(lambda new, _: frame(new))),
        wrong(
            "packed-002 checksum: packs pages, with a checksum of their content [PGS-16]",
            lambda new: frame(new, write_checksum=True),
            optional=False,
        ),
        wrong(
            "packed-003 checksum-wrong: has a wrong checksum of the content [PGS-16]",
            lambda new: frame(new, write_checksum=True)[:-4] + torn,
            bad,
        ),
        wrong(
            "packed-004 bomb: has a frame of 64 MiB that states the size of its pages [PGS-17 SEC-11]",
            lambda new: zeros(len(new), _BOMB_BYTES),
            *(bad,),
            **DOS,
        ),
        wrong(
            "packed-005 bomb-stated: has a frame of 64 MiB that says so [PGS-16 SEC-11]",
            lambda _: zeros(_BOMB_BYTES, _BOMB_BYTES),
            *(bad,),
            **DOS,
        ),
        wrong(
            "packed-006 size-exabytes: states the largest content that a frame can [PGS-16 SEC-11]",
            lambda new: raw_frame(0xE0, b"\xff" * 8, new[:4096]),
            *(bad,),
            **DOS,
        ),
        wrong(
            "packed-007 short: has a frame with a page less than it states [PGS-17]",
            lambda new: zeros(len(new), len(new) - 4096),
            bad,
        ),
        wrong(
            "packed-008 size-missing: does not state the size of the content [PGS-16]",
            lambda new: frame(new, write_content_size=False),
            bad,
        ),
        wrong(
            "packed-009 two-frames: has two frames in a run [PGS-16]",
            lambda new: zeros(len(new), len(new)) * 2,
            bad,
        ),
        wrong(
            "packed-010 in-halves: has the content in two frames [PGS-16]",
            lambda new: frame(new[: len(new) // 2]) + frame(new[len(new) // 2 :]),
            bad,
        ),
        wrong(
            "packed-011 trailing: has a byte behind the frame [PGS-16]", lambda new: frame(new) + odd[:1], bad
        ),
        wrong("packed-012 torn: has a frame without its end [PGS-17]", lambda new: frame(new)[:-2], bad),
        wrong(
            "packed-013 skippable: has a skippable frame [PGS-16]",
            lambda _: b"\x50\x2a\x4d\x18" + (40).to_bytes(4, "little") + bytes(40),
            bad,
        ),
        wrong("packed-014 no-frame: packs as nobody does [PGS-16]", lambda _: odd * 16, bad),
        wrong(
            "packed-015 window: looks back farther than was agreed on [PGS-16]",
            lambda new: raw_frame(0x80, bytes([(31 - 10) << 3]) + _size(new), new[:4096]),
            *(bad,),
            **DOS,
        ),
        wrong(
            "packed-016 dictionary: needs a dictionary [PGS-16]",
            lambda new: raw_frame(0xA1, b"\x07" + _size(new), new[:4096]),
            bad,
        ),
    ]


def _sizes() -> Rows:
    def wrong(head: str, plan: dict[str, object], /, *codes: E, **more: object) -> Misbehaviour:
        return row(head, None, None, *codes, plan=plan, **{"optional": True, **more})

    def packed(new: bytes, _: bytes) -> bytes:
        return frame(new)

    first = (PageRange(1, 0, 16),)
    return [
        wrong(
            "packed-017 expansion: expands more than was announced [PGS-18]",
            packs(lambda new, _: zeros(len(new), len(new))),
            *(E.LIMIT_EXPANSION,),
            limits={"expansion": 4},
            **DOS,
        ),
        wrong(
            "packed-018 pages-beyond-bulk: has more pages in a frame than may be in one [PGS-21]",
            packs(lambda _, __: zeros(1 << 18, 1 << 18), pages=64),
            *(E.LIMIT_BULK,),
            limits={"bulk_bytes": 1 << 16, **_EXPANDS},
            **DOS,
        ),
        wrong(
            "packed-019 size-zero: says that it is nothing [PGS-11]", packs(packed, size_bytes=0), E.BAD_VALUE
        ),
        wrong(
            "packed-020 size-large: says that it is more than its pages [PGS-11]",
            packs(packed, size_bytes=(1 << 19) + 1),
            E.BAD_VALUE,
        ),
        wrong(
            "packed-021 hash-running: has a wrong hash of packed pages while the guest runs [CON-35]",
            packs(packed, wrong_hash=True, rejected=first),
            **LOST,
        ),
        wrong(
            "packed-022 hash-blackout: has a wrong hash of packed pages in the pause [CON-47 PGS-13]",
            packs(packed, wrong_hash=True, rounds=0),
            *(E.PAGE_HASH,),
            **LOST,
        ),
        row(
            "packed-023 unselected: packs though it has not offered to [PGS-9 NEG-7]",
            *(None, None, E.NOT_SELECTED, E.UNSUPPORTED),
            plan=packs(packed, unasked=True) | {"features": FEATURES[:1]},
        ),
    ]


def _deltas() -> Rows:
    def wrong(head: str, make: Make, /, *codes: E, **more: object) -> Misbehaviour:
        plan = packs(make, Encoding.DELTA, round_number=2)
        return row(head, None, None, *codes, **{"plan": plan, "optional": True, **more})

    def never_sent(new: bytes, old: bytes) -> bytes:
        return change(new, old, of=b"\x01" * len(old))

    bad = E.MALFORMED
    return [
        row(
            "packed-024 delta: sends changes of what it has sent [PGS-19]",
            *(None, None),
            plan=packs(change, Encoding.DELTA, round_number=2),
        ),
        wrong(
            "packed-025 delta-baseless: sends changes of what it never sent, which are rejected [PGS-20]",
            never_sent,
            plan=packs(never_sent, Encoding.DELTA, round_number=2, rejected=_MOST, rejected_round=2),
            optional=False,
            **LOST,
        ),
        wrong(
            "packed-026 delta-newer: sends changes of what comes by them, which are rejected [PGS-20]",
            lambda new, old: change(new, old, of=new),
            plan=packs(
                lambda new, old: change(new, old, of=new),
                *(Encoding.DELTA,),
                round_number=2,
                rejected=_MOST,
                rejected_round=2,
            ),
            optional=False,
            **LOST,
        ),
        wrong(
            "packed-027 delta-blackout: sends changes of what it never sent, in the pause [CON-47]",
            never_sent,
            E.PAGE_HASH,
            plan=packs(never_sent, Encoding.DELTA, round_number=2, rounds=1),
            **LOST,
        ),
        wrong(
            "packed-028 delta-wrong: sends changes that do not come to what their hash says [PGS-13 CON-47]",
            lambda new, old: change(new[4096:] + new[:4096], old),
            E.PAGE_HASH,
            plan=packs(
                lambda new, old: change(new[4096:] + new[:4096], old),
                *(Encoding.DELTA,),
                round_number=2,
                rounds=1,
            ),
            **LOST,
        ),
        wrong(
            "packed-029 delta-bare: has hashes of a base, and no change [PGS-19]",
            lambda new, old: change(new, old)[: 8 * len(list(chunks_of(old)))],
            bad,
        ),
        wrong(
            "packed-030 delta-cut: has a hash less than chunks [PGS-19]", lambda n, o: change(n, o)[8:], bad
        ),
        wrong(
            "packed-031 delta-bomb: has a change of 64 MiB that states the size of its pages [PGS-17 SEC-11]",
            lambda new, old: change(new, old)[: 8 * len(list(chunks_of(old)))] + zeros(len(new), _BOMB_BYTES),
            *(bad,),
            **DOS,
        ),
    ]
