"""What the kernel knows, in the guest's pages."""

import numpy as np
import pytest

from sterna.guest.unwritten import pages_inside


@pytest.mark.parametrize(
    ("holes", "runs"),
    [
        ([], []),
        ([(0, 8192)], [(0, 1)]),
        ([(4096, 24576)], [(1, 2)]),  # the first half of page 0 was written, and of page 3
        ([(4096, 8192), (12288, 16384)], []),
        ([(0, 8192), (16384, 65536)], [(0, 1), (2, 6)]),
    ],
)
def test_only_whole_pages(holes: list[tuple[int, int]], runs: list[tuple[int, int]]) -> None:
    bitmap = pages_inside(np.array(holes, np.int64).reshape(-1, 2), 8192, 8)
    assert list(zip(*(part.tolist() for part in bitmap.runs()), strict=True)) == runs
