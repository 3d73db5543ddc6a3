"""The rules that the base class keeps, with the smallest implementation there can be."""

import math
import time
from contextlib import suppress

import pytest
import trio
from net_support import tcp_pair
from trio.testing import wait_all_tasks_blocked

from sterna.errors import TransportError
from sterna.net.tcp import TcpTransport
from sterna.net.transport import MORE_BYTES, SOON_BYTES, YIELD_BYTES, Guard, Peer, Transport
from sterna.registry import ErrorCode


class Sink(Transport):
    """Sends into a list; waits while `blocked`, fails with `error`."""

    def __init__(self):
        super().__init__(Peer("sink:1"))
        self.data = bytearray()
        self.blocked = False
        self.error = None
        self.ends = []

    async def _send(self, views, sent):
        for view in views:
            if self.blocked:
                await trio.sleep_forever()
            if self.error is not None:
                raise self.error
            self.data += view
            sent(view.nbytes)
            await self._yield_after(view.nbytes)

    async def _receive_into(self, view):
        if self.error is not None:
            raise self.error
        await trio.sleep_forever()

    async def _finish(self):
        self.ends.append("finish")
        await trio.sleep_forever()

    def _dispose(self, *, abrupt):
        self.ends.append("abrupt" if abrupt else "closed")


def test_peers_are_named_for_people():
    assert str(Peer("[::1]:7000")) == "[::1]:7000"
    assert str(Peer("[::1]:7000", "host-a")) == "host-a at [::1]:7000"


def test_a_guard_is_free_again_after_an_error():
    guard = Guard("busy")
    with pytest.raises(ZeroDivisionError), guard:
        raise ZeroDivisionError
    assert not guard.held
    with guard, pytest.raises(trio.BusyResourceError, match="busy"):
        guard.__enter__()
    assert not guard.held


async def test_empty_buffers_are_not_sent():
    sink, sent = Sink(), []
    await sink.send([b"", memoryview(b"ab"), bytearray(), b"c"], sent.append)
    assert bytes(sink.data) == b"abc"
    assert sent == [2, 1]
    assert sink.bytes_sent == 3
    await sink.send([])


