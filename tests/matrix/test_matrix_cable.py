"""Bytes pass, ends pass, and a cut is a reset for everybody."""

from __future__ import annotations

import socket
import struct
from functools import partial

import pytest
import trio

from sterna.matrix.cable import Cable


async def listen(nursery: trio.Nursery, accepted: trio.MemorySendChannel) -> int:
    """A port whose connections come out of the channel; each lives as long as the test."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await accepted.send(stream)
            await trio.sleep_forever()

    listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
    return listeners[0].socket.getsockname()[1]


async def test_bytes_and_ends_pass(nursery: trio.Nursery) -> None:
    accepted, taken = trio.open_memory_channel(1)
    cable = Cable(await listen(nursery, accepted))
    await nursery.start(cable.run)
    near = await trio.open_tcp_stream("127.0.0.1", cable.port)
    await near.send_all(b"there")
    far = await taken.receive()
    assert await far.receive_some() == b"there"
    await far.send_all(b"back")
    assert await near.receive_some() == b"back"
    await near.send_eof()
    assert await far.receive_some() == b""
    await far.send_all(b"still")
    assert await near.receive_some() == b"still"
    await far.send_eof()
    assert await near.receive_some() == b""
    await near.aclose()


async def test_a_cut_is_a_reset_for_both_and_the_next_connection_passes(nursery: trio.Nursery) -> None:
    accepted, taken = trio.open_memory_channel(1)
    cable = Cable(await listen(nursery, accepted))
    await nursery.start(cable.run)
    near = await trio.open_tcp_stream("127.0.0.1", cable.port)
    await near.send_all(b"there")
    far = await taken.receive()
    assert await far.receive_some() == b"there"
    cable.cut()
    for stream in (near, far):
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await trio.aclose_forcefully(stream)
    again = await trio.open_tcp_stream("127.0.0.1", cable.port)
    await again.send_all(b"again")
    assert await (await taken.receive()).receive_some() == b"again"
    await again.aclose()


async def test_a_reset_passes(nursery: trio.Nursery) -> None:
    accepted, taken = trio.open_memory_channel(1)
    cable = Cable(await listen(nursery, accepted))
    await nursery.start(cable.run)
    near = await trio.open_tcp_stream("127.0.0.1", cable.port)
    await near.send_all(b"unread")
    far = await taken.receive()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(far)
    with pytest.raises(trio.BrokenResourceError):
        await near.receive_some()
    await trio.aclose_forcefully(near)


async def test_nobody_is_there(nursery: trio.Nursery) -> None:
    accepted, taken = trio.open_memory_channel(1)
    cable = Cable(1)
    await nursery.start(cable.run)
    near = await trio.open_tcp_stream("127.0.0.1", cable.port)
    assert await near.receive_some() == b""
    await near.aclose()
    cable.target = await listen(nursery, accepted)
    near = await trio.open_tcp_stream("127.0.0.1", cable.port)
    await near.send_all(b"now")
    assert await (await taken.receive()).receive_some() == b"now"
    await near.aclose()
