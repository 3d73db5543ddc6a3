"""Lengths and counts at 0, at their limit, one above it, and as large as their field can say.

Attacked is every length of the frame header for every type of frame, every count of every body, and every
number that is added to or multiplied by another before it is used: it wraps in a parser that computes first
and compares afterwards.

Published bugs of this class, all in QEMU's migration stream: CVE-2013-4150, CVE-2013-4151, CVE-2013-4527,
CVE-2013-4534, CVE-2013-4535, CVE-2013-4536, CVE-2013-6399 and CVE-2015-8666 (a count above the array that it
is for), CVE-2013-4148 and CVE-2013-4149 (a count converted, or multiplied into another), CVE-2013-4531,
CVE-2013-4541 and CVE-2014-3461 (negative lengths), CVE-2014-0182 (a length that differs from the announced
one), and CVE-2014-7840 (offset plus length beyond the region: an arbitrary write).

[HDR-7] [HDR-8] [HDR-9] [LIM-4] [LIM-5] [FRM-1] [FRM-2] [FRM-12] [GST-7] [GST-9] [PGS-7] [STA-2] [FRM-17]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from withstand_fields import Leaf, leaves
from withstand_judge import judge, judge_accepted, judge_any
from withstand_support import LIMITS, SAMPLES, Victim, at_home, receivers, sample, sample_bulk

from sterna.core.tables import DestinationState, SourceState
from sterna.limits import CPU_FEATURES, DISKS, FEATURES, HANDSHAKE_BODY_BYTES, NICS, REFUSE_ITEMS, STREAMS_MAX
from sterna.limits import LIMITS as LIMIT_ROWS
from sterna.limits import VERSIONS as VERSION_ROWS
from sterna.registry import Encoding, ErrorCode, FrameType, StateKind
from sterna.wire import decode_body, make_runs
from sterna.wire import records as r
from sterna.wire.header import VERSION

F, C = FrameType, ErrorCode
U32, U64 = (1 << 32) - 1, (1 << 64) - 1

TARGETS = [(role, frame) for frame in FrameType for role in receivers(frame)]
targets = pytest.mark.parametrize(
    ("role", "frame"), TARGETS, ids=[f"{frame.name}-to-{role}" for role, frame in TARGETS]
)


def greeted(role: str, frame: FrameType) -> bool:
    """Whether limits have been announced when this frame is due."""
    first = {F.HELLO, F.WELCOME, F.REFUSE, F.VERDICT}
    return frame not in first and (role, frame) != ("destination", F.ATTACH)


# ---- the header's lengths ----


@targets
@pytest.mark.parametrize("excess", ["limit+1", "2**31", "2**32-1"])
def test_a_body_above_the_limit(role: str, frame: FrameType, excess: str) -> None:
    """[HDR-7] [LIM-5] From the header alone: the peer need not send a byte of it."""
    length = {"limit+1": HANDSHAKE_BODY_BYTES + 1, "2**31": 1 << 31, "2**32-1": U32}[excess]
    victim = at_home(role, frame)
    victim.attack(victim.frame(frame, body_bytes=length))
    judge(victim, C.LIMIT_CONTROL, clause="HDR-7" if greeted(role, frame) else "LIM-5")


@targets
def test_a_body_that_never_comes(role: str, frame: FrameType) -> None:
    """[CON-74] [CON-75] A length at the limit is legal, and held for as long as a deadline allows."""
    victim = at_home(role, frame)
    victim.attack(victim.frame(frame, body_bytes=HANDSHAKE_BODY_BYTES))
    assert victim.machine.result is None
    victim.starve()
    judge(victim, C.PHASE_DEADLINE, C.PEER_SILENT)


@targets
def test_a_body_without_bytes(role: str, frame: FrameType) -> None:
    """[FRM-1] Only BYE has none."""
    victim = at_home(role, frame)
    victim.attack(victim.frame(frame))
    if frame is F.BYE:
        judge_any(victim)
    else:
        judge(victim, C.MALFORMED, clause="FRM-1")


@targets
def test_a_body_one_byte_short_and_one_too_long(role: str, frame: FrameType) -> None:
    """[FRM-1] [FRM-2] [FRM-12] Both with the right checksums."""
    body = sample(frame)
    if body:
        short = at_home(role, frame)
        short.attack(short.frame(frame, body[:-1], sample_bulk(frame)))
        judge(short, C.MALFORMED)
    long = at_home(role, frame)
    long.attack(long.frame(frame, body + b"\0", sample_bulk(frame)))
    judge(long, C.TRAILING_BYTES, clause="FRM-2")


BULK = {"1": 1, "limit": LIMITS.bulk_bytes, "limit+1": LIMITS.bulk_bytes + 1, "2**32-1": U32}


@targets
@pytest.mark.parametrize("length", BULK)
def test_a_bulk_part_of_any_length(role: str, frame: FrameType, length: str) -> None:
    """[HDR-8] [HDR-9] [PGS-14] No type but PAGES has one, and there it is the table's."""
    victim = at_home(role, frame)
    victim.attack(victim.frame(frame, sample(frame), bulk_bytes=BULK[length]))
    if frame is not F.PAGES:
        judge(victim, C.BAD_HEADER, clause="HDR-8")
    elif BULK[length] > LIMITS.bulk_bytes:
        judge(victim, C.LIMIT_BULK, clause="HDR-9")
    else:
        judge(victim, C.MALFORMED, clause="PGS-14")


