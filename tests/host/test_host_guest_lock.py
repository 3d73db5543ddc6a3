from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sterna.errors import RecordError
from sterna.host.guest_lock import GuestLock, is_held
from sterna.registry import ErrorCode


def test_one_at_a_time_and_who_it_is(tmp_path: Path) -> None:
    """[LOG-7]"""
    path = f"{tmp_path}/lock"
    lock = GuestLock(path, "serve")
    with pytest.raises(
        RecordError, match=rf"process {os.getpid()} \('serve'\) on .* has this guest"
    ) as caught:
        GuestLock(path, "verdict")
    assert caught.value.code is ErrorCode.BUSY
    lock.release()
    GuestLock(path, "verdict").release()
    assert Path(path).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "x" * 9999, '{"pid":1}', "\x00\x1b[31m"])
def test_who_it_is_may_be_unknown(tmp_path: Path, text: str) -> None:
    lock = GuestLock(f"{tmp_path}/lock", "serve")
    (tmp_path / "lock").write_text(text)
    with pytest.raises(RecordError, match="another process"):
        GuestLock(f"{tmp_path}/lock", "verdict")
    lock.release()


def test_whether_somebody_has_it_is_seen_without_trying(tmp_path: Path) -> None:
    """[ONE-42] Who tried would turn away whoever comes at that moment."""
    path = f"{tmp_path}/lock"
    assert not is_held(path)
    lock = GuestLock(path, "migrate")
    assert is_held(path)
    lock.release()
    assert not is_held(path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        GuestLock(f"{tmp_path}/lock", "serve")


@pytest.mark.slow
def test_the_kernel_lets_go_when_the_process_is_killed(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from sterna.host.guest_lock import GuestLock
        lock = GuestLock(sys.argv[1], "other")
        print("has it", flush=True)
        sys.stdin.read()
        """
    command = [sys.executable, "-c", program, f"{tmp_path}/lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        with pytest.raises(RecordError, match=rf"process {process.pid} \('other'\)"):
            GuestLock(f"{tmp_path}/lock", "serve")
        process.kill()
    GuestLock(f"{tmp_path}/lock", "serve").release()
