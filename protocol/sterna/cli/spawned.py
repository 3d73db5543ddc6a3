"""A holder that `sterna serve --spawn-holder` starts: it outlives the command if it has a guest.

Whoever starts a process for a guest is tempted to end it with itself. But the guest is what all this is for:
the holder is ended only when it says itself that it has none. In doubt it stays, and people are told where.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from sterna.cli.holder import RATE_BYTES_S
from sterna.errors import ConfigError, GuestError
from sterna.guest.holder_client import connect_holder

# States in which there is no guest's execution state yet, so that nobody can have been told to run it.
_WITHOUT_GUEST: Final = frozenset({"empty", "reserved"})
_ASK_WITHIN_S: Final = 5.0
_END_WITHIN_S: Final = 5.0


@asynccontextmanager
async def spawned_holder(path: Path, say: Callable[[str], None]) -> AsyncIterator[trio.Process]:
    """A holder at `path` while the context is open, and afterwards if a guest is in it.

    Args:
        path: its socket.
        say: told where it goes on.

    Raises:
        ConfigError: it cannot be started; it has said why on stderr.
    """
    process = await _start(path)
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await _part_from(process, path, say)


async def _part_from(process: trio.Process, path: Path, say: Callable[[str], None]) -> None:
    if await _state(path) in _WITHOUT_GUEST:
        process.terminate()
        with trio.move_on_after(_END_WITHIN_S):
            await process.wait()
    elif process.poll() is None:
        say(f"the guest's holder goes on at {path}; to end both: kill {process.pid}")


async def _start(path: Path) -> trio.Process:
    # A rate of its own, or the guest would write as fast as the processor can: rates belong to hosts.
    options = ("--socket", str(path), "--role", "destination", "--rate", str(RATE_BYTES_S))
    process = await trio.lowlevel.open_process(
        (sys.executable, "-P", "-m", "sterna.guest.process", *options),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    ready = False
    try:
        ready = await _says_a_line(process)
    finally:
        if not ready:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    if not ready:
        raise ConfigError(f"no holder could be started at {path}")
    return process


async def _says_a_line(process: trio.Process) -> bool:
    """Whether it gets ready: it says one line then, and nothing if it fails."""
    assert process.stdout is not None
    async with process.stdout:
        said = b""
        while not said.endswith(b"\n"):
            more = await process.stdout.receive_some()
            if not more:
                return False
            said += more
    return True


async def _state(path: Path) -> str:
    with trio.move_on_after(_ASK_WITHIN_S), contextlib.suppress(GuestError):
        async with await connect_holder(path, role="observer") as connection:
            return connection.attached.state
    return "unknown"
