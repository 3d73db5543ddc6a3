from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from etcd_support import free_port
from sterna.cli.main import main
from sterna.host.lease_files import FileLeaseStore
from sterna.wire.records import Runner

GUEST = bytes(range(16))


@pytest.fixture
def store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["lease", "init", str(tmp_path / "leases")]) == 0
    capsys.readouterr()
    return tmp_path / "leases"


async def claim(store: Path) -> None:
    for epoch, host in enumerate(("alpha", "beta"), 1):
        await FileLeaseStore(store).claim(GUEST, epoch, Runner(host, bytes([epoch]) * 16))


def test_a_store_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = []
    for _ in range(2):
        assert main(["lease", "init", str(tmp_path / "leases"), "--json"]) == 0
        made.append(json.loads(capsys.readouterr().out))
    assert made[0] == made[1]
    assert len(made[0]["id"]) == 32
    assert main(["lease", "init", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--all"]])
def test_the_newest_slot_or_all(store: Path, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    trio.run(claim, store)
    assert main(["lease", "show", str(store), GUEST.hex(), "--json", *more]) == 0
    found = json.loads(capsys.readouterr().out)
    newest = {"epoch": 2, "host": "beta", "runner": "02" * 16}
    oldest = {"epoch": 1, "host": "alpha", "runner": "01" * 16}
    assert found["newest"] == newest
    assert found["slots"] == ([newest, oldest] if more else [newest])
    assert main(["lease", "show", str(store), f"id:{GUEST.hex()}", *more]) == 0
    assert "beta" in capsys.readouterr().err


def test_a_guest_without_a_slot(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lease", "show", str(store), GUEST.hex(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["newest"] is None
    assert main(["lease", "show", str(store), GUEST.hex()]) == 0
    assert "nobody has claimed it there" in capsys.readouterr().err


def test_what_cannot_be_shown(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store that is silent is a case of its own for scripts: exit code 8, undecided."""
    commands = [
        ([str(store), "web-1"], 2, "hexadecimal digits"),
        ([str(store), "x" * 32], 2, "hexadecimal digits"),
        (["redis://host", GUEST.hex()], 2, "is no lease store"),
        ([str(tmp_path), GUEST.hex()], 8, "mount it, or make one"),
        ([f"etcd://127.0.0.1:{free_port()}", GUEST.hex()], 8, "Connection refused"),
    ]
    for arguments, code, text in commands:
        assert main(["lease", "show", *arguments]) == code
        assert text in " ".join(capsys.readouterr().err.split())
