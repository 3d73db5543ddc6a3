from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from descriptors_support import descriptors, nothing_stays_open
from sterna.guest.holder_connection import Closed, Connection, close_strange
from sterna.guest.holder_engine import Party
from sterna.guest.holder_frames import FRAME_DESCRIPTORS, FrameError, FrameReader, encode_frame
from sterna.linux.memfd import MemoryFile
from sterna.linux.pidfd import Pidfd

WITHIN_S = 30.0


class Rig:
    """A connection of the holder and the peer's end of it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.peer.settimeout(WITHIN_S)
        self.connection = Connection(ours, Pidfd.open(os.getpid()), 0.0)
        stack.callback(self.peer.close)
        stack.callback(self.connection.close)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        yield Rig(stack)


@pytest.fixture
def lingering() -> Iterator[int]:
    """A descriptor that takes a minute to close, or until the test has ended."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sender = socket.create_connection(listener.getsockname())
        receiver = stack.enter_context(listener.accept()[0])
        sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sender.send(bytes(1 << 16))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        yield sender.detach()
        receiver.close()  # with unread bytes: a reset, and nobody waits any more
        join_closers()


def closers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "close"]


def join_closers() -> None:
    for thread in closers():
        thread.join(WITHIN_S)
        assert not thread.is_alive()


def test_closing_what_a_peer_has_passed_is_not_waited_for(lingering: int) -> None:
    file = MemoryFile("passed", 4096)
    mine = os.dup(file.fileno())
    close_strange([mine, lingering])
    assert closers()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(mine)
    file.close()


def test_nor_is_closing_a_connection_in_which_it_still_is(rig: Rig, lingering: int) -> None:
    socket.send_fds(rig.peer, [b"x"], [lingering])
    os.close(lingering)
    rig.connection.close()
    assert closers()


@pytest.mark.parametrize("controller", [False, True])
def test_all_that_came_is_taken(rig: Rig, controller: bool) -> None:
    """[HOL-6]: nothing is left for the kernel to close in our thread."""
    rig.connection.party = Party(controller)
    with nothing_stays_open():
        before = descriptors()
        file = MemoryFile("passed", 4096)
        count = 2 * FRAME_DESCRIPTORS + 1 if controller else 1
        socket.send_fds(rig.peer, [b"x"], [file.fileno()] * count)
        with pytest.raises(FrameError) as caught:
            rig.connection.receive()
        assert caught.value.fatal
        assert len(descriptors() - before) == 1 + count
        rig.connection.reader.close()
        file.close()


def test_an_answer_with_descriptors_waits_for_its_reader(rig: Rig) -> None:
    """[HOL-8]"""
    answer = {"x": "y" * 1000}
    sent = 0
    while not rig.connection.blocked:
        rig.connection.send(answer)
        sent += 1
    file = MemoryFile("passed", 4096)
    reader = FrameReader()
    frames = []
    passed = False
    while len(frames) < sent + 1:
        data, descriptors, _, _ = socket.recv_fds(rig.peer, 512, 8)
        reader.receive(data, descriptors)
        while (frame := reader.next_frame()) is not None:
            frames.append(frame)
        rig.connection.flush()
        if not rig.connection.blocked and not passed:
            # The peer has read just enough for what was waiting; there is little or no room for more.
            rig.connection.send({"the": "file"}, [file.fileno()])
            passed = True
            file.close()
    assert frames[-1].fields == {"the": "file", "descriptors": 1}
    assert os.fstat(frames[-1].descriptors[0]).st_size == 4096
    for frame in frames:
        frame.close()
    assert not rig.connection.blocked


def test_copies_of_what_was_not_sent_are_closed(rig: Rig) -> None:
    file = MemoryFile("passed", 4096)
    filled = rig.connection.socket
    with contextlib.suppress(BlockingIOError):
        while True:
            filled.send(bytes(1 << 12))
    with nothing_stays_open():
        before = descriptors()
        rig.connection.send({}, [file.fileno()])
        assert rig.connection.blocked
        assert not rig.connection.ready
        assert len(descriptors() - before) == 1
        rig.peer.close()
        with pytest.raises(Closed):
            rig.connection.flush()
        rig.connection.close()
    file.close()


def test_ready_says_whether_a_frame_can_be_answered(rig: Rig) -> None:
    assert not rig.connection.ready
    rig.peer.sendall(encode_frame({"id": 1}))
    select.select([rig.connection.socket], [], [], WITHIN_S)
    rig.connection.receive()
    assert rig.connection.ready
    rig.connection.receive()  # nothing there
    rig.peer.shutdown(socket.SHUT_WR)
    with pytest.raises(Closed):
        rig.connection.receive()
