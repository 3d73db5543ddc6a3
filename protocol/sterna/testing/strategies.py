"""Hypothesis strategies for everything that goes over the wire. Needs the extra `fuzz`.

`records()` gives valid records of every type; all of them obey the rules under `BOUNDS`. The strategies of
single records are public too, named as the records are::

    @given(strategies.records())
    def test_my_codec(record): ...
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Final

import numpy as np
from hypothesis import strategies as st

from sterna.limits import GRANULE_MAX_LOG2, GRANULE_MIN_LOG2, STREAMS_MAX, Limits
from sterna.registry import (
    CRITICAL_BIT,
    GREASE_FIRST,
    GREASE_LAST,
    BitmapEncoding,
    Checksum,
    Encoding,
    FrameType,
    Mode,
    Owner,
    Phase,
    RegionKind,
    Style,
    Transfer,
)
from sterna.wire import records as r
from sterna.wire.header import VERSION
from sterna.wire.pages import chunk_count, make_runs
from sterna.wire.rules import FAULT_GRANULE_MAX_LOG2, U64_MAX, Bounds
from sterna.wire.writing import GREASE_BODY_BYTES

# The region that pages, ranges and bitmaps of the strategies lie in.
REGION: Final = r.Region(7, 1 << 32, 1 << 36, 13)
BOUNDS: Final = Bounds(regions={REGION.id: REGION})
_LIMITS: Final = Limits()

# --- fields -------------------------------------------------------------------------------------


def u16() -> st.SearchStrategy[int]:
    """Any number of 16 bits."""
    return st.integers(0, 0xFFFF)


def u32() -> st.SearchStrategy[int]:
    """Any number of 32 bits."""
    return st.integers(0, 0xFFFFFFFF)


def u64() -> st.SearchStrategy[int]:
    """Any number of 64 bits."""
    return st.integers(0, U64_MAX)


def ids() -> st.SearchStrategy[bytes]:
    """16 bytes."""
    return st.binary(min_size=16, max_size=16)


def tokens() -> st.SearchStrategy[bytes]:
    """32 bytes."""
    return st.binary(min_size=32, max_size=32)


def texts() -> st.SearchStrategy[str]:
    """What a text field may hold [TXT-1 to TXT-4]."""
    alphabet = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))
    return st.text(alphabet, max_size=63) | st.just("x" * 255)


def runners() -> st.SearchStrategy[r.Runner]:
    """Any runner."""
    return st.builds(r.Runner, texts(), ids())


def limits() -> st.SearchStrategy[dict[int, int]]:
    """Limits as HELLO and WELCOME state them: known and unknown ids."""
    return st.dictionaries(u16(), u64(), max_size=12) | st.just(Limits().to_wire())


def last_sequences() -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    """Rows of ROUND_END and SEAL."""
    rows = st.dictionaries(st.integers(0, STREAMS_MAX), u64())
    return rows.map(lambda found: tuple(sorted(found.items())))


@st.composite
def regions(draw: st.DrawFn, most: int = 5) -> tuple[r.Region, ...]:
    """A region table that obeys GST-1 to GST-9, in any order."""
    table: list[r.Region] = []
    end = 0
    for number in draw(st.lists(u32(), min_size=1, max_size=most, unique=True)):
        granule_log2 = draw(st.integers(GRANULE_MIN_LOG2, GRANULE_MAX_LOG2))
        pages = draw(st.integers(1, 1 << 20))
        gap = draw(st.integers(0, 1 << 20))
        address = ((end + (1 << granule_log2) - 1 >> granule_log2) + gap) << granule_log2
        fault = draw(st.integers(GRANULE_MIN_LOG2, FAULT_GRANULE_MAX_LOG2))
        kind, transfer = draw(st.sampled_from(RegionKind)), draw(st.sampled_from(Transfer))
        table.append(r.Region(number, address, pages << granule_log2, granule_log2, fault, kind, transfer))
        end = address + table[-1].size_bytes
    return tuple(draw(st.permutations(table)))


@st.composite
def ranges(draw: st.DrawFn, pages: int = REGION.pages, most: int = 8) -> list[tuple[int, int]]:
    """Ascending, disjoint (first, count) inside of so many pages; neighbours may touch."""
    marks = sorted(draw(st.sets(st.integers(0, pages), min_size=2, max_size=2 * most)))
    found = [(first, end - first) for first, end in pairwise(marks)]
    kept = draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found)))
    return [run for run, keep in zip(found, kept, strict=True) if keep] or found[:1]


# --- handshake and description ------------------------------------------------------------------


@st.composite
def hellos(draw: st.DrawFn) -> r.Hello:
    """Any HELLO; epoch, session, token and generation fit its mode."""
    mode = draw(st.sampled_from(Mode))
    offers = st.lists(
        st.builds(r.FeatureOffer, u16(), st.booleans(), u64()), max_size=8, unique_by=lambda offer: offer.id
    )
    opening = mode in {Mode.OPEN, Mode.STORED}
    return r.Hello(
        mode=mode,
        versions=tuple(draw(st.lists(st.just(VERSION) | u32(), min_size=1, max_size=16, unique=True))),
        features=tuple(draw(offers)),
        limits=draw(limits()),
        guest=draw(ids()),
        epoch=draw(st.integers(0, U64_MAX - 2) if mode is Mode.OPEN else u64()),
        runner=draw(runners()),
        agent=draw(texts()),
        session=r.NO_ID if opening else draw(ids().filter(any)),
        token=r.NO_TOKEN if opening else draw(tokens()),
        generation=0 if opening else draw(u32()),
    )


def welcomes() -> st.SearchStrategy[r.Welcome]:
    """Any WELCOME."""
    choices = st.lists(
        st.builds(r.FeatureChoice, u16(), u64()), max_size=8, unique_by=lambda choice: choice.id
    ).map(tuple)
    return st.builds(r.Welcome, u32(), ids(), tokens(), choices, limits(), texts(), u32(), u32(), u32())


def refuses() -> st.SearchStrategy[r.Refuse]:
    """Any REFUSE."""
    return st.builds(r.Refuse, u16(), u32(), st.lists(texts(), max_size=5).map(tuple), texts())


def guests() -> st.SearchStrategy[r.Guest]:
    """Any GUEST."""
    nics = st.lists(
        st.builds(r.Nic, texts(), st.binary(min_size=6, max_size=6)), max_size=3, unique_by=lambda n: n.name
    )
    disks = st.lists(st.builds(r.Disk, texts(), texts(), u64()), max_size=3, unique_by=lambda d: d.name)
    return st.builds(
        r.Guest,
        name=texts(),
        architecture=u16(),
        vcpus=u32(),
        state_bytes=st.integers(0, _LIMITS.state_bytes),
        regions=regions(),
        cpu_features=st.lists(texts(), max_size=5, unique=True).map(tuple),
        nics=nics.map(tuple),
        disks=disks.map(tuple),
    )


def accepts() -> st.SearchStrategy[r.Accept]:
    """Any ACCEPT."""
    return st.builds(r.Accept, u64(), st.integers(0, STREAMS_MAX))


def attaches() -> st.SearchStrategy[r.Attach]:
    """Any ATTACH."""
    return st.builds(r.Attach, ids(), tokens(), st.integers(0, STREAMS_MAX - 1), u32())


def attacheds() -> st.SearchStrategy[r.Attached]:
    """Any ATTACHED."""
    return st.builds(r.Attached, st.integers(0, STREAMS_MAX - 1), u32(), u64())


# --- rounds -------------------------------------------------------------------------------------


def rounds() -> st.SearchStrategy[r.Round]:
    """Any ROUND."""
    return st.builds(r.Round, u32(), st.integers(1, 0xFFFFFFFF), u64())


@st.composite
def pages(draw: st.DrawFn, region: r.Region = REGION, most: int = 24) -> r.Pages:
    """A page table of raw and zero runs for `region`; raw runs are short, so that bulk parts are small."""
    runs: list[tuple[int, int, Encoding]] = []
    first, room = 0, _LIMITS.bulk_bytes >> region.granule_log2
    for _ in range(draw(st.integers(1, most))):
        encoding = draw(st.sampled_from((Encoding.RAW, Encoding.ZERO)))
        first += draw(st.integers(0, 1 << 10))
        count = min(draw(st.integers(1, 24 if encoding is Encoding.RAW else 1 << 12)), room)
        if not count or first + count > region.pages:
            break
        runs.append((first, count, encoding))
        first, room = first + count, room - count
    table = make_runs(runs or [(0, 1, Encoding.ZERO)], region.granule_log2)
    seed = draw(u32())
    hashes = np.random.default_rng(seed).integers(
        0, U64_MAX, chunk_count(table, region.granule_log2), np.uint64, endpoint=True
    )
    return r.Pages(draw(u32()), draw(u32()), region.id, table, hashes)


def round_ends() -> st.SearchStrategy[r.RoundEnd]:
    """Any ROUND_END."""
    return st.builds(r.RoundEnd, u32(), st.integers(1, 0xFFFFFFFF), u64(), u64(), last_sequences())


def round_acks() -> st.SearchStrategy[r.RoundAck]:
    """Any ROUND_ACK of REGION."""
    rejected = (st.just([]) | ranges()).map(
        lambda found: tuple(r.PageRange(REGION.id, first, count) for first, count in found)
    )
    return st.builds(r.RoundAck, u32(), st.integers(1, 0xFFFFFFFF), u64(), u64(), rejected)


# --- switchover and state -----------------------------------------------------------------------


def switchovers() -> st.SearchStrategy[r.Switchover]:
    """Any SWITCHOVER."""
    return st.builds(r.Switchover, u32(), st.sampled_from(Style), u64())


def readies() -> st.SearchStrategy[r.Ready]:
    """Any READY."""
    return st.builds(r.Ready, u32())


def not_readies() -> st.SearchStrategy[r.NotReady]:
    """Any NOT_READY."""
    return st.builds(r.NotReady, u32(), u16(), texts())


@st.composite
def _bitmaps(draw: st.DrawFn) -> tuple[int, int, BitmapEncoding, bytes]:
    """First page, bits, encoding and data inside of REGION."""
    bits = draw(st.integers(1, 700))
    first = draw(st.integers(0, REGION.pages - bits))
    encoding = draw(st.sampled_from(BitmapEncoding))
    if encoding is BitmapEncoding.PLAIN:
        size = (bits + 7) // 8
        return first, bits, encoding, draw(st.integers(0, (1 << bits) - 1)).to_bytes(size, "little")
    runs = draw(ranges(bits))
    return first, bits, encoding, np.array(runs, "<u8").tobytes()


def dirty_bitmaps() -> st.SearchStrategy[r.DirtyBitmap]:
    """Any DIRTY_BITMAP of REGION."""
    return st.builds(lambda attempt, bitmap: r.DirtyBitmap(attempt, REGION.id, *bitmap), u32(), _bitmaps())


def helds() -> st.SearchStrategy[r.Held]:
    """Any HELD of REGION."""
    return st.builds(
        lambda number, rejected, bitmap: r.Held(number, REGION.id, rejected, *bitmap),
        u32(),
        st.booleans(),
        _bitmaps(),
    )


@st.composite
def states(draw: st.DrawFn) -> r.State:
    """Any fragment of a state section."""
    data = draw(st.binary(max_size=300))
    offset = draw(st.integers(0, 1 << 20)) if data else 0
    rest = draw(st.integers(0, 1 << 20)) if data else 0
    return r.State(
        attempt=draw(u32()),
        architecture=draw(u16()),
        vcpu=draw(u32()),
        kind=draw(u16()),
        version=draw(u32()),
        instance=draw(u32()),
        total_bytes=offset + len(data) + rest,
        offset=offset,
        last=rest == 0,
        data=data,
    )


def seals() -> st.SearchStrategy[r.Seal]:
    """Any SEAL."""
    return st.builds(r.Seal, u32(), st.just(Checksum.XXH3_128), ids(), ids(), u32(), u64(), last_sequences())


def loadeds() -> st.SearchStrategy[r.Loaded]:
    """Any LOADED."""
    return st.builds(r.Loaded, u32(), ids())


# --- commit and after ---------------------------------------------------------------------------


def handovers() -> st.SearchStrategy[r.Handover]:
    """Any HANDOVER."""
    return st.builds(r.Handover, u32(), st.integers(0, U64_MAX - 1))


def runnings() -> st.SearchStrategy[r.Running]:
    """Any RUNNING."""
    return st.builds(r.Running, u64(), runners())


def handbacks() -> st.SearchStrategy[r.HandBack]:
    """Any HANDBACK."""
    return st.builds(r.HandBack, u64(), runners())


def page_requests() -> st.SearchStrategy[r.PageRequest]:
    """Any PAGE_REQUEST of REGION."""
    return st.builds(
        lambda run, urgent: r.PageRequest(REGION.id, run[0], run[1], urgent),
        ranges(most=1).map(lambda found: found[0]),
        st.booleans(),
    )


def completes() -> st.SearchStrategy[r.Complete]:
    """Any COMPLETE."""
    return st.builds(r.Complete, u64(), ids())


def releases() -> st.SearchStrategy[r.Release]:
    """Any RELEASE."""
    return st.builds(r.Release, u64())


def byes() -> st.SearchStrategy[r.Bye]:
    """BYE."""
    return st.just(r.Bye())


def pings() -> st.SearchStrategy[r.Ping]:
    """Any PING."""
    return st.builds(r.Ping, u64())


def pongs() -> st.SearchStrategy[r.Pong]:
    """Any PONG."""
    return st.builds(r.Pong, u64())


def progresses() -> st.SearchStrategy[r.Progress]:
    """Any PROGRESS."""
    return st.builds(r.Progress, st.sampled_from(Phase), u32(), u64(), u64(), u64(), u64(), u64(), u64())


def aborts() -> st.SearchStrategy[r.Abort]:
    """Any ABORT."""
    return st.builds(r.Abort, u16(), u16(), u16(), u64(), u32(), texts())


@st.composite
def verdicts(draw: st.DrawFn) -> r.Verdict:
    """Any VERDICT."""
    complete, handed_back = draw(st.sampled_from(((False, False), (True, False), (False, True))))
    return r.Verdict(
        owner=draw(st.sampled_from(Owner)),
        epoch=draw(u64()),
        runner=draw(runners()),
        handed_back=handed_back,
        complete=complete,
        digest=draw(ids()) if complete else r.NO_ID,
    )


def ends() -> st.SearchStrategy[r.End]:
    """Any END."""
    return st.builds(r.End, u64())


# --- everything ---------------------------------------------------------------------------------

BY_TYPE: Final[dict[FrameType, Callable[[], st.SearchStrategy[r.Record]]]] = {
    FrameType.HELLO: hellos,
    FrameType.WELCOME: welcomes,
    FrameType.REFUSE: refuses,
    FrameType.GUEST: guests,
    FrameType.ACCEPT: accepts,
    FrameType.ATTACH: attaches,
    FrameType.ATTACHED: attacheds,
    FrameType.HELD: helds,
    FrameType.ROUND: rounds,
    FrameType.PAGES: pages,
    FrameType.ROUND_END: round_ends,
    FrameType.ROUND_ACK: round_acks,
    FrameType.SWITCHOVER: switchovers,
    FrameType.READY: readies,
    FrameType.NOT_READY: not_readies,
    FrameType.DIRTY_BITMAP: dirty_bitmaps,
    FrameType.STATE: states,
    FrameType.SEAL: seals,
    FrameType.LOADED: loadeds,
    FrameType.HANDOVER: handovers,
    FrameType.RUNNING: runnings,
    FrameType.HANDBACK: handbacks,
    FrameType.PAGE_REQUEST: page_requests,
    FrameType.COMPLETE: completes,
    FrameType.RELEASE: releases,
    FrameType.BYE: byes,
    FrameType.PING: pings,
    FrameType.PONG: pongs,
    FrameType.PROGRESS: progresses,
    FrameType.ABORT: aborts,
    FrameType.VERDICT: verdicts,
    FrameType.END: ends,
}


def records() -> st.SearchStrategy[r.Record]:
    """A valid record of any type, under `BOUNDS`."""
    return st.sampled_from(FrameType).flatmap(lambda frame: BY_TYPE[frame]())


def grease() -> st.SearchStrategy[tuple[int, bytes]]:
    """Type and payload of a frame that must be skipped [FRM-9]."""
    return st.tuples(st.integers(GREASE_FIRST, GREASE_LAST), st.binary(max_size=GREASE_BODY_BYTES))


def unknown_types(*, critical: bool) -> st.SearchStrategy[int]:
    """Numbers of frames that this release does not know."""
    known = {int(frame) for frame in FrameType}
    return (
        st.integers(0, CRITICAL_BIT - 1)
        .map(lambda number: number | (CRITICAL_BIT if critical else 0))
        .filter(lambda number: number not in known)
    )


@st.composite
def pieces(draw: st.DrawFn, data: bytes, most: int = 30) -> list[bytes]:
    """The same bytes, cut anyhow."""
    marks = sorted(draw(st.sets(st.integers(0, len(data)), max_size=most)) | {0, len(data)})
    return [data[start:end] for start, end in pairwise(marks)]
