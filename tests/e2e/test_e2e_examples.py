"""What embedders may copy works as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from sterna.host.lease_files import create_file_store

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_hosts.py"
DEADLINE_S = 60

pytestmark = pytest.mark.slow


async def a_line(stream: trio.abc.ReceiveStream) -> str:
    """The next one, which may come in pieces."""
    said = b""
    while not said.endswith(b"\n"):
        data = await stream.receive_some(1)
        assert data, f"it has ended behind {said!r}"
        said += data
    return said.decode()


async def test_a_guest_moves_between_two_hosts_with_a_lease_store(tmp_path: Path, pki: Path) -> None:
    (tmp_path / "pki").symlink_to(pki)
    create_file_store(tmp_path / "leases")
    example = (sys.executable, "-W", "error", EXAMPLE)
    receive = await trio.lowlevel.open_process(
        (*example, "receive", "127.0.0.1:0"), cwd=tmp_path, stdout=subprocess.PIPE
    )
    try:
        with trio.fail_after(DEADLINE_S):
            assert receive.stdout is not None
            address = (await a_line(receive.stdout)).removeprefix("listening on ").strip()
            sent = await trio.run_process(
                (*example, "send", address), cwd=tmp_path, capture_stdout=True, capture_stderr=True
            )
            came = await a_line(receive.stdout)
    finally:
        receive.kill()
        await receive.wait()
    assert sent.stdout.decode().startswith("completed, epoch 2: ")
    assert sent.stderr == b""
    assert came.startswith("completed, epoch 2: ")
    (slots,) = (each for each in (tmp_path / "leases").iterdir() if each.is_dir())
    assert sorted(each.name for each in slots.iterdir()) == [f"{epoch:020}" for epoch in (1, 2)]
