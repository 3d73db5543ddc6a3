"""Groups of pages of which the guest may have some already: the rest is put beside them.

A guest that runs before all of its pages are there gets single ones *early*, from another process. Such a
page is the guest's, and is never written again [PCY-32]. So the bytes of a run come to their place only if
none of its pages is early, and none will be: the run is *taken* first. Else they come beside, are verified
there, and only what is not early is copied; the pages that are early have to be those that came early, as far
as is known.

Whether a page is early or taken is decided by `Claims`, under a lock that both processes share. What was
taken stays taken, also if its bytes come damaged: they come to the same place, or beside, once more.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Protocol

import numpy as np
from xxhash import xxh3_64_intdigest

from sterna.limits import CHUNK_BYTES
from sterna.memory.bitmap import FEW_RUNS
from sterna.memory.by_table import ByTable
from sterna.memory.pages import RegionSink, hash_chunks, merged_ranges, zero_batch
from sterna.memory.regions import RegionTable, chunk_pages
from sterna.registry import Encoding
from sterna.wire.pages import chunk_counts
from sterna.wire.records import PageRange, Pages


class Claims(Protocol):
    """Who may write a page: whoever has taken it, or, if it is early, the guest alone."""

    def take_all(self, region: int, first: int, count: int) -> bool:
        """Take these pages if none of them is early; else take none. Legal for what was taken."""
        ...

    def take_rest(self, region: int, first: int, count: int) -> int:
        """Take those of these pages that are not early. Returns which are early, a bit each."""
        ...

    def noted(self, region: int, page: int) -> int:
        """XXH3-64 of the bytes that an early page came with; 0 if that is not known."""
        ...


class Merging:
    """A `PageSink` around that of a guest's memory, with which no early page is ever written.

    Args:
        pages: the guest's memory, for raw pages and zero ones.
        claims: decides who writes where.

    Attributes:
        early_pages: pages that were early when their group came, and was good.
    """

    def __init__(self, pages: RegionSink, claims: Claims) -> None:
        self.early_pages = 0
        self._pages: Final = pages
        self._claims: Final = claims
        self._apart: Final[ByTable[dict[int, tuple[memoryview, memoryview]]]] = ByTable()

    @property
    def table(self) -> RegionTable:
        """The guest's regions."""
        return self._pages.table

    def targets(self, table: Pages) -> list[memoryview]:
        """See `PageSink.targets`. The places of runs with early pages are not guest memory."""
        places = self._pages.targets(table)
        early = self._early_runs(table, Encoding.RAW)
        if not early:
            return places
        raw = [row for row, (*_, encoding) in enumerate(table.rows) if encoding == Encoding.RAW]
        apart: dict[int, tuple[memoryview, memoryview]] = {}
        for at, row in enumerate(raw):
            if row in early:
                apart[row] = memoryview(bytearray(len(places[at]))), places[at]
                places[at] = apart[row][0]
        self._apart.put(table, apart)
        return places

    def came(self, table: Pages, size_bytes: int) -> None:
        """See `PageSink.came`: groups are small, and may come beside."""

    def commit(self, table: Pages, *, hashed: bool = True) -> list[PageRange]:
        """See `PageSink.commit`. An early page that differs from what came with its group rejects that."""
        apart = self._apart.pop(table) or {}
        zeros = self._early_runs(table, Encoding.ZERO)
        if not apart and not zeros:
            return self._pages.commit(table, hashed=hashed)
        hashes_before = np.cumsum(chunk_counts(table.runs, self._granule_log2(table))).tolist()
        rejected = self._pages.commit(self._without(table, {*apart, *zeros}), hashed=hashed)
        for row, (came, place) in apart.items():
            count = -(-len(came) // CHUNK_BYTES)
            stated = table.hashes[hashes_before[row] - count : hashes_before[row]].tolist()
            rejected += self._merge_run(table, table.rows[row][0], came, place, stated if hashed else None)
        for row in zeros:
            rejected += self._merge_zeros(table, *table.rows[row][:2], hashed)
        return merged_ranges(rejected)

    def _granule_log2(self, table: Pages) -> int:
        return self._pages.table[table.region].granule_log2

    def _early_runs(self, table: Pages, encoding: Encoding) -> set[int]:
        """Take all runs of this encoding that have no early page; the row numbers of the others.

        Of many runs all is taken that lies between them as well, in one step: they come in order, and what is
        between them has come, or will with the next table.
        """
        if len(table.runs) > FEW_RUNS:
            if not (table.runs["encoding"] == encoding).any():
                return set()
            first, last = int(table.runs["first"][0]), table.runs[-1]
            if self._claims.take_all(table.region, first, int(last["first"]) + int(last["count"]) - first):
                return set()
        return {
            row
            for row, (first, count, _, kind) in enumerate(table.rows)
            if kind == encoding and not self._claims.take_all(table.region, first, count)
        }

    def _without(self, table: Pages, rows: Collection[int]) -> Pages:
        """The other runs, with their hashes."""
        some = np.ones(len(table.runs), np.bool_)
        some[list(rows)] = False
        hashes = table.hashes[np.repeat(some, chunk_counts(table.runs, self._granule_log2(table)))]
        return Pages(table.attempt, table.round, table.region, table.runs[some], hashes)

    def _merge_run(
        self, table: Pages, first: int, came: memoryview, place: memoryview, stated: list[int] | None
    ) -> list[PageRange]:
        """A run that came beside: the pages of its chunks that are not what they should be."""
        log2 = self._granule_log2(table)
        found = None if stated is None else hash_chunks(came, (0,), (len(came),))
        rejected: list[PageRange] = []
        for number, start in enumerate(range(0, len(came), CHUNK_BYTES)):
            page, part = first + (start >> log2), slice(start, start + CHUNK_BYTES)
            good = found is None or stated is None or found[number] == stated[number]
            if not good or not self._merge(table.region, page, came[part], place[part], stated is not None):
                rejected.append(PageRange(table.region, page, len(came[part]) >> log2))
        return rejected

    def _merge(self, region: int, first: int, came: memoryview, place: memoryview, hashed: bool) -> bool:
        """Put a chunk's pages beside its early ones. False: one of these differs, and nothing is changed."""
        size = 1 << self._pages.table[region].granule_log2
        count = len(came) // size
        early = self._claims.take_rest(region, first, count)
        parts = [slice(at * size, (at + 1) * size) for at in range(count)]
        for at, part in enumerate(parts):
            if hashed and early >> at & 1 and not self._is_as_noted(region, first + at, came[part]):
                return False
        for at, part in enumerate(parts):
            if not early >> at & 1:
                place[part] = came[part]
        self.early_pages += early.bit_count()
        return True

    def _merge_zeros(self, table: Pages, first: int, count: int, hashed: bool) -> list[PageRange]:
        """A zero run with early pages: the pages of its chunks in which one of these is not zero."""
        region, zeros = table.region, bytes(1 << self._granule_log2(table))
        rejected: list[PageRange] = []
        fill: list[int] = []
        step = chunk_pages(self._granule_log2(table))
        for start in range(first, first + count, step):
            pages = range(start, min(start + step, first + count))
            early = self._claims.take_rest(region, start, len(pages))
            some = [page for page in pages if early >> page - start & 1]
            if not hashed or all(self._is_as_noted(region, page, zeros) for page in some):
                fill += [page for page in pages if page not in some]
                self.early_pages += early.bit_count()
            else:
                rejected.append(PageRange(region, start, len(pages)))
        starts = np.array(fill, np.int64)
        batch = zero_batch(region, starts, np.ones(len(fill), np.int64))
        self._pages.commit(batch.table(table.attempt, table.round))
        return rejected

    def _is_as_noted(self, region: int, page: int, came: memoryview | bytes) -> bool:
        noted = self._claims.noted(region, page)
        return not noted or noted == xxh3_64_intdigest(came)
