"""Page tables and the bytes that belong to them: guest memory to socket, socket to guest memory.

The bytes are never copied here. The source hands out views of guest memory for the transport to send, the
sink hands out views for the transport to receive into, and hashes the bytes where they lie.

Memory of a running guest changes while it is read. That needs no care beyond this: a page that is
written after the collect that led here is reported by the next collect and sent again. So a page that was
zero when it was tested and is not any more, or a chunk that changed between hash and send, costs a
transfer, never correctness; the sink rejects such a chunk because its hash does not match [MEM-3].

Zero pages are found in two steps. A page of data nearly always shows in its first word that it is not
zero, so one strided look sorts out the candidates, and only those are read whole.

The sink remembers which pages may hold anything but zeros. A zero run then touches no page that was
never written: on fresh memory the first touch of a page costs more than copying one, and a table of a few
bytes must not be able to make a terabyte resident.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from sterna.limits import CHUNK_BYTES
from sterna.memory.bitmap import (
    FEW_RUNS,
    LONG_RUN,
    PageBitmap,
    Positions,
    Words,
    assign_runs,
    checked_runs,
    expand_runs,
)
from sterna.memory.by_table import ByTable
from sterna.memory.regions import RegionTable, chunk_pages
from sterna.registry import Encoding
from sterna.wire.records import RUN_DTYPE, Hashes, PageRange, Pages, Region, Runs

_SIZE_MAX: Final = (1 << 32) - 1  # size_bytes and count of a run are 32 bits wide
_RESERVED: Final = (0,) * 7
_SPAN_MOST: Final = 64  # one look at a bitmap from the first run to the last pays: a word of it is a page
_ZERO_TEST_PAGES: Final = 256  # 1 MiB a step: bounds the copy where candidates do not follow each other


@dataclass(frozen=True, slots=True, eq=False)
class EncodedBatch:
    """Pages of one region, ready for a PAGES frame.

    Attributes:
        region: id of the region.
        runs: table of `RUN_DTYPE`, ascending and disjoint.
        hashes: one for each chunk of each run that carries bytes, in order; uint64. XXH3-64, or 0 if
            chunks are not hashed.
        buffers: the bulk part, in order, as views of guest memory. They change when the guest writes.
        page_count: pages of all runs.
        bulk_bytes: length of all buffers.
        unpacked_bytes: what they stand for if they are packed, and hence no views; else 0.
        versions_asked: pages of which a version that was sent was looked for.
        versions_found: those of them of which one was there.
    """

    region: int
    runs: Runs
    hashes: Hashes
    buffers: tuple[memoryview, ...]
    page_count: int
    bulk_bytes: int
    unpacked_bytes: int = 0
    versions_asked: int = 0
    versions_found: int = 0

    def table(self, attempt: int, round_: int) -> Pages:
        """The record of the PAGES frame."""
        return Pages(attempt, round_, self.region, self.runs, self.hashes)


def zero_batch(region: int, starts: Positions, counts: Positions) -> EncodedBatch:
    """Runs of pages that are known to be zero, ascending and disjoint: the batch that says so."""
    runs = np.zeros(len(starts), dtype=RUN_DTYPE)
    runs["first"], runs["count"], runs["encoding"] = starts, counts, Encoding.ZERO
    return EncodedBatch(region, runs, np.empty(0, np.uint64), (), int(counts.sum()), 0)


class PageSource(Protocol):
    """Where the source's page bytes come from."""

    def encode(
        self,
        region: int,
        starts: npt.ArrayLike,
        counts: npt.ArrayLike,
        *,
        zeros: bool = True,
        whole: bool = False,
        hashed: bool = True,
    ) -> EncodedBatch:
        """Encode runs of pages, ascending and disjoint, as they are now.

        The table has at most as many runs as there are pages. Whoever calls keeps a batch within
        the peer's limits: bytes never exceed those of the pages.

        Args:
            region: id of a copied region.
            starts: first page of each run.
            counts: pages of each run.
            zeros: whether zero pages may be sent as such; if not, their bytes are sent [NEG-7].
            whole: every run is one row of the table, as zero if all of it is, with its bytes if not [PCY-7].
            hashed: whether chunks are hashed; if not, every hash is 0 [MEM-20].

        Raises:
            KeyError: not a copied region.
            IndexError: a run reaches outside of the region.
            ValueError: runs overlap, are not in order, or are too long for a table.
        """
        ...


