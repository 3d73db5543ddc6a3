"""Sets of page numbers, as bits in 64-bit words.

A guest of 1 TiB has 2^28 pages of 4 KiB; its bitmap is 32 MiB. All algebra is numpy's, a block of words
at a time so that temporaries stay in the second-level cache.

Runs are found by their edges. Bit i is an edge if it differs from bit i - 1, so edges alternate: start of a
run, end of a run. A word without an edge is uniform (all zeros or all ones) and continues the word before
it. One vectorised scan finds the words that have an edge, and only those are unpacked to single bits:
that is what makes the cost of `runs` proportional to them. The words lie between two guard words that
are always zero, so that the first and the last bit are no special cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]
Positions: TypeAlias = npt.NDArray[np.int64]
RunArrays: TypeAlias = tuple[Positions, Positions]

_WORD: Final = np.dtype("<u8")
_ALL: Final = (1 << 64) - 1
_BLOCK_WORDS: Final = 1 << 15  # 256 KiB: two operands and a temporary stay in a second-level cache
_WINDOW_WORDS: Final = (
    64  # first look of first_runs: numpy's cost a call, not the words', is what counts here
)
_AHEAD_WORDS: Final = 1 << 11  # of `batches`: 512 MiB of 4 KiB pages, which have at most 1 MiB of runs
FEW_RUNS: Final = 16  # up to here a loop over the runs costs less than numpy's calls
_ALL_SET_PAGES: Final = 1 << 14
LONG_RUN: Final = 64  # from here on a slice assignment costs less than an index per element


def checked_runs(starts: npt.ArrayLike, counts: npt.ArrayLike, size: int) -> RunArrays:
    """Runs as two int64 arrays, after a check that all lie in 0..size. Empty runs are legal.

    Raises:
        ValueError: the arrays are not one-dimensional and of equal length.
        IndexError: a run reaches outside of 0..size.
    """
    # A uint64 above 2^63 turns negative here, and back into what is certainly too much below.
    first = np.asarray(starts).astype(np.int64, copy=False)
    count = np.asarray(counts).astype(np.int64, copy=False)
    if first.ndim != 1 or first.shape != count.shape:
        raise ValueError("starts and counts must be one-dimensional and of equal length")
    if not _are_inside(first, count, size):
        raise IndexError(f"a run reaches outside of 0..{size}")
    return first, count


def _are_inside(first: Positions, count: Positions, size: int) -> bool:
    if len(first) <= FEW_RUNS:
        pairs = zip(first.tolist(), count.tolist(), strict=True)
        return all(start >= 0 and 0 <= length <= size - start for start, length in pairs)
    start, length, end = first.view(np.uint64), count.view(np.uint64), np.uint64(size)
    return not np.count_nonzero((length > end) | (start > end - length))


def expand_runs(starts: Positions, counts: Positions) -> Positions:
    """The numbers in all runs, in the order of the runs; int64, length `counts.sum()`."""
    if len(starts) == 1:
        return np.arange(starts[0], starts[0] + counts[0], dtype=np.int64)
    before = np.cumsum(counts) - counts
    numbers = np.repeat(starts - before, counts)
    numbers += np.arange(len(numbers), dtype=np.int64)
    return numbers


def assign_runs(array: npt.NDArray[np.generic], starts: Positions, counts: Positions, value: int) -> None:
    """`array[start : start + count] = value` for every run; many short runs cost no Python step each."""
    if len(starts) > FEW_RUNS:
        short = counts < LONG_RUN
        array[expand_runs(starts[short], counts[short])] = value
        starts, counts = starts[~short], counts[~short]
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        array[start : start + count] = value


class PageBitmap:
    """A set of page numbers 0..bits-1.

    Bit i is bit i % 64 of word i // 64; bits from `bits` to the end of the last word are zero, always.
    In-place operators change the left side and want both of the same number of bits (ValueError).
    """

    __slots__ = ("_guarded", "bits", "words")
    __hash__ = None  # type: ignore[assignment]

    bits: Final[int]
    """Number of bits."""

    words: Final[Words]
    """The bits, shape ((bits + 63) // 64,). Whoever writes here keeps the bits after the last one zero."""

    def __init__(self, bits: int, *, _guarded: Words | None = None) -> None:
        """An empty set. Raises ValueError if `bits` is negative."""
        if bits < 0:
            raise ValueError("a bitmap cannot have a negative number of bits")
        self.bits = bits
        self._guarded = np.zeros((bits + 63 >> 6) + 2, dtype=_WORD) if _guarded is None else _guarded
        self.words = self._guarded[1:-1]

    @classmethod
    def full(cls, bits: int) -> Self:
        """The set of all `bits` pages."""
        bitmap = cls(bits)
        bitmap.fill()
        return bitmap

    @classmethod
    def from_words(cls, words: npt.NDArray[np.uint64], bits: int) -> Self:
        """A copy of words laid out as `words`.

        Raises:
            ValueError: wrong number of words, or a bit after the last one is set.
        """
        bitmap = cls(bits)
        if words.shape != bitmap.words.shape:
            raise ValueError(f"{bits} bits take {len(bitmap.words)} words, got {words.shape}")
        if bits & 63 and int(words[-1]) >> (bits & 63):
            raise ValueError("a bit after the last one is set")
        bitmap.words[:] = words
        return bitmap

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, bits: int) -> Self:
        """The inverse of `to_bytes`: (bits + 7) // 8 bytes, bit i is bit i % 8 of byte i // 8.

        Raises:
            ValueError: wrong number of bytes, or a bit after the last one is set.
        """
        raw = np.frombuffer(data, dtype=np.uint8)
        if bits < 0 or len(raw) != bits + 7 >> 3:
            raise ValueError(f"{bits} bits do not take {len(raw)} bytes")
        if bits & 7 and int(raw[-1]) >> (bits & 7):
            raise ValueError("a bit after the last one is set")
        bitmap = cls(bits)
        bitmap.words.view(np.uint8)[: len(raw)] = raw
        return bitmap

    @classmethod
    def from_mask(cls, mask: npt.NDArray[np.bool_]) -> Self:
        """The pages whose entry in a one-dimensional array of bool is true."""
        bitmap = cls(len(mask))
        packed = np.packbits(mask, bitorder="little")
        bitmap.words.view(np.uint8)[: len(packed)] = packed
        return bitmap

    def to_bytes(self) -> bytes:
        """The set as (bits + 7) // 8 bytes, bit i is bit i % 8 of byte i // 8."""
        return self.words.view(np.uint8)[: self.bits + 7 >> 3].tobytes()

    def copy(self) -> Self:
        """Another set with the same pages."""
        # Not an empty one to be filled: memory that is touched for the first time costs more than its copy.
        return type(self)(self.bits, _guarded=self._guarded.copy())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.count()} of {self.bits}>"

    # One bit, one run

    def __contains__(self, page: int) -> bool:
        """Whether a page is in the set. Raises IndexError for a page that could not be."""
        if not 0 <= page < self.bits:
            raise IndexError(f"page {page} of {self.bits}")
        return bool(int(self.words[page >> 6]) >> (page & 63) & 1)

    def set(self, first: int, count: int = 1) -> None:
        """Add `count` pages from `first` on. Raises IndexError if they reach outside."""
        for at, mask in self._edges(first, count):
            self.words[at] |= np.uint64(mask)
        self.words[(first + 63) >> 6 : (first + count) >> 6] = _ALL

    def clear(self, first: int, count: int = 1) -> None:
        """Remove `count` pages from `first` on. Raises IndexError if they reach outside."""
        for at, mask in self._edges(first, count):
            self.words[at] &= np.uint64(mask ^ _ALL)
        self.words[(first + 63) >> 6 : (first + count) >> 6] = 0

    def _edges(self, first: int, count: int) -> list[tuple[int, int]]:
        """Words that a run covers in part, with the bits of each."""
        end = first + count
        if first < 0 or count < 0 or end > self.bits:
            raise IndexError(f"pages {first}..{end} of {self.bits}")
        low, high = first >> 6, end >> 6
        head, tail = _ALL << (first & 63) & _ALL, (1 << (end & 63)) - 1
        if low == high:
            return [(low, head & tail)] if count else []
        edges = [(low, head)] if first & 63 else []
        return [*edges, (high, tail)] if tail else edges

    def has(self, pages: Positions) -> npt.NDArray[np.bool_]:
        """Which of these pages are in the set, one answer each. Raises IndexError if one could not be."""
        if len(pages) and (pages.min() < 0 or pages.max() >= self.bits):
            raise IndexError(f"a page is not in 0..{self.bits}")
        bits: Words = self.words[pages >> 6] >> (pages & 63).astype(_WORD) & np.uint64(1)
        return bits.astype(np.bool_)

    def meets(self, first: int, count: int) -> bool:
        """Whether one of these pages is in the set, or one of a few beside them; none must be outside."""
        return bool(self.words[first >> 6 : first + count + 63 >> 6].any())

    # Many runs

    def set_runs(self, starts: npt.ArrayLike, counts: npt.ArrayLike) -> None:
        """Add runs given as two integer arrays of equal length; they may overlap and come in any order.

        Raises:
            ValueError: the arrays do not match.
            IndexError: a run reaches outside.
        """
        first, count = checked_runs(starts, counts, self.bits)
        if len(first) <= FEW_RUNS:
            for start, pages in zip(first.tolist(), count.tolist(), strict=True):
                self.set(start, pages)
            return
        at, masks, inner, length = _split(first, count)
        np.bitwise_or.at(self.words, at, masks)
        assign_runs(self.words, inner, length, _ALL)

    def clear_runs(self, starts: npt.ArrayLike, counts: npt.ArrayLike) -> None:
        """Remove runs; arguments and errors as for `set_runs`."""
        first, count = checked_runs(starts, counts, self.bits)
        if len(first) <= FEW_RUNS:
            for start, pages in zip(first.tolist(), count.tolist(), strict=True):
                self.clear(start, pages)
            return
        at, masks, inner, length = _split(first, count)
        np.bitwise_and.at(self.words, at, ~masks)
        assign_runs(self.words, inner, length, 0)

    def fill(self) -> None:
        """Add every page."""
        self.words.fill(_ALL)
        if self.bits & 63:
            self.words[-1] = (1 << (self.bits & 63)) - 1

    def clear_all(self) -> None:
        """Remove every page."""
        self.words.fill(0)

    # The whole set

    def count(self) -> int:
        """Number of pages in the set."""
        total = 0
        for block in self._blocks():
            total += int(np.bitwise_count(self.words[block]).sum(dtype=np.uint32))
        return total

    def any(self) -> bool:
        """Whether a page is in the set."""
        return bool(self.words.any())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PageBitmap):
            return NotImplemented
        return self.bits == other.bits and np.array_equal(self.words, other.words)

    def __ior__(self, other: PageBitmap) -> Self:
        np.bitwise_or(self.words, self._fitting(other), out=self.words)
        return self

    def __iand__(self, other: PageBitmap) -> Self:
        np.bitwise_and(self.words, self._fitting(other), out=self.words)
        return self

    def __ixor__(self, other: PageBitmap) -> Self:
        np.bitwise_xor(self.words, self._fitting(other), out=self.words)
        return self

    def __isub__(self, other: PageBitmap) -> Self:
        theirs = self._fitting(other)
        for block in self._blocks():  # (a | b) ^ b is "a without b", and needs no temporary
            mine, minus = self.words[block], theirs[block]
            np.bitwise_or(mine, minus, out=mine)
            np.bitwise_xor(mine, minus, out=mine)
        return self

    def _fitting(self, other: PageBitmap) -> Words:
        if other.bits != self.bits:
            raise ValueError(f"bitmaps of {self.bits} and {other.bits} bits")
        return other.words

    def _blocks(self) -> Iterator[slice]:
        for low in range(0, len(self.words), _BLOCK_WORDS):
            yield slice(low, low + _BLOCK_WORDS)

    # Runs

    def runs(self) -> RunArrays:
        """All maximal runs, ascending: (starts, counts), int64.

        Costs one scan of the words, and then time and memory proportional to the words that have an edge.
        """
        size = len(self.words) + 1  # with the guard word, in which a run up to the last bit ends
        parts = [
            self._word_edges(low, min(low + _BLOCK_WORDS, size), size)[0]
            for low in range(0, size, _BLOCK_WORDS)
        ]
        edges = np.concatenate(parts)
        starts = edges[0::2].copy()
        return starts, edges[1::2] - starts

    def runs_between(self, first: int, count: int) -> RunArrays:
        """The runs of `count` pages from `first` on, cut where they reach outside of these.

        Raises:
            IndexError: the pages reach outside of the bitmap.
        """
        end = first + count
        if first < 0 or count < 0 or end > self.bits:
            raise IndexError(f"pages {first}..{end} of {self.bits}")
        starts, ends, _ = self._window_runs(first >> 6, end + 63 >> 6, len(self.words))
        return _clipped(starts, ends, first, end)

    def first_runs(self, start: int, max_pages: int, max_runs: int) -> RunArrays:
        """The first runs from page `start` on: at most `max_pages` pages in at most `max_runs` runs.

        The answer is short of both bounds only if nothing is left; it is empty if there is nothing at all.
        The next call's `start` is the end of the last run. Words looked at are at most a few times those
        that lie between `start` and that end, so a whole pass is linear in the bitmap's words however
        it is cut; pages added or removed behind `start` meanwhile do not matter.

        Raises:
            IndexError: `start` is not in 0..bits.
            ValueError: a bound is not positive.
        """
        if not 0 <= start <= self.bits:
            raise IndexError(f"page {start} of {self.bits}")
        if max_pages < 1 or max_runs < 1:
            raise ValueError("max_pages and max_runs must be positive")
        if self._all_set(start, max_pages):
            return np.array([start], dtype=np.int64), np.array([max_pages], dtype=np.int64)
        starts = counts = np.empty(0, dtype=np.int64)
        low, window, size = start >> 6, max(_WINDOW_WORDS, (max_pages >> 6) + 2), len(self.words)
        while low < size:
            more, ends, high = self._window_runs(low, min(low + window, size), 2 * max_runs + 2)
            more, length = _clipped(more, ends, start, self.bits)
            starts, counts = _joined(starts, counts, more, length)
            # A run that touches the window's end may go on: it is complete only with the next window.
            whole = len(starts) - bool(len(starts) and starts[-1] + counts[-1] == high << 6)
            if whole >= max_runs or int(counts.sum()) >= max_pages:
                break
            low, window = high, window * 4
        return _cut(starts, counts, max_pages, max_runs)

    def _all_set(self, first: int, count: int) -> bool:
        """Whether all of these pages are in the set; False for very many, without a look.

        The usual case of `first_runs`, ten times faster than the general way: the first round, or a hot set.
        """
        if count > self.bits - first or count > _ALL_SET_PAGES:
            return False
        words = self.words[first >> 6 : first + count + 63 >> 6]
        ones = (1 << count) - 1
        return int.from_bytes(words.tobytes(), "little") >> (first & 63) & ones == ones

    def batches(self, max_pages: int, max_runs: int, start: int = 0) -> Iterator[RunArrays]:
        """The pages from `start` on, in pieces like those of `first_runs`, and faster.

        Looks ahead: whether pages are seen that are added or removed meanwhile is left open.

        Raises:
            ValueError: a bound is not positive.
        """
        if max_pages < 1 or max_runs < 1:
            raise ValueError("max_pages and max_runs must be positive")
        starts = counts = np.empty(0, dtype=np.int64)
        low, size, pages = start >> 6, len(self.words), 0
        while low < size or pages:
            # With one run more than it may have, the last run of a piece is complete.
            if low < size and pages < max_pages and len(starts) <= max_runs:
                more, ends, low = self._window_runs(low, min(low + _AHEAD_WORDS, size), size)
                more, length = _clipped(more, ends, start, self.bits)
                pages += int(length.sum())
                starts, counts = _joined(starts, counts, more, length)
                continue
            piece = _cut(starts, counts, max_pages, max_runs)
            yield piece
            pages -= piece[1].item() if len(piece[1]) == 1 else int(piece[1].sum())
            starts, counts = _behind(starts, counts, piece)

    def _window_runs(self, low: int, high: int, max_words: int) -> tuple[Positions, Positions, int]:
        """Runs within the words low..high-1, cut at both ends: (starts, ends, high).

        If more than `max_words` words have an edge, the window ends before the first one too many.
        """
        edges, high = self._word_edges(low, high, max_words)
        inside = int(self._guarded[low]) >> 63  # the word before the window ends with a set bit
        if inside:
            edges = np.concatenate((np.array([low << 6], dtype=np.int64), edges))
        if len(edges) & 1:
            edges = np.append(edges, high << 6)
        return edges[0::2], edges[1::2], high

    def _word_edges(self, low: int, high: int, max_words: int) -> tuple[Positions, int]:
        """Positions of all edges in the words low..high-1, of at most `max_words` words; and the end."""
        words, before = self._guarded[low + 1 : high + 1], self._guarded[low:high]
        candidate = words != before
        candidate |= words + np.uint64(1) > 1  # neither all zeros nor all ones
        at = np.flatnonzero(candidate)
        word = words[at]
        edge_bits = word ^ (word << np.uint64(1) | before[at] >> np.uint64(63))
        if len(at) > max_words:
            # Of two candidates in a row at least one has an edge, so this look is long enough.
            real = edge_bits != 0
            at, edge_bits = at[real], edge_bits[real]
            if len(at) > max_words:
                high = low + int(at[max_words])
                at, edge_bits = at[:max_words], edge_bits[:max_words]
        bits = np.unpackbits(edge_bits.view(np.uint8), bitorder="little")
        position = np.flatnonzero(bits.view(np.bool_))
        return (at[position >> 6] + low << 6) + (position & 63), high


