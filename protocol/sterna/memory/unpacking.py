"""Packed runs of pages at the destination: bytes of the network to a buffer, and from there to guest memory.

Raw pages are received where they belong. A packed run is received beside: into as many bytes as its table
says, which are no more than those of its pages [PGS-11]. When the batch is there each run is taken apart into
guest memory, and from then on it is as if it had come raw: the same sink hashes it in its place and rejects
what does not match.

A `delta` changes what is there, so it has to be known what is. Each chunk says by a hash what it is a change
of; where that is not what the memory holds, the chunk is left alone and rejected [PGS-20]. This costs the one
that lied, or whose cache is out of step, another transfer; it cannot change what the guest finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
from xxhash import xxh3_64_intdigest

from sterna.limits import CHUNK_BYTES
from sterna.memory.bitmap import FEW_RUNS
from sterna.memory.by_table import ByTable
from sterna.memory.pages import RegionSink, merged_ranges
from sterna.memory.regions import chunk_pages
from sterna.memory.zstd import WINDOW_LOG2_MAX, Decompressor, malformed
from sterna.registry import Encoding
from sterna.wire.page_rules import PACKED
from sterna.wire.pages import carries_bytes
from sterna.wire.records import PageRange, Pages

_HASH_BYTES: Final = 8
_PACKED: Final = np.array(sorted(PACKED), np.uint8)


@dataclass(frozen=True, slots=True)
class _Run:
    """A packed run that is coming: what it is, where it comes, and where it belongs."""

    encoding: int
    first: int
    bulk: memoryview
    place: memoryview


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch with packed runs.

    Attributes:
        plain: the table that it would have if all of it came raw.
        packed: its packed runs.
    """

    plain: Pages
    packed: tuple[_Run, ...]


class Unpacking:
    """A `PageSink` over a guest's memory that takes packed runs, too."""

    def __init__(self, pages: RegionSink, window_log2: int = WINDOW_LOG2_MAX) -> None:
        """`window_log2`: the selected parameter of `encoding_zstd`."""
        self._pages: Final = pages
        self._zstd: Final = Decompressor(window_log2)
        self._coming: Final[ByTable[_Batch]] = ByTable()

    def targets(self, table: Pages) -> list[memoryview]:
        """See `PageSink.targets`; the places of packed runs are not guest memory."""
        if not is_packed(table):
            return self._pages.targets(table)
        plain = self._plain(table)
        runs = table.runs[carries_bytes(table.runs)]
        rows = zip(*(runs[name].tolist() for name in ("encoding", "first", "size_bytes")), strict=True)
        targets: list[memoryview] = []
        packed: list[_Run] = []
        for (encoding, first, size), place in zip(rows, self._pages.targets(plain), strict=True):
            if encoding in PACKED:
                packed.append(_Run(encoding, first, memoryview(bytearray(size)), place))
                targets.append(packed[-1].bulk)
            else:
                targets.append(place)
        self._coming.put(table, _Batch(plain, tuple(packed)))
        return targets

    def came(self, table: Pages, size_bytes: int) -> None:
        """See `PageSink.came`. Of packed runs the bytes that come are not those that are hashed."""
        if not is_packed(table):
            self._pages.came(table, size_bytes)

    def commit(self, table: Pages, *, hashed: bool = True) -> list[PageRange]:
        """See `PageSink.commit`.

        Raises:
            RemoteProtocolError: MALFORMED, a run is not what its table says [PGS-16] [PGS-17] [PGS-19].
        """
        batch = self._coming.pop(table)
        if batch is None:
            return self._pages.commit(table, hashed=hashed)
        baseless: list[PageRange] = []
        for run in batch.packed:
            if run.encoding == Encoding.ZSTD:
                run.place[:] = self._zstd.content(run.bulk, len(run.place))
            else:
                baseless += self._change(table.region, run)
        rejected = self._pages.commit(batch.plain, hashed=hashed)
        return merged_ranges(rejected + baseless) if baseless else rejected

    @property
    def early_pages(self) -> int:
        """See `PageSink.early_pages`."""
        return self._pages.early_pages

    def _change(self, region: int, run: _Run) -> list[PageRange]:
        """Apply a `delta` run; the pages of the chunks that are a change of something else."""
        size = len(run.place)
        starts = range(0, size, CHUNK_BYTES)
        head_bytes = len(starts) * _HASH_BYTES
        if len(run.bulk) <= head_bytes:
            raise malformed("a delta without a frame", "PGS-19")
        change = np.frombuffer(self._zstd.content(run.bulk[head_bytes:], size), np.uint8)
        bases = np.frombuffer(run.bulk, "<u8", len(starts)).tolist()
        granule_log2 = self._pages.table[region].granule_log2
        baseless: list[PageRange] = []
        for start, base in zip(starts, bases, strict=True):
            place = run.place[start : start + CHUNK_BYTES]
            if xxh3_64_intdigest(place) == base:
                held = np.frombuffer(place, np.uint8)
                np.bitwise_xor(held, change[start : start + CHUNK_BYTES], out=held)
            else:
                first = run.first + (start >> granule_log2)
                baseless.append(PageRange(region, first, len(place) >> granule_log2))
        return baseless

    def _plain(self, table: Pages) -> Pages:
        runs = table.runs.copy()
        packed = np.isin(runs["encoding"], _PACKED)
        runs["encoding"][packed] = Encoding.RAW
        granule_log2 = self._pages.table[table.region].granule_log2
        runs["size_bytes"][packed] = runs["count"][packed] << np.uint32(granule_log2)
        return Pages(table.attempt, table.round, table.region, runs, table.hashes)


