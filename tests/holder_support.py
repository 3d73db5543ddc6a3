"""Holders in the test's own process: a real guest, of one block of pages, behind a real socket."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_server import HolderServer
from sterna.guest.process import ProcessGuest, ProcessSettings, describe
from sterna.guest.schedule import WorkloadParameters
from sterna.wire.records import Runner

MEMORY_BYTES = 1 << 20
GUEST_ID = bytes(range(16))
RATE_BYTES_S = 1 << 20


@contextlib.contextmanager
def holder(path: Path, *, with_guest: bool, epoch: int = 1) -> Iterator[HolderEngine]:
    """A holder that answers at `path` in a thread of its own."""
    guest = ProcessGuest(ProcessSettings(RATE_BYTES_S, "compare"))
    if with_guest:
        runner = Runner("here", b"r" * 16)
        parameters = WorkloadParameters.for_memory(MEMORY_BYTES, MEMORY_BYTES // 4)
        guest.create(describe("web-1", GUEST_ID, MEMORY_BYTES), parameters)
        guest.run(epoch, runner)
        engine = HolderEngine(guest, state=HeldState.RUNNING, epoch=epoch, runner=runner)
    else:
        engine = HolderEngine(guest)
    with serving(path, engine):
        yield engine


@contextlib.contextmanager
def serving(path: Path, engine: HolderEngine) -> Iterator[None]:
    """The engine behind a socket, in a thread that has ended afterwards, and its guest with it."""
    server = HolderServer(path, engine)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join()
