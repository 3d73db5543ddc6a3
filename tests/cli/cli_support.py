"""Commands of two hosts in one process: what belongs to a process (signals) is taken from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from sterna.cli.endpoint import Ending
from sterna.host.pki import init_ca, issue

PEERS = """
[[peer]]
identity = "host-a"
may_send = ["web-*"]

[[peer]]
identity = "host-b"
may_receive = ["web-*"]
"""


def make_hosts(directory: Path) -> Path:
    """Certificates of host-a and host-b, and a peer list, in `directory`."""
    init_ca(directory)
    for name in ("host-a", "host-b"):
        issue(directory, name, hosts=("127.0.0.1",))
    (directory / "peers.toml").write_text(PEERS)
    return directory


@contextmanager
def without_signals() -> Iterator[list[Ending]]:
    """Two commands in one process cannot both have its signals; a test asks for an end by `ending.end`."""
    endings: list[Ending] = []

    async def watch(
        ending: Ending,
        *,
        process: int | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        endings.append(ending)
        task_status.started()
        await trio.sleep_forever()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ending, "watch", watch)
        yield endings


def only_object(out: str) -> dict:
    """What a command with --json has written: one line, one object, of this schema."""
    (line,) = out.splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    assert found["schema"] == 1
    return found
