"""`sterna bench tls`: one object, a table for the file, and QEMU beside them where there is one."""

from __future__ import annotations

import pytest
from bench_support import bench

MEASURES = {"goodput", "cpu", "cpu_source", "cpu_destination", "memory_source", "memory_destination"}


@pytest.mark.slow
def test_one_object_and_a_table(tmp_path):
    path = tmp_path / "BENCHMARKS.md"
    found = bench("tls", "--size", "9MiB", "--write", str(path))
    assert (found["schema"], found["bench"], found["runs"]) == (1, "tls", 1)
    assert set(found["measures"]) == MEASURES
    assert set(found["measures"]["goodput"]) >= {"sterna", "bare", "bare_hash", "memcpy", "unit"}
    assert len(found["ratios"]["vs_bare"]["pairs"]) == 1
    assert {"vs_bare_hash", "vs_memcpy", "cpu_vs_bare"} <= set(found["ratios"])
    assert "## tls, 1 run" in path.read_text()


@pytest.mark.slow
@pytest.mark.needs("qemu")
def test_against_qemu():
    found = bench("tls", "--size", "9MiB", "--against", "qemu")
    assert {"vs_qemu", "cpu_vs_qemu"} <= set(found["ratios"])
    assert {"sterna", "qemu"} <= set(found["measures"]["memory_source"])
    assert "multifd 2" in found["conditions"]["QEMU"]
