"""The scripts of coverage-guided fuzzers: tests when they are imported, targets when they are run."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from sterna_fuzz import guided

FUZZ = Path(__file__).parents[2] / "fuzz"
SCRIPTS = sorted(FUZZ.glob("fuzz_*.py"))
FEW = settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def imported(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_script_for_each_kind_of_input():
    assert [path.stem for path in SCRIPTS] == [
        "fuzz_bodies",
        "fuzz_conversation",
        "fuzz_frames",
        "fuzz_state",
    ]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_a_test(path):
    module = imported(path)
    if path.stem == "fuzz_state":
        run_state_machine_as_test(module.History, settings=settings(FEW, stateful_step_count=5))
        return
    test = getattr(module, path.stem.replace("fuzz", "test", 1))
    FEW(test)()
    test.hypothesis.fuzz_one_input(bytes(64))


@pytest.mark.slow
def test_without_atheris_a_script_says_what_to_install(tmp_path):
    (tmp_path / "atheris.py").write_text("raise ImportError('not here')")
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['x']; "
    code += f"runpy.run_path({str(SCRIPTS[0])!r}, run_name='__main__')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert guided.MISSING in done.stderr


def test_imports_are_counted_when_a_script_is_run(monkeypatch):
    seen = []
    fake = types.SimpleNamespace(
        instrument_imports=lambda include: seen.append(include) or contextlib.nullcontext(),
        Setup=lambda arguments, one: seen.append(one),
        Fuzz=lambda: seen.append(seen[-1](b"input")),
    )
    monkeypatch.setitem(sys.modules, "atheris", fake)
    with guided.product("somewhere"):
        assert seen == []
    with guided.product("__main__"):
        assert seen == [list(guided.COUNTED)]
    inputs = []
    guided.fuzz(inputs.append)
    assert inputs == [b"input"]
