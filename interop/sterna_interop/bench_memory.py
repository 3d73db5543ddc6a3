"""Times the page bitmap, page batches and the digest, each beside a yardstick of the same run.

    python -m sterna_interop.bench_memory --runs 7 --pages-log2 28 --region 268435456

Figures of a machine mean little by themselves: the yardstick column says what plain numpy takes to move
the same bytes at that moment, the ratio is what can be compared.
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from sterna.limits import BATCH_BYTES
from sterna.memory.bitmap import PageBitmap
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.wire.records import Pages, Region

Row = tuple[str, float, str, float]
_BATCH_RUNS = 16384


def median_ms(runs: int, work: Callable[[], object]) -> float:
    """Median time of `work` in milliseconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def random_bitmap(pages: int, share: float, rng: np.random.Generator) -> PageBitmap:
    """A bitmap in which `share` of all words are random and the others empty."""
    bitmap = PageBitmap(pages)
    size = len(bitmap.words)
    at = np.flatnonzero(rng.random(size) < share)
    bitmap.words[at] = rng.integers(0, 2**64, len(at), dtype=np.uint64)
    return bitmap


def bitmap_rows(runs: int, pages: int) -> Iterator[Row]:
    """Set algebra and runs over one large bitmap."""
    rng = np.random.default_rng(1)
    left, right = random_bitmap(pages, 1.0, rng), random_bitmap(pages, 1.0, rng)
    target = np.empty_like(left.words)
    yard = f"copyto {left.words.nbytes >> 20} MiB"

    def row(name: str, work: Callable[[], object]) -> Row:
        return name, median_ms(runs, work), yard, median_ms(runs, lambda: np.copyto(target, left.words))

    yield row("bitmap |=", lambda: left.__ior__(right))
    yield row("bitmap &=", lambda: left.__iand__(right))
    yield row("bitmap -=", lambda: left.__isub__(right))
    left = random_bitmap(pages, 1.0, rng)
    yield row("bitmap ^=", lambda: left.__ixor__(right))
    yield row("bitmap ==", lambda: left == right)
    yield row("bitmap count", left.count)
    yield row("bitmap any (empty)", PageBitmap(pages).any)
    yield row("bitmap copy", left.copy)
    for share in (0.0, 0.0001, 0.001, 0.01, 0.1):
        bitmap = random_bitmap(pages, share, rng)
        yield row(f"runs, {share:.2%} of words mixed", bitmap.runs)
    yield row("runs, full", PageBitmap.full(pages).runs)
    sparse = random_bitmap(pages, 0.001, rng)
    starts, counts = sparse.runs()
    yield row(f"set_runs, {len(starts)} runs", lambda: PageBitmap(pages).set_runs(starts, counts))
    yield row("batches of 256, 0.1% of words mixed", lambda: sum(1 for _ in sparse.batches(256, _BATCH_RUNS)))
    part = PageBitmap.full(pages >> 8)
    yield row(
        f"batches of 256, {part.bits} pages, all set", lambda: sum(1 for _ in part.batches(256, _BATCH_RUNS))
    )


def page_rows(runs: int, size_bytes: int) -> Iterator[Row]:
    """Encode and commit of one region in batches, and the digest."""
    table = RegionTable([Region(0, 0, size_bytes)])
    source, target = mmap.mmap(-1, size_bytes), mmap.mmap(-1, size_bytes)
    content, arrived = np.frombuffer(source, np.uint8), np.frombuffer(target, np.uint8)
    yard = f"copyto {size_bytes >> 20} MiB"
    encoder = RegionPages(table, {0: memoryview(source)})
    pages = size_bytes >> 12
    everything, every_second = PageBitmap.full(pages), PageBitmap.from_mask(np.arange(pages) % 2 == 0)

    def encode(bitmap: PageBitmap) -> list[Pages]:
        cuts = bitmap.batches(BATCH_BYTES >> 12, _BATCH_RUNS)
        return [encoder.encode(0, starts, counts).table(1, 1) for starts, counts in cuts]

    def commit(tables: list[Pages]) -> None:
        sink = RegionPages(table, {0: memoryview(target)})
        for item in tables:
            sink.targets(item)
            rejected = sink.commit(item)
            if rejected:
                raise RuntimeError(f"rejected {rejected}")

    def record(tables: list[Pages]) -> MemoryDigest:
        digest = MemoryDigest(table)
        for item in tables:
            digest.record(item)
        return digest

    def row(name: str, work: Callable[[], object]) -> Row:
        return name, median_ms(runs, work), yard, median_ms(runs, lambda: np.copyto(arrived, content))

    content[:] = 0
    yield row("encode, all zero", lambda: encode(everything))
    content[:] = np.frombuffer(np.random.default_rng(1).bytes(size_bytes), np.uint8)
    np.copyto(arrived, content)
    yield row("encode, random", lambda: encode(everything))
    tables = encode(everything)
    yield row("targets + commit, random", lambda: commit(tables))
    yield row("digest record, random", lambda: record(tables))
    yield row("digest value", record(tables).value)
    yield row("encode, every second page", lambda: encode(every_second))
    tables = encode(every_second)
    yield row("targets + commit, every second page", lambda: commit(tables))
    yield row("digest record, every second page", lambda: record(tables))
    content.reshape(pages, 4096)[1::2] = 0
    np.copyto(arrived, content)
    yield row("encode, every second page zero", lambda: encode(everything))
    tables = encode(everything)
    yield row("targets + commit, every second page zero", lambda: commit(tables))


def main() -> None:
    """Print one line an operation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7, help="repetitions; the median is shown")
    parser.add_argument("--pages-log2", type=int, default=28, help="size of the bitmap")
    parser.add_argument("--region", type=int, default=256 << 20, help="size of the region in bytes")
    options = parser.parse_args()
    print(f"{'operation':52} {'median ms':>10}   {'yardstick':16} {'ms':>8} {'ratio':>7}")
    for rows in (bitmap_rows(options.runs, 1 << options.pages_log2), page_rows(options.runs, options.region)):
        for name, value, yard, base in rows:
            print(f"{name:52} {value:10.2f}   {yard:16} {base:8.2f} {value / base:7.2f}", flush=True)


if __name__ == "__main__":
    main()
