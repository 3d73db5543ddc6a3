"""`TlsLayer`: TLS by way of memory, over real sockets."""

import os
import select
import ssl
import threading

import pytest
from net_support import Stub, tcp_pair

from sterna.limits import RECORD_BYTES
from sterna.net import tls_layer
from sterna.net.tls_layer import READ_BYTES, TlsLayer


@pytest.fixture
def layers(host_a, host_b):
    """A client and a server behind their handshake; sockets that do not block."""
    a, b = tcp_pair()
    client = TlsLayer(a, host_b.context(server=False), server=False)
    server = TlsLayer(b, host_a.context(server=True), server=True)
    waiting = [client, server]
    while waiting:
        for layer in tuple(waiting):
            try:
                layer.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(layer)
    with client, server:
        yield client, server


class Counting:
    """A socket that notes how much each call is about."""

    def __init__(self, sock):
        self._sock = sock
        self.sent, self.room = [], []

    def send(self, data):
        self.sent.append(len(data))
        return self._sock.send(data)

    def recv_into(self, place):
        self.room.append(len(place))
        return self._sock.recv_into(place)

    def close(self):
        self._sock.close()


def receive(layer, size):
    data = bytearray(size)
    view = memoryview(data)
    while view.nbytes:
        try:
            view = view[layer.recv_into(view) :]
        except ssl.SSLWantReadError:
            continue
    return bytes(data)


def test_eight_records_take_fewer_system_calls(layers):
    client, server = layers
    data = os.urandom(8 * RECORD_BYTES)
    server.setblocking(True)
    client.sock, server.sock = Counting(client.sock), Counting(server.sock)
    client.write(data)
    assert not client.owes
    assert len(client.sock.sent) == 1
    assert receive(server, len(data)) == data
    assert set(server.sock.room) == {READ_BYTES}
    assert len(server.sock.room) < 8


def test_what_the_kernel_does_not_take_is_owed(layers):
    client, server = layers
    written = 0
    while not client.owes:
        client.write(bytes(RECORD_BYTES))
        written += RECORD_BYTES
    with pytest.raises(ssl.SSLWantWriteError):
        client.send(b"last")
    with pytest.raises(ssl.SSLWantWriteError):
        client.unwrap()  # no end is announced ahead of it
    assert not client.flush()
    got = bytearray()
    while len(got) < written + 4:
        client.flush()
        place = memoryview(bytearray(RECORD_BYTES))
        try:
            got += place[: server.recv_into(place)]
        except ssl.SSLWantReadError:
            continue
    assert client.flush()
    assert got == bytes(written) + b"last"
    assert receive_end(client, server)


def receive_end(client, server):
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()
    while True:
        try:
            return server.recv_into(memoryview(bytearray(1))) == 0
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLZeroReturnError:
            return True


def test_what_lies_in_memory_is_heard_without_the_socket(layers):
    client, server = layers
    client.sendall(b"one")
    client.sendall(b"two")
    assert receive(server, 3) == b"one"
    assert server.is_heard
    assert receive(server, 3) == b"two"
    with pytest.raises(ssl.SSLWantReadError):
        server.recv_into(memoryview(bytearray(1)))
    assert not server.is_heard


def test_an_end_that_is_not_announced_is_an_error(layers):
    """[TLS-21]"""
    client, server = layers
    client.close()
    for _ in range(2):
        with pytest.raises(ssl.SSLEOFError):
            receive(server, 1)


def test_what_is_owed_does_not_hide_what_has_come(layers):
    client, server = layers
    server.sendall(b"last words")
    client.sock = Stub(client.sock, send=[BlockingIOError(), BrokenPipeError()])
    client.write(b"x")
    assert client.owes
    assert receive(client, 10) == b"last words"
    with pytest.raises(ssl.SSLWantReadError):
        client.recv_into(memoryview(bytearray(1)))


def test_who_asks_for_keys_and_takes_none_is_left(layers):
    """[SEC-6] [TLS-19] What is owed to a peer is bounded, whatever it asks for."""
    client, _ = layers
    client.sock = Stub(client.sock, send=[BlockingIOError()] * 2)
    client.write(b"x")
    for _ in range(tls_layer.KEYS_BYTES // RECORD_BYTES + 1):
        client._tls.write(bytes(RECORD_BYTES))  # as OpenSSL does for each that is asked for
    with pytest.raises(ssl.SSLError) as caught:
        client.recv_into(memoryview(bytearray(1)))
    assert caught.value.reason == "TOO_MANY_KEY_UPDATES"


def test_a_new_key_leaves_though_data_comes_behind_it(layers):
    """[TLS-19] Nothing is owed then, and the connection can be closed properly."""
    client, server = layers
    client.sendall(b"one")
    client.sendall(b"two")
    assert receive(server, 3) == b"one"
    server._tls.write(b"key")  # as OpenSSL does when it is asked for one
    assert receive(server, 3) == b"two"
    assert not server.owes
    assert receive(client, 3) == b"key"


def test_what_cannot_be_read_is_told_to_the_peer(layers):
    client, server = layers
    client.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        receive(server, 1)
    assert not server.owes
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        receive(client, 1)


def test_what_cannot_be_read_is_raised_whether_or_not_it_can_be_told(layers):
    client, server = layers
    client.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    server.sock = Stub(server.sock, send=[BrokenPipeError()])
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        receive(server, 1)


def test_a_peer_whose_records_bear_nothing_does_not_hold_who_cannot_wait(layers):
    """[SEC-6] Each is processed, and the others get a turn; who can wait does."""
    client, server = layers
    client.sendall(b"data")
    select.select([server], [], [])
    drops = Drops(server.sock)
    server.sock = drops
    with pytest.raises(ssl.SSLWantReadError):
        server.recv_into(memoryview(bytearray(4)))
    assert drops.count == tls_layer.FILLS_MAX
    server.setblocking(True)
    place = memoryview(bytearray(4))
    assert place[: server.recv_into(place)] == b"data"


class Drops:
    """A socket with a byte at a time, of a record that is whole with the last."""

    def __init__(self, sock):
        self._sock = sock
        self.count = 0

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def recv_into(self, place):
        self.count += 1
        return self._sock.recv_into(place[:1])


def test_a_refusal_is_raised_whether_or_not_it_can_be_told(host_a):
    a, b = tcp_pair()
    with a, TlsLayer(b, host_a.context(server=True), server=True) as server:
        a.sendall(b"\x16\x03\x01\x00\x05hello")
        b.setblocking(True)
        server.sock = Stub(b, send=[BrokenPipeError()])
        with pytest.raises(ssl.SSLError):
            server.do_handshake()


def test_a_refusal_is_told_before_it_is_raised(host_a, host_b):
    a, b = tcp_pair()
    a.setblocking(True)
    with a, TlsLayer(b, host_a.context(server=True), server=True) as server:
        a.sendall(b"\x16\x03\x01\x00\x05hello")
        b.setblocking(True)
        with pytest.raises(ssl.SSLError):
            server.do_handshake()
        assert a.recv(1) == b"\x15"  # an alert


def test_each_thread_has_its_own_place():
    """A socket is read without the interpreter's lock."""
    places = [tls_layer._room()]
    thread = threading.Thread(target=lambda: places.append(tls_layer._room()))
    thread.start()
    thread.join()
    assert places[0] is tls_layer._room()
    assert places[0] is not places[1]
