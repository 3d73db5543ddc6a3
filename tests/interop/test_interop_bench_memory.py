"""`sterna bench memory` and `tls`: an object, a table for the file, and QEMU where there is one."""

from __future__ import annotations

import pytest
from bench_support import bench

from sterna.cli.main import main

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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory", "tls"])
def test_over_data_connections(name):
    found = bench(name, "--size", "9MiB", "--streams", "3")
    assert found["conditions"]["connections"].startswith("3 data connections")
    assert {"vs_bare", "vs_bare_hash"} <= set(found["ratios"])


def test_there_are_at_most_16_data_connections(capsys):
    assert main(["bench", "memory", "--streams", "17"]) == 2
    assert "--streams" in capsys.readouterr().err
