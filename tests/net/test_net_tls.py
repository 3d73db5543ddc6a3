"""`TlsTransport` and `TlsConfig`: real TLS over loopback."""

import os
import re
import socket
import ssl
import subprocess
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from net_support import Stub, receive_exactly
from trio.testing import wait_all_tasks_blocked

from sterna.errors import ConfigError, TransportError
from sterna.limits import RECORD_BYTES
from sterna.net.connect import Address, connect
from sterna.net.tls import (
    KEY_RECORDS_BLACKOUT,
    KEY_RECORDS_LAST,
    KEY_RECORDS_MAX,
    KEY_RECORDS_RESERVE,
    SLICE_BYTES,
    TlsConfig,
)
from sterna.registry import ALPN, ErrorCode


def scratch() -> memoryview:
    return memoryview(bytearray(4096))


async def error_of(function, *args) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await function(*args)
    return caught.value


async def test_it_is_tls_1_3_and_mutual(tls_pair):
    for transport, identity in zip(tls_pair, ("host-a", "host-b"), strict=True):
        assert transport.tls.version == "TLSv1.3"
        assert transport.tls.cipher.startswith("TLS_")
        assert transport.tls.mutual
        assert transport.peer.identity == identity
        assert len(transport.peer.fingerprint) == 32
        assert str(transport.peer).startswith(f"{identity} at 127.0.0.1:")


async def test_a_wait_is_a_turn_of_the_others(tls_pair):
    a, b = tls_pair
    b._unyielded_bytes = b.yield_bytes - 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.receive_into, scratch())
        await wait_all_tasks_blocked()
        await a.send([bytes(100)])
    assert b._unyielded_bytes == 100


async def test_a_large_send_arrives_whole_in_full_records(tls_pair):
    a, b = tls_pair
    pages = os.urandom(3_000_001)
    sent = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, [b"header", b"", b"table", memoryview(pages)], sent.append)
            assert await receive_exactly(b, 11 + len(pages)) == b"headertable" + pages
    assert sum(sent) == a.bytes_sent == b.bytes_received == 11 + len(pages)
    assert max(sent) == SLICE_BYTES
    assert a.records_sent == -(-a.bytes_sent // RECORD_BYTES)


@pytest.mark.parametrize(
    "sizes",
    [
        [1],
        [RECORD_BYTES],
        [RECORD_BYTES - 1, 1],
        [32, RECORD_BYTES],
        [RECORD_BYTES + 1, RECORD_BYTES - 1],
        [32, 100, SLICE_BYTES * 2 + 5, 7, RECORD_BYTES],
    ],
)
async def test_any_cut_of_the_same_bytes_arrives_alike(tls_pair, sizes):
    a, b = tls_pair
    buffers = [os.urandom(size) for size in sizes]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, buffers)
            assert await receive_exactly(b, sum(sizes)) == b"".join(buffers)
    assert a.records_sent == -(-sum(sizes) // RECORD_BYTES)


async def test_memory_that_changes_between_two_tries_of_a_write(tls_pair):
    """A guest writes while its page waits for the socket: the record stays valid, old or new content."""
    a, b = tls_pair
    memory = bytearray(b"\x01") * 2_000_000
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, [memory])
            await wait_all_tasks_blocked()
            memory[:] = b"\x02" * len(memory)
            received = await receive_exactly(b, len(memory))
    border = received.index(2)
    assert received == b"\x01" * border + b"\x02" * (len(memory) - border)
    assert border >= RECORD_BYTES


async def test_a_little_is_sent_at_once(tls_pair):
    a, b = tls_pair
    assert a.send_now([b"a", b"bc"])
    await a.send([b"d"])
    assert await receive_exactly(b, 4) == b"abcd"
    assert (a.records_sent, a.owes) == (2, False)
    group = bytes(range(256)) * 256 + b"table"
    assert a.send_now([group])  # more than a record
    assert await receive_exactly(b, len(group)) == group
    assert a.records_sent == 2 + 5


@pytest.mark.parametrize("size", [4096, 4 * RECORD_BYTES + 88])
async def test_what_a_full_socket_did_not_take_goes_first(tls_pair, size):
    a, b = tls_pair
    count = 0
    while not a.owes:
        assert a.send_now([count.to_bytes(size, "little")])
        count += 1
    assert not a.send_now([b"x"])
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, [])
            received = await receive_exactly(b, count * size)
    assert not a.owes
    assert received == b"".join(number.to_bytes(size, "little") for number in range(count))
    await a.send([b"d"])
    assert await receive_exactly(b, 1) == b"d"