@pytest.mark.parametrize("role", ["source", "destination"])
@pytest.mark.parametrize("critical", [False, True])
@pytest.mark.parametrize("length", [0, 1, HANDSHAKE_BODY_BYTES, HANDSHAKE_BODY_BYTES + 1, U32])
def test_a_frame_that_nobody_knows(role: str, critical: bool, length: int) -> None:
    """[FRM-6] [FRM-7] [HDR-7] Skipped or not, its lengths are held to the same limits."""
    state = SourceState.ACKING if role == "source" else DestinationState.RECEIVING
    victim = Victim(role).until(state)
    kind = 0x8FFF if critical else 0x0FFF
    body = bytes(length if length <= HANDSHAKE_BODY_BYTES else 0)
    victim.attack(victim.frame(kind, body, body_bytes=length))
    if critical:
        judge(victim, C.UNKNOWN_CRITICAL, clause="FRM-6")
    elif length > HANDSHAKE_BODY_BYTES:
        judge(victim, C.LIMIT_CONTROL, clause="HDR-7")
    else:
        judge_accepted(victim)


# ---- the counts of bodies ----


@dataclass(frozen=True, slots=True)
class Counted:
    """What the specification says about a count.

    Attributes:
        fill: a record with so many items that break no rule of their own.
        limit: the most; None if only the body's length bounds it.
        over: code and clause above the limit.
        empty: code and clause at 0; None if a list may be empty.
    """

    fill: Callable[[int], r.Record]
    limit: int | None = None
    over: tuple[ErrorCode, str] = (C.MALFORMED, "FRM-12")
    empty: tuple[ErrorCode, str] | None = None


def like(frame: FrameType, **changes: object) -> r.Record:
    """The sample of a frame, with changes."""
    return replace(SAMPLES.get(frame) or decode_body(frame, sample(frame)), **changes)


def pages(runs: int, hashes: int = 0) -> r.Pages:
    """A table of so many zero pages."""
    table = make_runs([(n, 1, Encoding.ZERO) for n in range(runs)], 12)
    return r.Pages(1, 1, 0, table, np.zeros(hashes, "<u8"))


def rows(count: int) -> tuple[tuple[int, int], ...]:
    return tuple((stream, 1) for stream in range(count))


