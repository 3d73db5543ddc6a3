"""`sterna bench dirty`: one object, and QEMU beside Sterna where there is one."""

from __future__ import annotations

import pytest
from bench_support import bench, beside_qemu

from sterna.cli.main import main

SMALL = ("--size", "84MiB", "--hot", "16MiB", "--dirty-rate", "20MiB/s", "--downtime", "300ms")


@pytest.mark.slow
def test_one_object_and_a_table(tmp_path):
    """Beside QEMU where there is one: all else is as without."""
    path = tmp_path / "BENCHMARKS.md"
    beside = beside_qemu()
    found = bench("dirty", *SMALL, *beside, "--write", str(path))
    of_rate = {f"{name}_20" for name in ("time", "blackout", "cpu", "written", "sent")}
    of_rate |= {"time_20_whole", "blackout_20_whole"}
    assert set(found["measures"]) == of_rate | {"memory_source", "memory_destination"}
    ratios = {name for name in found["ratios"] if not name.endswith("vs_qemu")}
    assert ratios == {"vs_bare", "time_20_vs_bare", "cpu_vs_bare", "cpu_20_vs_bare"}
    assert all(each["sterna"]["median"] > 0 for each in found["measures"].values())
    table = path.read_text()
    assert "## dirty, 1 run" in table
    assert "| 20 MiB/s, whole pages: time |" in table
    assert "- writes: each guest writes some bytes of each page" in table
    if beside:
        check_beside_qemu(found)


def check_beside_qemu(found):
    assert {
        "vs_qemu",
        "cpu_vs_qemu",
        "memory_source_vs_qemu",
        "time_20_vs_qemu",
        "blackout_20_vs_qemu",
        "time_20_whole_vs_qemu",
        "blackout_20_whole_vs_qemu",
    } <= set(found["ratios"])
    for name in ("time_20", "blackout_20"):  # whole pages are beside the same turns, and nobody judges them
        assert found["measures"][f"{name}_whole"]["qemu"] == found["measures"][name]["qemu"]
        assert "met" in found["ratios"][f"{name}_vs_qemu"]
        assert "met" not in found["ratios"][f"{name}_whole_vs_qemu"]
    assert found["ratios"]["vs_qemu"] == found["ratios"]["time_20_vs_qemu"]


def test_without_qemu_it_is_said_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["bench", "dirty", "--against", "qemu"]) == 2
    assert "apt-get install" in capsys.readouterr().err


def test_sizes_that_do_not_fit(capsys):
    assert main(["bench", "dirty", "--size", "84MiB"]) == 2
    assert "--size" in capsys.readouterr().err
