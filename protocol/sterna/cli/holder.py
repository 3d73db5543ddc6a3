"""`sterna holder`: a guest of ours in this terminal, or room for one: what `serve` and `migrate` move."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, Literal, TypeAlias

import trio
from cyclopts import Parameter

from sterna.cli.endpoint import Flag, PathOption, ProcessOption, Security, ending_signals, open_process
from sterna.cli.exits import Exit
from sterna.cli.output import Output
from sterna.cli.ownership import Ownership, TextOption
from sterna.cli.units import Json, Rate, Size, format_size
from sterna.core.words import count_text, rate_text, size_text
from sterna.errors import ConfigError, GuestError, StoreUnavailable
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_client import HolderStatus, connect_holder
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_server import HolderServer
from sterna.guest.kvm.layout import VCPUS_MAX
from sterna.guest.process_holder import SWITCH_INTERVAL_S, make_engine
from sterna.guest.workload import PAGE_BYTES
from sterna.host.first_claim import claim_first
from sterna.host.records_shelf import RecordsShelf
from sterna.limits import TEXT_BYTES
from sterna.linux.memory import available_bytes
from sterna.wire.records import NO_ID, Runner

MEMORY_BYTES: Final = 256 << 20
MEMORY_MIN_BYTES: Final = 32 * PAGE_BYTES  # a block of the workload
RATE_BYTES_S: Final = 50 << 20
HOT_BYTES: Final = 64 << 20

Vcpus: TypeAlias = Annotated[int | None, Parameter(show_default=False)]

_WATCH_S: Final = 0.5
_WATCH_END_S: Final = 2.0


def holder(
    *,
    socket: Path,
    destination: Flag = False,
    guest: Literal["process", "kvm"] = "process",
    vcpus: Vcpus = None,
    memory: Size = MEMORY_BYTES,
    dirty_rate: Rate = RATE_BYTES_S,
    hot: Size = HOT_BYTES,
    heads: Flag = False,
    name: str | None = None,
    tracker: Literal["auto", "userfaultfd", "compare"] = "auto",
    memory_limit: Annotated[Size | None, Parameter(show_default=False)] = None,
    room: Annotated[Size | None, Parameter(show_default=False)] = None,
    no_post_copy: Flag = False,
    journal: PathOption = None,
    host: TextOption = "",
    ownership: Ownership = Ownership(),  # noqa: B008 - frozen
    die_with: ProcessOption = None,
    json: Json = False,
) -> int:
    """Run a guest that writes its memory, in this terminal; or make room for one that comes.

    The guest belongs to this process: Ctrl-C ends both. Whoever shall move it connects to the socket.

    Args:
        socket: where endpoints connect; only this user and root can.
        destination: make no guest, wait for one.
        guest: process: a program that writes its memory; kvm: a virtual machine that does, on /dev/kvm.
        vcpus: of a virtual machine; they share its memory. 1 by default.
        memory: size of the guest.
        dirty_rate: what the guest writes a second; 0B/s is one page and then nothing.
        hot: the part of its memory to which it mostly writes.
        heads: each write renews the head of its page only, and counts as a page; not with --guest kvm.
        name: the guest's name; by default what it is.
        tracker: how its writes are followed.
        memory_limit: take no guest that is larger.
        room: with --destination, have the memory for a guest of this size before it comes; otherwise its
            pages are made while it arrives.
        no_post_copy: take no guest that runs before its pages are there; its endpoint would reach all memory
            of this process.
        journal: file to which the guest's journal is appended.
        host: this host's name, as its endpoints have it; by default the machine's.
        ownership: with --store, the new guest's first epoch is claimed there before it runs.
        die_with: end when the process of this number ends.
        json: one JSON object on stdout when the holder is ready.
    """
    output = Output(json=json)
    name = guest if name is None else name
    if not destination:
        check_size(memory)
        if not name or not name.isprintable() or len(name.encode()) > TEXT_BYTES:
            raise ConfigError(f"--name: a guest's name is 1 to {TEXT_BYTES} bytes of printable text")
        if room is not None:
            raise ConfigError("--room is for the guest that comes: it needs --destination")
        if heads and guest == "kvm":
            raise ConfigError("--heads: not with --guest kvm, which writes whole pages")
    options = _options(
        guest=guest,
        vcpus=check_vcpus(vcpus, guest, 1),
        host=Security(name=host).own_name,
        role="destination" if destination else "source",
        memory=memory,
        # A rate of nothing is the holder's "as fast as it goes"; a byte a second is a page in an hour.
        rate=max(dirty_rate, 1),
        hot=max(hot, 1),  # nothing would be the holder's "half of it"; a byte is one block
        heads=heads,
        name=name,
        tracker=tracker,
        memory_limit=memory_limit or 0,
        room=room or 0,
        no_post_copy=no_post_copy,
        journal=None if journal is None else str(journal),
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    watched = None if die_with is None else open_process(die_with)
    if watched is None and die_with is not None:
        raise ConfigError(f"--die-with: there is no process {die_with}")
    image = secrets.token_bytes(len(NO_ID))
    if ownership.store and not destination:
        options.runner = trio.run(_claim, ownership, options, image, output).id
    try:
        engine = make_engine(options)
        if not destination:
            engine.image = image
        server = HolderServer(socket, engine, parent=watched)
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        raise ConfigError(f"no holder at {socket}: {file}{error.strerror}") from error
    except (ValueError, MemoryError) as error:
        raise ConfigError(f"no holder at {socket}: {error}") from error
    _say_ready(output, socket, engine, options)
    _serve(server, output, socket)
    return Exit.OK


async def _claim(ownership: Ownership, options: argparse.Namespace, image: bytes, output: Output) -> Runner:
    said = ""

    def silent(error: StoreUnavailable) -> None:
        nonlocal said
        if said != str(error):  # once, however long it lasts
            said = str(error)
            output.say(f"the lease store does not answer, asking on: {error}")

    async with ownership.opened_store() as store:
        assert store is not None
        shelf = RecordsShelf(ownership.directory(options.host), "sterna holder")
        return await claim_first(
            shelf,
            store,
            options.guest_id,
            options.host,
            image,
            silent=silent,
        )


def check_vcpus(vcpus: int | None, guest: str, default: int) -> int:
    """How many vCPUs a guest of this kind shall have.

    Raises:
        ConfigError: too many, or the guest is no virtual machine.
    """
    if vcpus is None:
        return default
    if guest != "kvm" or not 1 <= vcpus <= VCPUS_MAX:
        raise ConfigError(f"--vcpus: 1 to {VCPUS_MAX}, with --guest kvm")
    return vcpus


def check_size(memory: int, *, copies: int = 1) -> None:
    """Whether a guest can have so much memory here, so many times.

    Raises:
        ConfigError: it cannot. Without this, filling it would take the whole machine's first.
    """
    if memory % PAGE_BYTES or memory < MEMORY_MIN_BYTES:
        raise ConfigError(
            f"--memory: {memory} bytes; it is whole pages of {PAGE_BYTES} bytes, and at least "
            f"{format_size(MEMORY_MIN_BYTES)}"
        )
    available = available_bytes()
    if memory * copies > available:
        needed = size_text(memory) if copies == 1 else f"{copies} times {size_text(memory)}"
        raise ConfigError(
            f"--memory: {needed} is more than the {size_text(available)} that are available here"
        )


def _options(**fields: object) -> argparse.Namespace:
    """What `python -m sterna.guest.process` would have parsed."""
    fixed = {
        "cold_every": 64,
        "seed": 1,
        "guest_id": secrets.token_bytes(16),
        "epoch": 1,
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
        hot = min(max(options.hot, MEMORY_MIN_BYTES), options.memory)
        fields["guest"] = {"id": about.id.hex(), "name": about.name}
        output.say(
            f"{about.name} runs: {size_text(options.memory)}, of which it writes {rate_text(options.rate)}, "
            f"mostly to {size_text(hot)}; followed by {engine.guest.tracker}. "
            f"Send it away with:\n"
            f"  sterna migrate --holder {path} --to HOST:PORT --pki DIR\n"
            f"Its id, for sterna verdict and the like: {about.id.hex()}"
        )
    else:
        output.say(
            "room for a guest. Listen for one with:\n"
            f"  sterna serve --holder {path} --listen HOST:PORT --pki DIR --peers FILE"
        )
    output.result(fields)


def _serve(server: HolderServer, output: Output, path: Path) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        server.stop()

    for number in ending_signals():
        signal.signal(number, end)
    watch = threading.Thread(target=partial(trio.run, _watch, path, output), name="watch", daemon=True)
    if output.live:
        watch.start()
    server.serve()
    if output.live:
        watch.join(_WATCH_END_S)  # so that its line is gone before the last word
    output.say(_last_word(server.engine))


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


def _last_word(engine: HolderEngine) -> str:
    match engine.state:
        case HeldState.RELEASED:
            return f"the guest has moved away (epoch {engine.granted_epoch}); its holder ends"
        case HeldState.EMPTY | HeldState.RESERVED:
            return "the holder ends; no guest has come"
        case HeldState.GRANTED:
            return (
                "the holder ends with a guest that was granted to another host: if that does not run it, "
                "it is lost"
            )
        case _:
            return "the holder ends, and its guest with it"


def _line(status: HolderStatus) -> str:
    if not status.epoch:
        return status.state
    missing = f", {size_text(status.missing * PAGE_BYTES)} missing" if status.missing else ""
    errors = count_text(int(status.figure("errors")), "error")
    return (
        f"{status.state}, epoch {status.epoch}: {size_text(status.figure('writes') * PAGE_BYTES)} written, "
        f"{rate_text(status.figure('rate_bytes_s'))}, {errors}{missing}"
    )
