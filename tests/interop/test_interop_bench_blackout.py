"""`sterna bench blackout` moves a guest that writes, and one that does not."""

from __future__ import annotations

import pytest
from bench_support import bench

WAYS = {"sterna", "qemu", "unit", "text"}


@pytest.mark.slow
@pytest.mark.needs("userfaultfd")
def test_one_object():
    found = bench("blackout", "--memory", "16MiB", "--hot", "16MiB", "--dirty-rate", "100MiB/s")
    assert set(found["measures"]) == {"blackout", "guest", "total"}
    writing, idle = (found["measures"]["blackout"][way]["median"] for way in ("sterna", "idle"))
    assert found["ratios"]["vs_idle"]["pairs"] == [writing / idle]
    assert found["ratios"]["vs_idle"]["at_most"] == 2.0
    assert found["measures"]["guest"]["sterna"]["median"] > 0
    assert writing < found["measures"]["total"]["sterna"]["median"]


@pytest.mark.slow
@pytest.mark.needs("userfaultfd", "qemu")
def test_against_qemu(tmp_path):
    path = tmp_path / "BENCHMARKS.md"
    found = bench(
        *("blackout", "--memory", "84MiB", "--hot", "16MiB", "--dirty-rate", "20MiB/s", "--against", "qemu"),
        *("--write", str(path)),
    )
    assert found["ratios"]["vs_qemu"]["goal"] == 0.5
    assert "post-copy" in found["conditions"]["QEMU"]
    assert (found["bench"], set(found["measures"]["blackout"])) == ("blackout", WAYS)
    assert found["conditions"]["QEMU's blackouts"].endswith(" ms")
    assert "## blackout beside QEMU, 1 run" in path.read_text()
