from __future__ import annotations

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sterna.guest.holder_bitmaps import BitmapFile, words_of
from sterna.linux.memfd import MemoryMap
from sterna.memory.bitmap import PageBitmap
from sterna.registry import Transfer
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
