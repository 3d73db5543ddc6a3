"""Directories of commands: nothing is left of them, and nothing is taken from one that runs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sterna.cli import scratch as module
from sterna.cli.scratch import scratch

PREFIX = "sterna-test-"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def fill(directory: Path) -> None:
    (directory / "pki").mkdir()
    (directory / "pki" / "ca.key").write_text("secret")


def test_it_is_there_and_then_gone(temporary: Path) -> None:
    with scratch(PREFIX) as directory:
        assert directory.parent == temporary
        assert directory.stat().st_mode & 0o777 == 0o700
        fill(directory)
    assert list(temporary.iterdir()) == []


def test_it_is_gone_after_a_failure(temporary: Path) -> None:
    def fail() -> None:
        with scratch(PREFIX) as directory:
            fill(directory)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_command_has_left_goes_with_the_next(temporary: Path) -> None:
    code = (
        "import os, signal, sys; from sterna.cli.scratch import scratch\n"
        "with scratch(sys.argv[1]) as directory:\n"
        "    (directory / 'ca.key').write_text('secret')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", code, PREFIX], env=environment, check=False, timeout=60)
    (left,) = temporary.iterdir()
    assert (left / "ca.key").exists()
    with scratch(PREFIX) as directory:
        assert list(temporary.iterdir()) == [directory]


def test_what_is_in_use_stays(temporary: Path) -> None:
    with scratch(PREFIX) as one:
        fill(one)
        with scratch(PREFIX) as other:
            assert {one, other} == set(temporary.iterdir())
        assert (one / "pki" / "ca.key").exists()


def test_what_is_none_of_ours_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, links, directories of other commands and of other users."""
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (temporary / f"{PREFIX}file").write_text("")
    (temporary / f"{PREFIX}link").symlink_to(elsewhere)
    before = set(temporary.iterdir())
    with scratch(PREFIX):
        pass
    assert set(temporary.iterdir()) == before
    (temporary / f"{PREFIX}other-user").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with scratch(PREFIX):
        pass
    assert (temporary / f"{PREFIX}other-user").exists()


def test_one_that_is_cleared_before_it_is_locked_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared: list[Path] = []
    lock = fcntl.flock

    def race(fd: int, operation: int) -> None:
        if not cleared:
            cleared.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
            cleared[0].rmdir()
        lock(fd, operation)

    monkeypatch.setattr(module.fcntl, "flock", race)
    with scratch(PREFIX) as directory:
        assert directory.exists()
        assert directory != cleared[0]
