"""linux/forked.py: a process forked for one job keeps what that needs, and never outlives its parent."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from descriptors_support import nothing_stays_open
from sterna.linux.forked import Forked
from sterna.linux.pidfd import Pidfd


def _say(descriptor: int, text: Callable[[], str]) -> None:
    os.write(descriptor, text().encode())


def _read(descriptor: int) -> str:
    """All that is written until nobody holds the other end any more."""
    found = b""
    while piece := os.read(descriptor, 65536):
        found += piece
    os.close(descriptor)
    return found.decode()


async def test_it_does_its_job_and_ends_well() -> None:
    reading, writing = os.pipe()
    child = Forked(lambda: _say(writing, lambda: "done"), [writing])
    os.close(writing)
    assert await child.wait() == ""
    assert _read(reading) == "done"
    assert await child.wait() == ""


async def test_it_keeps_nothing_but_what_it_was_told_to_keep() -> None:
    reading, writing = os.pipe()
    kept = os.memfd_create("kept")
    left = os.memfd_create("left")
    child = Forked(
        lambda: _say(writing, lambda: " ".join(sorted(os.listdir("/proc/self/fd")))), [writing, kept]
    )
    os.close(writing)
    assert await child.wait() == ""
    found = {int(each) for each in _read(reading).split()}
    os.close(kept)
    os.close(left)
    assert {0, 1, 2, writing, kept} < found
    # The others are where it says what it raises, and that of the listing itself.
    assert len(found) == 7


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
async def test_what_it_raises_ends_it_alone_and_is_told(kind: type[BaseException]) -> None:
    def job() -> None:
        raise kind("the job's own trouble" * 1000)

    with nothing_stays_open():
        words = await Forked(job, []).wait()
    assert words.startswith(f"{kind.__name__}: the job's own trouble")
    assert len(words) == 2048


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
async def test_it_can_be_killed_whatever_it_does(*, stopped: bool) -> None:
    reading, writing = os.pipe()

    def job() -> None:
        os.write(writing, b"here")
        signal.pause()

    child = Forked(job, [writing])
    os.close(writing)
    assert os.read(reading, 4) == b"here"
    if stopped:
        os.kill(child.pid, signal.SIGSTOP)
    child.kill()
    assert _read(reading) == ""  # nobody holds the other end any more
    child.kill()
    assert await child.wait() == ""


async def test_its_end_can_be_waited_for_beside_other_tasks() -> None:
    reading, writing = os.pipe()

    def job() -> None:
        os.write(writing, b"here")
        signal.pause()

    child = Forked(job, [writing])
    os.close(writing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert os.read(reading, 4) == b"here"
        child.kill_soon()
    assert await child.wait() == ""
    os.close(reading)


async def test_a_terminal_s_interrupt_is_the_parent_s_to_act_on() -> None:
    reading, writing = os.pipe()
    child = Forked(
        lambda: _say(
            writing,
            lambda: " ".join(
                str(signal.getsignal(each) == signal.SIG_IGN)
                for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
            ),
        ),
        [writing],
    )
    os.close(writing)
    assert await child.wait() == ""
    assert _read(reading) == "True True False"


def _children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


@pytest.mark.parametrize("call", ["fork", "pidfd_open"])
async def test_where_there_is_no_room_for_a_process_nothing_is_left(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EAGAIN, "no room")

    monkeypatch.setattr(os, call, fails)
    before, mask = _children(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with nothing_stays_open(), pytest.raises(OSError, match="no room"):
        Forked(signal.pause, [])
    assert _children() == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


async def test_who_waits_for_its_end_goes_on_when_somebody_kills_it() -> None:
    child = Forked(signal.pause, [])
    words: list[str] = []

    async def wait() -> None:
        words.append(await child.wait())

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            child.kill()
    assert words == [""]


async def test_a_signal_that_comes_at_once_does_not_make_a_second_parent_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork, parent = os.fork, os.getpid()

    def interrupted() -> int:
        pid = fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGINT)
        return pid

    monkeypatch.setattr(os, "fork", interrupted)
    reading, writing = os.pipe()
    try:
        child = Forked(lambda: _say(writing, lambda: "done"), [writing])
    finally:
        if os.getpid() != parent:
            os._exit(1)
    os.close(writing)
    assert await child.wait() == ""
    assert _read(reading) == "done"


def test_it_dies_with_its_parent() -> None:
    program = (
        "import os, signal\n"
        "from sterna.linux.forked import Forked\n"
        "child = Forked(signal.pause, [])\n"
        "print(child.pid, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        with Pidfd.open(int(parent.stdout.readline())) as child:
            parent.kill()
            poll = select.poll()
            poll.register(child.fileno(), select.POLLIN)
            assert poll.poll(30_000)
