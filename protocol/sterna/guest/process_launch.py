"""Starting the holder of a process guest as a process of its own, from trio."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import trio

from sterna.errors import GuestError

READY_WITHIN_S: Final = 120.0  # a source fills its memory first: some seconds where pages are slow to get
_LINE_BYTES: Final = 4096


async def launch_process_holder(
    socket: str | os.PathLike[str],
    role: str,
    *,
    memory_bytes: int = 0,
    rate_bytes_s: int = 0,
    hot_bytes: int = 0,
    seed: int = 1,
    journal: str | os.PathLike[str] | None = None,
    memory_limit_bytes: int = 0,
    die_with_parent: bool = False,
    options: tuple[str, ...] = (),
) -> trio.Process:
    """Start a holder; it answers at `socket` when this returns. Its standard error is ours.

    Args:
        socket: path of the Unix socket that it makes.
        role: ``source`` makes a guest that runs at once, ``destination`` waits for one.
        memory_bytes: size of the guest; of a source.
        rate_bytes_s: bytes a second that the guest writes here, in pages; 0 for as fast as it goes.
        hot_bytes: size of the hot set; of a source; 0 for half of the memory.
        seed: what the content follows from; of a source.
        journal: file that the guest's journal is appended to.
        memory_limit_bytes: the largest guest that is taken; of a destination; 0 for what the system has.
        die_with_parent: end when this process has ended.
        options: more of them, as ``python -m sterna.guest.process --help`` lists them.

    Raises:
        GuestError: it ended instead, or was not ready in time; it has ended then.
    """
    arguments = ["--socket", os.fspath(socket), "--role", role]
    numbers = {
        "--memory": memory_bytes,
        "--rate": rate_bytes_s,
        "--hot": hot_bytes,
        "--seed": seed,
        "--memory-limit": memory_limit_bytes,
    }
    arguments += [text for name, value in numbers.items() for text in (name, str(value))]
    if journal is not None:
        arguments += ["--journal", os.fspath(journal)]
    if die_with_parent:
        arguments += ["--die-with-parent", str(os.getpid())]
    # -P: or Python would import what it finds in the directory in which we happen to have been started.
    command = [sys.executable, "-P", "-m", "sterna.guest.process", *arguments, *options]
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C that is meant for the endpoint must not end the guest
    )
    try:
        with trio.fail_after(READY_WITHIN_S):
            await _wait_ready(process)
    except BaseException as error:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        if isinstance(error, trio.TooSlowError):
            raise GuestError(f"the holder was not ready within {READY_WITHIN_S:g} s") from error
        raise
    return process


async def _wait_ready(process: trio.Process) -> None:
    """Read the line that says so."""
    assert process.stdout is not None
    async with process.stdout as stdout:
        line = b""
        while not line.endswith(b"\n"):
            data = await stdout.receive_some(_LINE_BYTES)
            line += data
            if not data:
                raise GuestError(f"the holder ended at its start, with status {await process.wait()}")
