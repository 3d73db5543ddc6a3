"""A holder that a listener starts: whatever happens to that, a guest in it is not ended."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from holder_support import holder
from sterna.cli.holder import RATE_BYTES_S
from sterna.cli.spawned import spawned_holder
from sterna.errors import ConfigError
from sterna.guest.holder_client import HolderConnection, connect_holder
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.wire.records import Runner


def fail() -> NoReturn:
    raise ZeroDivisionError


def is_there(path: Path) -> bool:
    return path.exists()


@asynccontextmanager
async def watched(process: trio.Process) -> AsyncIterator[None]:
    """Whatever a test finds, it leaves no process behind."""
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def bring(path: Path, connection: HolderConnection) -> None:
    """Have a guest run in the holder, as the end of a migration does."""
    with holder(path.with_name("origin"), with_guest=True):
        async with await connect_holder(path.with_name("origin")) as origin:
            source = await HolderSourceGuest.open(origin)
            room = HolderDestinationGuest(connection)
            await room.reserve(source.description)
            await source.pause()
            room.memory(0)[:] = source.memory(0)
            await room.load_state(await source.save_state())
            await room.run(2, Runner("here", bytes(16)))


async def test_without_a_guest_it_ends(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "h"
    async with spawned_holder(path, said.append) as process, await connect_holder(path) as connection:
        assert connection.attached.state == "empty"
    assert process.returncode == 0
    assert said == []
    assert not is_there(path)


@pytest.mark.parametrize("how", ["orderly", "cancelled", "failing"])
async def test_with_a_guest_it_goes_on(tmp_path: Path, how: str) -> None:
    """Also if the guest came in one session, and it is a later one that failed."""
    said: list[str] = []
    path = tmp_path / "h"
    with trio.CancelScope() as scope:
        try:
            async with spawned_holder(path, said.append) as process:
                async with await connect_holder(path) as connection:
                    await bring(path, connection)
                    await connection.detach()
                if how == "failing":
                    fail()
                if how == "cancelled":
                    scope.cancel()
                    await trio.sleep_forever()
        except ZeroDivisionError:
            assert how == "failing"
    async with watched(process):
        assert process.poll() is None
        assert said == [f"the guest's holder goes on at {path}; to end both: kill {process.pid}"]
        async with await connect_holder(path, role="observer") as connection:
            status = await connection.status()
        assert status.state == "running"
        # Not as fast as it goes: nobody has asked for that.
        assert status.figure("rate_requested_bytes_s") == RATE_BYTES_S


async def test_what_cannot_start_says_so(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("something else")
    with pytest.raises(ConfigError, match="no holder could be started"):
        async with spawned_holder(tmp_path / "h", lambda _: None):
            pytest.fail("it has not started")


async def test_who_is_cancelled_while_it_starts_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[trio.Process] = []
    real = trio.lowlevel.open_process

    async def remember(*arguments: object, **options: object) -> trio.Process:
        started.append(await real(*arguments, **options))  # type: ignore[arg-type]
        scope.cancel()
        return started[0]

    monkeypatch.setattr(trio.lowlevel, "open_process", remember)
    with trio.CancelScope() as scope:
        async with spawned_holder(tmp_path / "h", lambda _: None):
            pytest.fail("it was cancelled")
    assert started[0].returncode == -signal.SIGKILL
