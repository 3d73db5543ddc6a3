"""Connections wait for those who want them, in their order, and nothing is left of them."""

from __future__ import annotations

import socket

import trio

from sterna_interop.door import Door


def a_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX)


async def test_one_after_the_other() -> None:
    door, socks = Door(), [a_socket() for _ in range(2)]
    for sock in socks:
        await door.come(sock)
    assert [await door.next(), await door.next()] == socks
    for sock in socks:
        sock.close()


async def test_nobody_comes_any_more(autojump_clock: trio.testing.MockClock) -> None:
    door, came = Door(), []

    async def wait() -> None:
        came.append(await door.next())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        door.close()
    assert came == [None]
    assert await door.next() is None


async def test_who_waits_or_comes_after_the_end_is_closed() -> None:
    door, waits, late = Door(), a_socket(), a_socket()
    await door.come(waits)
    door.close()
    door.close()
    await door.come(late)
    assert (waits.fileno(), late.fileno()) == (-1, -1)
