"""`sterna bench faults` moves a guest that waits for its pages, and plays ping-pong beside a transfer."""

from __future__ import annotations

import pytest
from bench_support import bench


@pytest.mark.slow
@pytest.mark.needs("userfaultfd")
def test_one_object():
    found = bench("faults", "--memory", "16MiB", "--dirty-rate", "200MiB/s")
    assert (
        set(found["measures"])
        == {name.removesuffix("_vs_bare") for name in found["ratios"] if name.endswith("bare")}
        == {name.removesuffix("_vs_group") for name in found["ratios"] if name.endswith("group")}
        == {"p50", "p99"}
    )
    for way in ("sterna", "bare", "group"):
        assert 0 < found["measures"]["p50"][way]["median"] <= found["measures"]["p99"][way]["median"]
