"""The group of benchmarks; what each of them does is in a test file of its own."""

from __future__ import annotations

import pytest

from sterna.cli.main import main
from sterna_interop.bench import COMMANDS


def test_help_lists_every_benchmark(capsys):
    assert main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name, _ in COMMANDS)


@pytest.mark.parametrize("name", [name for name, _ in COMMANDS])
def test_every_benchmark_has_help(name, capsys):
    assert main(["bench", name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: sterna bench {name}" in out
    assert "--runs" in out
    assert "--json" in out


@pytest.mark.parametrize("runs", ["0", "1001", "few"])
def test_runs_are_a_small_number(runs, capsys):
    assert main(["bench", "wire", "--runs", runs]) == 2
    assert "runs" in capsys.readouterr().err
