"""Memory that goes from one process to another over loopback: a turn of the benchmarks of whole transfers.

Both sides' memory is touched beforehand: memory that the machine has not backed yet costs ten times the copy.
It is never one hot buffer, which would stay in the caches. What has arrived is looked at after every turn.
"""

from __future__ import annotations

import mmap
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np

PIECE_BYTES: Final = 1024 * 1024

# What one side does with its connected socket and its memory. The sender's answer is what counts: seconds.
Work: TypeAlias = Callable[[socket.socket, mmap.mmap], float]


def touched(size: int, fill: bytes) -> mmap.mmap:
    """Memory that a forked child shares, filled with repetitions of `fill`."""
    memory = mmap.mmap(-1, size)
    for offset in range(0, size, len(fill)):
        memory[offset : offset + len(fill)] = fill[: size - offset]
    return memory


class Memories:
    """What is sent, which is random, and where it goes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.source = touched(size, os.urandom(min(size, 16 * PIECE_BYTES)))
        self.destination = touched(size, b"\1" * min(size, PIECE_BYTES))
        self._sent = np.frombuffer(self.source, np.uint8)
        self._arrived = np.frombuffer(self.destination, np.uint8)

    def spoil(self) -> None:
        """Change a byte of every page, so that nothing passes for having arrived that is from before."""
        self._arrived[:: mmap.PAGESIZE] ^= 0xFF

    def check(self) -> None:
        """Raise unless all has arrived."""
        if not np.array_equal(self._sent, self._arrived):
            raise RuntimeError("what has arrived is not what was sent")


class Transfer:
    """A turn: send from this process to a child; the rate in bytes a second.

    Attributes:
        cpu_s: CPU seconds of both processes in the last turn, for each GiB.
    """

    def __init__(self, send: Work, receive: Work, memories: Memories) -> None:
        self._send = send
        self._receive = receive
        self._memories = memories
        self.cpu_s = 0.0

    def __call__(self) -> float:
        """Move all of it, once."""
        memories = self._memories
        memories.spoil()
        begin = time.process_time()
        with socket.create_server(("127.0.0.1", 0)) as server:
            child = os.fork()
            if not child:
                _receive(server, self._receive, memories.destination)
            try:
                with socket.create_connection(server.getsockname()) as sock:
                    seconds = self._send(sock, memories.source)
            finally:
                _, status, usage = os.wait4(child, 0)
        if status:
            raise ChildProcessError(f"the receiver failed: status {status}")
        cpu_s = time.process_time() - begin + usage.ru_utime + usage.ru_stime
        self.cpu_s = cpu_s * (1 << 30) / memories.size
        memories.check()
        return memories.size / seconds


def _receive(server: socket.socket, receive: Work, memory: mmap.mmap) -> None:
    """What the child does; it never returns."""
    code = 1
    try:
        with server.accept()[0] as sock:
            receive(sock, memory)
        code = 0
    except BaseException:  # noqa: BLE001 - nobody is above us; the parent sees the exit code
        traceback.print_exc()
    finally:
        os._exit(code)


# ---- the yardstick ----


def bare_send(sock: socket.socket, memory: mmap.mmap) -> float:
    """`sendall` in pieces; the clock stops when the receiver has answered the last byte."""
    begin = time.perf_counter()
    with memoryview(memory) as view:
        for offset in range(0, len(view), PIECE_BYTES):
            sock.sendall(view[offset : offset + PIECE_BYTES])
    sock.recv(1)
    return time.perf_counter() - begin


def bare_receive(sock: socket.socket, memory: mmap.mmap) -> float:
    """`recv_into` in pieces."""
    with memoryview(memory) as view:
        offset = 0
        while offset < len(view):
            count = sock.recv_into(view[offset : offset + PIECE_BYTES])
            if not count:
                raise ConnectionError("the sender ended early")
            offset += count
    sock.sendall(b"\0")
    return 0.0
