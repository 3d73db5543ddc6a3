"""`sterna bench goodput` moves memory both ways, and tells rate and CPU time of each."""

from __future__ import annotations

import pytest
from bench_support import bench


@pytest.mark.slow
def test_one_object():
    found = bench("goodput", "--size", "1MiB")
    assert found["bench"] == "goodput"
    assert {name: each["unit"] for name, each in found["measures"].items()} == {
        "goodput": "bytes/s",
        "cpu": "s",
    }
    for each in found["measures"].values():
        assert each["sterna"]["median"] > 0
        assert each["bare"]["median"] > 0