class Unpacker:
    """Packed runs for readers that have no memory of a guest."""

    def __init__(self, window_log2: int = WINDOW_LOG2_MAX) -> None:
        self._zstd: Final = Decompressor(window_log2)

    def damaged(
        self, table: Pages, bulk: memoryview, granule_log2: int, *, hashed: bool = True
    ) -> list[PageRange]:
        """The pages of `zstd` chunks whose hash does not match; a `delta` shows only that it can be unpacked.

        As `pages.damaged_pages`, for the bulk part of a table that the codec has checked, in one piece.

        Raises:
            RemoteProtocolError: MALFORMED, as `Unpacking.commit`.
        """
        step = chunk_pages(granule_log2)
        runs = table.runs[carries_bytes(table.runs)]
        names = ("first", "count", "size_bytes", "encoding")
        rows = list(zip(*(runs[name].tolist() for name in names), strict=True))
        ends = accumulate(size for _, _, size, _ in rows)
        hashes = iter(table.hashes.tolist())
        bad: list[PageRange] = []
        for (first, count, size, encoding), end in zip(rows, ends, strict=True):
            content = self._content(encoding, bulk[end - size : end], count << granule_log2)
            for page in range(0, count, step):
                stated, pages = next(hashes), min(step, count - page)
                piece = content[page << granule_log2 : page + pages << granule_log2]
                if hashed and encoding != Encoding.DELTA and xxh3_64_intdigest(piece) != stated:
                    bad.append(PageRange(table.region, first + page, pages))
        return merged_ranges(bad)

    def _content(self, encoding: int, bulk: memoryview, size: int) -> memoryview:
        if encoding == Encoding.RAW:
            return bulk
        head_bytes = -(-size // CHUNK_BYTES) * _HASH_BYTES if encoding == Encoding.DELTA else 0
        if len(bulk) <= head_bytes:
            raise malformed("a delta without a frame", "PGS-19")
        return memoryview(self._zstd.content(bulk[head_bytes:], size))


def is_packed(table: Pages) -> bool:
    """Whether a table has packed runs. `absent`, the last of the encodings, is not implemented."""
    if len(table.runs) <= FEW_RUNS:
        return any(encoding > Encoding.ZERO for *_, encoding in table.rows)
    return bool((table.runs["encoding"] > Encoding.ZERO).any())
