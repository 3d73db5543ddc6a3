"""The rules of tests/conftest.py, on a small suite of its own and a machine that has kvm and lacks qemu."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CONFTEST = f"""
from pathlib import Path
from sterna.linux import capabilities
from sterna.linux.capabilities import Capability

capabilities.probe = lambda: (
    Capability("kvm", available=True), Capability("qemu", available=False, reason="none on PATH")
)
exec(Path({str(Path(__file__).with_name("conftest.py"))!r}).read_text())
"""
SUITE = """
import pytest

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.needs("kvm")
def test_kvm(): pass

@pytest.mark.needs("kvm", "qemu")
def test_qemu(): pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  slow\n  needs\n")
    (tmp_path / "e2e").mkdir()
    (tmp_path / "e2e" / "test_a.py").write_text("def test_e2e(): pass\n")
    (tmp_path / "test_b.py").write_text(SUITE)
    return tmp_path


def run(suite: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the suite with nothing of our own environment that would steer it."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in {"CI", "STERNA_REQUIRE", "PYTEST_ADDOPTS"}
    }
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", str(suite)]
    return subprocess.run(
        command,
        cwd=suite,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_fast_tests_come_first_and_what_is_missing_is_skipped(suite: Path) -> None:
    done = run(suite)
    assert done.returncode == 0, done.stdout
    order = [done.stdout.index(f"::{name} ") for name in ("test_kvm", "test_qemu", "test_slow", "test_e2e")]
    assert order == sorted(order)
    assert "needs qemu: none on PATH" in done.stdout
    assert "machine has: kvm; lacks: qemu (none on PATH)" in done.stdout
    assert "--hypothesis-seed=" in done.stdout


def test_what_is_declared_required_may_not_be_missing(suite: Path) -> None:
    done = run(suite, STERNA_REQUIRE="kvm,qemu", CI="true")
    assert done.returncode == 1
    assert "qemu is required by STERNA_REQUIRE, but: none on PATH" in done.stdout
    assert "profile ci, derandomized" in done.stdout


def test_a_misspelt_capability_is_an_error(suite: Path) -> None:
    assert run(suite, STERNA_REQUIRE="qmeu").returncode == 4
    (suite / "test_c.py").write_text(SUITE.replace('"kvm"', '"kmv"'))
    done = run(suite)
    assert done.returncode == 1
    assert "needs('kmv'): unknown" in done.stdout
