"""`sterna bench memory` and `tls`: an object, a table for the file, and QEMU where there is one."""

from __future__ import annotations

import pytest
from bench_support import bench

MEASURES = {"goodput", "cpu", "cpu_source", "cpu_destination", "memory_source", "memory_destination"}
UNVERIFIED = {"unverified", "unverified_cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory", "tls"])
def test_one_object_and_a_table(name, tmp_path):
    path = tmp_path / "BENCHMARKS.md"
    found = bench(name, "--size", "9MiB", "--write", str(path))
    assert (found["schema"], found["bench"], found["runs"]) == (1, name, 1)
    assert set(found["measures"]) == MEASURES | (UNVERIFIED if name == "memory" else set())
    assert set(found["measures"]["goodput"]) >= {"sterna", "bare", "bare_hash", "memcpy", "unit"}
    assert len(found["ratios"]["vs_bare"]["pairs"]) == 1
    assert {"vs_bare_hash", "vs_memcpy", "cpu_vs_bare"} <= set(found["ratios"])
    assert f"## {name}, 1 run" in path.read_text()


@pytest.mark.slow
@pytest.mark.needs("qemu")
@pytest.mark.parametrize("name", ["memory", "tls"])
def test_against_qemu(name):
    found = bench(name, "--size", "9MiB", "--against", "qemu")
    assert {"vs_qemu", "cpu_vs_qemu"} <= set(found["ratios"])
    assert {"sterna", "qemu"} <= set(found["measures"]["memory_source"])
    assert "multifd 2" in found["conditions"]["QEMU"]
    for each in UNVERIFIED & set(found["measures"]):
        assert {"sterna", "bare", "qemu"} <= set(found["measures"][each]), each
        assert {f"{each}_vs_bare", f"{each}_vs_qemu"} <= set(found["ratios"])
