"""Which pages there are, and sets of them over all copied regions.

Page numbers count granules from a region's start. Only regions with transfer `COPY` have pages here:
the others never travel as pages, are in no set and not in the digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Self

from sterna.errors import GuestError, remote_error
from sterna.limits import CHUNK_BYTES
from sterna.memory.bitmap import PageBitmap, Positions, RunArrays
from sterna.registry import ErrorCode, FrameType, Transfer
from sterna.wire.records import PageRange, Region


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

    def check_ranges(self, ranges: Iterable[PageRange]) -> None:
        """Check the rejected pages of a ROUND_ACK against the regions.

        Raises:
            RemoteProtocolError: OUTSIDE_REGION.
        """
        for item in ranges:
            region = self._by_id.get(item.region)
            if region is None or item.first + item.count > region.pages:
                text = f"pages {item.first}+{item.count} of region {item.region}"
                raise remote_error(ErrorCode.OUTSIDE_REGION, text, clause="FRM-18", frame=FrameType.ROUND_ACK)


class PageSets:
    """A set of pages over all copied regions: one `PageBitmap` each. What is dirty, pending, held.

    In-place operators change the left side and want both to be of the same table (ValueError).
    """

    __slots__ = ("_bitmaps", "table")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, table: RegionTable, *, _bitmaps: dict[int, PageBitmap] | None = None) -> None:
        """An empty set."""
        self.table: Final = table
        if _bitmaps is None:
            _bitmaps = {region.id: PageBitmap(region.pages) for region in table.copied}
        self._bitmaps: Final = _bitmaps

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
        known = {region.id for region in table.regions}
        for number, bitmap in answer.items():
            if number not in known:
                raise GuestError(f"dirty pages of region {number}, which does not exist")
            if number in table and bitmap.bits != table[number].pages:
                raise GuestError(
                    f"{bitmap.bits} dirty bits for {table[number].pages} pages of region {number}"
                )
        return cls(
            table,
            _bitmaps={
                region.id: answer[region.id].copy() if region.id in answer else PageBitmap(region.pages)
                for region in table.copied
            },
        )

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
        copies = {number: bitmap.copy() for number, bitmap in self._bitmaps.items()}
        return type(self)(self.table, _bitmaps=copies)

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

        Regions and pages ascend. See `PageBitmap.batches`.
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
