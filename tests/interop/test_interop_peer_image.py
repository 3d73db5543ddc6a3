"""What a scripted peer keeps of a guest, against the worked example of the specification."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.limits import Limits
from sterna.registry import Encoding, Transfer
from sterna.wire import PageRange, Pages, Region, make_runs, page_hash
from sterna_interop.peer_image import Batch, Image, chunks_of, pages_of

REGION = Region(7, 0, 20 << 12)
DIGEST = bytes.fromhex("0A2E00424C9A1A32779F409BA35698B5")


def example() -> Image:
    """The guest of 10.4, before anything was sent."""
    image = Image([REGION])
    for page in range(17):
        image.write((7, page), bytes([page + 1]) * 4096)
    return image


def sent(image: Image, round_number: int, pages: list[tuple[int, int]]) -> list[Batch]:
    return list(image.batches(1, round_number, pages, Limits()))


def test_the_worked_example() -> None:
    """[MEM-1] [MEM-6] [MEM-9] [MEM-13] [MEM-14] Chapter 10.4."""
    image = example()
    (first,) = sent(image, 1, image.all_pages())
    assert first.table.runs["count"].tolist() == [17, 3]
    assert [f"{each:016X}" for each in first.table.hashes.tolist()] == [
        "97DAF28579BCC153",
        "E647403DB5B174BB",
    ]
    image.write((7, 3), b"\xa5" * 4096)
    sent(image, 2, [(7, 3)])
    assert image.digest() == DIGEST


def test_what_is_received_is_what_was_sent() -> None:
    """[MEM-8] [MEM-15]"""
    source, destination = example(), Image([REGION])
    for batch in sent(source, 1, source.all_pages()):
        assert destination.take(batch.table, batch.bulk) == []
    source.write((7, 3), b"\xa5" * 4096)
    for batch in sent(source, 2, [(7, 3)]):
        assert destination.take(batch.table, batch.bulk) == []
    assert destination.memory == source.memory
    assert destination.digest() == DIGEST
    assert not destination.missing()


def test_a_chunk_that_differs_costs_its_pages_and_no_others() -> None:
    """[MEM-3] [MEM-8] [CON-35]"""
    source, destination = example(), Image([REGION])
    (batch,) = sent(source, 1, source.all_pages())
    bulk = bytearray(batch.bulk)
    bulk[16 * 4096] ^= 1
    assert destination.take(batch.table, bytes(bulk)) == [PageRange(7, 16, 1)]
    assert destination.missing() == 1
    source.forget([PageRange(7, 16, 1)])
    assert destination.digest() == source.digest()


def test_all_is_missing_at_first() -> None:
    """[MEM-7] and shared regions are not counted."""
    image = Image([REGION, Region(1, 1 << 40, 1 << 16, transfer=Transfer.SHARED)])
    assert image.missing() == image.page_count == 20
    assert image.size_bytes == REGION.size_bytes
    assert image.all_pages() == [(7, page) for page in range(20)]


def test_zeros_replace_what_was_there() -> None:
    image = Image([REGION])
    image.write((7, 1), b"x" * 4096)
    table = Pages(1, 1, 7, make_runs([(0, 20, Encoding.ZERO)], 12), np.array([], "<u8"))
    image.take(table, b"")
    assert not any(image.memory[7])


@pytest.mark.parametrize(
    "limits",
    [Limits(bulk_bytes=4096), Limits(batch_runs=1), Limits(bulk_bytes=3 * 4096, batch_runs=2), Limits()],
)
def test_batches_keep_to_the_limits(limits: Limits) -> None:
    """[LIM-6] [PGS-5] [PGS-21]"""
    regions = [REGION, Region(9, 1 << 40, 5 << 12)]
    image = Image(regions)
    for page in range(0, 20, 2):
        image.write((7, page), b"x" * 4096)
    batches = list(image.batches(1, 1, image.all_pages(), limits))
    assert sum(batch.table.page_count for batch in batches) == 25
    for batch in batches:
        assert len(batch.table.runs) <= limits.batch_runs
        assert batch.table.page_count << 12 <= limits.bulk_bytes
        assert len(batch.bulk) == batch.table.bulk_bytes


def test_granules_of_64_kib_are_chunks() -> None:
    image = Image([Region(1, 0, 3 << 16, 16)])
    image.write((1, 1), b"y" * 65536)
    (batch,) = sent(image, 1, image.all_pages())
    assert batch.table.hashes.tolist() == [page_hash(b"y" * 65536)]


def test_small_helpers() -> None:
    assert pages_of(PageRange(1, 4, 2)) == [(1, 4), (1, 5)]
    assert [len(each) for each in chunks_of(bytes(70_000))] == [65536, 4464]
