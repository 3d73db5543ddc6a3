"""TCP over loopback: real sockets, real ends."""

import errno
import os
import socket
import struct
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sterna.core.deadlines import Deadlines
from sterna.errors import TransportError
from sterna.net import tcp
from sterna.net.tcp import (
    FAST_BYTES_S,
    FAST_UNSENT_BYTES,
    IOV_MAX,
    LOCAL_CONGESTION_CONTROL,
    MEASURED_BYTES,
    MUCH_BYTES,
    OWED_BYTES,
    PATIENCE_S,
    YIELD_BYTES,
    Backlog,
    SocketOptions,
    TcpTransport,
    Wakes,
    connection_lost,
    format_address,
)
from sterna.net.transport import Transport
from sterna.registry import ErrorCode


def socket_pair(**options) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    for sock in (a, b):
        sock.setblocking(False)
        SocketOptions(**options).apply(sock)
    return a, b


@pytest.fixture
def pair():
    a, b = socket_pair(send_buffer_bytes=64 * 1024, receive_buffer_bytes=64 * 1024)
    transports = TcpTransport(a), TcpTransport(b)
    yield transports
    for sock in (a, b):
        sock.close()


async def receive_exactly(transport: Transport, count: int) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    while view.nbytes:
        got = await transport.receive_into(view)
        assert got, "ended early"
        view = view[got:]
    return bytes(data)


async def error_of(function, *args) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await function(*args)
    return caught.value


def scratch() -> memoryview:
    return memoryview(bytearray(4096))


async def test_a_large_send_arrives_whole_and_in_order(pair):
    a, b = pair
    sent = []
    pages = os.urandom(3_000_001)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, [b"header", b"table", memoryview(pages)], sent.append)
            assert await receive_exactly(b, 11 + len(pages)) == b"headertable" + pages
    assert sum(sent) == a.bytes_sent == b.bytes_received == 11 + len(pages)
    assert len(sent) > 1  # partial sends, each reported


async def test_more_buffers_than_one_system_call_takes(pair):
    a, b = pair
    buffers = [struct.pack("<I", number) for number in range(2 * IOV_MAX + 1)]
    await a.send(buffers)
    assert await receive_exactly(b, 4 * len(buffers)) == b"".join(buffers)


async def test_header_and_pages_leave_in_one_system_call(pair, monkeypatch):
    a, b = pair
    calls = []

    class Counting:
        def __getattr__(self, name):
            return getattr(sock, name)

        def sendmsg(self, buffers):
            calls.append(len(buffers))
            return sock.sendmsg(buffers)

    sock = a._sock
    monkeypatch.setattr(a, "_sock", Counting())
    await a.send([b"header", b"table", bytes(8192)])
    assert calls == [3]
    await receive_exactly(b, 11 + 8192)
    monkeypatch.undo()


async def test_both_directions_at_once(pair):
    a, b = pair
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for transport in (a, b):
                nursery.start_soon(transport.send, [bytes(2_000_000)])
                nursery.start_soon(receive_exactly, transport, 2_000_000)


async def test_fin_is_the_end_and_the_other_direction_goes_on(pair):
    a, b = pair
    a._sock.shutdown(socket.SHUT_WR)
    assert await b.receive_into(scratch()) == 0
    await b.send([b"still"])
    assert await receive_exactly(a, 5) == b"still"


async def test_close_on_both_sides_is_quick_and_clean(pair):
    a, b = pair
    await a.send([b"bye"])
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.close, 1000)
            assert await receive_exactly(b, 3) == b"bye"
            assert await b.receive_into(scratch()) == 0
            await b.close(1000)
    assert a.closed
    assert repr(a).endswith("closed>")


async def test_last_words_survive_unread_bytes(pair):
    """The reason for the lingering close: without it this is an RST, and the word may be lost."""
    a, b = pair
    await a.send([bytes(20_000)])
    await b.send([b"abort: no room"])
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.close, 1000)
            await a.send([bytes(200_000)])
            assert await receive_exactly(a, 14) == b"abort: no room"
            assert await a.receive_into(scratch()) == 0
            await a.close(1000)


async def test_a_close_that_nobody_answers_ends_by_its_deadline(pair, autojump_clock):
    a, _ = pair
    await a.close(5)
    assert trio.current_time() == pytest.approx(5)
    assert a._sock.fileno() == -1