async def test_what_cannot_be_sent_at_once_is_told_by_the_next_send(tls_pair):
    a, _ = tls_pair
    a._tls = Stub(a._tls, write=[ConnectionResetError()] * 2)
    assert not a.send_now([b"a"])
    assert (await error_of(a.send, [b"a"])).code == ErrorCode.CONNECTION_LOST


async def test_both_directions_at_once(tls_pair):
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for transport in tls_pair:
                nursery.start_soon(transport.send, [bytes(1_000_000)])
                nursery.start_soon(receive_exactly, transport, 1_000_000)


async def test_close_notify_is_the_end(tls_pair):
    """[TLS-20]"""
    a, b = tls_pair
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await a.send([b"bye"])
            nursery.start_soon(a.close, 1000)
            assert await b.receive_into(scratch()) == 3
            assert await b.receive_into(scratch()) == 0
            assert await b.receive_into(scratch()) == 0
            await b.close(1000)
    for operation in (a.send([b"x"]), a.receive_into(scratch())):
        with pytest.raises(trio.ClosedResourceError):
            await operation


async def test_data_and_close_notify_in_one_read(tls_pair):
    a, b = tls_pair
    async with trio.open_nursery() as nursery:
        await a.send([b"bye"])
        nursery.start_soon(a.close)
        await wait_all_tasks_blocked()
        assert await b.receive_into(scratch()) == 3
        assert await b.receive_into(scratch()) == 0
        b.abort()


async def test_the_other_direction_outlives_close_notify(tls_pair):
    a, b = tls_pair
    with pytest.raises(ssl.SSLWantReadError):
        a._tls.unwrap()
    assert await b.receive_into(scratch()) == 0
    await b.send([b"still"])
    assert await receive_exactly(a, 5) == b"still"


async def test_a_ragged_end_is_not_an_end(tls_pair):
    """[TLS-21] FIN without close_notify. CPython up to 3.11.2 and `suppress_ragged_eofs` hide it."""
    a, b = tls_pair
    await a.send([b"half a frame"])
    a._sock.shutdown(socket.SHUT_WR)
    assert await b.receive_into(scratch()) == 12
    for _ in range(2):
        error = await error_of(b.receive_into, scratch())
        assert error.code == ErrorCode.NOT_CLOSED
        assert "without close_notify" in str(error)


async def test_data_before_a_ragged_end_is_delivered_first(tls_pair):
    a, b = tls_pair
    await a.send([bytes(40_000)])
    a._sock.shutdown(socket.SHUT_WR)
    received = 0
    while received < 40_000:
        received += await b.receive_into(memoryview(bytearray(100_000)))
    assert (await error_of(b.receive_into, scratch())).code == ErrorCode.NOT_CLOSED


async def test_a_reset_is_a_lost_connection(tls_pair):
    a, b = tls_pair
    a.abort()
    error = await error_of(b.receive_into, scratch())
    assert error.code == ErrorCode.CONNECTION_LOST
    assert (await error_of(b.send, [b"x"])).code == ErrorCode.CONNECTION_LOST


async def test_a_send_that_fails_looks_for_words_and_keeps_data(tls_pair):
    """What the peer had sent before it closed is still delivered."""
    a, b = tls_pair
    await b.send([b"abort: no room"])
    b.abort()
    error = await error_of(a.send, [bytes(1_000_000)])
    assert error.code == ErrorCode.CONNECTION_LOST
    assert await a.receive_into(memoryview(bytearray(5))) == 5
    buffer = scratch()
    assert bytes(buffer[: await a.receive_into(buffer)]) == b": no room"
    assert (await error_of(a.receive_into, scratch())).code in {
        ErrorCode.CONNECTION_LOST,
        ErrorCode.NOT_CLOSED,
    }


async def test_a_send_that_fails_after_close_notify(tls_pair):
    a, b = tls_pair
    with pytest.raises(ssl.SSLWantReadError):
        b._tls.unwrap()
    b._sock.close()
    with trio.fail_after(30):
        error = None
        while error is None:
            try:
                await a.send([bytes(100_000)])
            except TransportError as caught:
                error = caught
    assert error.code == ErrorCode.CONNECTION_LOST


