"""What both sides know about every page, and the digest over it [MEM-6 to MEM-16].

Each side keeps one entry a page: the XXH3-64 of the chunk in which the page's current version last travelled,
and the page's index in that chunk. The destination takes an entry only after it has hashed the bytes in
place, so the entry stands for content that it really has; the source takes it when it sends, and drops
it when the page is written or rejected.

Why it is cheap: the hashes are those that the page tables carry anyway. At SEAL nothing is hashed but
the entries, 9 bytes a page (2.3 MiB for a GiB of 4 KiB pages), instead of the memory; and the digest can be
compared again at COMPLETE, when the guest has long written to its memory.

What equal digests prove, up to accidents of the hash: for every page both sides mean the same version,
sent and verified in the same chunk, or zero, or missing on both sides. So no page was lost, applied to
the wrong place, overwritten by an older version, or left stale unnoticed. What they do not prove: that
the source's tracker reported every write (a page changed behind its back keeps its entry on both sides),
that memory was not changed at the destination after it was verified, or anything against somebody who
forges pages on purpose: XXH3 is no cryptographic hash, that is what TLS is for.
Where both sides have agreed to do without hashes [MEM-20] every hash is 0, and content is not proved.

Because entries name chunks, they depend on how pages were cut into chunks. Both sides see the same tables,
so their entries agree however batches are cut; digests of two different migrations of equal memory differ.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128

from sterna.limits import GRANULE_MIN_LOG2
from sterna.memory.bitmap import (
    FEW_RUNS,
    LONG_RUN,
    PageBitmap,
    Positions,
    assign_runs,
    checked_runs,
    expand_runs,
)
from sterna.memory.regions import PageSets, RegionTable, chunk_pages
from sterna.registry import Encoding
from sterna.wire.records import Hashes, PageRange, Pages

Indexes: TypeAlias = npt.NDArray[np.uint8]

ZERO_INDEX: Final = 0xFF  # the page reads as zeros
STALE_INDEX: Final = 0xFE  # no verified current version: "not held" in the specification

ENTRY_BYTES: Final = 9

_EMPTY: Final = (Encoding.ZERO, Encoding.ABSENT)
_HEAD: Final = struct.Struct("<IQ")
_NUMBERS: Final = np.arange(chunk_pages(GRANULE_MIN_LOG2), dtype=np.uint8)
_COUNT_BLOCK: Final = 1 << 18  # entries compared at a time: the temporary stays in the cache


class MemoryDigest:
    """The entries of all copied regions. At first every page is stale.

    Takes 9 bytes a page. Every page is in one of three sets: held, zero, stale.

    Attributes:
        hashed: whether chunks have hashes in this session; if not, each of them is 0 [MEM-20]. May be changed
            as long as every page is stale.
    """

    __slots__ = ("_away", "_hashes", "_held", "_indexes", "_value", "hashed", "table")

    def __init__(self, table: RegionTable, *, hashed: bool = True) -> None:
        """Entries for the pages of `table`, all stale."""
        self.table: Final = table
        self.hashed = hashed
        self._away = False
        self._value: bytes | None = None  # of the entries as they are
        self._held: set[int] = set()  # regions of which pages have a hash, or had one
        # In one piece: for a large guest numpy then asks for huge pages, and a few are touched, not hundreds.
        place = np.zeros(ENTRY_BYTES * table.pages, np.uint8)
        self._hashes, self._indexes = _entries_in(place.data, table)
        for indexes in self._indexes.values():
            indexes.fill(STALE_INDEX)

    @property
    def size_bytes(self) -> int:
        """Bytes that the entries take where they are kept."""
        return ENTRY_BYTES * self.table.pages

    def move_to(self, place: memoryview | bytearray) -> None:
        """Keep the entries there from now on, so that they outlive this process if the place does [PCY-16].

        Raises:
            ValueError: it has fewer than `size_bytes` bytes.
        """
        self._move(*_entries_in(place, self.table))
        self._away = True

    def move_home(self) -> None:
        """Let go of that place, if there is one; what it holds stays there."""
        if self._away:
            self._move(
                {region: np.empty_like(each) for region, each in self._hashes.items()},
                {region: np.empty_like(each) for region, each in self._indexes.items()},
            )
            self._away = False

    def _move(self, hashes: dict[int, Hashes], indexes: dict[int, Indexes]) -> None:
        for region, here in self._hashes.items():
            if hashes[region].ctypes.data != here.ctypes.data:  # else they are there
                hashes[region][:], indexes[region][:] = here, self._indexes[region]
        self._hashes.update(hashes)
        self._indexes.update(indexes)

    @classmethod
    def kept_in(cls, place: memoryview | bytearray, table: RegionTable, *, hashed: bool = True) -> Self:
        """A copy of the entries that another process has kept there by `move_to`.

        Raises:
            ValueError: it has too few bytes for the pages of `table`.
        """
        digest = cls(table, hashed=hashed)
        hashes, indexes = _entries_in(place, table)
        for region in table:
            digest._hashes[region][:], digest._indexes[region][:] = hashes[region], indexes[region]
        if hashed:
            digest._held.update(hashes)
        return digest

    def record(self, table: Pages, rejected: Iterable[PageRange] = ()) -> None:
        """The pages of a table are now of the version that it describes, but for the rejected ones.

        Args:
            table: a page table that the codec has checked, or that this side encoded.
            rejected: pages that `PageSink.commit` rejected; they become stale.

        Raises:
            KeyError: not a copied region.
            IndexError: a run reaches outside of its region.
            ValueError: the number of hashes does not follow from the runs.
        """
        self._value = None
        (self._record_few if len(table.runs) <= FEW_RUNS else self._record_many)(table)
        for item in rejected:
            self.mark_stale(item.region, [item.first], [item.count])

    def _record_few(self, table: Pages) -> None:
        """For a few runs, such as those that a guest waits for, numpy's calls are what takes the time."""
        hashes, indexes = self._hashes[table.region], self._indexes[table.region]
        step = chunk_pages(self.table[table.region].granule_log2)
        runs = [(first, first + count, encoding) for first, count, _, encoding in table.rows]
        if any(end > len(indexes) for _, end, _ in runs):
            raise IndexError(f"a run reaches outside of 0..{len(indexes)}")
        chunks = [0 if encoding in _EMPTY else -((first - end) // step) for first, end, encoding in runs]
        _check_hashes(table, sum(chunks))
        at = 0
        for (first, end, encoding), some in zip(runs, chunks, strict=True):
            if encoding in _EMPTY:
                self._forget_one(table.region, first, end, ZERO_INDEX)
                continue
            if self.hashed:
                self._held.add(table.region)
                _fill(hashes[first:end], table.hashes[at : at + some], step)
            _number(indexes[first:end], step)
            at += some

    def _record_many(self, table: Pages) -> None:
        hashes, indexes = self._hashes[table.region], self._indexes[table.region]
        first, count = checked_runs(table.runs["first"], table.runs["count"], len(indexes))
        empty = (table.runs["encoding"] == Encoding.ZERO) | (table.runs["encoding"] == Encoding.ABSENT)
        full = ~empty & (count > 0)
        step = chunk_pages(self.table[table.region].granule_log2)
        chunks = -(-count[full] // step)
        _check_hashes(table, int(chunks.sum()))
        lengths = _chunk_lengths(count[full], chunks, step)
        numbers = expand_runs(first[full], count[full])
        if self.hashed and len(numbers):
            self._held.add(table.region)
            hashes[numbers] = np.repeat(table.hashes, lengths)
        indexes[numbers] = np.arange(len(numbers)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        if np.count_nonzero(empty):
            self._forget(table.region, first[empty], count[empty], ZERO_INDEX)

    def mark_stale(self, region: int, starts: npt.ArrayLike, counts: npt.ArrayLike) -> None:
        """Runs of pages have no verified current version any more: written since, or rejected.

        Raises:
            KeyError: not a copied region.
            IndexError: a run reaches outside of the region.
        """
        self._forget(region, *checked_runs(starts, counts, len(self._indexes[region])), STALE_INDEX)

    def mark_sets_stale(self, sets: PageSets) -> None:
        """`mark_stale` for every page of the sets."""
        for region, (starts, counts) in sets.runs():
            self._forget(region, starts, counts, STALE_INDEX)

    def _forget(self, region: int, starts: Positions, counts: Positions, index: int) -> None:
        self._value = None
        hashes, indexes = self._hashes[region], self._indexes[region]
        if len(starts) <= FEW_RUNS:
            for first, count in zip(starts.tolist(), counts.tolist(), strict=True):
                self._forget_one(region, first, first + count, index)
            return
        if region in self._held:
            some = np.ones(len(starts), np.bool_)
            for at in np.flatnonzero(counts >= LONG_RUN).tolist():
                some[at] = _any_held(indexes, int(starts[at]), int(starts[at] + counts[at]))
            assign_runs(hashes, starts[some], counts[some], 0)
        assign_runs(indexes, starts, counts, index)

    def _forget_one(self, region: int, first: int, end: int, index: int) -> None:
        """The entries of a run of pages that have no hash: zero or stale ones."""
        indexes = self._indexes[region]
        if region in self._held and _any_held(indexes, first, end):
            self._hashes[region][first:end] = 0
        indexes[first:end] = index

    def value(self) -> bytes:
        """The digest [MEM-13]: XXH3-128 over the entries of all copied regions, 16 bytes in canonical order.

        For each region by ascending id: u32 id, u64 pages, every page's hash (u64; 0 where the page is zero
        or stale), every page's index (u8; 0xFF zero, 0xFE stale). All little-endian.

        Computed once for entries that stay as they are.
        """
        if self._value is not None:
            return self._value
        state = xxh3_128()
        for number, hashes in self._hashes.items():
            state.update(_HEAD.pack(number, len(hashes)))
            state.update(hashes.data)
            state.update(self._indexes[number].data)
        self._value = state.digest()
        return self._value

    def held(self, region: int) -> PageBitmap:
        """Pages with the verified content of a chunk; zero pages are not among them."""
        return PageBitmap.from_mask(self._indexes[region] < STALE_INDEX)

    def zero(self, region: int) -> PageBitmap:
        """Pages that read as zeros."""
        return PageBitmap.from_mask(self._indexes[region] == ZERO_INDEX)

    def stale(self, region: int) -> PageBitmap:
        """Pages without a verified current version."""
        return PageBitmap.from_mask(self._indexes[region] == STALE_INDEX)

    @property
    def held_pages(self) -> int:
        """Number of pages that are held. Costs a look at every entry, as the other counts do."""
        return self.table.pages - self.zero_pages - self.stale_pages

    @property
    def zero_pages(self) -> int:
        """Number of pages that read as zeros."""
        return self._count(ZERO_INDEX)

    @property
    def stale_pages(self) -> int:
        """Number of pages without a verified current version."""
        return self._count(STALE_INDEX)

    def _count(self, index: int) -> int:
        return sum(
            int(np.count_nonzero(indexes[low : low + _COUNT_BLOCK] == index))
            for indexes in self._indexes.values()
            for low in range(0, len(indexes), _COUNT_BLOCK)
        )


def _entries_in(
    place: memoryview | bytearray, table: RegionTable
) -> tuple[dict[int, Hashes], dict[int, Indexes]]:
    """The hashes of all regions, and behind them the indexes, as arrays over these bytes."""
    if len(place) < ENTRY_BYTES * table.pages:
        raise ValueError(f"{len(place)} bytes for the entries of {table.pages} pages")
    hashes, indexes, at = {}, {}, 0
    for region in table.copied:
        hashes[region.id] = np.frombuffer(place, "<u8", region.pages, 8 * at)
        indexes[region.id] = np.frombuffer(place, np.uint8, region.pages, 8 * table.pages + at)
        at += region.pages
    return hashes, indexes


def _check_hashes(table: Pages, chunks: int) -> None:
    if chunks != len(table.hashes):
        raise ValueError(f"{len(table.hashes)} hashes for {chunks} chunks")


def _any_held(indexes: Indexes, first: int, end: int) -> bool:
    """Whether any of these pages has a hash. Of others it is zero, and if never touched takes no memory."""
    return first < end and int(indexes[first:end].min()) < STALE_INDEX


def _fill(entries: Hashes, chunks: Hashes, step: int) -> None:
    """Each chunk's hash for its `step` pages; the last one may have fewer."""
    if len(chunks) == 1:
        entries[:] = chunks
        return
    whole = len(entries) // step
    entries[: whole * step].reshape(whole, step)[:] = chunks[:whole, np.newaxis]
    entries[whole * step :] = chunks[whole:]


def _number(entries: Indexes, step: int) -> None:
    """0, 1, 2 and so on, and from 0 again after each `step`."""
    if len(entries) <= step:
        entries[:] = _NUMBERS[: len(entries)]
        return
    whole = len(entries) // step
    entries[: whole * step].reshape(whole, step)[:] = _NUMBERS[:step]
    entries[whole * step :] = _NUMBERS[: len(entries) - whole * step]


def _chunk_lengths(counts: Positions, chunks: Positions, step: int) -> Positions:
    """Pages of every chunk of every run, in order: `step`, but for the last one of a run. No run is empty."""
    ends = np.cumsum(chunks)
    lengths = np.full(int(chunks.sum()), step, dtype=np.int64)
    lengths[ends - 1] = counts - (chunks - 1) * step
    return lengths
