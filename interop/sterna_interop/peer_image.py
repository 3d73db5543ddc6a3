"""What a scripted peer keeps of a guest: its memory, the entries of its pages, and the digest over them.

Written from chapters 5.10 and 10 alone and in plain loops. Nothing of `sterna.memory` or `sterna.core` is
used: an endpoint made of these is what a peer judges, and a mistake on both sides would acquit itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np

from sterna.limits import CHUNK_BYTES, Limits
from sterna.registry import Encoding, Transfer
from sterna.wire import PageRange, Pages, Region, digest, make_runs, page_hash

_ZERO_ENTRY: Final = (0, 0xFF)
_NOT_HELD: Final = (0, 0xFE)
_BATCH_BYTES: Final = 256 * 1024
_TABLE_HEAD_BYTES: Final = 24
_ROW_BYTES: Final = 24 + 8  # a run of one page, with its hash

PageName: TypeAlias = tuple[int, int]  # region id, page
LastSequences: TypeAlias = tuple[tuple[int, int], ...]  # stream, sequence


@dataclass(frozen=True, slots=True)
class Batch:
    """One PAGES frame: the table, and the bytes that go with it."""

    table: Pages
    bulk: bytes


class Image:
    """A guest's memory on one side, zeros at first, and what that side knows of each page [MEM-7].

    Attributes:
        hashed: whether chunks have hashes; if not, each of them is 0 [MEM-20].
    """

    def __init__(self, regions: Iterable[Region], *, hashed: bool = True) -> None:
        self.hashed = hashed
        self.regions: Final = {region.id: region for region in sorted(regions, key=lambda region: region.id)}
        copied = [region for region in self.regions.values() if region.transfer == Transfer.COPY]
        self.memory: Final = {region.id: bytearray(region.size_bytes) for region in copied}
        self._entries: Final = {region.id: [_NOT_HELD] * region.pages for region in copied}

    def write(self, name: PageName, content: bytes) -> None:
        """Give a page this content."""
        self.page(name)[:] = content

    @property
    def size_bytes(self) -> int:
        """Bytes of the copied regions."""
        return sum(map(len, self.memory.values()))

    @property
    def page_count(self) -> int:
        """Pages of the copied regions."""
        return sum(map(len, self._entries.values()))

    def all_pages(self) -> list[PageName]:
        """Every page of every copied region, in order."""
        return [(region, page) for region, entries in self._entries.items() for page in range(len(entries))]

    def page(self, name: PageName) -> memoryview:
        """The bytes of a page, to be read or written."""
        region, number = name
        size = 1 << self.regions[region].granule_log2
        return memoryview(self.memory[region])[number * size : (number + 1) * size]

    # ---- sending ----

    def batches(
        self, attempt: int, round_number: int, pages: Iterable[PageName], limits: Limits
    ) -> Iterator[Batch]:
        """Pages as PAGES frames that keep to a receiver's limits [LIM-6]; taken down as sent [MEM-9]."""
        waiting: list[PageName] = []
        for name in sorted(pages):
            if waiting and not self._fits(waiting, name, limits):
                yield self._batch(attempt, round_number, waiting)
                waiting = []
            waiting.append(name)
        if waiting:
            yield self._batch(attempt, round_number, waiting)

    def _fits(self, waiting: Sequence[PageName], name: PageName, limits: Limits) -> bool:
        region = self.regions[name[0]]
        count = len(waiting) + 1  # as if each page were a run: more room than that is never needed
        return (
            waiting[0][0] == name[0]
            and count << region.granule_log2 <= min(limits.bulk_bytes, _BATCH_BYTES)
            and count <= limits.batch_runs
            and _TABLE_HEAD_BYTES + count * _ROW_BYTES <= limits.control_bytes
        )

    def _batch(self, attempt: int, round_number: int, names: Sequence[PageName]) -> Batch:
        region = self.regions[names[0][0]]
        rows: list[tuple[int, int, Encoding]] = []
        parts: list[bytes] = []
        for name in names:
            content = bytes(self.page(name))
            encoding = Encoding.RAW if any(content) else Encoding.ZERO
            if rows and rows[-1][2] == encoding and sum(rows[-1][:2]) == name[1]:
                rows[-1] = (rows[-1][0], rows[-1][1] + 1, encoding)
            else:
                rows.append((name[1], 1, encoding))
                parts.append(b"")
            if encoding is Encoding.RAW:
                parts[-1] += content
        hashes = [self._hash(chunk) for part in parts for chunk in chunks_of(part)]
        runs = make_runs(rows, region.granule_log2)
        table = Pages(attempt, round_number, region.id, runs, np.array(hashes, "<u8"))
        self.note(table)
        return Batch(table, b"".join(parts))

    def whole(self, attempt: int, round_number: int, names: Sequence[PageName]) -> Batch:
        """Neighbouring pages of one chunk as one run, always with bytes [PCY-7] [PCY-17]."""
        (region, first), count = names[0], len(names)
        content = b"".join(bytes(self.page(name)) for name in names)
        runs = make_runs([(first, count, Encoding.RAW)], self.regions[region].granule_log2)
        return Batch(
            Pages(attempt, round_number, region, runs, np.array([self._hash(content)], "<u8")), content
        )

    # ---- receiving ----

    def take(self, table: Pages, bulk: bytes) -> list[PageRange]:
        """Write a batch to memory, chunk by chunk; the pages of chunks that are not what their hash says."""
        self.note(table)
        size, at, number = 1 << self.regions[table.region].granule_log2, 0, 0
        rejected: list[PageRange] = []
        memory = self.memory[table.region]
        for first, count, size_bytes, encoding in _rows(table):
            start = first * size
            if encoding == Encoding.ZERO:
                memory[start : start + count * size] = bytes(count * size)
                continue
            for chunk in chunks_of(bulk[at : at + size_bytes]):
                memory[start : start + len(chunk)] = chunk
                if self._hash(chunk) != int(table.hashes[number]):
                    rejected.append(PageRange(table.region, start // size, len(chunk) // size))
                start, number = start + len(chunk), number + 1
            at += size_bytes
        self.forget(rejected)
        return rejected

    def _hash(self, chunk: bytes) -> int:
        return page_hash(chunk) if self.hashed else 0

    # ---- entries ----

    def note(self, table: Pages) -> None:
        """The entries of a table's pages are now what the table says [MEM-8] [MEM-9]."""
        entries = self._entries[table.region]
        step = CHUNK_BYTES >> self.regions[table.region].granule_log2
        chunk = 0
        for first, count, _, encoding in _rows(table):
            for place in range(count):
                if encoding != Encoding.ZERO:
                    entries[first + place] = int(table.hashes[chunk + place // step]), place % step
                else:
                    entries[first + place] = _ZERO_ENTRY
            chunk += -(-count // step) if encoding != Encoding.ZERO else 0

    def forget(self, ranges: Iterable[PageRange]) -> None:
        """These pages are not held [RAK-4]."""
        for each in ranges:
            self._entries[each.region][each.first : each.first + each.count] = [_NOT_HELD] * each.count

    def missing(self) -> int:
        """Pages that are not held."""
        return sum(entries.count(_NOT_HELD) for entries in self._entries.values())

    def digest(self) -> bytes:
        """The memory digest [MEM-13]."""
        parts = []
        for region, entries in self._entries.items():
            parts.append(struct.pack("<IQ", region, len(entries)))
            parts += [struct.pack("<Q", entry) for entry, _ in entries]
            parts.append(bytes(index for _, index in entries))
        return digest(b"".join(parts))


def pages_of(each: PageRange) -> list[PageName]:
    """The pages of a range."""
    return [(each.region, page) for page in range(each.first, each.first + each.count)]


def chunks_of(part: bytes) -> Iterator[bytes]:
    """The chunks of a run's bytes [MEM-1]."""
    return (part[at : at + CHUNK_BYTES] for at in range(0, len(part), CHUNK_BYTES))


def leading_run(batch: Batch, granule_log2: int = 12) -> tuple[int, int, bytes, Batch]:
    """The pages that a batch begins with and that follow each other: first, count, bytes; and the rest."""
    first = count = int(batch.table.runs["first"][0])
    content, used, at, hashes = b"", 0, 0, 0
    for begin, pages, size_bytes, _ in _rows(batch.table):
        if begin != count:
            break
        content += batch.bulk[at : at + size_bytes] or bytes(pages << granule_log2)
        count, used, at, hashes = (
            count + pages,
            used + 1,
            at + size_bytes,
            hashes - (-size_bytes // CHUNK_BYTES),
        )
    table = replace(batch.table, runs=batch.table.runs[used:], hashes=batch.table.hashes[hashes:])
    return first, count - first, content, Batch(table, batch.bulk[at:])


def _rows(table: Pages) -> list[tuple[int, int, int, int]]:
    """(first, count, size_bytes, encoding) of each run, as plain integers."""
    names = ("first", "count", "size_bytes", "encoding")
    first, count, size_bytes, encoding = (table.runs[name].tolist() for name in names)
    return list(zip(first, count, size_bytes, encoding, strict=True))
