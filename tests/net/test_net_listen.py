"""The listener: who gets in, who waits, who is thrown out."""

import errno
import logging
import socket
from functools import partial

import pytest
import trio

from sterna.errors import ConfigError, GuestError, TransportError
from sterna.net.connect import Address, connect
from sterna.net.listen import ListenOptions, listen, log_failure
from sterna.registry import ErrorCode

LOOPBACK = Address("127.0.0.1", 0)


class Listener:
    """A listener in a nursery, what failed, and what its handler got."""

    def __init__(self, tls, **options):
        self.tls = tls
        self.options = {"options": ListenOptions(**options.pop("bounds", {})), **options}
        self.failures: list[tuple[str, TransportError]] = []
        self.served = []
        self.release = trio.Event()
        self.failed = trio.Event()

    async def handle(self, transport):
        self.served.append(transport)
        await transport.send([b"in"])
        await self.release.wait()

    def on_failure(self, peer, error):
        self.failures.append((peer, error))
        self.failed.set()

    async def run(self, task_status=trio.TASK_STATUS_IGNORED):
        await listen(
            LOOPBACK,
            self.handle,
            tls=self.tls,
            on_failure=self.on_failure,
            task_status=task_status,
            **self.options,
        )


async def receive(transport) -> bytes:
    buffer = memoryview(bytearray(100))
    return bytes(buffer[: await transport.receive_into(buffer)])


async def test_what_the_handler_leaves_open_is_aborted(host_a, host_b):
    listener = Listener(host_a)
    async with trio.open_nursery() as nursery:
        [bound] = await nursery.start(listener.run)
        transport = await connect(bound, tls=host_b, expected="host-a")
        assert await receive(transport) == b"in"
        listener.release.set()
        with pytest.raises(TransportError):
            await receive(transport)
        transport.abort()
        nursery.cancel_scope.cancel()
    assert not listener.failures


async def test_several_at_once(host_a, host_b):
    listener = Listener(host_a)
    async with trio.open_nursery() as nursery:
        [bound] = await nursery.start(listener.run)

        async def dial():
            transport = await connect(bound, tls=host_b)
            assert await receive(transport) == b"in"
            transport.abort()

        async with trio.open_nursery() as dials:
            for _ in range(5):
                dials.start_soon(dial)
        assert len(listener.served) == 5
        nursery.cancel_scope.cancel()


async def test_a_failed_handshake_is_reported_and_the_listener_goes_on(host_a, host_b):
    listener = Listener(host_a)
    async with trio.open_nursery() as nursery:
        [bound] = await nursery.start(listener.run)
        with socket.create_connection((bound.host, bound.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            stranger.shutdown(socket.SHUT_WR)
            name = "{}:{}".format(*stranger.getsockname())
            await listener.failed.wait()
        transport = await connect(bound, tls=host_b, expected="host-a")
        assert await receive(transport) == b"in"
        transport.abort()
        nursery.cancel_scope.cancel()
    [(peer, error)] = listener.failures
    assert peer == name
    assert error.code == ErrorCode.PLAIN_ON_TLS


async def test_the_silent_are_thrown_out_at_their_deadline(host_a, autojump_clock):
    listener = Listener(host_a, bounds={"handshake_deadline_s": 7})
    async with trio.open_nursery() as nursery:
        [bound] = await nursery.start(listener.run)
        with socket.create_connection((bound.host, bound.port)):
            await listener.failed.wait()
            assert trio.current_time() == pytest.approx(7)
        nursery.cancel_scope.cancel()
    [(_, error)] = listener.failures
    assert error.code == ErrorCode.TLS_FAILED
    assert "no handshake within 7 s" in str(error)


async def test_a_newcomer_takes_the_place_of_the_oldest_silent_one(host_a, host_b):
    """A slow loris fills every place, and still locks nobody out."""
    listener = Listener(host_a, bounds={"strangers_max": 3})
    async with trio.open_nursery() as nursery:
        [bound] = await nursery.start(listener.run)
        silent = [socket.create_connection((bound.host, bound.port)) for _ in range(3)]
        transport = await connect(bound, tls=host_b, expected="host-a")
        assert await receive(transport) == b"in"
        transport.abort()
        await listener.failed.wait()
        with pytest.raises(ConnectionResetError):
            silent[0].recv(1)
        for sock in silent:
            sock.close()
        nursery.cancel_scope.cancel()
    assert "before newer ones came" in str(listener.failures[0][1])


@pytest.mark.parametrize("farewell", [None, lambda error: error.code.name.encode()])
async def test_no_more_sessions_than_there_is_room_for(host_a, host_b, farewell):
    listener = Listener(host_a, bounds={"sessions_max": 1}, farewell=farewell)
    async with trio.open_nursery() as nursery:
        [bound] = await nursery.start(listener.run)
        first = await connect(bound, tls=host_b, expected="host-a")
        assert await receive(first) == b"in"
        second = await connect(bound, tls=host_b, expected="host-a")
        assert await receive(second) == (b"FULL" if farewell else b"")
        await second.close()
        await listener.failed.wait()
        first.abort()
        nursery.cancel_scope.cancel()
    [(peer, error)] = listener.failures
    assert peer.startswith("host-b at 127.0.0.1:")
    assert error.code == ErrorCode.FULL


async def test_errors_of_a_session_are_reported_other_ones_are_not_swallowed():
    errors = [GuestError("first"), ZeroDivisionError()]

    class Failing(Listener):
        async def handle(self, transport):
            raise errors[len(self.failures)]

    listener = Failing(None)
    with pytest.RaisesGroup(pytest.RaisesGroup(ZeroDivisionError)):
        async with trio.open_nursery() as nursery:
            [bound] = await nursery.start(listener.run)
            (await connect(bound, tls=None)).abort()
            await listener.failed.wait()
            (await connect(bound, tls=None)).abort()
    assert str(listener.failures[0][1]) == "guest_failed: first"


def test_failures_are_logged_by_default(caplog):
    log_failure("10.0.0.1:4000", TransportError(ErrorCode.WRONG_ALPN))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("10.0.0.1:4000: wrong_alpn: the peer did not negotiate")


async def test_addresses_may_be_text(nursery):
    """As people write them; what is no address is said to be none, and nothing is dialled."""
    met = trio.Event()

    async def meet(transport):
        met.set()

    (address,) = await nursery.start(partial(listen, "127.0.0.1:0", meet, tls=None))
    (await connect(str(address), tls=None)).abort()
    await met.wait()
    nursery.cancel_scope.cancel()
    with pytest.raises(ConfigError, match="write host:port"):
        await connect("127.0.0.1", tls=None)
    with pytest.raises(ConfigError, match="write host:port"):
        await listen("nowhere", meet, tls=None)


async def test_an_address_in_use():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Address(*server.getsockname())
        with pytest.raises(ConfigError, match=rf"cannot listen on {address}: the port is in use"):
            await listen(address, trio.sleep_forever, tls=None)


async def test_exhausted_descriptors_are_waited_for(monkeypatch, autojump_clock):
    answers = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.EBADF, "Bad file descriptor")]
    times = []

    async def accept(self):
        await trio.lowlevel.checkpoint()
        times.append(trio.current_time())
        raise answers.pop(0)

    monkeypatch.setattr(trio.SocketListener, "accept", accept)
    with pytest.RaisesGroup(OSError):
        await listen(LOOPBACK, trio.sleep_forever, tls=None)
    assert times[1] - times[0] == pytest.approx(0.1)