async def test_damaged_records_are_noticed(tls_pair):
    a, b = tls_pair
    a._sock.send(b"\x17\x03\x03\x00\x40" + bytes(64))
    error = await error_of(b.receive_into, scratch())
    assert error.code == ErrorCode.TLS_FAILED
    assert "changed on the way" in str(error)
    assert (await error_of(b.receive_into, scratch())).code == ErrorCode.TLS_FAILED


async def test_a_key_is_not_used_longer_than_it_is_good_for(tls_pair):
    """[TLS-18] What is refused leaves the connection whole: there is still a record for the ABORT."""
    a, b = tls_pair
    a.records_sent = KEY_RECORDS_MAX - KEY_RECORDS_RESERVE - 2
    await a.send([bytes(2 * RECORD_BYTES)])
    assert (await error_of(a.send, [bytes(RECORD_BYTES + 1)])).code == ErrorCode.UNSUPPORTED
    await a.send([b"abort: unsupported"])
    assert (await receive_exactly(b, 2 * RECORD_BYTES + 18)).endswith(b"abort: unsupported")
    a.records_sent = KEY_RECORDS_MAX
    error = await error_of(a.send, [b"x"])
    assert "Python cannot renew it" in str(error)
    a.tls = replace(a.tls, cipher="TLS_CHACHA20_POLY1305_SHA256")  # which has no such limit
    await a.send([b"x"])
    assert await receive_exactly(b, 1) == b"x"


async def test_a_key_is_worn_before_it_is_used_up(tls_pair):
    """[TLS-18]"""
    a, _ = tls_pair
    a.records_sent = KEY_RECORDS_MAX - KEY_RECORDS_LAST
    assert a.worn is None
    await a.send([b"x"])
    assert a.worn.code == ErrorCode.UNSUPPORTED
    a.tls = replace(a.tls, cipher="TLS_CHACHA20_POLY1305_SHA256")
    assert a.worn is None


async def test_a_key_wears_long_before(tls_pair):
    """[STR-12] So that a guest that is paused then is moved with it."""
    a, _ = tls_pair
    a.records_sent = KEY_RECORDS_MAX - KEY_RECORDS_LAST - KEY_RECORDS_BLACKOUT
    assert not a.wears
    await a.send([b"x"])
    assert (a.wears, a.worn) == (True, None)


async def test_a_cancelled_receive_loses_nothing(tls_pair, autojump_clock):
    a, b = tls_pair
    with trio.move_on_after(1) as scope:
        await b.receive_into(scratch())
    assert scope.cancelled_caught
    await a.send([b"later"])
    assert await receive_exactly(b, 5) == b"later"


async def test_a_cancelled_send_tears_the_connection(tls_pair, autojump_clock):
    a, b = tls_pair
    with trio.move_on_after(10) as scope:
        await a.send([bytes(10_000_000)])
    assert scope.cancelled_caught
    assert a.bytes_sent < 10_000_000
    with pytest.raises(trio.ClosedResourceError):
        await a.send([b"after half a record"])
    await a.close()  # an abort: the peer must not take this for an end
    with pytest.raises(TransportError):
        await receive_exactly(b, 10_000_000)


async def test_concurrent_use_is_refused(tls_pair, autojump_clock):
    a, _ = tls_pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, [bytes(10_000_000)])
        nursery.start_soon(a.receive_into, scratch())
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await a.send([b"x"])
        with pytest.raises(trio.BusyResourceError):
            await a.receive_into(scratch())
        nursery.cancel_scope.cancel()


async def test_close_wakes_the_own_receiver(tls_pair):
    a, b = tls_pair

    async def closed():
        with pytest.raises(trio.ClosedResourceError):
            await a.receive_into(scratch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed)
        await wait_all_tasks_blocked()
        nursery.start_soon(a.close)
        assert await b.receive_into(scratch()) == 0
        await b.close()


@pytest.mark.parametrize("wait", ["wait_readable", "wait_writable"])
async def test_a_task_that_was_just_woken_finds_it_closed(tls_pair, monkeypatch, wait):
    """It must not touch the socket any more: below TLS that would carry plaintext."""
    a, _b = tls_pair

    async def wakes_as_another_task_closes(sock):
        await trio.lowlevel.checkpoint()
        a.abort()

    monkeypatch.setattr(trio.lowlevel, wait, wakes_as_another_task_closes)
    with pytest.raises(trio.ClosedResourceError):
        await (a.receive_into(scratch()) if wait == "wait_readable" else a.send([bytes(1_000_000)]))