async def test_abort_resets(pair):
    a, b = pair
    a.abort()
    a.abort()
    error = await error_of(b.receive_into, scratch())
    assert error.code == ErrorCode.CONNECTION_LOST
    assert "reset" in str(error)
    error = await error_of(b.send, [b"x"])
    assert "takes no more" in str(error)
    await b.close()  # torn: an abort
    assert b._sock.fileno() == -1


async def test_abort_wakes_the_own_tasks_and_ends_a_close(pair):
    a, _b = pair

    async def closed():
        with pytest.raises(trio.ClosedResourceError):
            await a.receive_into(scratch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed)
        await wait_all_tasks_blocked()
        nursery.start_soon(a.close, 1000)
        await wait_all_tasks_blocked()
        a.abort()


@pytest.mark.parametrize("wait", ["wait_readable", "wait_writable"])
async def test_a_task_that_was_just_woken_finds_it_closed(pair, monkeypatch, wait):
    a, _ = pair

    async def wakes_as_another_task_closes(sock):
        await trio.lowlevel.checkpoint()
        a.abort()

    monkeypatch.setattr(trio.lowlevel, wait, wakes_as_another_task_closes)
    with pytest.raises(trio.ClosedResourceError):
        await (a.receive_into(scratch()) if wait == "wait_readable" else a.send([bytes(10_000_000)]))


async def test_a_peer_that_stops_reading_shows_in_on_sent(pair, autojump_clock):
    a, _ = pair
    last_progress = []
    with trio.move_on_after(60) as scope:
        await a.send([bytes(10_000_000)], lambda _: last_progress.append(trio.current_time()))
    assert scope.cancelled_caught
    assert 0 < a.bytes_sent < 10_000_000
    assert trio.current_time() - last_progress[-1] > 50
    with pytest.raises(trio.ClosedResourceError):
        await a.send([b"after half a frame"])


async def test_a_cancelled_receive_loses_nothing(pair, autojump_clock):
    a, b = pair
    with trio.move_on_after(1) as scope:
        await b.receive_into(scratch())
    assert scope.cancelled_caught
    await a.send([b"later"])
    assert await receive_exactly(b, 5) == b"later"


async def test_a_little_is_sent_without_a_turn(pair):
    """What the kernel has no room for is owed, and goes with the next send, an empty one too."""
    a, b = pair
    sent = []
    assert a.send_now([b"on", b"ce"], sent.append)
    assert (sent, a.owes) == ([4], False)
    assert await receive_exactly(b, 4) == b"once"
    much = bytes(range(256)) * 4096 * 16
    assert a.send_now([much], sent.append)
    assert (sent, a.owes) == ([4, len(much)], True)
    assert not a.send_now([b"too much"])

    async def send_rest() -> None:
        await a.send(())
        await a.send([b"behind"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_rest)
        assert await receive_exactly(b, len(much) + 6) == much + b"behind"
    assert not a.owes


async def test_who_owes_does_not_end_properly(pair):
    """Half a frame is no proper end."""
    a, b = pair
    assert a.send_now([bytes(16 << 20)])
    assert a.owes
    await a.close()
    with pytest.raises(TransportError):
        await receive_exactly(b, (16 << 20) + 1)


async def test_what_was_owed_is_told_as_it_leaves(pair):
    """With the number of bytes that were not told of yet."""
    a, b = pair
    much, told = bytes(16 << 20), []
    assert a.send_now([much], told.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(a.send, [b"behind"], told.append))
        await receive_exactly(b, len(much) + 6)
    assert told[0] == len(much)
    assert 0 in told
    assert sum(told) == len(much) + 6 == a.bytes_sent


async def test_without_room_or_peer_nothing_is_sent_at_once(pair):
    a, b = pair
    while a.send_now([bytes(1 << 20)]):
        a._owed = memoryview(b"")  # until the kernel has no room at all
    assert not a.send_now([b"more"])
    b.abort()
    await trio.lowlevel.wait_readable(a._sock)
    assert not a.send_now([b"nobody"])


async def test_concurrent_use_is_refused(pair, autojump_clock):
    a, _ = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, [bytes(10_000_000)])
        nursery.start_soon(a.receive_into, scratch())
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await a.send([b"x"])
        with pytest.raises(trio.BusyResourceError):
            await a.receive_into(scratch())
        nursery.cancel_scope.cancel()


