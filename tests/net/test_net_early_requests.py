"""net/early_requests.py: a guest that waits for pages has single ones before their groups come [13.3]."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock

from descriptors_support import descriptors
from early_support import Moved, Scene, scene
from sterna.core.events import Event, Finished, Outcome, PagesFollow
from sterna.guest.early_pages import EarlyPages
from sterna.guest.late_entries import LateEntries
from sterna.guest.late_pager import LatePager
from sterna.linux.byte_locks import ByteLocks
from sterna.net.asking import Asking, Turns
from sterna.net.demand import DemandConnection
from sterna.net.early_requests import STANDS_STILL_S, _end_if_still
from sterna.net.recorder import record
from sterna.net.tcp import TcpTransport
from sterna.observe.recording import Side

pytestmark = [pytest.mark.needs("minor_faults"), pytest.mark.slow]


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as made:
        yield made


def early(moved: Moved) -> int:
    """How many pages came early, of a migration in which nothing went wrong."""
    for result in moved.results.values():
        assert result.outcome is Outcome.COMPLETED
    after = moved.results["destination"].after
    assert after is not None
    assert after.mismatched == 0
    assert after.demanded + after.pushed == after.stale
    assert moved.errors == 0
    return after.early


async def test_what_the_guest_waits_for_comes_page_by_page(made: Scene) -> None:
    """[PCY-26] [PCY-28] [PCY-31] [PCY-32]"""
    assert early(await made.run()) > 0


async def test_without_hashes_too(made: Scene) -> None:
    """[MEM-20]"""
    made.source_options["verified"] = made.destination_options["verified"] = False
    assert early(await made.run()) > 0


@pytest.mark.parametrize("end", ["source", "destination"])
async def test_either_side_can_do_without(made: Scene, end: str) -> None:
    """[NEG-5]"""
    options = made.source_options if end == "source" else made.destination_options
    options["early_pages"] = False
    assert early(await made.run()) == 0


async def test_a_recording_is_not_passed_by(made: Scene, tmp_path: Path) -> None:
    """What two processes would say to each other could not be in it."""
    async with record(tmp_path / "recording", Side.SOURCE, pytest.fail) as recorder:
        made.wrap = recorder.wrap
        assert early(await made.run()) == 0


async def test_a_cap_is_not_passed_by(made: Scene) -> None:
    made.source_options["bandwidth_bytes_s"] = 100e6
    assert early(await made.run()) == 0


def _left() -> set[object]:
    """Sockets and pipes that are open, and processes that this one has made."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {each for each in descriptors() if each[1].startswith(("socket:", "pipe:"))} | set(children)


async def test_nothing_stays_behind(made: Scene) -> None:
    gc.collect()
    before = _left()
    assert early(await made.run()) > 0
    assert not _left() - before


@pytest.mark.parametrize("call", ["fork", "pipe2"])
async def test_where_there_is_no_room_for_a_pager_the_session_goes_on(
    made: Scene, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[PCY-30]"""
    real = getattr(os, call)

    def fails(*_: object) -> object:
        raise OSError(errno.EAGAIN, "no room")

    def from_here(event: Event) -> None:
        if isinstance(event, PagesFollow):
            monkeypatch.setattr(os, call, fails)

    def till_here(event: Event) -> None:
        if isinstance(event, Finished):
            monkeypatch.setattr(os, call, real)

    made.on_source = made.on_destination = lambda event: (from_here(event), till_here(event))
    gc.collect()
    before = _left()
    moved = await made.run()
    monkeypatch.setattr(os, call, real)
    assert early(moved) == 0
    assert moved.results["destination"].resumed == 0
    assert not _left() - before


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _fail() -> None:
    raise ValueError("the pager's own trouble")


@pytest.mark.parametrize("how", [_kill, _stop, _fail])
@pytest.mark.parametrize("end", ["answers", "requests"])
async def test_a_pager_that_never_does_its_work(
    made: Scene, end: str, how: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[PCY-30] What the guest waits for comes with its group."""
    job = {"answers": "early_answers._answer", "requests": "early_requests._ask"}[end]
    assert callable(how)
    monkeypatch.setattr(f"sterna.net.{job}", lambda *_: how())
    assert early(await made.run()) == 0


@pytest.mark.parametrize("reads", [0, 1, 10])
async def test_a_pager_that_stands_still_is_ended(autojump_clock: MockClock, reads: int) -> None:
    """[PCY-30] Else nobody would read of what the guest waits for, and it would wait for the push."""
    turns = Turns()
    guest = SimpleNamespace(any_unread=lambda: True)
    near, far = socket.socketpair()
    near.setblocking(False)
    connection = DemandConnection(TcpTransport(near), 1)
    assert connection.serve(lambda _: _stop())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_if_still, connection, guest, turns)
        for _ in range(reads):
            await trio.sleep(STANDS_STILL_S / 2)
            turns.take()
    assert reads / 2 < trio.current_time() / STANDS_STILL_S <= reads / 2 + 2
    await connection.wait()
    connection.close()
    far.close()


@pytest.mark.parametrize("how", [_kill, _stop, _fail])
async def test_a_pager_that_ends_in_the_midst_of_its_work(
    made: Scene, how: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[PCY-30] [PCY-32]: what it has let the guest have is the guest's."""
    install, early_pages = LatePager.install, 0

    def some(pager: LatePager, region: int, page: int, content: memoryview, noted: int) -> bool:
        nonlocal early_pages
        if early_pages == 2:
            assert callable(how)
            how()
        installed = install(pager, region, page, content, noted)
        early_pages += installed  # in the pager's process: pages that came with their group first are not
        return installed

    monkeypatch.setattr(LatePager, "install", some)
    assert early(await made.run()) > 0


@pytest.mark.parametrize("how", [_kill, _stop])
@pytest.mark.parametrize(
    ("of", "step"),
    [(EarlyPages, "install"), (ByteLocks, "unlock"), (LateEntries, "resolve"), (Asking, "_tell")],
)
async def test_a_pager_that_ends_at_a_step(
    made: Scene, of: type, step: str, how: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """[PCY-30] [PCY-34] [HOL-48] With the lock in its hand, or with an early page that has no entry yet."""
    does, endpoint, times = getattr(of, step), os.getpid(), 0

    def ends(*arguments: object) -> object:
        nonlocal times
        if os.getpid() != endpoint:
            times += 1
            if times == 10:
                how()
        return does(*arguments)

    monkeypatch.setattr(of, step, ends)
    early(await made.run())