@pytest.mark.parametrize("nothing", [ssl.SSLWantReadError(), ssl.SSLZeroReturnError()])
async def test_a_send_that_fails_and_nobody_said_why(tls_pair, nothing):
    a, _b = tls_pair
    a._tls = Stub(a._tls, write=[BrokenPipeError(32, "")], recv_into=[nothing])
    assert (await error_of(a.send, [b"x"])).code == ErrorCode.CONNECTION_LOST


async def test_an_error_after_closing_is_not_the_peers(tls_pair):
    a, _b = tls_pair

    def fails(*_):
        a.abort()
        raise ConnectionResetError

    a._tls = Stub(a._tls, write=[fails], recv_into=[fails])
    with pytest.raises(trio.ClosedResourceError):
        await a.send([b"x"])
    assert a._sock.fileno() == -1


async def test_close_while_the_peer_sends_leaves_last_words_readable(tls_pair):
    a, b = tls_pair
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as sender:
                sender.start_soon(b.send, [bytes(500_000)])
                await wait_all_tasks_blocked()
                await a.send([b"abort: cancelled"])
                nursery.start_soon(a.close, 1000)
                assert await receive_exactly(b, 16) == b"abort: cancelled"
                assert await b.receive_into(scratch()) == 0
            await b.close(1000)


async def test_close_with_a_full_socket_waits_for_room(tls_pair, autojump_clock):
    """close_notify has its turn behind what was sent; a peer that reads late still gets it."""
    a, b = tls_pair
    await a.send([bytes(60_000)])
    try:  # below TLS: fill the socket, as a send that has just ended may leave it
        while True:
            a._sock.send(bytes(4096))
    except BlockingIOError:
        pass
    start = trio.current_time()
    await a.close(5)
    assert trio.current_time() - start == pytest.approx(5)
    assert await receive_exactly(b, 60_000) == bytes(60_000)


async def test_close_after_the_connection_is_gone(tls_pair):
    a, b = tls_pair
    b.abort()
    await a.close(1000)
    assert a.closed


async def test_abort_ends_a_close(tls_pair):
    a, _b = tls_pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.close, 1000)
        await wait_all_tasks_blocked()
        a.abort()


async def test_an_end_behind_data_is_told_by_the_next_receive(tls_pair):
    a, _b = tls_pair
    a._tls = Stub(a._tls, read=[3, ssl.SSLZeroReturnError(), ssl.SSLZeroReturnError()])
    assert await a.receive_into(scratch()) == 3
    assert await a.receive_into(scratch()) == 0


async def test_what_is_owed_while_nobody_sends_goes_with_the_next_send(tls_pair):
    """As it happens when the peer asks for a new key."""
    a, b = tls_pair
    full = Stub(a._tls.sock, send=[BlockingIOError()])
    a._tls.sock, real = full, a._tls.sock
    a._tls.write(b"new key")
    a._tls.sock = real
    assert a.owes
    sent = []
    await a.send([b"page"], sent.append)
    assert sent == [0, 4]
    assert await receive_exactly(b, 11) == b"new keypage"


async def test_one_new_key_that_is_owed_is_not_too_many(tls_pair):
    """[TLS-19] The kernel is full between two pieces, just when the peer has asked for a key."""
    a, b = tls_pair
    sock = a._tls.sock

    def full():
        with suppress(ssl.SSLWantReadError):
            a._tls.recv_into(scratch())
        raise BlockingIOError

    def sent(_):
        if a._tls.sock is sock:
            a._tls.sock = Stub(sock, send=[BlockingIOError(), full, BlockingIOError()])
            a._tls.write(b"key")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, [bytes(2 * SLICE_BYTES)], sent)
            got = await receive_exactly(b, 2 * SLICE_BYTES + 3)
    assert got == bytes(SLICE_BYTES) + b"key" + bytes(SLICE_BYTES)