class PageSink(Protocol):
    """Where the destination's page bytes go. The codec has checked the tables against the regions."""

    def targets(self, table: Pages) -> list[memoryview]:
        """Where the bulk bytes belong, in order: writable views of guest memory.

        From this call until `commit` the pages hold neither the old version nor the new one.
        """
        ...

    def came(self, table: Pages, size_bytes: int) -> None:
        """So many of the bulk bytes are in their place: what is whole may be hashed while caches have it."""
        ...

    def commit(self, table: Pages, *, hashed: bool = True) -> list[PageRange]:
        """All bulk bytes are in their place: verify them, make zero runs read as zeros.

        Args:
            table: what has come.
            hashed: whether chunks have hashes to be verified by [MEM-20].

        Returns:
            The pages of the chunks whose hash does not match, ascending, as few ranges as possible.
        """
        ...

    @property
    def early_pages(self) -> int:
        """Pages of batches that were committed that were there already, and stay as they were [PCY-32]."""
        ...


class RegionSink(PageSink, Protocol):
    """A `PageSink` that knows the guest's regions."""

    @property
    def table(self) -> RegionTable:
        """The guest's regions."""
        ...


def hash_chunks(view: memoryview, offsets: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """XXH3-64 of every chunk of byte ranges of a view; chunks count from each range's start [MEM-1].

    No range is empty.
    """
    hashes: list[int] = []
    for offset, size in zip(offsets, sizes, strict=True):
        if size <= CHUNK_BYTES:
            hashes.append(xxh3_64_intdigest(view[offset : offset + size]))
            continue
        *whole, last = range(offset, offset + size, CHUNK_BYTES)
        hashes += [xxh3_64_intdigest(view[at : at + CHUNK_BYTES]) for at in whole]
        hashes.append(xxh3_64_intdigest(view[last : offset + size]))
    return hashes


def chunk_hashes(view: memoryview, offsets: Sequence[int], sizes: Sequence[int], *, hashed: bool) -> Hashes:
    """One hash for every chunk, as `hash_chunks`; 0 if chunks are not hashed."""
    if hashed:
        return np.array(hash_chunks(view, offsets, sizes), dtype=np.uint64)
    return np.zeros(sum(-(-size // CHUNK_BYTES) for size in sizes), dtype=np.uint64)


class RegionPages:
    """Page source and page sink over a guest's memory: encodings raw and zero.

    Views that are read-only make a source that cannot be a sink.
    """

    def __init__(self, table: RegionTable, views: Mapping[int, memoryview], *, fresh: bool = True) -> None:
        """Take a view of each copied region's bytes.

        Args:
            table: the guest's regions.
            views: contiguous memory of every copied region, by id; others are ignored.
            fresh: the memory reads as zeros. If not, the sink writes zeros into every zero page.

        Raises:
            ValueError: a view is missing, has the wrong size or is not contiguous; or a region is empty.
        """
        self.table: Final = table
        self._memory: Final[dict[int, _Memory]] = {}
        for region in table.copied:
            if region.id not in views:
                raise ValueError(f"no memory for region {region.id}")
            self._memory[region.id] = _Memory(region, views[region.id], fresh=fresh)

    @property
    def is_writable(self) -> bool:
        """Whether this can be a sink."""
        return not any(memory.readonly for memory in self._memory.values())

    def memory(self, region: int) -> npt.NDArray[np.uint8]:
        """The bytes of a copied region."""
        return self._memory[region].bytes

    def encode(
        self,
        region: int,
        starts: npt.ArrayLike,
        counts: npt.ArrayLike,
        *,
        zeros: bool = True,
        whole: bool = False,
        hashed: bool = True,
    ) -> EncodedBatch:
        """See `PageSource.encode`."""
        return self._memory[region].encode(starts, counts, zeros=zeros, whole=whole, hashed=hashed)

    def targets(self, table: Pages) -> list[memoryview]:
        """See `PageSink.targets`. Raises ValueError if the memory is read-only."""
        return self._memory[table.region].targets(table)

    def came(self, table: Pages, size_bytes: int) -> None:
        """See `PageSink.came`."""
        self._memory[table.region].came(table, size_bytes)

    def commit(self, table: Pages, *, hashed: bool = True) -> list[PageRange]:
        """See `PageSink.commit`."""
        return self._memory[table.region].commit(table, hashed=hashed)

    @property
    def early_pages(self) -> int:
        """See `PageSink.early_pages`."""
        return 0


class _Coming:
    """The hashes of runs that are coming in, chunk by chunk, as far as they have come."""

    def __init__(self, view: memoryview, offsets: Sequence[int], sizes: Sequence[int], pages: range) -> None:
        self.offsets, self.sizes = offsets, sizes
        self.pages = pages  # from the first to the last of the table
        self._view = view
        # Many runs, small on average, are hashed at the end.
        self._early = len(offsets) <= FEW_RUNS or sum(sizes) >= len(sizes) * CHUNK_BYTES
        self._runs = deque(zip(offsets, sizes, strict=True))
        self._passed_bytes = 0  # of the bulk part, those before the chunk that comes next
        self._hashes: list[int] = []

    def come(self, size_bytes: int) -> None:
        """So many bytes are there: hash what is whole of them."""
        while self._early and self._runs:
            offset, size = self._runs[0]
            there = min(size_bytes - self._passed_bytes, size)
            if there < size:
                there -= there % CHUNK_BYTES
                self._runs[0] = offset + there, size - there
            else:
                self._runs.popleft()
            if there:
                self._hashes += hash_chunks(self._view, (offset,), (there,))
                self._passed_bytes += there
            if there < size:
                return

    def all_come(self) -> list[int]:
        """Every byte is there: the hashes of all."""
        if not self._early:
            return hash_chunks(self._view, self.offsets, self.sizes)
        self.come(sum(self.sizes))
        return self._hashes

    def heed(self, other: _Coming) -> None:
        """Another table comes, too. If it may be to the same pages, these are hashed when all is there."""
        if other.pages.start < self.pages.stop and self.pages.start < other.pages.stop:
            self._early = False


class _Memory:
    """One region's bytes."""

    def __init__(self, region: Region, view: memoryview, *, fresh: bool) -> None:
        self._region: Final = region
        if not view.c_contiguous or view.nbytes != region.size_bytes or not region.pages:
            raise ValueError(
                f"region {region.id} takes {region.size_bytes} contiguous bytes, got {view.nbytes}"
            )
        self._view: Final = view.cast("B")
        words = np.frombuffer(self._view, dtype=np.uint64)
        self._words: Final[Words] = words.reshape(region.pages, -1)
        # Pages that may hold anything but zeros. Kept by the sink alone.
        self._touched: Final = PageBitmap(region.pages) if fresh else PageBitmap.full(region.pages)
        self._coming: Final[ByTable[_Coming]] = ByTable()

    @property
    def readonly(self) -> bool:
        return self._view.readonly

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._view, dtype=np.uint8)

    def encode(
        self, starts: npt.ArrayLike, counts: npt.ArrayLike, *, zeros: bool, whole: bool, hashed: bool
    ) -> EncodedBatch:
        first, count = checked_runs(starts, counts, self._region.pages)
        if len(first) == 1 and count[0]:
            start, pages = first.item(), count.item()
            if whole or not zeros or self._is_full_at_a_glance(first, count):
                return self._encode_one(start, pages, zeros=zeros, hashed=hashed)
        if np.count_nonzero(first[1:] < (first + count)[:-1]):
            raise ValueError("runs overlap or are not in order")
        first, count, zero = self._split(first, count, zeros=zeros, whole=whole)
        granule = self._region.granule_log2
        size = np.where(zero, 0, count << granule)
        if len(count) and max(int(size.max()), int(count.max())) > _SIZE_MAX:
            raise ValueError("a run is too long for a page table")
        runs = np.zeros(len(first), dtype=RUN_DTYPE)
        runs["first"], runs["count"], runs["size_bytes"] = first, count, size
        runs["encoding"][zero] = Encoding.ZERO
        raw = ~zero
        offsets, sizes = (first[raw] << granule).tolist(), size[raw].tolist()
        view = self._view
        return EncodedBatch(
            region=self._region.id,
            runs=runs,
            hashes=chunk_hashes(view, offsets, sizes, hashed=hashed),
            buffers=tuple([view[at : at + length] for at, length in zip(offsets, sizes, strict=True)]),
            page_count=int(count.sum()),
            bulk_bytes=sum(sizes),
        )

    def _encode_one(self, first: int, count: int, *, zeros: bool, hashed: bool) -> EncodedBatch:
        """One run that is not cut: a guest may wait for it, and numpy's calls take longer than its bytes."""
        granule = self._region.granule_log2
        offset, size = first << granule, count << granule
        if size > _SIZE_MAX:
            raise ValueError("a run is too long for a page table")
        if zeros and not self._words[first, 0] and not self._words[first : first + count].any():
            runs = np.array([(first, count, 0, Encoding.ZERO, _RESERVED)], dtype=RUN_DTYPE)
            return EncodedBatch(self._region.id, runs, np.empty(0, np.uint64), (), count, 0)
        return EncodedBatch(
            region=self._region.id,
            runs=np.array([(first, count, size, Encoding.RAW, _RESERVED)], dtype=RUN_DTYPE),
            hashes=chunk_hashes(self._view, (offset,), (size,), hashed=hashed),
            buffers=(self._view[offset : offset + size],),
            page_count=count,
            bulk_bytes=size,
        )

    def _split(
        self, first: Positions, count: Positions, *, zeros: bool, whole: bool
    ) -> tuple[Positions, Positions, npt.NDArray[np.bool_]]:
        """Cut runs where zero pages and others alternate: starts, counts, and whether a run is zero.

        `whole` runs are not cut.
        """
        some = count > 0
        first, count = first[some], count[some]
        if not zeros or (len(first) <= FEW_RUNS and self._is_full_at_a_glance(first, count)):
            return first, count, np.zeros(len(first), dtype=np.bool_)
        pages = expand_runs(first, count)
        zero = self._zero(pages)
        if not np.count_nonzero(zero):
            return first, count, np.zeros(len(first), dtype=np.bool_)
        if whole:
            return first, count, np.logical_and.reduceat(zero, np.cumsum(count) - count)
        border = np.empty(len(pages), dtype=np.bool_)
        border[0] = True
        np.not_equal(zero[1:], zero[:-1], out=border[1:])
        border[np.cumsum(count)[:-1]] = True
        at = np.flatnonzero(border)
        return pages[at], np.diff(at, append=len(pages)), zero[at]

    def _is_full_at_a_glance(self, first: Positions, count: Positions) -> bool:
        """Whether each page of these runs shows in its first word that it is not zero."""
        words = self._words
        runs = zip(first.tolist(), count.tolist(), strict=True)
        return all(words[start : start + pages, 0].all() for start, pages in runs)

    def _zero(self, pages: Positions) -> npt.NDArray[np.bool_]:
        """Which of these pages are all zero bytes."""
        zero: npt.NDArray[np.bool_] = self._words[pages, 0] == 0
        candidates = np.flatnonzero(zero)
        for low in range(0, len(candidates), _ZERO_TEST_PAGES):
            some = candidates[low : low + _ZERO_TEST_PAGES]
            numbers = pages[some]
            first, last = int(numbers[0]), int(numbers[-1])
            # Neighbours are read in place; a gather copies them first, which costs half as much again.
            together = last - first == len(numbers) - 1
            block = self._words[first : last + 1] if together else self._words[numbers]
            zero[some] = np.bitwise_or.reduce(block, axis=1) == 0
        return zero

    def targets(self, table: Pages) -> list[memoryview]:
        """See `PageSink.targets`."""
        if self.readonly:
            raise ValueError(f"the memory of region {self._region.id} is read-only")
        coming = self._expect(table)
        self._coming.put(table, coming)
        offsets, sizes = coming.offsets, coming.sizes
        granule = self._region.granule_log2
        if len(offsets) <= FEW_RUNS:
            for at, size in zip(offsets, sizes, strict=True):
                self._touched.set(at >> granule, size >> granule)
        else:
            runs = table.runs[_carries(table)]
            self._touched.set_runs(runs["first"], runs["count"])
        return [self._view[at : at + size] for at, size in zip(offsets, sizes, strict=True)]

    def came(self, table: Pages, size_bytes: int) -> None:
        """See `PageSink.came`."""
        if (coming := self._coming.get(table)) is not None:
            coming.come(size_bytes)

    def commit(self, table: Pages, *, hashed: bool) -> list[PageRange]:
        """See `PageSink.commit`."""
        coming = self._coming.pop(table) or self._expect(table)
        if len(coming.offsets) < len(table.runs):
            self._zero_fill(table.runs[~_carries(table)])
        if not hashed:
            return []
        found = coming.all_come()
        if found == table.hashes.tolist():
            return []
        return _mismatches(table, table.runs[_carries(table)], found, self._region.granule_log2)

    def _expect(self, table: Pages) -> _Coming:
        """What is coming with this table, which may be beside others."""
        first, count = table.runs["first"], table.runs["count"]
        pages = range(int(first[0]), int(first[-1]) + int(count[-1])) if len(first) else range(0)
        made = _Coming(self._view, *self._ranges(table), pages)
        for other in self._coming.values():
            other.heed(made)
            made.heed(other)
        return made

    def _ranges(self, table: Pages) -> tuple[list[int], list[int]]:
        """Offsets and sizes in bytes of the pages of runs with bytes; of a few runs without numpy's help."""
        granule = self._region.granule_log2
        if len(table.runs) <= FEW_RUNS:
            runs = [(first, size) for first, _, size, encoding in table.rows if encoding == Encoding.RAW]
            return [page << granule for page, _ in runs], [size for _, size in runs]
        some = table.runs[_carries(table)]
        first, count = some["first"].tolist(), some["count"].tolist()
        return [page << granule for page in first], [pages << granule for pages in count]

    def _zero_fill(self, runs: Runs) -> None:
        """Write zeros where these runs may hold something else."""
        first, count = runs["first"].astype(np.int64), runs["count"].astype(np.int64)
        if len(runs) <= FEW_RUNS:
            touched = any(map(self._touched.meets, first.tolist(), count.tolist()))
        else:
            span = int(first[-1] + count[-1] - first[0])
            spread = span > _SPAN_MOST * int(count.sum())
            touched = spread or self._touched.meets(int(first[0]), span)
        if not touched:
            return
        long = count >= LONG_RUN
        pages = expand_runs(first[~long], count[~long])
        self._words[pages[self._touched.has(pages)]] = 0
        for start, length in zip(first[long].tolist(), count[long].tolist(), strict=True):
            if self._touched.meets(start, length):
                assign_runs(self._words, *self._touched.runs_between(start, length), 0)
        self._touched.clear_runs(first, count)


def damaged_pages(table: Pages, bulk: memoryview, granule_log2: int) -> list[PageRange]:
    """The pages of the chunks whose hash does not match, for a bulk part that lies in one piece.

    As `PageSink.commit`, for readers that have no memory of a guest. The codec has checked the table.
    """
    runs = table.runs[_carries(table)]
    sizes = runs["size_bytes"].tolist()
    offsets = list(accumulate(sizes, initial=0))[:-1]
    return _mismatches(table, runs, hash_chunks(bulk, offsets, sizes), granule_log2)


def _mismatches(table: Pages, runs: Runs, hashed: list[int], granule_log2: int) -> list[PageRange]:
    """The pages of the chunks of `runs` that were hashed to something else than the table says."""
    hashes = np.array(hashed, dtype=np.uint64)
    if np.array_equal(hashes, table.hashes):
        return []
    return _rejected(table.region, runs, np.flatnonzero(hashes != table.hashes), chunk_pages(granule_log2))


def _carries(table: Pages) -> npt.NDArray[np.bool_]:
    """Which runs have bytes in the bulk part."""
    raw: npt.NDArray[np.bool_] = table.runs["encoding"] == Encoding.RAW
    return raw


def _rejected(region: int, runs: Runs, bad: Positions, step: int) -> list[PageRange]:
    """The pages of chunks `bad` (numbers over all runs, ascending; `step` pages each)."""
    ends = np.cumsum((runs["count"] + np.uint32(step - 1)) // np.uint32(step), dtype=np.int64)
    ranges: list[PageRange] = []
    for chunk, run in zip(bad.tolist(), np.searchsorted(ends, bad, side="right").tolist(), strict=True):
        count, end = int(runs["count"][run]), int(ends[run])
        before = (chunk - (end - -(-count // step))) * step  # pages of the run before this chunk
        first, pages = int(runs["first"][run]) + before, min(step, count - before)
        if ranges and ranges[-1].first + ranges[-1].count == first:
            first, pages = ranges[-1].first, ranges.pop().count + pages
        ranges.append(PageRange(region, first, pages))
    return ranges


def merged_ranges(ranges: Iterable[PageRange]) -> list[PageRange]:
    """Ranges of one region in order, each page once."""
    merged: list[PageRange] = []
    for each in sorted(ranges, key=lambda pages: pages.first):
        if merged and each.first <= merged[-1].first + merged[-1].count:
            last = merged.pop()
            end = max(last.first + last.count, each.first + each.count)
            merged.append(PageRange(last.region, last.first, end - last.first))
        else:
            merged.append(each)
    return merged