async def test_others_get_a_turn_after_so_many_bytes():
    sink, turns = Sink(), []

    async def other():
        while True:
            turns.append(sink.bytes_sent)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        before = len(turns)
        await sink.send([bytes(YIELD_BYTES // 4)] * 3)
        assert len(turns) == before
        # Two turns: in which order trio runs the tasks of one turn is chance.
        for _ in range(2):
            await sink.send([bytes(YIELD_BYTES // 4)] * 4)
        assert len(turns) > before
        sink.yield_bytes, before = SOON_BYTES, len(turns)
        for _ in range(2):
            await sink.send([bytes(SOON_BYTES)])
        assert len(turns) > before
        nursery.cancel_scope.cancel()


async def test_little_that_comes_again_and_again_does_not_keep_others_from_their_turn():
    class Trickle(Sink):
        def _receive_more(self, views):
            views[0][:1] = b"x"
            return 1

    trickle, place = Trickle(), memoryview(bytearray(8))
    for _ in range(2):
        times = 0
        while trickle.receive_more([place]):
            times += 1
        assert times == YIELD_BYTES // MORE_BYTES
        await trickle._yield_after(1)  # as `receive_into` does
    assert trickle.bytes_received == 2 * times


async def test_who_has_waited_owes_others_no_turn():
    sink = Sink()
    await sink.send([bytes(YIELD_BYTES - 1)])
    sink._waited()
    await sink.send([bytes(YIELD_BYTES - 1)])
    assert sink._unyielded_bytes == YIELD_BYTES - 1
    sink.abort()
    with pytest.raises(trio.ClosedResourceError):
        sink._waited()


async def test_a_little_is_sent_at_once_or_not_at_all():
    sink, sent = Sink(), []
    assert not sink.send_now([b"ab"], sent.append)  # nobody can unless it says so
    assert not sink.owes
    sink._send_now = lambda data: sink.data.extend(data) is None
    assert sink.send_now([b"ab", memoryview(b"c")], sent.append)
    assert sink.send_now([b"d"])
    assert (bytes(sink.data), sent, sink.bytes_sent) == (b"abcd", [3], 4)
    assert not sink.send_now([b""])
    sink.blocked = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.send, [b"x"])
        await wait_all_tasks_blocked()
        assert not sink.send_now([b"e"])  # another one is at it
        nursery.cancel_scope.cancel()
    assert not sink.send_now([b"e"])  # half a frame may be out
    assert bytes(sink.data) == b"abcd"


async def test_a_failed_send_tears():
    sink = Sink()
    sink.error = TransportError(ErrorCode.CONNECTION_LOST)
    with pytest.raises(TransportError):
        await sink.send([b"x"])
    sink.error = None
    with pytest.raises(trio.ClosedResourceError):
        await sink.send([b"x"])
    await sink.close()
    assert sink.ends == ["abrupt"]


async def test_closing_during_a_send_is_abrupt(autojump_clock):
    sink = Sink()
    sink.blocked = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.send, [b"x"])
        await wait_all_tasks_blocked()
        await sink.close()
        nursery.cancel_scope.cancel()
    assert sink.ends == ["abrupt"]


async def test_close_is_bounded_and_final(autojump_clock):
    sink = Sink()
    await sink.close(3)
    assert trio.current_time() == pytest.approx(3)
    assert sink.ends == ["finish", "closed"]
    assert sink.closed
    for operation in (sink.send([b"x"]), sink.receive_into(memoryview(bytearray(1)))):
        with pytest.raises(trio.ClosedResourceError):
            await operation


async def test_an_error_after_closing_is_not_the_peers():
    sink = Sink()

    real = sink._receive_into

    async def closes_meanwhile(view):
        sink.error = TransportError(ErrorCode.CONNECTION_LOST)
        sink.abort()
        return await real(view)

    sink._receive_into = closes_meanwhile
    with pytest.raises(trio.ClosedResourceError):
        await sink.receive_into(memoryview(bytearray(1)))


@pytest.mark.parametrize("kind", ["plain", "tls"])
async def test_an_eager_receive_does_not_sleep(kind, tls_pair, monkeypatch):
    """It looks in every turn instead, takes what comes late, and sees that its own side has closed."""
    a, b = tls_pair if kind == "tls" else map(TcpTransport, tcp_pair())
    place, sleeps, done = memoryview(bytearray(4)), [], trio.Event()

    async def wait_readable(sock):
        sleeps.append(sock)
        await trio.sleep_forever()

    async def abort(_):
        b.abort()

    async def receive():
        with suppress(trio.ClosedResourceError):
            assert await b.receive_into(place) == 4
        done.set()

    monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_readable)
    b.eager_until = math.inf
    for end in (a.send, abort):
        done = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            assert not done.is_set()
            await end([b"late"])
            await done.wait()
    assert place == b"late"
    assert not sleeps
    a.abort()


async def test_an_eager_receive_sleeps_when_it_has_asked_for_long_enough(tls_pair):
    _, b = tls_pair
    b.eager_until = time.monotonic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.receive_into, memoryview(bytearray(4)))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_a_transport_need_not_hear_without_a_wait():
    sink, pieces = Sink(), []
    assert not await sink.until_heard()
    assert sink.receive_now(memoryview(bytearray(1))) == 0
    sink._receive_now = lambda view: None
    assert sink.receive_now(memoryview(bytearray(1))) is None
    sink.abort()
    assert sink.receive_now(memoryview(bytearray(1))) == 0
    sink = Sink()
    sink.between = lambda: pieces.append(len(sink.data))
    await sink.send([b"ab", b"c"])
    assert pieces


@pytest.mark.parametrize("kind", ["plain", "tls"])
async def test_a_socket_that_is_given_away_is_left_alone(kind, tls_pair):
    a, b = tls_pair if kind == "tls" else map(TcpTransport, tcp_pair())
    sock = a.detach()
    assert a.closed
    assert a.detach() is None
    a.abort()
    await a.close()
    sock.setblocking(True)
    sock.sendall(b"still there")
    place = memoryview(bytearray(11))
    assert await b.receive_into(place) == 11
    assert place == b"still there"
    sock.close()
    b.abort()


async def test_what_is_in_use_or_has_no_socket_is_not_given_away():
    sink = Sink()
    assert sink.detach() is None
    assert not sink.closed
    a, b = map(TcpTransport, tcp_pair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.receive_into, memoryview(bytearray(1)))
        await wait_all_tasks_blocked()
        assert b.detach() is None
        await a.send([b"x"])
    assert a.detach() is not None
    a._sock.close()
    b.abort()
    assert b.detach() is None


async def test_what_is_a_socket_underneath_can_be_given_away(tls_pair):
    a, b = map(TcpTransport, tcp_pair())
    assert a.gives_socket
    assert tls_pair[0].gives_socket
    assert not Sink().gives_socket
    a.abort()
    b.abort()
