"""The guest of the kit (interop/README.md), and what both sides know of its pages (chapter 10)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from sterna_interop.minimal.checks import CHUNK_BYTES, COPY

WORD: Final = 0x9E3779B97F4A7C15
MASK: Final = (1 << 64) - 1
ZERO_INDEX, NOT_HELD_INDEX = 0xFF, 0xFE

Fields = Mapping[str, Any]


def mix(x: int) -> int:
    """As the README has it."""
    x = (x + WORD) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def words(key: int, size: int) -> bytes:
    """The first `size` bytes of the words of `key`."""
    count = -(-size // 8)
    return struct.pack(f"<{count}Q", *((key + place * WORD) & MASK for place in range(count)))[:size]


@dataclass(frozen=True, slots=True)
class Section:
    """A state section: what identifies it, and its data."""

    architecture: int
    kind: int
    vcpu: int
    version: int
    instance: int
    data: bytes

    @property
    def identity(self) -> tuple[int, int, int, int, int]:
        """In the order of the README."""
        return self.architecture, self.kind, self.vcpu, self.version, self.instance


def memory_sha256(memory: Mapping[int, bytearray]) -> str:
    """For the report."""
    total = hashlib.sha256()
    for _, data in sorted(memory.items()):
        total.update(data)
    return total.hexdigest()


def state_sha256(sections: Iterable[Section]) -> str:
    """For the report."""
    total = hashlib.sha256()
    for section in sorted(sections, key=lambda one: one.identity):
        total.update(struct.pack("<5IQ", *section.identity, len(section.data)) + section.data)
    return total.hexdigest()


def state_digest(sections: Iterable[Section]) -> bytes:
    """MEM-18."""
    parts = []
    for one in sections:
        head = struct.pack(
            "<HHIIIQ", *(one.architecture, one.kind, one.vcpu, one.version, one.instance), len(one.data)
        )
        parts += [head, one.data]
    return xxh3_128_digest(b"".join(parts))


class Guest:
    """The guest at the source, which the script writes to."""

    def __init__(self, told: Fields) -> None:
        self._told = told
        self._written = 0
        self.dirty: set[tuple[int, int]] = set()
        self.regions = {region["id"]: region for region in told["regions"] if region["transfer"] == COPY}
        self.memory = {
            number: bytearray(b"".join(self._page(region, page, 0) for page in range(pages(region))))
            for number, region in sorted(self.regions.items())
        }
        self.sections = [
            Section(
                one["architecture"],
                one["kind"],
                one["vcpu"],
                one["version"],
                one["instance"],
                words(mix((told["seed"] + (1 << 32) + place) & MASK), one["size_bytes"]),
            )
            for place, one in enumerate(told["sections"])
        ]

    def _page(self, region: Fields, page: int, generation: int) -> bytes:
        key = mix(self._told["seed"])
        for part in (region["id"], page, generation):
            key = mix((key + part) & MASK)
        size, zero_one_in = 1 << region["granule_log2"], self._told["zero_one_in"]
        if zero_one_in and key % zero_one_in == 0:
            return bytes(size)
        return words(key, size)

    def write(self) -> bool:
        """The next entry of the script; False if there is none."""
        if self._written == len(self._told["writes"]):
            return False
        entry = self._told["writes"][self._written]
        self._written += 1
        for write in entry:
            region = self.regions[write["region"]]
            for page in range(write["first"], write["first"] + write["count"]):
                at = page << region["granule_log2"]
                content = self._page(region, page, self._written)
                self.memory[region["id"]][at : at + len(content)] = content
                self.dirty.add((region["id"], page))
        return True

    def collect(self) -> set[tuple[int, int]]:
        """The pages that were written since the last time."""
        dirty, self.dirty = self.dirty, set()
        return dirty


def pages(region: Fields) -> int:
    """Granules of a region."""
    return int(region["size_bytes"] >> region["granule_log2"])


class Entries:
    """One entry a page (MEM-6): a hash and an index."""

    def __init__(self, regions: Iterable[Fields]) -> None:
        """Every page is *not held* (MEM-7)."""
        self._shift = {region["id"]: region["granule_log2"] for region in regions}
        self._hashes = {region["id"]: [0] * pages(region) for region in regions}
        self._indexes = {region["id"]: bytearray([NOT_HELD_INDEX]) * pages(region) for region in regions}

    def zero(self, region: int, first: int, count: int) -> None:
        """These pages read as zeros."""
        self._set(region, first, [0] * count, bytes([ZERO_INDEX]) * count)

    def drop(self, region: int, first: int, count: int) -> None:
        """These pages are not held."""
        self._set(region, first, [0] * count, bytes([NOT_HELD_INDEX]) * count)

    def chunk(self, region: int, first: int, count: int, value: int) -> None:
        """These pages travelled in one chunk with the hash `value`."""
        self._set(region, first, [value] * count, bytes(range(count)))

    @property
    def complete(self) -> bool:
        """Whether every page is held, or zeros (MEM-11)."""
        return not any(NOT_HELD_INDEX in indexes for indexes in self._indexes.values())

    def _set(self, region: int, first: int, hashes: list[int], indexes: bytes) -> None:
        self._hashes[region][first : first + len(hashes)] = hashes
        self._indexes[region][first : first + len(hashes)] = indexes

    def digest(self) -> bytes:
        """MEM-13."""
        parts = []
        for region, hashes in sorted(self._hashes.items()):
            parts += [
                struct.pack("<IQ", region, len(hashes)),
                struct.pack(f"<{len(hashes)}Q", *hashes),
                bytes(self._indexes[region]),
            ]
        return xxh3_128_digest(b"".join(parts))


def chunks(first: int, data: bytes, shift: int) -> Iterator[tuple[int, int, bytes, int]]:
    """MEM-1: first page, count of pages, bytes and hash of each chunk of a run's bytes."""
    for at in range(0, len(data), CHUNK_BYTES):
        piece = data[at : at + CHUNK_BYTES]
        yield first + (at >> shift), len(piece) >> shift, piece, xxh3_64_intdigest(piece)