COUNTS: dict[tuple[FrameType, str], Counted] = {
    (F.HELLO, "version_count"): Counted(
        lambda n: like(F.HELLO, versions=(VERSION, *range(99, 98 + n))[:n]),
        VERSION_ROWS,
        (C.BAD_VALUE, "HEL-2"),
        (C.BAD_VALUE, "HEL-2"),
    ),
    (F.HELLO, "feature_count"): Counted(
        lambda n: like(F.HELLO, features=tuple(r.FeatureOffer(0x4000 + k) for k in range(n))),
        FEATURES,
        (C.BAD_VALUE, "HEL-3"),
    ),
    (F.HELLO, "limit_count"): Counted(
        lambda n: like(F.HELLO, limits={0x4000 + k: 1 for k in range(n)}), LIMIT_ROWS, (C.BAD_VALUE, "HEL-4")
    ),
    (F.WELCOME, "feature_count"): Counted(
        lambda n: like(F.WELCOME, features=tuple(r.FeatureChoice(0x4000 + k) for k in range(n))),
        FEATURES,
        (C.BAD_VALUE, "WEL-1"),
    ),
    (F.WELCOME, "limit_count"): Counted(
        lambda n: like(F.WELCOME, limits={0x4000 + k: 1 for k in range(n)}),
        LIMIT_ROWS,
        (C.BAD_VALUE, "WEL-2"),
    ),
    (F.REFUSE, "item_count"): Counted(
        lambda n: like(F.REFUSE, items=("x",) * n), REFUSE_ITEMS, (C.BAD_VALUE, "REF-1")
    ),
    (F.GUEST, "region_count"): Counted(
        lambda n: like(F.GUEST, regions=tuple(r.Region(k, k << 13, 4096) for k in range(n))),
        LIMITS.regions,
        (C.LIMIT_REGIONS, "GST-2"),
        (C.BAD_REGION, "GST-1"),
    ),
    (F.GUEST, "cpu_feature_count"): Counted(
        lambda n: like(F.GUEST, cpu_features=tuple(map(str, range(n)))), CPU_FEATURES, (C.BAD_VALUE, "GST-11")
    ),
    (F.GUEST, "nic_count"): Counted(
        lambda n: like(F.GUEST, nics=tuple(r.Nic(str(k), bytes(6)) for k in range(n))),
        NICS,
        (C.BAD_VALUE, "GST-11"),
    ),
    (F.GUEST, "disk_count"): Counted(
        lambda n: like(F.GUEST, disks=tuple(r.Disk(str(k), "", 1) for k in range(n))),
        DISKS,
        (C.BAD_VALUE, "GST-11"),
    ),
    (F.ROUND_END, "stream_count"): Counted(
        lambda n: like(F.ROUND_END, last_sequences=rows(n)), STREAMS_MAX + 1, (C.BAD_VALUE, "RND-2")
    ),
    (F.SEAL, "stream_count"): Counted(
        lambda n: like(F.SEAL, last_sequences=rows(n)), STREAMS_MAX + 1, (C.BAD_VALUE, "SEA-2")
    ),
    (F.ROUND_ACK, "rejected_count"): Counted(
        lambda n: like(F.ROUND_ACK, rejected=tuple(r.PageRange(0, k, 1) for k in range(n))),
        LIMITS.rejected_runs,
        (C.LIMIT_REJECTED, "RAK-2"),
    ),
    (F.PAGES, "run_count"): Counted(
        pages, LIMITS.batch_runs, (C.LIMIT_RUNS, "PGS-5"), (C.BAD_VALUE, "PGS-4")
    ),
    (F.PAGES, "hash_count"): Counted(lambda n: pages(1, n)),
    (F.HELD, "data_bytes"): Counted(lambda n: like(F.HELD, data=bytes(n))),
    (F.DIRTY_BITMAP, "data_bytes"): Counted(lambda n: like(F.DIRTY_BITMAP, data=bytes(n))),
    (F.STATE, "data_bytes"): Counted(lambda n: r.State(1, 0, r.NO_VCPU, 2, 1, 0, 9999, 0, False, bytes(n))),
}

_COUNT_LEAVES = [
    (role, frame, leaf) for role, frame in TARGETS for leaf in leaves(frame) if leaf.kind == "count"
]
counts = pytest.mark.parametrize(
    ("role", "frame", "leaf"),
    _COUNT_LEAVES,
    ids=[f"{frame.name}.{leaf.name}" for _, frame, leaf in _COUNT_LEAVES],
)


def test_every_count_of_the_schema_is_attacked() -> None:
    assert {(frame, leaf.name) for _, frame, leaf in _COUNT_LEAVES} == set(COUNTS)


def stated(leaf: Leaf, body: bytes, count: int) -> bytes:
    """A body in which a count is another one, and nothing else."""
    return body[: leaf.offset] + count.to_bytes(leaf.size, "little") + body[leaf.offset + leaf.size :]


@counts
def test_a_count_as_large_as_its_field(role: str, frame: FrameType, leaf: Leaf) -> None:
    """[FRM-12] Of a short body. It is held to its bound where it stands, or else to the rest of the body."""
    for count in (1 << 8 * leaf.size) - 1, 1 << 8 * leaf.size - 1:
        victim = at_home(role, frame)
        body = stated(leaf, sample(frame), count)
        victim.attack(victim.frame(frame, body, sample_bulk(frame)))
        code, clause = COUNTS[frame, leaf.name].over
        judge(victim, code, clause=clause)
        assert victim.growth_bytes < 128 * 1024, "something was made for the items"


