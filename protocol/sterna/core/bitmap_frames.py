"""Sets of pages as HELD and DIRTY_BITMAP carry them: cut into frames and put together again [5.7].

A frame's bitmap is written in the way that takes fewer bytes: runs where pages lie together or are rare,
plain bits where they alternate. Pages that are not in the set need no frame, so an empty set takes none, and
a terabyte whose pages all are in it takes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from sterna.core.conduct import wrong
from sterna.memory.bitmap import PageBitmap, RunArrays
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import BitmapEncoding, ErrorCode
from sterna.wire.records import DirtyBitmap, Held

_HEAD: Final = 32  # both frames' bytes before the data
_ROW: Final = np.dtype("<u8")
_ROW_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """Pages first to first + bits of one region, and those among them that are in the set."""

    region: int
    first: int
    bits: int
    encoding: BitmapEncoding
    data: bytes


def pieces(sets: PageSets, control_bytes: int) -> Iterator[Piece]:
    """A set in pieces that each fit a frame of the peer's limit, ascending and disjoint [BMP-8].

    Args:
        sets: what is to be said.
        control_bytes: the most that a body may have; at least a few hundred [LIM-7].
    """
    room = control_bytes - _HEAD
    for region in sets:
        for starts, counts in sets[region].batches(sets[region].bits or 1, room // _ROW_BYTES):
            first = int(starts[0])
            bits = int(starts[-1] + counts[-1]) - first
            if len(starts) * _ROW_BYTES <= bits + 7 >> 3:
                rows = np.stack((starts - first, counts), axis=1).astype(_ROW)
                yield Piece(region, first, bits, BitmapEncoding.RUNS, rows.tobytes())
            else:
                within = PageBitmap(bits)
                within.set_runs(starts - first, counts)
                yield Piece(region, first, bits, BitmapEncoding.PLAIN, within.to_bytes())


def held_frames(round_: int, pages: PageSets, control_bytes: int, *, rejected: bool) -> Iterator[Held]:
    """HELD frames for the pages that were applied in a round, or rejected in it [RES-6]."""
    for each in pieces(pages, control_bytes):
        yield Held(round_, each.region, rejected, each.first, each.bits, each.encoding, each.data)


def dirty_frames(attempt: int, pages: PageSets, control_bytes: int) -> Iterator[DirtyBitmap]:
    """DIRTY_BITMAP frames for the pages that are stale [PCY-2]."""
    for each in pieces(pages, control_bytes):
        yield DirtyBitmap(attempt, each.region, each.first, each.bits, each.encoding, each.data)


def runs_of(frame: Held | DirtyBitmap) -> RunArrays:
    """The pages that a frame lists, as runs of page numbers. The codec has held it to BMP-1 to BMP-6."""
    if frame.encoding is BitmapEncoding.PLAIN:
        starts, counts = PageBitmap.from_bytes(frame.data, frame.bits).runs()
        return starts + frame.first, counts
    rows = np.frombuffer(frame.data, _ROW).reshape(-1, 2).astype(np.int64)
    return rows[:, 0] + frame.first, rows[:, 1]


def check_within(table: RegionTable, frame: Held | DirtyBitmap) -> None:
    """Raises RemoteProtocolError, OUTSIDE_REGION, for a region that is not copied, or pages behind it."""
    if frame.region not in table or frame.first + frame.bits > table[frame.region].pages:
        detail = f"pages {frame.first}+{frame.bits} of region {frame.region}"
        raise wrong(ErrorCode.OUTSIDE_REGION, detail, "FRM-18", frame)


def add_frame(sets: PageSets, frame: Held | DirtyBitmap) -> None:
    """Add the pages of a frame to a set. Raises what `check_within` raises."""
    check_within(sets.table, frame)
    sets[frame.region].set_runs(*runs_of(frame))


class Declared:
    """The pages that the DIRTY_BITMAP frames of an attempt have declared stale so far.

    Attributes:
        pages: all of them.
    """

    def __init__(self, table: RegionTable) -> None:
        self.pages: Final = PageSets(table)
        self._order: Final = Ascending()

    def add(self, frame: DirtyBitmap) -> PageSets:
        """The next frame; the pages that it declares.

        Raises:
            RemoteProtocolError: OUTSIDE_REGION or OVERLAPPING_RUNS.
        """
        self._order.check(frame)
        more = PageSets(self.pages.table)
        add_frame(more, frame)
        self.pages.__ior__(more)
        return more


class Ascending:
    """Whether bitmap frames come in their order, each behind the one before [BMP-8]."""

    def __init__(self) -> None:
        self._last: tuple[tuple[int, bool, int], int] | None = None

    def check(self, frame: Held | DirtyBitmap) -> None:
        """The next frame has come.

        Raises:
            RemoteProtocolError: OVERLAPPING_RUNS.
        """
        group = (frame.round, frame.rejected) if isinstance(frame, Held) else (0, False)
        key = (*group, frame.region)
        if self._last is not None and (key, frame.first) < self._last:
            detail = f"pages {frame.first}+{frame.bits} of region {frame.region} come too late"
            raise wrong(ErrorCode.OVERLAPPING_RUNS, detail, "BMP-8", frame)
        self._last = key, frame.first + frame.bits
