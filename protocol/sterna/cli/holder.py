"""`sterna holder`: a process guest in this terminal, or room for one: what `serve` and `migrate` move."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, Literal

import trio
from cyclopts import Parameter

from sterna.cli.endpoint import Flag, PathOption, ProcessOption, open_process
from sterna.cli.exits import Exit
from sterna.cli.output import Output
from sterna.cli.units import Json, Rate, Size, format_size
from sterna.core.words import rate_text, size_text
from sterna.errors import ConfigError, GuestError
from sterna.guest.holder_client import HolderStatus, connect_holder
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_server import HolderServer
from sterna.guest.process_holder import SWITCH_INTERVAL_S, make_engine
from sterna.guest.workload import PAGE_BYTES

MEMORY_BYTES: Final = 256 << 20
MEMORY_MIN_BYTES: Final = 32 * PAGE_BYTES  # a block of the workload
RATE_BYTES_S: Final = 50 << 20
HOT_BYTES: Final = 64 << 20

_WATCH_S: Final = 0.5


def holder(
    *,
    socket: Path,
    destination: Flag = False,
    memory: Size = MEMORY_BYTES,
    dirty_rate: Rate = RATE_BYTES_S,
    hot: Size = HOT_BYTES,
    name: str = "process",
    tracker: Literal["auto", "userfaultfd", "compare"] = "auto",
    memory_limit: Annotated[Size | None, Parameter(show_default=False)] = None,
    journal: PathOption = None,
    die_with: ProcessOption = None,
    json: Json = False,
) -> int:
    """Run a guest that writes its memory, in this terminal; or make room for one that comes.

    The guest belongs to this process: Ctrl-C ends both. Whoever shall move it connects to the socket.

    Args:
        socket: where endpoints connect; only this user and root can.
        destination: make no guest, wait for one.
        memory: size of the guest.
        dirty_rate: what the guest writes a second; 0B/s is one page and then nothing.
        hot: the part of its memory to which it mostly writes.
        name: the guest's name.
        tracker: how its writes are followed.
        memory_limit: take no guest that is larger.
        journal: file to which the guest's journal is appended.
        die_with: end when the process of this number ends.
        json: one JSON object on stdout when the holder is ready.
    """
    output = Output(json=json)
    check_size(memory)
    options = _options(
        role="destination" if destination else "source",
        memory=memory,
        # A rate of nothing is the holder's "as fast as it goes"; a byte a second is a page in an hour.
        rate=max(dirty_rate, 1),
        hot=hot,
        name=name,
        tracker=tracker,
        memory_limit=memory_limit or 0,
        journal=None if journal is None else str(journal),
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    watched = None if die_with is None else open_process(die_with)
    if watched is None and die_with is not None:
        raise ConfigError(f"--die-with: there is no process {die_with}")
    try:
        engine = make_engine(options)
        server = HolderServer(socket, engine, parent=watched)
    except (ValueError, OSError, MemoryError) as error:
        raise ConfigError(f"no holder at {socket}: {error}") from error
    _say_ready(output, socket, engine, options)
    _serve(server, output, socket)
    return Exit.OK


def check_size(memory: int) -> None:
    """Whether a guest can have so much memory.

    Raises:
        ConfigError: it cannot.
    """
    if memory % PAGE_BYTES or memory < MEMORY_MIN_BYTES:
        raise ConfigError(
            f"--memory: {memory} bytes; it is whole pages of {PAGE_BYTES} bytes, and at least "
            f"{format_size(MEMORY_MIN_BYTES)}"
        )


def _options(**fields: object) -> argparse.Namespace:
    """What `python -m sterna.guest.process` would have parsed."""
    fixed = {
        "cold_every": 64,
        "seed": 1,
        "guest_id": secrets.token_bytes(16),
        "epoch": 1,
        "host": socket.gethostname()[:255],
        "runner": secrets.token_bytes(16),
    }
    return argparse.Namespace(**fixed, **fields)


def _say_ready(output: Output, path: Path, engine: HolderEngine, options: argparse.Namespace) -> None:
    running = options.role == "source"
    fields: dict[str, object] = {
        "socket": str(path),
        "pid": os.getpid(),
        "role": options.role,
        "tracker": engine.guest.tracker,
    }
    if running:
        about = engine.guest.description
        fields["guest"] = {"id": about.id.hex(), "name": about.name}
        output.say(
            f"{about.name} runs: {size_text(options.memory)}, {rate_text(options.rate)} to its hot "
            f"{size_text(options.hot)}, writes followed by {engine.guest.tracker}. Send it away with:\n"
            f"  sterna migrate --holder {path} --to HOST:PORT ..."
        )
    else:
        output.say(
            f"room for a guest. Listen for one with:\n  sterna serve --holder {path} --listen HOST:PORT ..."
        )
    output.result(fields)


def _serve(server: HolderServer, output: Output, path: Path) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        server.stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    if output.live:
        threading.Thread(target=partial(trio.run, _watch, path, output), name="watch", daemon=True).start()
    server.serve()


async def _watch(path: Path, output: Output) -> None:
    """One line about the guest that follows what it does, for whoever watches the terminal."""
    try:
        async with await connect_holder(path, role="observer") as connection:
            with output.console.status("") as line:
                while True:
                    line.update(_line(await connection.status()))
                    await trio.sleep(_WATCH_S)
    except GuestError:
        return  # the holder has ended


def _line(status: HolderStatus) -> str:
    if not status.epoch:
        return status.state
    return (
        f"{status.state}, epoch {status.epoch}: {size_text(status.figure('writes') * PAGE_BYTES)} written, "
        f"{rate_text(status.figure('rate_bytes_s'))}, {status.figure('errors'):.0f} errors"
    )
