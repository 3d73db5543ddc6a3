"""`sterna bench pages`: the page bitmap, page batches and the digest, in CPU time of one thread.

The yardstick is what plain numpy takes to copy the same bytes: one pass over a bitmap's words, or over a
region's memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from sterna.cli.output import Output
from sterna.cli.units import Json, Size
from sterna.limits import BATCH_BYTES
from sterna.memory.bitmap import PageBitmap
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.wire.records import Pages, Region
from sterna_interop.measured import Report
from sterna_interop.measuring import BARE, OURS, CpuTime, Measure, Runs, Taken, progress, take

REGION_BYTES: Final = 256 << 20
GUEST_BYTES: Final = 1 << 40

_PAGE_LOG2: Final = 12
_BATCH_RUNS: Final = 16384


def pages(
    *, runs: Runs = 7, guest: Size = GUEST_BYTES, region: Size = REGION_BYTES, json: Json = False
) -> None:
    """Page bitmaps, page batches and the digest, beside plain copies of the same bytes.

    Args:
        runs: turns of each way; medians are shown.
        guest: memory that a bitmap is of.
        region: memory that is encoded and applied.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    taken: list[Taken] = []
    with progress(output) as say:
        taken += take(list(bitmaps(guest >> _PAGE_LOG2)), runs, say)
        for measures in regions(region):  # what is in the memory changes from one to the next
            taken += take(measures, runs, say)
    Report(bench="pages", runs=runs, taken=taken).show(output)


def random_bitmap(pages: int, share: float, rng: np.random.Generator) -> PageBitmap:
    """A bitmap in which `share` of all words are random and the others empty."""
    bitmap = PageBitmap(pages)
    size = len(bitmap.words)
    at = np.flatnonzero(rng.random(size) < share)
    bitmap.words[at] = rng.integers(0, 2**64, len(at), dtype=np.uint64)
    return bitmap


def bitmaps(pages: int) -> Iterator[Measure]:
    """Set algebra and runs over one large bitmap."""
    rng = np.random.default_rng(1)
    left, right = random_bitmap(pages, 1.0, rng), random_bitmap(pages, 1.0, rng)
    target = np.empty_like(left.words)

    def measure(name: str, text: str, work: Callable[[], object]) -> Measure:
        return Measure(
            name=f"bitmap_{name}",
            text=f"bitmap: {text}",
            ways={
                OURS: CpuTime(work, least_s=0.0),
                BARE: CpuTime(lambda: np.copyto(target, left.words), least_s=0.0),
            },
            yardstick=f"a copy of its {left.words.nbytes} bytes",
        )

    yield measure("or", "|=", lambda: left.__ior__(right))
    yield measure("and", "&=", lambda: left.__iand__(right))
    yield measure("sub", "-=", lambda: left.__isub__(right))
    yield measure("xor", "^=", lambda: left.__ixor__(right))
    yield measure("equal", "==", lambda: left == right)
    yield measure("count", "count", left.count)
    yield measure("any", "any, of an empty one", PageBitmap(pages).any)
    yield measure("copy", "copy", left.copy)
    for name, share in (("none", 0.0), ("few", 0.0001), ("some", 0.01), ("many", 0.1)):
        yield measure(
            f"runs_{name}", f"runs, {share:.2%} of words mixed", random_bitmap(pages, share, rng).runs
        )
    yield measure("runs_full", "runs, full", PageBitmap.full(pages).runs)
    sparse = random_bitmap(pages, 0.001, rng)
    starts, counts = sparse.runs()
    yield measure("set_runs", f"set {len(starts)} runs", lambda: PageBitmap(pages).set_runs(starts, counts))
    yield measure(
        "batches", "cut into batches of 256", lambda: sum(1 for _ in sparse.batches(256, _BATCH_RUNS))
    )


class Encoding:
    """One region's memory on both sides, and the work that is done with it."""

    def __init__(self, size_bytes: int) -> None:
        self._table = RegionTable([Region(0, 0, size_bytes)])
        source, target = mmap.mmap(-1, size_bytes), mmap.mmap(-1, size_bytes)
        self.content, self._arrived = np.frombuffer(source, np.uint8), np.frombuffer(target, np.uint8)
        self._target = memoryview(target)
        self._encoder = RegionPages(self._table, {0: memoryview(source)})
        self.pages = size_bytes >> _PAGE_LOG2

    def encode(self, bitmap: PageBitmap) -> list[Pages]:
        """Tables and hashes of all pages in a bitmap."""
        cuts = bitmap.batches(BATCH_BYTES >> _PAGE_LOG2, _BATCH_RUNS)
        return [self._encoder.encode(0, starts, counts).table(1, 1) for starts, counts in cuts]

    def commit(self, tables: Sequence[Pages]) -> None:
        """Verify and apply batches whose bytes are in place."""
        sink = RegionPages(self._table, {0: self._target})
        for each in tables:
            sink.targets(each)
            rejected = sink.commit(each)
            if rejected:
                raise RuntimeError(f"rejected {rejected}")

    def record(self, tables: Sequence[Pages]) -> MemoryDigest:
        """The digest of what batches have brought."""
        digest = MemoryDigest(self._table)
        for each in tables:
            digest.record(each)
        return digest

    def measures(self, name: str, text: str, bitmap: PageBitmap) -> list[Measure]:
        """What a batch costs at either side, with the memory as it is now."""
        np.copyto(self._arrived, self.content)
        tables = self.encode(bitmap)
        works: dict[str, Callable[[], object]] = {
            "encode": lambda: self.encode(bitmap),
            "commit": lambda: self.commit(tables),
            "digest": lambda: self.record(tables),
            "digest_value": self.record(tables).value,
        }
        return [
            Measure(
                name=f"{work}_{name}",
                text=f"{work.replace('_', ' ')}: {text}",
                ways={
                    OURS: CpuTime(call, least_s=0.0),
                    BARE: CpuTime(lambda: np.copyto(self._arrived, self.content), least_s=0.0),
                },
                yardstick=f"a copy of its {len(self.content)} bytes",
            )
            for work, call in works.items()
        ]


def regions(size_bytes: int) -> Iterator[list[Measure]]:
    """Encoding and applying a region, with one content after the other; take each before the next."""
    region = Encoding(size_bytes)
    everything = PageBitmap.full(region.pages)
    every_second = PageBitmap.from_mask(np.arange(region.pages) % 2 == 0)
    region.content[:] = 0
    yield region.measures("zero", "all zero", everything)
    region.content[:] = np.frombuffer(np.random.default_rng(1).bytes(size_bytes), np.uint8)
    yield region.measures("random", "random", everything)
    yield region.measures("scattered", "every second page", every_second)
    region.content.reshape(region.pages, -1)[1::2] = 0
    yield region.measures("mixed", "every second page is zero", everything)
