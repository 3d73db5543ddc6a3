"""A guest with a disk: whoever runs it has its lock, and between the two hosts nobody has.

The disk is a file, the lock that of `flock`; each host has a file description of its own. The guest drops it
when it is stopped and takes it before it starts: what is tested is that endpoints call for that in time.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import trio

from sterna.core.events import Outcome, Result
from sterna.core.records import Granted, HandBack, Record, Start
from sterna.errors import GuestError
from sterna.guest.embedded import EmbeddedGuest
from sterna.net.destination import Destination
from sterna.net.endpoint import Endpoint
from sterna.net.hosting import LocalHost
from sterna.net.memory import memory_transport_pair
from sterna.net.source import Source
from sterna.registry import ErrorCode
from sterna.wire.records import Runner

MEMORY_BYTES = 64 * 1024


class Disk:
    """One host's view of it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GuestError("its disk is locked") from None

    def unlock(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        self._file.close()


class WithDisk(EmbeddedGuest):
    """Writes its disk while it runs, or would."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(bytearray(MEMORY_BYTES), "with a disk", guest_id=bytes(16))
        self.disk = disk
        self.running = False
        self.rejects = False

    def stop(self) -> None:
        self.running = False
        self.disk.unlock()

    def start(self) -> None:
        self.disk.lock()
        self.running = True

    def load(self, state: bytes) -> None:
        if self.rejects:
            raise ValueError("no")

    async def take_storage(self) -> None:
        self.disk.lock()

    async def discard(self) -> None:
        self.disk.unlock()
        await super().discard()


class Looking(LocalHost):
    """Somebody else at this host, who notes when he could have the lock."""

    def __init__(self, disk: Disk) -> None:
        super().__init__("looking")
        self.disk = disk
        self.free: dict[str, bool] = {}

    def look(self, when: str) -> None:
        try:
            self.disk.lock()
        except GuestError:
            self.free[when] = False
        else:
            self.disk.unlock()
            self.free[when] = True

    async def persist(self, record: Record) -> None:
        self.look(record.kind)

    async def claim(self, epoch: int, runner: Runner) -> Runner:
        self.look("claim")
        return runner


class Scene:
    """A guest that runs, room for it, and what is seen of the lock meanwhile."""

    def __init__(self, open_disk: Callable[[], Disk]) -> None:
        self.guest, self.room = WithDisk(open_disk()), WithDisk(open_disk())
        self.here, self.there = Looking(open_disk()), Looking(open_disk())
        self.results: dict[str, Result] = {}
        self.guest.start()

    async def run(self) -> tuple[Outcome, Outcome]:
        near, far = memory_transport_pair()
        ends: dict[str, Endpoint] = {
            "source": Source(self.guest, near, host=self.here),
            "destination": Destination(lambda _: self.room, far, host=self.there),
        }

        async def run(name: str, end: Endpoint) -> None:
            self.results[name] = await end.run()

        async with trio.open_nursery() as nursery:
            for name, end in ends.items():
                nursery.start_soon(run, name, end)
        return self.results["source"].outcome, self.results["destination"].outcome


@pytest.fixture
def open_disk(tmp_path: Path) -> Iterator[Callable[[], Disk]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Disk(tmp_path / "disk")))


async def test_whoever_runs_it_has_its_lock(open_disk: Callable[[], Disk]) -> None:
    """[SFX-6] [SFX-8] It is free when the grant is recorded, and until the claim is won; not at START."""
    scene = Scene(open_disk)
    assert await scene.run() == (Outcome.COMPLETED, Outcome.COMPLETED)
    assert scene.here.free[Granted.kind]
    assert (scene.there.free["claiming"], scene.there.free["claim"]) == (True, True)
    assert not scene.there.free[Start.kind]
    assert (scene.guest.running, scene.room.running) == (False, True)


async def test_a_lock_that_somebody_else_has(open_disk: Callable[[], Disk]) -> None:
    """[ONE-26] The guest is handed back; it has never run there."""
    scene = Scene(open_disk)
    somebody = open_disk()

    async def claim(epoch: int, runner: Runner) -> Runner:
        somebody.lock()
        return runner

    scene.there.claim = claim  # type: ignore[method-assign]
    assert await scene.run() == (Outcome.UNDECIDED, Outcome.ROLLED_BACK)
    assert HandBack.kind in scene.there.free
    assert Start.kind not in scene.there.free
    assert not scene.guest.running
    assert not scene.room.running


@pytest.mark.parametrize("taken", [False, True])
async def test_the_source_takes_it_again_before_the_guest_runs(
    open_disk: Callable[[], Disk], monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """[SFX-7] Or the guest stays as it is."""
    scene = Scene(open_disk)
    scene.room.rejects = True
    somebody = open_disk()
    if taken:
        save = scene.guest.save

        def save_and_lose() -> bytes:
            somebody.lock()
            return save()

        monkeypatch.setattr(scene.guest, "save", save_and_lose)
    here, there = await scene.run()
    assert there is Outcome.ROLLED_BACK
    assert here is (Outcome.GUEST_FAILED if taken else Outcome.ROLLED_BACK)
    code = ErrorCode.GUEST_FAILED if taken else ErrorCode.STATE_REJECTED
    assert scene.results["source"].code is code
    assert scene.guest.running is not taken
