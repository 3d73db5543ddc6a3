from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio

from sterna.errors import GuestError
from sterna.guest import process_launch
from sterna.guest.holder_client import connect_holder
from sterna.guest.process_launch import launch_process_holder

MIB = 1 << 20


async def test_answers_when_it_is_there(tmp_path: Path) -> None:
    path, journal = tmp_path / "holder", tmp_path / "journal"
    process = await launch_process_holder(
        path,
        "source",
        memory_bytes=2 * MIB,
        hot_bytes=MIB,
        rate_bytes_s=MIB,
        seed=5,
        journal=journal,
        die_with_parent=True,
        options=("--tracker", "compare"),
    )
    with trio.fail_after(30):
        async with await connect_holder(path) as connection:
            assert connection.attached.tracker == "compare"
            await connection.shutdown()
        assert await process.wait() == 0
    assert journal.exists()


async def test_one_that_ends_at_its_start(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="status 1"):
        await launch_process_holder(tmp_path / "holder", "source", memory_bytes=5)


async def test_one_that_is_never_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    silent = tmp_path / "silent"
    silent.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    silent.chmod(0o755)
    monkeypatch.setattr(process_launch.sys, "executable", str(silent))
    with pytest.raises(GuestError, match="not ready within 120 s"):
        await launch_process_holder(tmp_path / "holder", "destination")


async def test_cancelled_while_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = tmp_path / "silent"
    silent.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    silent.chmod(0o755)
    monkeypatch.setattr(process_launch.sys, "executable", str(silent))
    with trio.move_on_after(0.01) as scope:
        await launch_process_holder(tmp_path / "holder", "destination")
    assert scope.cancelled_caught


async def test_what_lies_around_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it hear of a Ctrl-C that its starter hears of."""
    (tmp_path / "numpy.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    process = await launch_process_holder(tmp_path / "holder", "destination", die_with_parent=True)
    assert os.getsid(process.pid) == process.pid
    process.terminate()
    assert await process.wait() == 0
