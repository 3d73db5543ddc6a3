"""Who tells of faults, with both ends in one process: `LateEndpoint` is one that hears of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing

from descriptors_support import nothing_stays_open
from late_support import WITHIN_S, Rig, rigs, told
from sterna.guest.api import FAULT
from sterna.wire.records import PageRange


@pytest.fixture
async def rig_of() -> AsyncIterator[Callable[..., Rig]]:
    async with rigs() as make:
        yield make


@pytest.mark.needs("minor_faults")
async def test_a_pager_tells_through_a_pipe(rig_of: Callable[..., Rig]) -> None:
    """Only what it tells is told; what is installed by now is resolved. When it ends, all is told again."""
    rig = rig_of(2, 3, 5)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    rig.endpoint.hear(reader)
    held = rig.touch(2)
    assert rig.endpoint.news() == []
    os.write(writer, FAULT.pack(3, 2) + FAULT.pack(3, 3) + FAULT.pack(3, 2))
    assert rig.endpoint.news() == [PageRange(3, 2, 2)]
    os.write(writer, FAULT.pack(3, 3))
    assert rig.endpoint.news() == []
    rig.late.installed(3)[0] |= 1 << 2
    rig.endpoint.installed(3, 2, 1)
    await rig.went_on(held)
    other = rig.touch(5)
    os.close(writer)
    assert await told(rig.endpoint, 1) == [PageRange(3, 5, 1)]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(reader)
    rig.endpoint.hear_kernel()
    rig.endpoint.installed(3, 0, 8)
    await rig.went_on(other)


@pytest.mark.parametrize("nonsense", [b"?", FAULT.pack(4, 2), FAULT.pack(3, 8), FAULT.pack(3, 2) + b"?"])
@pytest.mark.needs("minor_faults")
async def test_a_pager_that_makes_no_sense_is_not_heard(rig_of: Callable[..., Rig], nonsense: bytes) -> None:
    rig = rig_of(2)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    rig.endpoint.hear(reader)
    os.write(writer, nonsense)
    rig.touch(2)
    assert await told(rig.endpoint, 1) == [PageRange(3, 2, 1)]
    os.close(writer)
    rig.endpoint.installed(3, 2, 1)


@pytest.mark.needs("minor_faults")
async def test_who_waits_already_hears_of_what_is_told_elsewhere(rig_of: Callable[..., Rig]) -> None:
    """By a pipe, by another one, and by the kernel again."""
    rig = rig_of(2, 3, 5)
    heard: list[PageRange] = []
    news = trio.Event()

    async def listen() -> None:
        nonlocal news
        while True:
            heard.extend(await rig.endpoint.faults())
            news.set()
            news = trio.Event()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        for page in (2, 3):
            await trio.testing.wait_all_tasks_blocked()
            reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            rig.endpoint.hear(reader)
            await trio.testing.wait_all_tasks_blocked()
            os.write(writer, FAULT.pack(3, page))
            with trio.fail_after(WITHIN_S):
                await news.wait()
            assert heard[-1] == PageRange(3, page, 1)
        rig.endpoint.hear_kernel()
        await trio.testing.wait_all_tasks_blocked()
        rig.touch(5)
        with trio.fail_after(WITHIN_S):
            await news.wait()
        assert heard[-1] == PageRange(3, 5, 1)
        nursery.cancel_scope.cancel()
    with contextlib.suppress(BrokenPipeError):
        os.write(writer, b"!")
    os.close(writer)
    rig.endpoint.installed(3, 0, 8)


@pytest.mark.needs("minor_faults")
async def test_what_a_pager_has_read_is_told_to_the_next_one(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(2)
    pipes = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(2)]
    rig.endpoint.hear(pipes[0][0])
    thread = rig.touch(2)
    for reader, _ in pipes[1:] * 2:
        faults: list[tuple[int, int]] = []
        while not faults:
            faults = rig.endpoint.entries.faults()  # as a pager does
        assert faults == [(3, 2)]
        rig.endpoint.hear(os.dup(reader))
    assert rig.endpoint.news() == []
    for descriptor in (pipes[0][1], *pipes[1]):
        os.close(descriptor)
    rig.endpoint.installed(3, 2, 1)
    await rig.went_on(thread)


async def test_nothing_is_heard_behind_the_end(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(2)
    with nothing_stays_open():
        pipes = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(2)]
        rig.endpoint.hear(pipes[0][0])
        rig.endpoint.close()
        rig.endpoint.hear(pipes[1][0])
        rig.endpoint.hear_kernel()
        for _, writer in pipes:
            os.close(writer)
