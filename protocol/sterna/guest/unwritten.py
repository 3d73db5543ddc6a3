"""What the kernel knows of a guest's memory, as pages of the guest."""

from __future__ import annotations

from sterna.linux.holes import ByteRanges
from sterna.memory.bitmap import PageBitmap


def pages_inside(holes: ByteRanges, page_bytes: int, pages: int) -> PageBitmap:
    """Those of so many pages that lie in one of these ranges of bytes as a whole."""
    bitmap = PageBitmap(pages)
    first, end = -(-holes[:, 0] // page_bytes), holes[:, 1] // page_bytes
    some = first < end
    bitmap.set_runs(first[some], (end - first)[some])
    return bitmap