def _split(first: Positions, count: Positions) -> tuple[Positions, Words, Positions, Positions]:
    """Runs as words covered in part (number, mask) and runs of words covered whole (start, count)."""
    some = count > 0
    first, end = first[some], (first + count)[some]
    low, high = first >> 6, end >> 6
    head = np.left_shift(np.uint64(_ALL), (first & 63).astype(_WORD))
    tail = np.left_shift(np.uint64(1), (end & 63).astype(_WORD)) - np.uint64(1)
    same = low == high
    cut = tail > 0  # the last word of a run that ends on a word's border is the one before
    apart = cut & ~same
    at = np.concatenate((low, high[apart]))
    masks = np.concatenate((np.where(same, head & tail, head), tail[apart]))
    return at, masks, low + 1, np.maximum(high - low - 1, 0)


def _clipped(starts: Positions, ends: Positions, first: int, end: int) -> RunArrays:
    """Runs cut to first..end, as starts and counts; those outside are dropped."""
    starts = np.maximum(starts, first)
    counts = np.minimum(ends, end) - starts
    some = counts > 0
    return starts[some], counts[some]


def _joined(starts: Positions, counts: Positions, more: Positions, length: Positions) -> RunArrays:
    """Two lists of runs as one; the last of the first and the first of the second may touch."""
    if not len(starts):
        return more, length
    if len(more) and starts[-1] + counts[-1] == more[0]:
        counts[-1] += length[0]
        more, length = more[1:], length[1:]
    return np.concatenate((starts, more)), np.concatenate((counts, length))


def _cut(starts: Positions, counts: Positions, max_pages: int, max_runs: int) -> RunArrays:
    """The first runs within both bounds; the last one is shortened to fit."""
    if len(counts) and counts[0] >= max_pages:  # where memory is dense
        return starts[:1], np.array([max_pages], dtype=np.int64)
    starts, counts = starts[:max_runs], counts[:max_runs]
    total = np.cumsum(counts)
    keep = int(np.searchsorted(total, max_pages)) + 1  # the run with which the bound is reached
    if keep <= len(starts):
        starts, counts = starts[:keep], counts[:keep].copy()
        counts[-1] -= max(int(total[keep - 1]) - max_pages, 0)
    return starts, counts


def _behind(starts: Positions, counts: Positions, piece: RunArrays) -> RunArrays:
    """What follows a piece that was cut from the front of these runs."""
    last = len(piece[0]) - 1
    rest = int(counts[last] - piece[1][-1])
    if not rest:
        return starts[last + 1 :], counts[last + 1 :]
    starts, counts = starts[last:].copy(), counts[last:].copy()  # pieces that were given out are not touched
    starts[0] += counts[0] - rest
    counts[0] = rest
    return starts, counts
