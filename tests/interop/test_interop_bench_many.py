"""`sterna bench many`: one object, and guests of whole pages."""

from __future__ import annotations

import pytest
from bench_support import bench

from sterna.cli.main import main


@pytest.mark.slow
def test_one_object_and_a_table(tmp_path):
    path = tmp_path / "BENCHMARKS.md"
    found = bench("many", "--size", "12MiB", "--sessions", "3", "--write", str(path))
    assert found["ratios"]["vs_one"]["at_least"] == 0.9
    first, last = (found["measures"][name]["sterna"]["median"] for name in ("first", "last"))
    assert 0 < first <= last
    assert "## many, 1 run" in path.read_text()


def test_guests_have_whole_pages(capsys):
    assert main(["bench", "many", "--size", "8KiB", "--sessions", "3"]) == 2
    assert "whole pages" in capsys.readouterr().err
