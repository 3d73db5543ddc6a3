"""Which pages there are, and sets of them over all copied regions.

Page numbers count granules from a region's start. Only regions with transfer `COPY` have pages here:
the others never travel as pages, are in no set and not in the digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Self

import numpy as np

from sterna.errors import GuestError, remote_error
from sterna.limits import CHUNK_BYTES
from sterna.memory.bitmap import PageBitmap, Positions, RunArrays
from sterna.registry import Encoding, ErrorCode, FrameType, Transfer
from sterna.wire.records import PageRange, Pages, Region


def chunk_pages(granule_log2: int) -> int:
    """Pages that one hash covers at most."""
    return CHUNK_BYTES >> granule_log2


class RegionTable:
    """A guest's regions, fixed for a session. Mapping from the ids of copied regions to `Region`.

    The regions themselves (overlap, alignment, sizes) have been checked by the codec or by the guest.

    Attributes:
        regions: all regions, by ascending id.
        copied: those whose pages travel, by ascending id.
        pages: pages of the copied regions.
        size_bytes: bytes of the copied regions.
    """

    __slots__ = ("_by_id", "copied", "pages", "regions", "size_bytes")

    def __init__(self, regions: Iterable[Region]) -> None:
        """Raises ValueError if an id appears twice."""
        self.regions: Final = tuple(sorted(regions, key=lambda region: region.id))
        self.copied: Final = tuple(r for r in self.regions if r.transfer == Transfer.COPY)
        self.pages: Final = sum(region.pages for region in self.copied)
        self.size_bytes: Final = sum(region.size_bytes for region in self.copied)
        self._by_id: Final = {region.id: region for region in self.copied}
        if len({region.id for region in self.regions}) < len(self.regions):
            raise ValueError("a region id appears twice")

    def __getitem__(self, region: int) -> Region:
        return self._by_id[region]

    def __contains__(self, region: int) -> bool:
        return region in self._by_id

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def check_pages(self, table: Pages) -> None:
        """Check a page table of the peer against the regions, before any of it is believed.

        Afterwards its runs are ascending, disjoint and inside of a copied region, have the sizes of
        encodings that this release speaks, and there is one hash for every chunk.

        Raises:
            RemoteProtocolError: OUTSIDE_REGION, OVERLAPPING_RUNS, BAD_VALUE or COUNT_MISMATCH.
        """
        region = self._by_id.get(table.region)
        if region is None:
            raise _bad(ErrorCode.OUTSIDE_REGION, f"region {table.region} has no pages")
        first, count, size = (table.runs[name].astype(np.uint64) for name in ("first", "count", "size_bytes"))
        pages, granule = np.uint64(region.pages), np.uint64(region.granule_log2)
        if (first > pages).any() or (count > pages - first).any():
            raise _bad(ErrorCode.OUTSIDE_REGION, f"a run reaches outside of region {region.id}")
        if not count.all():
            raise _bad(ErrorCode.BAD_VALUE, "an empty run")
        if (first[1:] < (first + count)[:-1]).any():
            raise _bad(ErrorCode.OVERLAPPING_RUNS, "runs overlap or are not in order")
        raw, zero = (table.runs["encoding"] == encoding for encoding in (Encoding.RAW, Encoding.ZERO))
        if not (raw | zero).all():
            raise _bad(ErrorCode.BAD_VALUE, "an encoding that was not selected")
        if not np.array_equal(size, np.where(raw, count << granule, np.uint64(0))):
            raise _bad(ErrorCode.BAD_VALUE, "a run's size does not follow from its pages and encoding")
        chunks = int((size + np.uint64(CHUNK_BYTES - 1) >> np.uint64(CHUNK_BYTES.bit_length() - 1)).sum())
        if chunks != len(table.hashes):
            raise _bad(ErrorCode.COUNT_MISMATCH, f"{len(table.hashes)} hashes for {chunks} chunks")

    def check_ranges(self, ranges: Iterable[PageRange]) -> None:
        """Check page ranges of the peer against the regions.

        Raises:
            RemoteProtocolError: OUTSIDE_REGION.
        """
        for item in ranges:
            region = self._by_id.get(item.region)
            if region is None or item.first + item.count > region.pages:
                text = f"pages {item.first}+{item.count} of region {item.region}"
                raise remote_error(ErrorCode.OUTSIDE_REGION, text, clause="RAK-4", frame=FrameType.ROUND_ACK)


def _bad(code: ErrorCode, detail: str) -> Exception:
    return remote_error(code, detail, clause="PGS-4", frame=FrameType.PAGES)


class PageSets:
    """A set of pages over all copied regions: one `PageBitmap` each. What is dirty, pending, held.

    In-place operators change the left side and want both to be of the same table (ValueError).
    """

    __slots__ = ("_bitmaps", "table")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, table: RegionTable) -> None:
        """An empty set."""
        self.table: Final = table
        self._bitmaps: Final = {region.id: PageBitmap(region.pages) for region in table.copied}

    @classmethod
    def full(cls, table: RegionTable) -> Self:
        """Every page of every copied region."""
        sets = cls(table)
        for bitmap in sets._bitmaps.values():
            bitmap.fill()
        return sets

    @classmethod
    def collected(cls, table: RegionTable, answer: Mapping[int, PageBitmap]) -> Self:
        """What a guest's `collect_dirty` answered, copied.

        A region that the answer does not mention has no dirty page; regions that are not copied are
        ignored.

        Raises:
            GuestError: a region that the guest does not have, or a bitmap of the wrong length.
        """
        sets = cls(table)
        known = {region.id for region in table.regions}
        for number, bitmap in answer.items():
            if number not in known:
                raise GuestError(f"dirty pages of region {number}, which does not exist")
            if number not in sets._bitmaps:
                continue
            if bitmap.bits != table[number].pages:
                raise GuestError(
                    f"{bitmap.bits} dirty bits for {table[number].pages} pages of region {number}"
                )
            sets._bitmaps[number] |= bitmap
        return sets

    def __getitem__(self, region: int) -> PageBitmap:
        return self._bitmaps[region]

    def __iter__(self) -> Iterator[int]:
        return iter(self._bitmaps)

    def __len__(self) -> int:
        return len(self._bitmaps)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.count()} of {self.table.pages} pages>"

    def copy(self) -> Self:
        """Another set with the same pages."""
        sets = type(self)(self.table)
        for number, bitmap in self._bitmaps.items():
            sets._bitmaps[number] |= bitmap
        return sets

    def count(self) -> int:
        """Pages in the set."""
        return sum(bitmap.count() for bitmap in self._bitmaps.values())

    def size_bytes(self) -> int:
        """Bytes of the pages in the set."""
        return sum(
            bitmap.count() << self.table[number].granule_log2 for number, bitmap in self._bitmaps.items()
        )

    def any(self) -> bool:
        """Whether a page is in the set."""
        return any(bitmap.any() for bitmap in self._bitmaps.values())

    def fill(self) -> None:
        """Add every page."""
        for bitmap in self._bitmaps.values():
            bitmap.fill()

    def clear_all(self) -> None:
        """Remove every page."""
        for bitmap in self._bitmaps.values():
            bitmap.clear_all()

    def add_ranges(self, ranges: Iterable[PageRange]) -> None:
        """Add page ranges.

        Raises:
            KeyError: a region that is not copied.
            IndexError: pages outside of their region.
        """
        for item in ranges:
            self._bitmaps[item.region].set(item.first, item.count)

    def batches(self, batch_bytes: int, max_runs: int) -> Iterator[tuple[int, Positions, Positions]]:
        """The set in pieces of at most `batch_bytes` and `max_runs`: (region id, starts, counts).

        Regions and pages ascend. Lazy: pages added ahead of the iterator are seen, behind it they are not.
        """
        for number, bitmap in self._bitmaps.items():
            pages = max(batch_bytes >> self.table[number].granule_log2, 1)
            for starts, counts in bitmap.batches(pages, max_runs):
                yield number, starts, counts

    def runs(self) -> Iterator[tuple[int, RunArrays]]:
        """(region id, maximal runs) of every region that has a page in the set."""
        for number, bitmap in self._bitmaps.items():
            runs = bitmap.runs()
            if len(runs[0]):
                yield number, runs

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PageSets):
            return NotImplemented
        return self._bitmaps == other._bitmaps

    def __ior__(self, other: PageSets) -> Self:
        return self._each(other, PageBitmap.__ior__)

    def __iand__(self, other: PageSets) -> Self:
        return self._each(other, PageBitmap.__iand__)

    def __isub__(self, other: PageSets) -> Self:
        return self._each(other, PageBitmap.__isub__)

    def __ixor__(self, other: PageSets) -> Self:
        return self._each(other, PageBitmap.__ixor__)

    def _each(self, other: PageSets, change: Callable[[PageBitmap, PageBitmap], PageBitmap]) -> Self:
        if self._bitmaps.keys() != other._bitmaps.keys():
            raise ValueError("sets of different regions")
        for number, bitmap in self._bitmaps.items():
            change(bitmap, other._bitmaps[number])
        return self