async def test_a_long_transfer_lets_others_run(pair):
    a, b = pair
    turns = 0

    async def other():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        nursery.start_soon(a.send, [bytes(4 * YIELD_BYTES)])
        await receive_exactly(b, 4 * YIELD_BYTES)
        nursery.cancel_scope.cancel()
    assert turns >= 4


async def test_a_wait_is_a_turn_of_the_others(pair):
    a, b = pair
    b._unyielded_bytes = b.yield_bytes - 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.receive_into, scratch())
        await wait_all_tasks_blocked()
        await a.send([bytes(100)])
    assert b._unyielded_bytes == 100


async def test_options_are_set():
    usual, deadlines = SocketOptions(), Deadlines()
    phases = deadlines.blackout_s, deadlines.after_s, deadlines.round_s, deadlines.prepare_s
    assert deadlines.stall_s < usual.user_timeout_s < min(phases)
    a, b = socket_pair(user_timeout_s=7.5, keepalive_idle_s=3, unsent_bytes=123_456)
    with a, b:
        get = a.getsockopt
        assert get(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert get(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 3
        assert get(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7500
        assert get(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 123_456


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_congestion_control_is_the_administrators_unless_the_peer_is_here(host):
    """The second peer has another address, as one on another machine has."""
    with socket.create_server((host, 0)) as listener:
        sock = socket.create_connection(listener.getsockname(), source_address=("127.0.0.1", 0))
        with sock, listener.accept()[0]:
            usual = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            SocketOptions().apply(sock)
            control = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    assert control.rstrip(b"\0") == (LOCAL_CONGESTION_CONTROL if host == "127.0.0.1" else usual.rstrip(b"\0"))


def test_options_are_set_on_one_that_has_lost_its_peer():
    with socket.socket() as sock:
        SocketOptions().apply(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_addresses_are_for_people(pair):
    a, b = pair
    host, port = b._sock.getsockname()
    assert a.peer.address == f"{host}:{port}"
    assert a.peer.identity is None
    assert a.tls is None
    assert format_address("::1", 4000) == "[::1]:4000"
    a.abort()
    await error_of(b.receive_into, scratch())
    assert tcp.peer_address(b._sock) == "a peer that is gone"
    left, right = socket.socketpair()
    with left, right:
        assert tcp.peer_address(left) == "a local peer"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ETIMEDOUT, "x"), "acknowledged nothing"),
        (OSError(errno.ENOBUFS, "x"), "No buffer space"),
        (OSError("strange"), "strange"),
    ],
)
def test_errors_have_sentences(error, text):
    assert text in str(connection_lost(error))
    assert connection_lost(error).code == ErrorCode.CONNECTION_LOST


async def test_the_round_trip_is_the_kernel_s(pair):
    """And nothing is made up where there is none."""
    near, far = pair
    await near.send([b"x"])
    await receive_exactly(far, 1)
    assert 0 < near.rtt_s < 1
    near.abort()
    assert near.rtt_s is None
    a, b = socket.socketpair()
    with a, b:
        assert tcp.round_trip_s(a) is None


@pytest.mark.parametrize(
    ("unsent_bytes", "fast"),
    [(512 * 1024, FAST_UNSENT_BYTES), (2 * FAST_UNSENT_BYTES, 2 * FAST_UNSENT_BYTES), (None, -1)],
)
def test_a_fast_link_is_given_more_for_as_long_as_it_is_one(unsent_bytes, fast):
    sock, other = socket_pair(unsent_bytes=unsent_bytes)
    now = 0.0
    backlog = Backlog(sock, lambda: now)

    def after(rate_bytes_s):
        nonlocal now
        backlog.left(MEASURED_BYTES // 2)
        now += MEASURED_BYTES / rate_bytes_s
        backlog.left(MEASURED_BYTES // 2)
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)

    usual = after(FAST_BYTES_S / 2)
    assert usual == (-1 if unsent_bytes is None else unsent_bytes)
    assert [after(FAST_BYTES_S * by) for by in (0.9, 1.1, 3, 0.9, 2)] == [usual, fast, fast, usual, fast]
    sock.close()
    other.close()


def test_what_is_no_tcp_has_no_such_bound():
    sock, other = socket.socketpair()
    with sock, other:
        Backlog(sock).left(10 * MEASURED_BYTES)


def threshold(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


async def test_where_much_is_owed_a_receiver_is_woken_for_much(autojump_clock):
    a, b = socket_pair()
    with a, b:
        wakes = Wakes(b)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wakes.wait, 4 * MUCH_BYTES)
            await wait_all_tasks_blocked()
            assert OWED_BYTES < threshold(b) <= MUCH_BYTES  # the kernel has a bound of its own
            a.send(b"x")
            nursery.cancel_scope.cancel()
        await wakes.wait(OWED_BYTES - 1)  # what is there is enough
        assert threshold(b) == 1


async def test_what_is_owed_behind_the_place_counts_too(autojump_clock):
    a, b = socket_pair()
    with a, b:
        transport = TcpTransport(b)
        transport.owed_bytes = 4 * MUCH_BYTES
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive_into, memoryview(bytearray(OWED_BYTES)))
            await wait_all_tasks_blocked()
            assert threshold(b) > OWED_BYTES
            nursery.cancel_scope.cancel()


async def test_more_is_received_without_a_turn_until_others_have_theirs():
    a, b = socket_pair()
    with a, b:
        transport, place = TcpTransport(b), memoryview(bytearray(100))
        assert transport.receive_more([place]) == 0  # nothing is there, which is no end
        transport.yield_bytes = 150
        a.send(bytes(400))
        assert await transport.receive_into(place) == 100
        assert transport.receive_more([place]) == 100
        assert transport.receive_more([place]) == 0
        turns: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)
            assert await transport.receive_into(place[:1]) == 1
        assert transport.receive_more([place]) == 100
        transport.between = lambda: turns.append("looked")  # somebody wants a look between two pieces
        assert transport.receive_more([place]) == 0
        assert await transport.receive_into(place) == 99
        assert turns == ["looked"]
        assert transport.bytes_received == 400
        transport.between = None
        transport.abort()
        assert transport.receive_more([place]) == 0


