"""Batches that are packed at the source: pages compressed, or sent as changes of what was sent before.

The bytes of a packed batch are no views of guest memory. They were copied first, so that what is hashed, what
is compressed and what is remembered is one version of each page, whatever the guest writes meanwhile.

A batch is cut into runs that are packed each for itself: where pages with a version in `RecentPages` border
on others, and after `PIECE_BYTES`, so that some pages that do not compress spoil no others. A run that does
not shrink to `WORTHWHILE` goes as it is, which costs the destination nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from sterna.limits import CHUNK_BYTES
from sterna.memory.bitmap import Positions, expand_runs
from sterna.memory.pages import EncodedBatch, RegionPages, hash_chunks
from sterna.memory.recent import RecentPages
from sterna.memory.zstd import Compressor
from sterna.registry import Encoding
from sterna.wire.records import RUN_DTYPE

PIECE_BYTES: Final = 256 * 1024
WORTHWHILE: Final = 0.95
# A frame has at least so many bytes, hence no run of so many times the receiver's limit is refused [PGS-18].
FRAME_BYTES_MIN: Final = 10
# A change that has shrunk to this share of its pages is not compared with the pages compressed as they are.
_SMALL_CHANGE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Measure:
    """What packing a batch came to.

    Attributes:
        page_bytes: of the pages that are not zero.
        sent_bytes: what they became.
        zstd_bytes: those of the pages that were given to the compressor as they are.
        packed_bytes: what these became, whether it was worthwhile or not.
        change_bytes: of the pages of which a version was known.
        changed_bytes: what these became.
    """

    page_bytes: int = 0
    sent_bytes: int = 0
    zstd_bytes: int = 0
    packed_bytes: int = 0
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

    def __init__(self, pages: RegionPages, expansion: int, recent: RecentPages | None = None) -> None:
        """`expansion`: the receiver's limit of that name."""
        self.recent = recent
        self.measure = Measure()
        self.sample = memoryview(b"")
        self._pages: Final = pages
        self._expansion: Final = expansion
        self._changes: Final = Compressor(1)  # where nothing else is compressed

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
        rows: list[tuple[int, int, int, int]] = []
        hashes: list[int] = []
        buffers: list[memoryview] = []
        tally = _Tally()
        self.sample = memoryview(b"")
        for piece in self._pieces(plain, remember=remember):
            if piece.bytes.nbytes == 0:
                rows.append((piece.first, piece.count, 0, Encoding.ZERO))
                continue
            self.sample = self.sample or piece.bytes
            hashes += hash_chunks(piece.bytes, (0,), (piece.bytes.nbytes,))
            encoding, packed = self._pack(region, piece, compressor, tally)
            rows.append((piece.first, piece.count, packed.nbytes, encoding))
            buffers.append(packed)
        runs = np.zeros(len(rows), RUN_DTYPE)
        for name, column in zip(
            ("first", "count", "size_bytes", "encoding"), zip(*rows, strict=True), strict=bool(rows)
        ):
            runs[name] = column
        sent_bytes = sum(buffer.nbytes for buffer in buffers)
        self.measure = tally.measure(plain.bulk_bytes, sent_bytes)
        return EncodedBatch(
            region=region,
            runs=runs,
            hashes=np.array(hashes, np.uint64),
            buffers=tuple(buffers),
            page_count=plain.page_count,
            bulk_bytes=sent_bytes,
            unpacked_bytes=plain.bulk_bytes,
        )

    def _pieces(self, plain: EncodedBatch, *, remember: bool) -> Iterator[_Piece]:
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
                if self.recent is not None and (known or remember):
                    numbers = np.arange(first + at, first + at + pages)
                    versions = np.frombuffer(piece, np.uint8).reshape(pages, -1)
                    self.recent.sent(plain.region, numbers, versions)

    def _most_pages(self, granule_log2: int) -> int:
        """Pages of a run at most: whole chunks, and no more than the receiver lets a frame expand to."""
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
        self, region: int, piece: _Piece, compressor: Compressor | None, tally: _Tally
    ) -> tuple[Encoding, memoryview]:
        """The best that is known for a piece, and its bytes."""
        size = piece.bytes.nbytes
        best, encoding = piece.bytes, Encoding.RAW
        least = -(-size // self._expansion) if self._expansion else size
        if piece.known:
            change = self._change(region, piece, compressor or self._changes)
            tally.change_bytes += size
            if least <= change.nbytes < size * WORTHWHILE:
                best, encoding = change, Encoding.DELTA
        if compressor is not None and best.nbytes > size * _SMALL_CHANGE:
            frame = memoryview(compressor.frame(piece.bytes))
            tally.zstd_bytes += size
            tally.packed_bytes += min(frame.nbytes, size)
            if least <= frame.nbytes < min(best.nbytes, size * WORTHWHILE):
                best, encoding = frame, Encoding.ZSTD
        if piece.known:
            tally.changed_bytes += best.nbytes
        return encoding, best

    def _change(self, region: int, piece: _Piece, compressor: Compressor) -> memoryview:
        """A `delta` run: hashes of the base's chunks, and a frame of what differs."""
        assert self.recent is not None
        base = self.recent.versions(region, piece.first, piece.count).reshape(-1)
        starts = range(0, base.nbytes, CHUNK_BYTES)
        hashes = np.array([xxh3_64_intdigest(base[at : at + CHUNK_BYTES].data) for at in starts], "<u8")
        np.bitwise_xor(base, np.frombuffer(piece.bytes, np.uint8), out=base)
        return memoryview(hashes.tobytes() + compressor.frame(base.data))


class _Tally:
    """Sums over a batch; see `Measure`."""

    def __init__(self) -> None:
        self.zstd_bytes = self.packed_bytes = self.change_bytes = self.changed_bytes = 0

    def measure(self, page_bytes: int, sent_bytes: int) -> Measure:
        return Measure(
            page_bytes,
            sent_bytes,
            self.zstd_bytes,
            self.packed_bytes,
            self.change_bytes,
            self.changed_bytes,
        )
