from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from sterna.core.verdict import Slot
from sterna.host.lease_files import FileLeaseStore, create_file_store
from sterna.wire.records import Runner

GUEST = bytes(range(16))


@pytest.mark.slow
def test_a_claimant_says_whom_the_store_named(tmp_path: Path) -> None:
    create_file_store(tmp_path)
    command = [sys.executable, "-m", "sterna.testing.claimant"]
    command += [str(tmp_path), GUEST.hex(), "alone.check", "2"]
    done = subprocess.run(command, input="go\n", capture_output=True, text=True, timeout=60, check=True)
    ready, *lines = done.stdout.splitlines()
    assert ready == "ready"
    assert [line.split()[:2] for line in lines] == [["1", "alone.check"], ["2", "alone.check"]]
    newest = trio.run(FileLeaseStore(tmp_path).newest, GUEST)
    assert newest == Slot(2, Runner("alone.check", bytes.fromhex(lines[1].split()[2])))
