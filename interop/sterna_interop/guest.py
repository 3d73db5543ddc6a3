"""The guest of the kit: memory, writes and state as functions of numbers, so that any language can make them.

Nothing of it is random and nothing depends on how an endpoint works: who knows the parameters knows every
byte of the image that has to arrive. That is what lets the kit judge two endpoints without believing either.

A page's *generation* counts its writes: 0 at first, k after it was written by entry k - 1 of the script. Its
content is words w(0), w(1), ... of 64 bits, little-endian, modulo 2^64::

    mix(x)   = splitmix64's step: x += 0x9E3779B97F4A7C15, then xorshift and multiply, twice, and xorshift
    key      = mix(mix(mix(mix(seed) + region) + page) + generation)
    w(i)     = key + i * 0x9E3779B97F4A7C15

except that a page whose key is divisible by `zero_one_in` is all zeros: some are at first, and some become so
by a write, and then nothing of what they held may be left. The words of a page differ, and so do equal words
of different pages, generations and regions: a page that lands in the wrong place, a stale one, and two
halves that were exchanged all change the hash.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.guest.api import NO_VCPU, GuestDescription, StateSection
from sterna.registry import Architecture, RegionKind, StateKind, Transfer
from sterna.wire.records import Region

WORD: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1
_SECTION_HEAD: Final = struct.Struct("<IIIIIQ")


def mix(value: int) -> int:
    """One step of splitmix64, a bijection of 64 bits."""
    value = (value + WORD) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def words(key: int, size_bytes: int) -> bytes:
    """The first `size_bytes` bytes of the words that belong to `key`."""
    count = -(-size_bytes // 8)
    with np.errstate(over="ignore"):
        values: npt.NDArray[np.uint64] = np.uint64(key) + np.arange(count, dtype="<u8") * np.uint64(WORD)
    return values.astype("<u8").tobytes()[:size_bytes]


@dataclass(frozen=True, slots=True)
class Write:
    """Pages `first` to `first + count - 1` of a region are written, each page whole."""

    region: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class SectionSpec:
    """A state section: `size_bytes` words of key mix(seed + 2^32 + its place in the list)."""

    size_bytes: int
    kind: int = int(StateKind.OPAQUE)
    version: int = 1
    vcpu: int = NO_VCPU
    instance: int = 0
    architecture: int = int(Architecture.SYNTHETIC)


def _script() -> tuple[tuple[Write, ...], ...]:
    return (
        (Write(1, 0, 40), Write(1, 128, 17), Write(2, 3, 5)),
        (Write(1, 20, 30), Write(2, 0, 4)),
        (Write(1, 250, 6),),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSpec:
    """Everything about a guest. The default one has 1.25 MiB in two regions, and is written to three times.

    Attributes:
        writes: the script. What entry k writes has generation k + 1 from then on.
        zero_one_in: one in so many pages is zero, at first and after each write; 0 for none.
    """

    id: bytes = bytes(range(0xA0, 0xB0))
    name: str = "interop"
    architecture: int = int(Architecture.SYNTHETIC)
    vcpus: int = 2
    state_bytes: int = 1 << 16
    regions: tuple[Region, ...] = (Region(1, 0, 1 << 20), Region(2, 1 << 32, 1 << 18))
    seed: int = 1
    zero_one_in: int = 4
    sections: tuple[SectionSpec, ...] = (SectionSpec(600), SectionSpec(33, vcpu=0), SectionSpec(33, vcpu=1))
    writes: tuple[tuple[Write, ...], ...] = field(default_factory=_script)

    @property
    def copied(self) -> tuple[Region, ...]:
        """The regions whose memory travels, in the order of their ids."""
        copied = (region for region in self.regions if region.transfer == Transfer.COPY)
        return tuple(sorted(copied, key=lambda region: region.id))

    @property
    def description(self) -> GuestDescription:
        """The guest as Sterna describes one."""
        return GuestDescription(
            self.id, self.name, self.regions, self.architecture, self.vcpus, self.state_bytes
        )

    def page(self, region: Region, page: int, generation: int) -> bytes:
        """A page's bytes."""
        key = mix(self.seed)
        for part in (region.id, page, generation):
            key = mix((key + part) & _MASK)
        size = 1 << region.granule_log2
        if self.zero_one_in and not key % self.zero_one_in:
            return bytes(size)
        return words(key, size)

    def generations(self, entries: int | None = None) -> dict[int, list[int]]:
        """By region, the generation of each page when so many entries (all by default) were written."""
        table = {region.id: [0] * region.pages for region in self.copied}
        for number, entry in enumerate(self.writes[:entries], 1):
            for write in entry:
                table[write.region][write.first : write.first + write.count] = [number] * write.count
        return table

    def image(self, entries: int | None = None) -> dict[int, bytes]:
        """By region, the memory when so many entries (all by default) of the script were written."""
        table = self.generations(entries)
        return {
            region.id: b"".join(
                self.page(region, page, generation) for page, generation in enumerate(table[region.id])
            )
            for region in self.copied
        }

    def memory_hash(self, entries: int | None = None) -> str:
        """What `result.json` must say of the memory after so many entries."""
        return memory_hash([data for _, data in sorted(self.image(entries).items())])

    @property
    def state(self) -> tuple[StateSection, ...]:
        """The guest's state, which no write changes."""
        return tuple(
            StateSection(
                section.kind,
                section.version,
                words(mix((self.seed + (1 << 32) + place) & _MASK), section.size_bytes),
                section.architecture,
                section.vcpu,
                section.instance,
            )
            for place, section in enumerate(self.sections)
        )


def memory_hash(regions: Sequence[bytes | bytearray | memoryview]) -> str:
    """SHA-256, in hex, over the memory of the copied regions, which come in the order of their ids."""
    total = hashlib.sha256()
    for data in regions:
        total.update(data)
    return total.hexdigest()


def state_hash(sections: Sequence[StateSection]) -> str:
    """SHA-256, in hex, over the sections in ascending order of what identifies them.

    Of each: architecture, kind, vcpu, version, instance as u32 and the length as u64, little-endian, then
    the data.
    """
    total = hashlib.sha256()
    for section in sorted(sections, key=_identity):
        total.update(_SECTION_HEAD.pack(*_identity(section), len(section.data)))
        total.update(section.data)
    return total.hexdigest()


def _identity(section: StateSection) -> tuple[int, int, int, int, int]:
    return section.architecture, section.kind, section.vcpu, section.version, section.instance


def region_of(fields: dict[str, int]) -> Region:
    """A region as the parameters state it."""
    return Region(
        fields["id"],
        fields["address"],
        fields["size_bytes"],
        fields["granule_log2"],
        fields["fault_granule_log2"],
        RegionKind(fields["kind"]),
        Transfer(fields["transfer"]),
    )
