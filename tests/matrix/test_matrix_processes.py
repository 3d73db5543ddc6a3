"""Commands that are read, stopped, set going again and killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from sterna.matrix.processes import CellFailed, Command

pytestmark = pytest.mark.slow


async def test_a_command_that_says_something_and_ends(nursery: trio.Nursery, tmp_path: Path) -> None:
    command = await Command.start(nursery, tmp_path, "exits", ["exits", "--json"])
    line = await command.until(lambda line: "exits" in line, "a table")
    assert line["schema"] == 1
    assert await command.end() == 0
    assert not command.alive
    assert command.find(lambda line: "nothing" in line) is None
    with pytest.raises(CellFailed, match="has ended without a sign"):
        await command.until(lambda line: "nothing" in line, "a sign")
    assert not await command.stopped()
    command.freeze()  # nobody is there to be stopped
    await command.finish()


async def test_one_that_fails_says_why(nursery: trio.Nursery, tmp_path: Path) -> None:
    command = await Command.start(nursery, tmp_path, "nonsense", ["nonsense"])
    assert await command.end() == 2
    assert "nonsense" in command.said()


async def holder(nursery: trio.Nursery, directory: Path) -> Command:
    socket = directory / "s"
    arguments = ["holder", "--socket", socket, "--memory", "1MiB", "--hot", "1MiB", "--json"]
    command = await Command.start(nursery, directory, "holder", arguments)
    await command.until(lambda _: True, "being ready")
    return command


async def test_stopped_and_killed(nursery: trio.Nursery, directory: Path) -> None:
    command = await holder(nursery, directory)
    command.freeze()
    assert await command.stopped()
    await command.kill()
    assert await command.end() < 0


async def test_set_going_again_and_ended(nursery: trio.Nursery, directory: Path) -> None:
    command = await holder(nursery, directory)
    command.freeze()
    assert await command.stopped()
    await command.finish()
    assert not command.alive


async def test_files_that_cannot_grow(nursery: trio.Nursery, directory: Path) -> None:
    """It goes on; what it cannot write is missing."""
    command = await holder(nursery, directory)
    path = Path("/proc", str(command.pid), "limits")
    command.may_write(0)
    assert _limit(path) == "0"
    command.may_write(None)
    assert _limit(path) == "unlimited"
    await command.kill()


def _limit(path: Path) -> str:
    (line,) = (each for each in path.read_text().splitlines() if each.startswith("Max file size"))
    return line.split()[3]
