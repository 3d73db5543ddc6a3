"""`sterna bench scale`: one object, and sizes that fit each other."""

from __future__ import annotations

import pytest
from bench_support import bench

from sterna.cli.main import main


@pytest.mark.slow
def test_one_object_and_a_table(tmp_path):
    path = tmp_path / "BENCHMARKS.md"
    found = bench("scale", "--size", "12MiB", "--small", "4MiB", "--write", str(path))
    assert set(found["measures"]["time"]) >= {"sterna", "small"}
    assert found["ratios"]["vs_small"]["at_most"] == 1.1
    assert "memory_source" in found["measures"]
    assert "## scale, 1 run" in path.read_text()


def test_sizes_that_do_not_fit_each_other(capsys):
    assert main(["bench", "scale", "--size", "3GiB", "--small", "2GiB"]) == 2
    assert "no multiple" in capsys.readouterr().err
