"""`sterna bench sparse`: where the content is, one object, and QEMU beside them where there is one."""

from __future__ import annotations

import pytest
from bench_support import bench

from sterna.errors import ConfigError
from sterna_interop.bench_sparse import EXTENT_BYTES, extents


@pytest.mark.slow
def test_one_object_and_a_table(tmp_path):
    path = tmp_path / "BENCHMARKS.md"
    found = bench("sparse", "--size", "24MiB", "--write", str(path))
    assert found["bench"] == "sparse"
    assert {"sterna", "bare", "memcpy"} <= set(found["measures"]["time"])
    assert {"vs_bare", "cpu_vs_bare"} <= set(found["ratios"])
    assert "## sparse, 1 run" in path.read_text()


@pytest.mark.slow
@pytest.mark.needs("qemu")
def test_against_qemu():
    assert "vs_qemu" in bench("sparse", "--size", "24MiB", "--against", "qemu")["ratios"]


@pytest.mark.parametrize(("share", "number"), [(0.1, 5), (0.5, 25), (1.0, 50)])
def test_content_lies_all_over_the_memory(share, number):
    found = extents(50 * EXTENT_BYTES, share)
    assert len(found) == number
    assert all(offset % 4096 == 0 for offset, _ in found)
    ends = [offset + length for offset, length in found]
    assert all(end <= offset for end, (offset, _) in zip(ends, found[1:], strict=False))
    assert ends[-1] <= 50 * EXTENT_BYTES


def test_a_guest_that_is_too_small():
    with pytest.raises(ConfigError, match="too small"):
        extents(EXTENT_BYTES - 4096, 0.1)
