from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.errors import GuestError
from sterna.guest.holder_bitmaps import BitmapFile, bit_runs, bits_of, read_bitmaps, set_bits, words_of
from sterna.linux.memfd import MemoryMap
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode, Transfer
from sterna.wire.records import Region

SIZES = st.lists(st.integers(1, 200), min_size=1, max_size=4)


@given(SIZES, st.data())
def test_the_reader_sees_what_was_put(sizes: list[int], data: st.DataObject) -> None:
    """[HOL-34]: one bitmap a region, little-endian words, everything replaced at every answer."""
    regions = [Region(10 + i, i << 32, pages << 12) for i, pages in enumerate(sizes)]
    file = BitmapFile(regions)
    descriptor = file.file.open_read_only()
    view = MemoryMap(descriptor, file.file.size_bytes, writable=False)
    for _ in range(2):
        masks = [np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for n in sizes]
        bitmaps = {region.id: PageBitmap.from_mask(mask) for region, mask in zip(regions, masks, strict=True)}
        left_out = data.draw(st.sampled_from([None, *bitmaps]))
        if left_out is not None:
            del bitmaps[left_out]
        assert file.put(bitmaps) == sum(bitmap.count() for bitmap in bitmaps.values())
        for place, region, mask in zip(file.layout(), regions, masks, strict=True):
            assert (place["region"], place["bits"]) == (region.id, region.pages)
            assert place["offset"] % 8 == 0
            raw = bytes(view.view[place["offset"] : place["offset"] + 8 * words_of(region.pages)])
            bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
            assert not bits[region.pages :].any()
            expected = np.zeros_like(mask) if region.id == left_out else mask
            assert bits[: region.pages].astype(bool).tolist() == expected.tolist()
    view.close()
    os.close(descriptor)
    file.close()


def test_only_copied_regions_have_one() -> None:
    file = BitmapFile([Region(1, 0, 1 << 20, transfer=Transfer.SHARED)])
    assert file.layout() == []
    assert file.put({}) == 0
    file.close()


def test_what_one_side_lays_out_the_other_reads_where_it_is() -> None:
    file = BitmapFile([Region(7, 0, 70 << 12), Region(2, 1 << 40, 3 << 12)])
    view = file.file.map()
    found = read_bitmaps({"bitmaps": file.layout()}, view.array.view("<u8"))
    assert {region: (len(words), bits) for region, (words, bits) in found.items()} == {7: (2, 70), 2: (1, 3)}
    set_bits(found[7][0], 69, 1)
    assert file.words(7).tolist() == [0, 32]
    assert file.words(2).tolist() == [0]
    kept = file.words(7)
    del found
    view.close()
    file.close()
    assert kept.tolist() == [0, 32]


def test_a_file_may_have_more_than_one_set() -> None:
    """Each where its layout says, and none touches another."""
    file = BitmapFile([Region(7, 0, 70 << 12), Region(2, 1 << 40, 3 << 12)], sets=2)
    assert [place["offset"] for place in file.layout(1)] == [24, 40]
    assert file.put({2: PageBitmap.full(3)}, 1) == 3
    assert file.put({7: PageBitmap.full(70)}) == 70
    found = read_bitmaps({"bitmaps": file.layout(1)}, file._words)
    assert [words.tolist() for words, _ in found.values()] == [[0, 0], [7]]
    assert file.words(7).tolist() == [(1 << 64) - 1, 63]
    assert file.put({}, 1) == 0
    assert file.words(2, 1).tolist() == [0]
    del found
    file.close()


@given(st.integers(0, (1 << 200) - 1))
def test_runs_of_a_number(bits: int) -> None:
    runs = list(bit_runs(bits))
    assert sum((1 << count) - 1 << first for first, count in runs) == bits
    assert all(first + count < after for (first, count), (after, _) in itertools.pairwise(runs))
    assert all(count > 0 for _, count in runs)


@pytest.mark.parametrize(
    "entries",
    [
        [{"region": 1, "offset": 0, "bits": 129}],
        [{"region": 1, "offset": 1, "bits": 1}],
        [{"region": 1, "offset": 16, "bits": 1}],
        [{"region": 1, "offset": 0, "bits": 1}, {"region": 1, "offset": 8, "bits": 1}],
        [{"region": 1, "offset": -8, "bits": 1}],
        [{}],
        [5],
        "no list",
        [{"region": 1, "offset": 0, "bits": 0}] * 65,
    ],
)
def test_layouts_that_lead_elsewhere(entries: object) -> None:
    """[HOL-11] [HOL-38]"""
    with pytest.raises(GuestError) as caught:
        read_bitmaps({"here": entries}, np.zeros(2, "<u8"), "here")
    assert caught.value.code is ErrorCode.BAD_VALUE


@given(st.integers(0, 300), st.integers(0, 300))
def test_bits_are_set_as_a_bitmap_sets_them(first: int, count: int) -> None:
    count = min(count, 300 - first)
    bitmap, words = PageBitmap(300), np.zeros(words_of(300), "<u8")
    bitmap.set(first, count)
    set_bits(words, first, count)
    assert words.tolist() == bitmap.words.tolist()
    window = min(first, 40), 230
    assert bits_of(words, *window) == sum(1 << page for page in range(230) if page + window[0] in bitmap)
    assert bits_of(words, first, count) == (1 << count) - 1
