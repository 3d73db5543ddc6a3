"""The in-memory transport: order, bounds, rates and faults, all in virtual time."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sterna.errors import TransportError
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.registry import ErrorCode


async def receive_exactly(transport: MemoryTransport, count: int) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    while view.nbytes:
        got = await transport.receive_into(view)
        assert got, "ended early"
        view = view[got:]
    return bytes(data)


async def receive_all(transport: MemoryTransport) -> bytes:
    data = bytearray()
    await collect(transport, data)
    return bytes(data)


async def collect(transport: MemoryTransport, data: bytearray) -> None:
    buffer = memoryview(bytearray(4096))
    while got := await transport.receive_into(buffer):
        data += buffer[:got]


async def expect(code: ErrorCode, transport: MemoryTransport) -> None:
    with pytest.raises(TransportError) as caught:
        await transport.receive_into(memoryview(bytearray(10)))
    assert caught.value.code == code


async def test_bytes_arrive_in_order_and_the_end_is_zero():
    a, b = memory_transport_pair()
    sent = []
    payload = bytes(range(256)) * 1000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, [b"head", b"", memoryview(payload)], sent.append)
        assert await receive_exactly(b, 4 + len(payload)) == b"head" + payload
    assert sum(sent) == a.bytes_sent == b.bytes_received == 4 + len(payload)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.close)
        assert await receive_all(b) == b""
        assert await receive_all(b) == b""
        await b.close()


async def test_buffers_of_any_item_size_are_sent_as_bytes():
    a, b = memory_transport_pair()
    words = memoryview(b"abcdefgh").cast("I")
    await a.send([words])
    assert await receive_exactly(b, 8) == b"abcdefgh"


async def test_an_empty_receive_buffer_is_refused():
    a, _ = memory_transport_pair()
    with pytest.raises(ValueError, match="empty buffer"):
        await a.receive_into(memoryview(b""))


async def test_what_was_sent_before_close_still_arrives(autojump_clock):
    a, b = memory_transport_pair(latency_s=3)
    await a.send([b"last words"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.close)
        with trio.fail_after(100):
            assert await receive_all(b) == b"last words"
        await b.close()


async def test_capacity_bounds_what_is_held(autojump_clock):
    a, b = memory_transport_pair(capacity_bytes=1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, [bytes(5000)])
        await wait_all_tasks_blocked()
        assert a.bytes_sent == 1000
        await receive_exactly(b, 300)
        await wait_all_tasks_blocked()
        assert a.bytes_sent == 1300
        await receive_exactly(b, 4700)


async def test_rate_and_latency_are_exact_in_virtual_time(autojump_clock):
    a, b = memory_transport_pair(rate_bytes_s=1_000_000, latency_s=0.25)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, [bytes(10_000_000)])
        await receive_exactly(b, 10_000_000)
    assert trio.current_time() - start == pytest.approx(10.25, abs=1e-6)


async def test_an_idle_link_gives_no_credit(autojump_clock):
    a, b = memory_transport_pair(rate_bytes_s=1000)
    await a.send([bytes(1000)])
    await trio.sleep(100)
    start = trio.current_time()
    await a.send([bytes(1000)])
    assert trio.current_time() - start == pytest.approx(1.0)
    await receive_exactly(b, 2000)


async def test_both_directions_are_independent(autojump_clock):
    a, b = memory_transport_pair(rate_bytes_s=1000)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for transport in (a, b):
            nursery.start_soon(transport.send, [bytes(1000)])
            nursery.start_soon(receive_exactly, transport, 1000)
    assert trio.current_time() - start == pytest.approx(1.0)


@pytest.mark.parametrize("cut", [0, 1, 999, 1000, 70_000])
async def test_cut_after_delivers_exactly_that_much(cut, autojump_clock):
    a, b = memory_transport_pair(capacity_bytes=1000)
    a.cut_after(cut)
    received = bytearray()

    async def send():
        with pytest.raises(TransportError) as caught:
            await a.send([bytes(100_000)])
        assert caught.value.code == ErrorCode.CONNECTION_LOST

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with pytest.raises(TransportError):
            await collect(b, received)
    assert len(received) == a.bytes_sent == cut
    await expect(ErrorCode.CONNECTION_LOST, a)
    with pytest.raises(TransportError):
        await b.send([b"x"])


async def test_stall_fills_the_buffer_and_unstall_empties_it(autojump_clock):
    a, b = memory_transport_pair(capacity_bytes=100)
    b.stall()
    received = []

    async def receive():
        received.append(await receive_exactly(b, 300))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, [bytes(300)])
        nursery.start_soon(receive)
        await trio.sleep(1000)
        assert a.bytes_sent == 100
        assert not received
        b.unstall()
    assert len(received[0]) == 300


async def test_vanish_says_nothing_to_anybody(autojump_clock):
    a, b = memory_transport_pair(capacity_bytes=100)
    b.vanish()
    with trio.move_on_after(1000) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, [bytes(300)])
            nursery.start_soon(a.receive_into, memoryview(bytearray(1)))
    assert scope.cancelled_caught
    start = trio.current_time()
    await b.close()
    assert trio.current_time() - start == pytest.approx(2.0)  # nobody answers: the deadline ends it


async def test_a_ragged_end_is_not_a_clean_one():
    a, b = memory_transport_pair()
    await a.send([b"abc"])
    a.end_ragged()
    assert await receive_exactly(b, 3) == b"abc"
    await expect(ErrorCode.NOT_CLOSED, b)


async def test_abort_is_seen_as_a_lost_connection():
    a, b = memory_transport_pair()
    await a.send([b"abc"])
    a.abort()
    a.abort()
    assert await receive_exactly(b, 3) == b"abc"
    await expect(ErrorCode.CONNECTION_LOST, b)
    with pytest.raises(TransportError):
        await b.send([b"x"])
    for operation in (a.send([b"x"]), a.receive_into(memoryview(bytearray(1)))):
        with pytest.raises(trio.ClosedResourceError):
            await operation
    await a.close()  # harmless


async def test_one_sender_and_one_receiver(autojump_clock):
    a, _ = memory_transport_pair(capacity_bytes=1)
    buffer = memoryview(bytearray(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, [b"ab"])
        nursery.start_soon(a.receive_into, buffer)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError, match="sending"):
            await a.send([b"c"])
        with pytest.raises(trio.BusyResourceError, match="receiving"):
            await a.receive_into(buffer)
        nursery.cancel_scope.cancel()


async def test_a_cancelled_send_tears_and_a_cancelled_receive_does_not(autojump_clock):
    a, b = memory_transport_pair(rate_bytes_s=10)
    with trio.move_on_after(1):
        await b.receive_into(memoryview(bytearray(1)))
    await b.send([b"x"])
    assert await receive_exactly(a, 1) == b"x"
    with trio.move_on_after(1):
        await a.send([bytes(100)])
    with pytest.raises(trio.ClosedResourceError):
        await a.send([b"more"])
    await a.close()
    await expect(ErrorCode.CONNECTION_LOST, b)


async def test_a_send_cancelled_before_its_first_byte_leaves_it_whole():
    a, b = memory_transport_pair()
    with trio.CancelScope() as scope:
        scope.cancel()
        await a.send([b"never"])
    await a.send([b"then"])
    assert await receive_exactly(b, 4) == b"then"


async def test_closing_wakes_the_own_tasks(autojump_clock):
    a, _ = memory_transport_pair(capacity_bytes=1)
    c, _ = memory_transport_pair()

    async def closed(function, *args):
        with pytest.raises(trio.ClosedResourceError):
            await function(*args)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed, a.send, [b"ab"])
        nursery.start_soon(closed, a.receive_into, memoryview(bytearray(1)))
        nursery.start_soon(closed, c.receive_into, memoryview(bytearray(1)))
        await wait_all_tasks_blocked()
        a.abort()
        nursery.start_soon(c.close)


async def test_abort_ends_a_close_that_waits(autojump_clock):
    a, _b = memory_transport_pair()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.close)
        await wait_all_tasks_blocked()
        a.abort()
    assert trio.current_time() == start


async def test_close_discards_what_still_arrives(autojump_clock):
    a, b = memory_transport_pair(capacity_bytes=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.close)
        await b.send([bytes(1000)])
        await b.close()
    assert trio.current_time() < 1


async def test_a_close_that_is_cancelled_closes_all_the_same(autojump_clock):
    a, b = memory_transport_pair()
    with trio.move_on_after(0.5) as scope:
        await a.close()
    assert scope.cancelled_caught
    assert a.closed
    with pytest.raises(TransportError):
        await b.send([b"x"])


async def test_identities_are_those_of_the_other_end():
    a, b = memory_transport_pair(identities=("host-a", "host-b"))
    assert (a.peer.identity, b.peer.identity) == ("host-b", "host-a")
    assert a.tls is not None
    assert a.tls.mutual
    assert "host-b at memory" in repr(a)
    plain, _ = memory_transport_pair()
    assert plain.tls is None
    plain.abort()
    assert repr(plain) == "<MemoryTransport to memory, closed>"


@pytest.mark.parametrize("wrong", [{"capacity_bytes": 0}, {"latency_s": -1}, {"rate_bytes_s": 0}])
def test_senseless_links_are_refused(wrong):
    with pytest.raises(ValueError, match="positive"):
        memory_transport_pair(**wrong)
