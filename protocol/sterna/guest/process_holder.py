"""The holder of a guest of ours, as a program: of a process guest, or of a KVM guest."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

from sterna.errors import SternaError
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_fields import text
from sterna.guest.holder_frames import INTEGER_MAX
from sterna.guest.holder_server import HolderServer
from sterna.guest.kvm import description as kvm
from sterna.guest.kvm.guest import KvmGuest
from sterna.guest.process import ProcessGuest, ProcessSettings, describe
from sterna.guest.schedule import WorkloadParameters
from sterna.linux.memory import available_bytes
from sterna.linux.pidfd import Pidfd
from sterna.wire.records import Runner

# The protocol thread waits for the interpreter lock behind the workload's; the default of 5 ms would be most
# of a pause's latency.
SWITCH_INTERVAL_S = 0.0005


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sterna.guest.process", description="Hold a process guest for migration."
    )
    add = parser.add_argument
    add("--socket", required=True, help="path of the Unix socket to make")
    add("--role", required=True, choices=("source", "destination"), help="make a guest, or wait for one")
    add("--guest", default="process", choices=("process", "kvm"), help="what kind of guest")
    add(
        "--vcpus",
        type=int,
        default=1,
        metavar="N",
        help="source: vCPUs of a KVM guest, which share its memory",
    )
    add("--memory", type=int, default=0, metavar="BYTES", help="source: size of the guest")
    add("--rate", type=int, default=0, metavar="BYTES_S", help="write rate; 0 is as fast as it goes")
    add("--hot", type=int, default=0, metavar="BYTES", help="source: hot set; 0 is half of the memory")
    add(
        "--cold-every",
        type=int,
        default=64,
        metavar="N",
        help="source: every so-many-th block is cold; 0 is none",
    )
    add(
        "--heads",
        action="store_true",
        help="source: each write renews the head of its page only, 24 bytes; not of a KVM guest",
    )
    add("--seed", type=int, default=1, help="source: what the content follows from")
    add("--name", default="process", help="source: the guest's name")
    add(
        "--guest-id",
        type=_id,
        default=None,
        metavar="HEX",
        help="source: the guest's 16 bytes; random if absent",
    )
    add("--epoch", type=int, default=1, help="source: the epoch under which it runs first")
    add("--host", default=socket.gethostname()[:255], help="source: the host's name in the runner")
    add(
        "--runner",
        type=_id,
        default=None,
        metavar="HEX",
        help="source: the runner's 16 bytes; random if absent",
    )
    add("--memory-limit", type=int, default=0, metavar="BYTES", help="destination: the largest guest taken")
    add(
        "--room",
        type=int,
        default=0,
        metavar="BYTES",
        help="destination: memory that is there before a guest comes, for the first one of just this size",
    )
    add("--journal", default=None, metavar="PATH", help="file for the guest's journal")
    add("--tracker", default="auto", choices=("auto", "userfaultfd", "compare"), help="dirty tracking")
    add(
        "--no-post-copy",
        action="store_true",
        help="destination: take no guest that runs before its pages are there; its endpoint would reach all "
        "memory of this process",
    )
    add(
        "--die-with-parent",
        nargs="?",
        type=int,
        const=0,
        default=None,
        metavar="PID",
        help="end when the process that started this one ends; its number, for one that ends at once",
    )
    return parser.parse_args(arguments)


def _id(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != 16:
        raise ValueError("not 16 bytes")
    return value


def _check(options: argparse.Namespace) -> None:
    for name, low, high in (
        ("rate", 0, INTEGER_MAX),
        ("hot", 0, INTEGER_MAX),
        ("memory_limit", 0, INTEGER_MAX),
        ("room", 0, INTEGER_MAX),
        ("epoch", 1, INTEGER_MAX - 1),  # there is one to be granted
    ):
        value = getattr(options, name)
        if not low <= value <= high:
            raise ValueError(f"{name}: {value} is not in {low}..{high}")
    for name in ("name", "host"):
        text({name: getattr(options, name)}, name)


def _parent(number: int | None) -> Pidfd | None:
    """The process to end with. A pidfd: PR_SET_PDEATHSIG fires when the *thread* that started us ends.

    Raises:
        ProcessLookupError: it has ended already, and we are another's child by now.
    """
    if number is None:
        return None
    parent = Pidfd.open(os.getppid())
    if number not in {0, os.getppid()}:
        parent.close()
        raise ProcessLookupError(errno.ESRCH, "the process to end with has ended")
    return parent


def make_engine(options: argparse.Namespace) -> HolderEngine:
    """The engine with its guest, running if this is a source.

    Raises:
        GuestError: no memory, or no such tracker here; a name that nobody could read.
        ValueError: a number out of its range, or sizes that do not fit each other.
    """
    _check(options)
    settings = ProcessSettings(
        options.rate, options.tracker, options.memory_limit, options.journal, not options.no_post_copy
    )
    guest: ProcessGuest | KvmGuest
    if options.guest == "kvm":
        if options.tracker != "auto":
            raise ValueError("tracker: a KVM guest's writes are followed by KVM")
        guest = KvmGuest(settings, available_bytes)
    else:
        guest = ProcessGuest(settings, available_bytes)
    if options.role == "destination":
        if options.room:
            if not isinstance(guest, ProcessGuest):
                raise ValueError("room: only for process guests")
            guest.make_room(options.room)
        return HolderEngine(guest)
    parameters = WorkloadParameters.for_memory(
        options.memory,
        options.hot or options.memory // 2,
        seed=options.seed,
        cold_every=options.cold_every,
        heads_only=options.heads,
    )
    runner = Runner(options.host, options.runner or secrets.token_bytes(16))
    named = options.name, options.guest_id or secrets.token_bytes(16), options.memory
    about = kvm.describe(*named, options.vcpus) if options.guest == "kvm" else describe(*named)
    guest.create(about, parameters)
    guest.run(options.epoch, runner)
    return HolderEngine(guest, state=HeldState.RUNNING, epoch=options.epoch, runner=runner)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the holder until it is told to end. Returns the exit status: 0, or 1 with a sentence on stderr."""
    options = _arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        parent = _parent(options.die_with_parent)
        engine = make_engine(options)
        server = HolderServer(options.socket, engine, parent=parent)
    except (SternaError, ValueError, OSError, MemoryError) as error:
        print(f"holder: {error}", file=sys.stderr)
        return 1

    def end(number: int, frame: FrameType | None) -> None:
        server.stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    ready = {
        "socket": options.socket,
        "pid": os.getpid(),
        "role": options.role,
        "tracker": engine.guest.tracker,
    }
    print(json.dumps(ready), flush=True)
    server.serve()
    return 0