async def test_more_is_received_into_one_place_after_the_other():
    a, b = socket_pair()
    with a, b:
        transport, places = TcpTransport(b), [bytearray(100) for _ in range(3)]
        views = [memoryview(place) for place in places]
        assert transport.receive_more(views) == 0
        a.send(b"x" * 150)
        await trio.lowlevel.wait_readable(b)
        assert transport.receive_more(views) == 150
        assert b"".join(places) == b"x" * 150 + bytes(150)
        assert transport.bytes_received == 150
        a.send(b"y" * 1000)
        await trio.lowlevel.wait_readable(b)
        assert transport.receive_more(views) == 300  # the rest stays where it is
        assert transport.receive_more(views[:1]) == 100


async def test_more_tells_a_reset_which_comes_once():
    """The next call would see a proper end."""
    a, b = socket_pair()
    with b:
        transport = TcpTransport(b)
        TcpTransport(a).abort()
        await trio.lowlevel.wait_readable(b)
        with pytest.raises(TransportError, match="reset"):
            transport.receive_more([scratch()])


async def test_the_end_is_no_more_and_stays_the_end():
    a, b = socket_pair()
    with a, b:
        transport = TcpTransport(b)
        a.shutdown(socket.SHUT_WR)
        await trio.lowlevel.wait_readable(b)
        assert transport.receive_more([scratch()]) == 0
        assert await transport.receive_into(scratch()) == 0


async def test_a_slow_link_wakes_for_every_byte(autojump_clock):
    """No byte is left lying for long, so that deadlines see the peer's progress."""
    a, b = socket_pair()
    with a, b:
        transport = TcpTransport(b)
        place = memoryview(bytearray(OWED_BYTES))
        a.send(b"some")
        assert await transport.receive_into(place) == 4
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive_into, place)
            await wait_all_tasks_blocked()
            assert threshold(b) == OWED_BYTES
            a.send(b"and more")
        assert trio.current_time() - begin == pytest.approx(PATIENCE_S)
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive_into, place)
            await wait_all_tasks_blocked()
            a.send(b"x")
        assert trio.current_time() == begin
        assert threshold(b) == 1


async def test_a_link_that_brings_much_at_once_is_slow_no_more(autojump_clock):
    a, b = socket_pair()
    with a, b:
        wakes = Wakes(b)
        await wakes.wait(OWED_BYTES)
        for count, low in ((OWED_BYTES - 1, 1), (OWED_BYTES, OWED_BYTES)):
            wakes.came(count)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wakes.wait, OWED_BYTES)
                await wait_all_tasks_blocked()
                assert threshold(b) == low
                nursery.cancel_scope.cancel()
