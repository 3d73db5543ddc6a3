"""`sterna bench faults` moves a guest that waits for its pages, and plays ping-pong beside a transfer."""

from __future__ import annotations

import pytest
from bench_support import bench


@pytest.mark.slow
@pytest.mark.needs("userfaultfd")
def test_one_object(tmp_path):
    path = tmp_path / "BENCHMARKS.md"
    found = bench("faults", "--memory", "16MiB", "--dirty-rate", "200MiB/s", "--write", str(path))
    assert found["ratios"]["p50_vs_bare"]["at_most"] == 5.0
    assert "## faults, 1 run" in path.read_text()
    assert (
        set(found["measures"])
        == {name.removesuffix("_vs_bare") for name in found["ratios"] if name.endswith("bare")}
        == {name.removesuffix("_vs_group") for name in found["ratios"] if name.endswith("group")}
        == {"p50", "p99", "first_p50", "first_p99"}
    )
    for way in ("sterna", "bare", "group"):
        for least, most in (("p50", "p99"), ("first_p50", "first_p99")):
            assert 0 < found["measures"][least][way]["median"] <= found["measures"][most][way]["median"]