@pytest.mark.needs("openssl")
async def test_a_foreign_peer_that_renews_its_key_under_load(host_a, host_b):
    """Python cannot send a KeyUpdate, others do [TLS-19]: `k` makes openssl send one, and `K` asks for ours.

    The latter breaks a connection where it arrives while a write is pending (openssl/openssl#8677, #12485).
    """
    command = (
        "openssl s_server -accept 127.0.0.1:0 -tls1_3 -num_tickets 0 -Verify 1 -verify_return_error"
        f" -alpn {ALPN} -cert {host_a.certificate} -key {host_a.key} -CAfile {host_a.authority}"
    )
    renewed, renewals = trio.open_memory_channel(100)
    async with trio.open_nursery() as nursery:
        pipe = subprocess.PIPE
        options = {"stdin": pipe, "stdout": pipe, "stderr": subprocess.DEVNULL, "check": False}
        process = await nursery.start(partial(trio.run_process, command.split(), **options))
        said = b""
        while (port := re.search(rb"ACCEPT 127\.0\.0\.1:(\d+)\n", said)) is None:
            said += await process.stdout.receive_some()
        transport = await connect(Address("127.0.0.1", int(port[1])), tls=host_b, expected="host-a")

        async def drain():
            async for said in process.stdout:
                for _ in range(said.count(b"SSL_do_handshake -> 1")):
                    renewed.send_nowait(None)

        async def load():
            while True:
                await transport.send([bytes(1_000_000)])

        with trio.fail_after(60):
            async with trio.open_nursery() as tasks:
                tasks.start_soon(drain)
                tasks.start_soon(load)
                for wish in (b"k\n", b"K\n") * 5:
                    await process.stdin.send_all(wish)
                    await renewals.receive()
                    await process.stdin.send_all(b"page\n")
                    assert await receive_exactly(transport, 5) == b"page\n"
                tasks.cancel_scope.cancel()
        transport.abort()
        process.kill()


@pytest.fixture
def files(host_a):
    return {"certificate": host_a.certificate, "key": host_a.key, "authority": host_a.authority}


@pytest.mark.parametrize("which", ["certificate", "key", "authority"])
def test_missing_files_are_named(files, which, tmp_path):
    files[which] = tmp_path / "none.pem"
    with pytest.raises(ConfigError, match=r"cannot read .*none\.pem: No such file"):
        TlsConfig(**files, check_peer=lambda *_: None).context(server=True)


@pytest.mark.parametrize("which", ["certificate", "key", "authority"])
def test_damaged_files_are_named(files, which, tmp_path):
    files[which] = tmp_path / "damaged.pem"
    files[which].write_bytes(b"-----BEGIN NOTHING-----\n")
    with pytest.raises(ConfigError, match=r"damaged\.pem"):
        TlsConfig(**files, check_peer=lambda *_: None).context(server=True)


def test_a_key_of_another_certificate(files, host_b):
    files["key"] = host_b.key
    with pytest.raises(ConfigError, match="do not belong together"):
        TlsConfig(**files, check_peer=lambda *_: None).context(server=False)


def test_an_encrypted_key_is_refused_and_nobody_is_asked(files, tmp_path):
    key = serialization.load_pem_private_key(files["key"].read_bytes(), None)
    files["key"] = tmp_path / "encrypted.key"
    files["key"].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="the key is not encrypted"):
        TlsConfig(**files, check_peer=lambda *_: None).context(server=True)


async def test_what_has_come_is_received_without_a_wait(tls_pair):
    a, b = tls_pair
    place = memoryview(bytearray(3 * RECORD_BYTES))
    assert b.receive_now(place) is None
    for group in (b"request", bytes(RECORD_BYTES) + b"table"):
        await a.send([group])
        while (count := b.receive_now(place)) is None:
            await b.until_heard()
        while count < len(group):
            await b.until_heard()
            count += b.receive_now(place[count:]) or 0
        assert place[:count] == group
    assert b.bytes_received == 7 + RECORD_BYTES + 5
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.receive_into, place)
        await wait_all_tasks_blocked()
        assert b.receive_now(place) == 0  # it has a place to receive into already
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [ssl.SSLZeroReturnError(), ConnectionResetError()])
async def test_what_needs_a_wait_or_is_an_end_is_told_by_a_receive(tls_pair, error):
    a, b = tls_pair
    await a.send([b"x"])
    await b.until_heard()
    b._tls = Stub(b._tls, recv_into=[ssl.SSLWantReadError(), error])
    place = memoryview(bytearray(4))
    assert b.receive_now(place) is None  # half a record
    assert b.receive_now(place) == 0
    if isinstance(error, ConnectionResetError):
        assert b.receive_now(place) == 0
        assert (await error_of(b.receive_into, place)).code == ErrorCode.CONNECTION_LOST


async def test_much_is_moved_in_records_where_something_cannot_wait(tls_pair):
    a, b = tls_pair
    sent, received = [], []
    a.between, b.between = (lambda: sent.append(1)), (lambda: received.append(1))
    memory = bytes(4 * RECORD_BYTES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, [memory])
        assert await receive_exactly(b, len(memory)) == memory
    assert len(sent) == 4
    assert len(received) >= 4
