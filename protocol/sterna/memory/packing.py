"""Batches that are packed at the source: pages compressed, or sent as changes of what was sent before.

The bytes of a packed batch are no views of guest memory. They were copied first, so that what is hashed, what
is compressed and what is remembered is one version of each page, whatever the guest writes meanwhile.

Few zeros between other pages are packed with them. And then a batch is cut into runs that are packed each for
itself: where pages with a version in `RecentPages` border
on others, and after `PIECE_BYTES`, so that some pages that do not compress spoil no others. A run that does
not shrink to `WORTHWHILE` goes as it is, which costs the destination nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from sterna.limits import CHUNK_BYTES
from sterna.memory.bitmap import Positions, expand_runs
from sterna.memory.pages import EncodedBatch, RegionPages, chunk_hashes
from sterna.memory.recent import RecentPages
from sterna.memory.zstd import Compressor
from sterna.registry import Encoding
from sterna.wire.records import RUN_DTYPE

PIECE_BYTES: Final = 8 << 20
SAMPLE_BYTES: Final = 128 << 10
WORTHWHILE: Final = 0.95
# A frame has at least so many bytes, and so many for each of its blocks. Hence no run of so many times the
# receiver's limit is refused, or of any size if its limit is a block of that [PGS-18].
FRAME_BYTES_MIN: Final = 10
_PART_BYTES_MIN: Final = 4
_PART_BYTES: Final = 128 << 10
# A change that has shrunk to this share of its pages is not compared with the pages compressed as they are.
_SMALL_CHANGE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Measure:
    """What packing a batch came to.

    Attributes:
        page_bytes: of the pages that are not zero.
        sent_bytes: what they became.
        zstd_bytes: those of the pages that were given to the compressor as they are.
        change_bytes: of the pages of which a version was known.
        changed_bytes: what these became.
    """

    page_bytes: int = 0
    sent_bytes: int = 0
    zstd_bytes: int = 0
    change_bytes: int = 0
    changed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """Pages that are packed as one run."""

    first: int
    count: int
    known: bool
    bytes: memoryview


class Packer:
    """Packs batches of one guest, one at a time.

    Attributes:
        recent: what was sent before; None goes without.
        measure: of the batch that was packed last.
        sample: some of its pages as they are; empty if all of them are zero.
    """

    def __init__(
        self,
        pages: RegionPages,
        expansion: int,
        recent: RecentPages | None = None,
        *,
        hashed: bool = True,
    ) -> None:
        """`expansion`: the receiver's limit of that name. `hashed`: as for `PageSource.encode`."""
        self.recent = recent
        self.measure = Measure()
        self.sample = memoryview(b"")
        self._pages: Final = pages
        self._expansion: Final = expansion
        self._hashed: Final = hashed
        self._plainly: Final = Compressor(1)  # where nothing else is compressed

    def pack(
        self,
        region: int,
        starts: npt.ArrayLike,
        counts: npt.ArrayLike,
        compressor: Compressor | None,
        *,
        zeros: bool,
        remember: bool = False,
    ) -> EncodedBatch:
        """As `PageSource.encode`, packed.

        Args:
            region: id of a copied region.
            starts: first page of each run.
            counts: pages of each run.
            compressor: None leaves pages as they are of which no version is known.
            zeros: as for `encode`.
            remember: whether these pages' versions are kept, of those that were not known.
        """
        plain = self._pages.encode(region, starts, counts, zeros=zeros, hashed=False)
        if compressor is not None and len(plain.runs):
            plain = self._joined(plain)
        pieces = list(self._pieces(plain))
        packed = self._pack(region, [piece for piece in pieces if piece.bytes.nbytes], compressor)
        rows: list[tuple[int, int, int, int]] = []
        hashes = [np.empty(0, np.uint64)]
        buffers: list[memoryview] = []
        self.sample = memoryview(b"")
        for piece in pieces:
            if piece.bytes.nbytes == 0:
                rows.append((piece.first, piece.count, 0, Encoding.ZERO))
                continue
            self.sample = self.sample or memoryview(bytes(piece.bytes[:SAMPLE_BYTES]))  # not to hold the rest
            hashes.append(chunk_hashes(piece.bytes, (0,), (piece.bytes.nbytes,), hashed=self._hashed))
            encoding, best = next(packed)
            rows.append((piece.first, piece.count, best.nbytes, encoding))
            buffers.append(best)
            self._remember(region, piece, remember=remember)
        runs = np.zeros(len(rows), RUN_DTYPE)
        for name, column in zip(
            ("first", "count", "size_bytes", "encoding"), zip(*rows, strict=True), strict=bool(rows)
        ):
            runs[name] = column
        sent_bytes = sum(buffer.nbytes for buffer in buffers)
        asked = [piece for piece in pieces if piece.bytes.nbytes and self.recent is not None]
        self.measure = replace(self.measure, page_bytes=plain.bulk_bytes, sent_bytes=sent_bytes)
        return EncodedBatch(
            region=region,
            runs=runs,
            hashes=np.concatenate(hashes),
            buffers=tuple(buffers),
            page_count=plain.page_count,
            bulk_bytes=sent_bytes,
            unpacked_bytes=plain.bulk_bytes,
            versions_asked=sum(piece.count for piece in asked),
            versions_found=sum(piece.count for piece in asked if piece.known),
        )

    def _joined(self, plain: EncodedBatch) -> EncodedBatch:
        """The batch with few zeros between other pages as their bytes: runs are long then.

        Zeros compress to next to nothing, and each run costs a row, a frame and the calls for it.
        """
        runs = plain.runs
        first, count = runs["first"].astype(np.int64), runs["count"].astype(np.int64)
        raw = runs["encoding"] == Encoding.RAW
        few = raw | (count << self._pages.table[plain.region].granule_log2 < CHUNK_BYTES)
        apart = np.ones(len(runs), np.bool_)
        apart[1:] = ~few[1:] | ~few[:-1] | (first[1:] != (first + count)[:-1])
        at = np.flatnonzero(apart)
        if len(at) == len(runs):
            return plain
        whole = np.logical_or.reduceat(raw, at)  # else zeros alone
        starts, counts = first[at], np.add.reduceat(count, at)
        again = self._pages.encode(plain.region, starts[whole], counts[whole], zeros=False, hashed=False)
        joined = np.zeros(len(at), RUN_DTYPE)
        joined["first"], joined["count"], joined["encoding"] = starts, counts, Encoding.ZERO
        joined[whole] = again.runs
        return replace(plain, runs=joined, buffers=again.buffers)

    def _pieces(self, plain: EncodedBatch) -> Iterator[_Piece]:
        """The batch cut into runs to be packed, ascending, their bytes copied; a zero run has none."""
        granule_log2 = self._pages.table[plain.region].granule_log2
        most = max(self._most_pages(granule_log2), 1)
        raw = plain.runs["encoding"] == Encoding.RAW
        buffers = iter(plain.buffers)
        if self.recent is not None and not raw.all():
            zero = plain.runs[~raw]
            self.recent.forget(
                plain.region, expand_runs(zero["first"].astype(np.int64), zero["count"].astype(np.int64))
            )
        rows = zip(plain.runs["first"].tolist(), plain.runs["count"].tolist(), raw.tolist(), strict=True)
        for first, count, is_raw in rows:
            if not is_raw:
                yield _Piece(first, count, known=False, bytes=memoryview(b""))
                continue
            copy = np.frombuffer(next(buffers), np.uint8).copy().data  # lets other threads run meanwhile
            for at, pages, known in self._cuts(plain.region, first, count, most):
                piece = copy[at << granule_log2 : at + pages << granule_log2]
                yield _Piece(first + at, pages, known, piece)

    def _remember(self, region: int, piece: _Piece, *, remember: bool) -> None:
        if self.recent is not None and (piece.known or remember):
            numbers = np.arange(piece.first, piece.first + piece.count)
            self.recent.sent(region, numbers, np.frombuffer(piece.bytes, np.uint8).reshape(piece.count, -1))

    def _most_pages(self, granule_log2: int) -> int:
        """Pages of a run at most: whole chunks, and no more than the receiver lets a frame expand to."""
        most_bytes = PIECE_BYTES
        if self._expansion * _PART_BYTES_MIN < _PART_BYTES:
            most_bytes = min(PIECE_BYTES, self._expansion * FRAME_BYTES_MIN)
        if most_bytes >= CHUNK_BYTES:
            most_bytes -= most_bytes % CHUNK_BYTES
        return most_bytes >> granule_log2

    def _cuts(self, region: int, first: int, count: int, most: int) -> Iterator[tuple[int, int, bool]]:
        """Where to cut a run of pages: begin within it, pages, and whether their versions are known."""
        borders, kinds = [0, count], [False]
        if self.recent is not None:
            known = self.recent.known(region, np.arange(first, first + count))
            inner: Positions = np.flatnonzero(known[1:] != known[:-1]) + 1
            borders = [0, *inner.tolist(), count]
            kinds = known[borders[:-1]].tolist()
        for low, high, kind in zip(borders, borders[1:], kinds, strict=False):
            for at in range(low, high, most):
                yield at, min(most, high - at), kind

    def _pack(
        self, region: int, pieces: list[_Piece], compressor: Compressor | None
    ) -> Iterator[tuple[Encoding, memoryview]]:
        """The best that is known for each piece, and its bytes."""
        best = [(Encoding.RAW, piece.bytes) for piece in pieces]
        known = [number for number, piece in enumerate(pieces) if piece.known]
        changes = self._changes(region, [pieces[number] for number in known], compressor or self._plainly)
        for number, change in zip(known, changes, strict=True):
            self._better(best, number, Encoding.DELTA, change, pieces[number].bytes.nbytes)
        rest: list[int] = []
        if compressor is not None:
            rest = [
                number
                for number, piece in enumerate(pieces)
                if best[number][1].nbytes > piece.bytes.nbytes * _SMALL_CHANGE
            ]
            for some in _groups(rest, [pieces[number].bytes.nbytes for number in rest]):
                frames = compressor.frames([pieces[number].bytes for number in some])
                for number, frame in zip(some, frames, strict=True):
                    self._better(best, number, Encoding.ZSTD, frame, pieces[number].bytes.nbytes)
        self.measure = Measure(
            zstd_bytes=sum(pieces[number].bytes.nbytes for number in rest),
            change_bytes=sum(pieces[number].bytes.nbytes for number in known),
            changed_bytes=sum(best[number][1].nbytes for number in known),
        )
        return iter(best)

    def _better(
        self,
        best: list[tuple[Encoding, memoryview]],
        number: int,
        encoding: Encoding,
        packed: memoryview,
        size: int,
    ) -> None:
        """Take it for this piece if it is smaller by something, and not smaller than the receiver takes."""
        least = -(-size // self._expansion) if self._expansion else size
        if least <= packed.nbytes < min(best[number][1].nbytes, size * WORTHWHILE):
            best[number] = encoding, memoryview(bytes(packed))  # what is not better is let go of at once

    def _changes(self, region: int, pieces: list[_Piece], compressor: Compressor) -> list[memoryview]:
        """A `delta` run of each: hashes of the base's chunks, and a frame of what differs."""
        if not pieces:
            return []
        assert self.recent is not None
        heads: list[bytes] = []
        changes: list[memoryview] = []
        for piece in pieces:
            base = self.recent.versions(region, piece.first, piece.count).reshape(-1)
            starts = range(0, base.nbytes, CHUNK_BYTES)
            hashes = [xxh3_64_intdigest(base[at : at + CHUNK_BYTES].data) for at in starts]
            heads.append(np.array(hashes, "<u8").tobytes())
            np.bitwise_xor(base, np.frombuffer(piece.bytes, np.uint8), out=base)
            changes.append(base.data)
        frames = compressor.frames(changes)
        return [memoryview(head + bytes(frame)) for head, frame in zip(heads, frames, strict=True)]


def _groups(numbers: list[int], sizes: list[int]) -> Iterator[list[int]]:
    """Pieces in groups of up to `PIECE_BYTES`, for frames take memory until those of a group are made."""
    group: list[int] = []
    room = PIECE_BYTES
    for number, size in zip(numbers, sizes, strict=True):
        if group and size > room:
            yield group
            group, room = [], PIECE_BYTES
        group.append(number)
        room -= size
    if group:
        yield group