_BOUNDED = [one for one in _COUNT_LEAVES if COUNTS[one[1], one[2].name].limit is not None]


@pytest.mark.parametrize(
    ("role", "frame", "leaf"), _BOUNDED, ids=[f"{frame.name}.{leaf.name}" for _, frame, leaf in _BOUNDED]
)
def test_a_count_at_its_limit_and_above(role: str, frame: FrameType, leaf: Leaf) -> None:
    """With as many items as stated, each of them good."""
    counted = COUNTS[frame, leaf.name]
    assert counted.limit is not None
    for count, legal in (counted.limit, True), (counted.limit + 1, False):
        victim = at_home(role, frame)
        victim.attack(victim.record(counted.fill(count)))
        if not legal:
            judge(victim, counted.over[0], clause=counted.over[1])
        elif (result := judge_any(victim)) is not None:
            assert getattr(result.error, "clause", "") != counted.over[1], f"{result.error}"


@counts
def test_a_count_of_nothing(role: str, frame: FrameType, leaf: Leaf) -> None:
    """Without items, and with items behind it that nobody counts [FRM-2]."""
    counted = COUNTS[frame, leaf.name]
    victim = at_home(role, frame)
    victim.attack(victim.record(counted.fill(0)))
    if counted.empty is None:
        judge_any(victim)
    else:
        judge(victim, counted.empty[0], clause=counted.empty[1])
    victim = at_home(role, frame)
    body = stated(leaf, sample(frame), 0)
    victim.attack(victim.frame(frame, body, sample_bulk(frame)))
    judge(victim)


# ---- every other number ----

_NUMBERS = [
    (role, frame, leaf)
    for role, frame in TARGETS
    for leaf in leaves(frame)
    if leaf.kind == "integer" and leaf.path == leaf.path.replace(".1", ".0").replace(".2", ".0")
]


@pytest.mark.parametrize(
    ("role", "frame", "leaf"),
    _NUMBERS,
    ids=[f"{frame.name}.{leaf.name}-to-{role}" for role, frame, leaf in _NUMBERS],
)
def test_a_number_at_the_ends_of_its_field(role: str, frame: FrameType, leaf: Leaf) -> None:
    """0, 1, the largest signed one and its neighbour, and the largest: refused with a code, or harmless."""
    bits = 8 * leaf.size
    for value in 0, 1, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 2, (1 << bits) - 1:
        victim = at_home(role, frame)
        body = stated(leaf, sample(frame), value)
        victim.attack(victim.frame(frame, body, sample_bulk(frame)))
        judge_any(victim)


# ---- sums and products that wrap ----


def region(number: int, address: int, size_bytes: int) -> r.Region:
    return r.Region(number, address, size_bytes)


def guest(*regions: r.Region) -> r.Record:
    return like(F.GUEST, regions=regions)


def ack(first: int, count: int) -> r.Record:
    return r.RoundAck(1, 1, 3, 0, (r.PageRange(0, first, count),))


def zeros(first: int, count: int, size_bytes: int = 0) -> r.Record:
    runs = make_runs([(first, count, Encoding.ZERO)], 12)
    runs["size_bytes"] = size_bytes
    return r.Pages(1, 1, 0, runs, np.zeros(0, "<u8"))


def fragment(offset: int, data: bytes, total: int = 200) -> r.Record:
    return r.State(1, 0, r.NO_VCPU, StateKind.WORKLOAD, 1, 0, total, offset, False, data)


