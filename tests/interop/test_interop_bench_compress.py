"""`sterna bench compress`: one object, and QEMU's better way beside Sterna where there is one."""

from __future__ import annotations

import pytest
from bench_support import bench, beside_qemu

from sterna.cli.main import main

SMALL = ("--size", "84MiB", "--hot", "16MiB", "--dirty-rate", "10MiB/s")


@pytest.mark.slow
def test_one_object_and_a_table(tmp_path):
    """Beside QEMU where there is one: all else is as without."""
    path = tmp_path / "BENCHMARKS.md"
    beside = beside_qemu()
    found = bench("compress", *SMALL, *beside, "--write", str(path))
    assert {"sent", "time", "memory_source", "memory_destination"} <= set(found["measures"])
    assert {"memory_compressible_source", "memory_compressible_destination"} <= set(found["measures"])
    for name in ("random", "compressible"):
        assert set(found["measures"][name]) >= {"sterna", "raw"}
        assert f"{name}_vs_raw" in found["ratios"]
    assert found["measures"]["sent"]["sterna"]["median"] < 70 << 20  # three quarters of it are not zero
    assert "## compress, 1 run" in path.read_text()
    if beside:
        check_beside_qemu(found)


def check_beside_qemu(found):
    assert found["measures"]["sent"]["qemu"]["median"] < 70 << 20
    assert found["ratios"]["vs_qemu"] == found["ratios"]["sent_vs_qemu"]


def test_without_qemu_it_is_said_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["bench", "compress", "--against", "qemu"]) == 2
    assert "apt-get install" in capsys.readouterr().err
