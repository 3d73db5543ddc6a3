"""The schedule of the self-auditing workload: which page write number k goes to, and what it finds there.

A pure function of the count and the parameters, in both directions: from a count to the pages that a range
of writes touches (dirty tracking of a simulated guest, rates in distinct pages), and from a page to the
generation that it must have. spec/workload.md, sections 2 and 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

PAGE_BYTES: Final = 4096
BLOCK_PAGES_MAX: Final = 1024  # a block's scratch arrays stay small whatever a peer's state says
COUNT_END: Final = 1 << 62  # keeps every intermediate of the schedule inside 64 bits

_MASK: Final = (1 << 64) - 1
_STRIDE_RATIO: Final = 0x9E3779B9  # 2**32 / golden ratio: neighbours in time are far apart in memory

Words: TypeAlias = npt.NDArray[np.uint64]


def mix64(value: int) -> int:
    """The finaliser of splitmix64: a bijection of 64-bit words that spreads every bit."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


@dataclass(frozen=True, slots=True)
class WorkloadParameters:
    """What a workload does, fixed for its life.

    The memory is hot pages, then cold pages, then zero pages. Hot and cold set are whole blocks.

    Attributes:
        seed: 64 bits that all content follows from.
        pages: pages of 4096 bytes of the whole memory.
        hot_pages: pages that are swept again and again.
        cold_every: every so-many-th block written is one of the cold set; 0: the cold set is never written.
        block_pages: neighbouring pages that are written one after the other.
        zero_pages: pages at the end that are zero and stay so.
        heads_only: whether a write verifies and renews the head of its page alone, not its content.

    Raises:
        ValueError: the parameters contradict each other.
    """

    seed: int
    pages: int
    hot_pages: int
    cold_every: int = 0
    block_pages: int = 32
    zero_pages: int = 0
    heads_only: bool = False

    def __post_init__(self) -> None:
        checks = (
            (0 <= self.seed <= _MASK, "seed: not a 64-bit word"),
            (1 <= self.pages < 1 << 32, "pages: none, or more than 2**32 - 1"),
            (1 <= self.block_pages <= BLOCK_PAGES_MAX, "block_pages: not in 1..1024"),
            (self.zero_pages >= 0, "zero_pages: negative"),
            (self.block_pages <= self.hot_pages, "hot_pages: less than a block"),
            (self.hot_pages + self.zero_pages <= self.pages, "hot and zero pages exceed the memory"),
        )
        for good, message in checks:
            if not good:
                raise ValueError(message)
        if self.hot_pages % self.block_pages or self.cold_pages % self.block_pages:
            raise ValueError("hot_pages and cold_pages: not whole blocks")
        if not (self.cold_every == 0 or 2 <= self.cold_every < 1 << 32):
            raise ValueError("cold_every: neither 0 nor in 2..2**32 - 1")
        if self.cold_every and not self.cold_pages:
            raise ValueError("cold_every: there is no cold set")

    @property
    def cold_pages(self) -> int:
        """Pages between the hot set and the zero pages."""
        return self.pages - self.hot_pages - self.zero_pages

    @classmethod
    def for_memory(
        cls,
        memory_bytes: int,
        hot_bytes: int,
        *,
        seed: int = 1,
        cold_every: int = 0,
        block_pages: int = 32,
        heads_only: bool = False,
    ) -> WorkloadParameters:
        """Parameters for a memory of this size; the hot set is rounded down to blocks, but is at least one.

        What is left over behind the last whole block are zero pages. Without a cold set `cold_every` is 0.

        Raises:
            ValueError: the memory is not whole pages or less than a block.
        """
        pages, rest = divmod(memory_bytes, PAGE_BYTES)
        if rest or pages < block_pages:
            raise ValueError(f"{memory_bytes} bytes are not whole pages, or less than one block")
        hot_pages = min(max(hot_bytes // PAGE_BYTES // block_pages, 1), pages // block_pages) * block_pages
        zero_pages = pages % block_pages
        has_cold = hot_pages + zero_pages < pages
        cold_every = cold_every if has_cold else 0
        return cls(seed, pages, hot_pages, cold_every, block_pages, zero_pages, heads_only)

    def split(self, count: int) -> tuple[int, int]:
        """How many of the first `count` writes go to the hot and to the cold set."""
        if not self.cold_every:
            return count, 0
        slot, offset = divmod(count, self.block_pages)
        cold = slot // self.cold_every * self.block_pages
        if slot % self.cold_every == self.cold_every - 1:
            cold += offset
        return count - cold, cold

    def distinct_pages(self, count_a: int, count_b: int) -> int:
        """How many different pages the writes number count_a to count_b - 1 go to."""
        (hot_a, cold_a), (hot_b, cold_b) = self.split(count_a), self.split(count_b)
        return min(hot_b - hot_a, self.hot_pages) + min(cold_b - cold_a, self.cold_pages)


@dataclass(frozen=True, slots=True)
class Sweep:
    """A set of blocks visited in an affine order, each once a sweep, the same order in every sweep."""

    first: int
    blocks: int
    block_pages: int
    stride: int
    shift: int

    @classmethod
    def over(cls, first: int, pages: int, block_pages: int, seed: int) -> Sweep:
        """The sweep over `pages` pages from `first` on, whole blocks."""
        blocks = pages // block_pages
        stride = blocks * _STRIDE_RATIO >> 32 | 1
        while math.gcd(stride, blocks) != 1:
            stride += 1
        return cls(first, blocks, block_pages, stride, mix64(seed) % blocks)

    @property
    def pages(self) -> int:
        """Pages of a whole sweep."""
        return self.blocks * self.block_pages

    def first_pages(self, visits: Words) -> Words:
        """First page of the block of each visit."""
        blocks = np.uint64(self.blocks)
        order = (visits % blocks * np.uint64(self.stride) + np.uint64(self.shift)) % blocks
        return order * np.uint64(self.block_pages) + np.uint64(self.first)

    def generations(self, pages: Words, writes: int) -> Words:
        """Writes that each of these pages has had after the first `writes` writes of the sweeps."""
        offset = pages - np.uint64(self.first)
        blocks, size = np.uint64(self.blocks), np.uint64(self.block_pages)
        back = pow(self.stride, -1, self.blocks)
        position = (offset // size + np.uint64(self.blocks - self.shift)) % blocks * np.uint64(back) % blocks
        place = position * size + offset % size
        return (np.uint64(writes + self.pages - 1) - place) // np.uint64(self.pages)

    def runs(self, begin: int, end: int) -> tuple[Words, Words]:
        """The pages of the writes number begin to end - 1, as first pages and counts, disjoint."""
        if end <= begin:
            return np.empty(0, np.uint64), np.empty(0, np.uint64)
        if end - begin >= self.pages:
            return np.array([self.first], np.uint64), np.array([self.pages], np.uint64)
        size = self.block_pages
        starts = self.first_pages(np.arange(begin // size, (end + size - 1) // size, dtype=np.uint64))
        counts = np.full(len(starts), size, np.uint64)
        counts[-1] -= np.uint64(-end % size)
        counts[0] -= np.uint64(begin % size)
        starts[0] += np.uint64(begin % size)
        return starts, counts


class Schedule:
    """Both sweeps of a workload and how the writes are dealt to them."""

    def __init__(self, parameters: WorkloadParameters) -> None:
        p = self.parameters = parameters
        self._hot = Sweep.over(0, p.hot_pages, p.block_pages, p.seed)
        self._cold: Sweep | None = None
        if p.cold_pages:
            self._cold = Sweep.over(p.hot_pages, p.cold_pages, p.block_pages, p.seed ^ _MASK)

    def slots(self, first: int, count: int) -> tuple[Words, Words]:
        """First page of the blocks of slots first to first + count - 1, and their generation before it."""
        visits = np.arange(first, first + count, dtype=np.uint64)
        every, hot, cold = self.parameters.cold_every, self._hot, self._cold
        if not every or cold is None:
            return hot.first_pages(visits), visits // np.uint64(hot.blocks)
        cold_visits = visits // np.uint64(every)
        is_cold = visits % np.uint64(every) == np.uint64(every - 1)
        visits -= cold_visits
        pages = np.where(is_cold, cold.first_pages(cold_visits), hot.first_pages(visits))
        sweeps = np.where(is_cold, cold_visits // np.uint64(cold.blocks), visits // np.uint64(hot.blocks))
        return pages, sweeps

    def generations(self, pages: Words, count: int) -> Words:
        """The generation that each of these pages (none of the zero pages) has after `count` writes."""
        hot_writes, cold_writes = self.parameters.split(count)
        is_hot = pages < np.uint64(self.parameters.hot_pages)
        generations = np.zeros_like(pages)
        generations[is_hot] = self._hot.generations(pages[is_hot], hot_writes)
        if self._cold is not None:
            generations[~is_hot] = self._cold.generations(pages[~is_hot], cold_writes)
        return generations

    def runs(self, count_a: int, count_b: int) -> tuple[Words, Words]:
        """The pages of the writes number count_a to count_b - 1: first pages, ascending, and counts."""
        (hot_a, cold_a), (hot_b, cold_b) = self.parameters.split(count_a), self.parameters.split(count_b)
        starts, counts = self._hot.runs(hot_a, hot_b)
        if self._cold is not None:
            more_starts, more_counts = self._cold.runs(cold_a, cold_b)
            starts, counts = np.concatenate((starts, more_starts)), np.concatenate((counts, more_counts))
        order = np.argsort(starts)
        return starts[order], counts[order]