TOP = 1 << 64
WRAPS = {
    "a region ends where addresses end": (guest(region(0, TOP - 4096, 4096)), None, ""),
    "a region ends a page behind": (guest(region(0, TOP - 4096, 8192)), C.BAD_REGION, "GST-7"),
    "address and size add up to nothing": (guest(region(0, 4096, TOP - 4096)), C.LIMIT_MEMORY, "GST-9"),
    "address and size wrap": (guest(region(0, TOP - 4096, TOP - 4096)), C.BAD_REGION, "GST-7"),
    "sizes add up to nothing": (
        guest(*(region(k, k << 62, (1 << 62) - 4096 * (k == 3)) for k in range(4))), C.LIMIT_MEMORY, "GST-9",
    ),
    "sizes add up to a little": (
        guest(*(region(k, k << 62, 1 << 62) for k in range(4))), C.LIMIT_MEMORY, "GST-9",
    ),
    "pages from the last number": (zeros(U64, 1), C.OUTSIDE_REGION, "PGS-7"),
    "pages that wrap to the first": (zeros(U64, 2), C.OUTSIDE_REGION, "PGS-7"),
    "pages that wrap to the region's last": (zeros(TOP - 1, 4), C.OUTSIDE_REGION, "PGS-7"),
    "as many pages as can be said": (zeros(0, U32), C.OUTSIDE_REGION, "PGS-7"),
    "as many from the last": (zeros(2, U32), C.OUTSIDE_REGION, "PGS-7"),
    "pages that wrap with their bytes": (zeros(1 << 52, 1), C.OUTSIDE_REGION, "PGS-7"),
    "zero pages with bytes": (zeros(0, 1, 4096), C.BAD_VALUE, "PGS-11"),
    "rejected: from the last number": (ack(U64, 1), C.BAD_VALUE, "FRM-17"),
    "rejected: wraps to the first": (ack(U64, 2), C.BAD_VALUE, "FRM-17"),
    "rejected: as many as can be said": (ack(1, U64), C.BAD_VALUE, "FRM-17"),
    "rejected: bytes beyond all addresses": (ack(1 << 52, 1), C.BAD_VALUE, "FRM-17"),
    "rejected: the address space's last page": (ack((1 << 52) - 1, 1), C.OUTSIDE_REGION, "FRM-18"),
    "asked for: wraps": (r.PageRequest(0, U64, 2), C.BAD_VALUE, "FRM-17"),
    "asked for: as many as can be said": (r.PageRequest(0, 1, U64), C.BAD_VALUE, "FRM-17"),
    "state: offset and length wrap": (fragment(U64, b"ab"), C.BAD_FRAGMENT, "STA-2"),
    "state: offset and length wrap to nothing": (fragment(TOP - 2, b"ab"), C.BAD_FRAGMENT, "STA-2"),
    "state: one byte behind the end": (fragment(199, b"ab"), C.BAD_FRAGMENT, "STA-2"),
    "state: as much as can be said": (fragment(0, b"ab", U64), C.LIMIT_STATE, "STA-1"),
    "state: one byte above the limit": (fragment(0, b"ab", LIMITS.state_bytes + 1), C.LIMIT_STATE, "STA-1"),
    "state: at the limit, more than GUEST": (fragment(0, b"ab", LIMITS.state_bytes), C.LIMIT_STATE, "STA-1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPS)
def test_a_sum_that_wraps(name: str) -> None:
    """Compared as if numbers had no width, whatever the width of their fields [GST-7] [PGS-7] [STA-2]."""
    record, code, clause = WRAPS[name]
    frame = record.type
    (role,) = receivers(frame)
    victim = at_home(role, frame)
    victim.attack(victim.record(record))
    if code is None:
        judge_accepted(victim)
    else:
        judge(victim, code, clause=clause)


def test_more_state_than_announced_in_many_sections() -> None:
    """[STA-1] [STA-7] Each of them is small; what counts is their sum, and their number."""
    victim = Victim("destination").until(DestinationState.FROZEN, F.STATE)
    for instance in range(LIMITS.state_sections + 1):
        victim.attack(victim.record(r.State(1, 0, r.NO_VCPU, 2, 1, instance, 0, 0, True, b"")))
    judge(victim, C.LIMIT_STATE, clause="STA-7")
    victim = Victim("destination").until(DestinationState.FROZEN, F.STATE)
    for instance in range(LIMITS.state_sections):
        victim.attack(victim.record(r.State(1, 0, r.NO_VCPU, 2, 1, instance, 100, 0, True, bytes(100))))
        if victim.machine.result is not None:
            break
    judge(victim, C.LIMIT_STATE, clause="STA-1")


def test_seal_states_what_can_be_stated() -> None:
    """[SEA-3]"""
    for sections, state_bytes in (0, 0), (U32, U64), (1, U64), (U32, 120):
        victim = Victim("destination").until(DestinationState.FROZEN, F.SEAL)
        seal = like(F.SEAL, state_sections=sections, state_bytes=state_bytes)
        victim.attack(victim.record(seal))
        judge(victim, C.COUNT_MISMATCH, clause="SEA-3")
