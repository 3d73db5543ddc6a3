"""`sterna bench transport` moves memory four ways."""

from __future__ import annotations

import pytest
from bench_support import bench


@pytest.mark.slow
def test_one_object():
    found = bench("transport", "--size", "2MiB", "--unsent", "64KiB", "--buffer", "64KiB")
    assert (
        set(found["measures"])
        == {name.removesuffix("_vs_bare") for name in found["ratios"]}
        == {"tcp", "tls"}
    )
    for each in found["measures"].values():
        assert min(each["sterna"]["min"], each["bare"]["min"]) > 0
