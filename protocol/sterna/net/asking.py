"""What a destination's pager does: it asks for the pages that the guest waits for, one by one [13.3].

It hears of a fault from the kernel, asks for the page and for those around it that are missing, and lets the
guest go on with each as it comes. What does not come in time, or is on its way with its group, is left to the
endpoint: it is told over a pipe. The endpoint counts groups, and knows nothing of pages that came early but
that they are not to be written again.
"""

from __future__ import annotations

import mmap
import os
import select
import ssl
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sterna.errors import RemoteProtocolError, remote_error
from sterna.guest.api import FAULT, Pager
from sterna.limits import CHUNK_BYTES
from sterna.net.transport import Given
from sterna.registry import ErrorCode, FrameType
from sterna.wire.integrity import page_hash
from sterna.wire.single import PAGE_HEAD_BYTES, decode_page, encode_request

# For how long a page is waited for before the endpoint asks for its group, which it then does as ever, or for
# how many round trips of the link, if that is longer.
PATIENCE_S: Final = 0.02
PATIENCE_TRIPS: Final = 3


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds on the connection.

    Attributes:
        stream: its number.
        position: attempt and round that pages carry [PCY-8].
        hashed: whether pages have hashes [MEM-20].
        most: pages that may be asked for at a time.
        sizes: bytes of a page, by region.
        rtt_s: round trip of the link, 0 if it is not known.
    """

    stream: int
    position: tuple[int, int]
    hashed: bool
    most: int
    sizes: Mapping[int, int]
    rtt_s: float = 0.0

    @property
    def patience_s(self) -> float:
        """How long an answer may take before the endpoint is told, seconds."""
        return max(PATIENCE_S, PATIENCE_TRIPS * self.rtt_s)


class Turns:
    """How often the pager has seen to all that there was, told by it and looked at by the endpoint."""

    def __init__(self) -> None:
        self._shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def take(self) -> None:
        """Once more."""
        self._shared[0] += 1

    @property
    def count(self) -> int:
        """So often."""
        return self._shared[0]


class Asking:
    """Asks on a connection. Answers come in the order of the requests, so each frame is known beforehand.

    Args:
        sock: the connection, behind ATTACHED; it does not block.
        terms: see there.
        pager: the kernel and the guest's memory.
        endpoint: where the endpoint is told of faults, a pipe that does not block.
        turns: where it is told that somebody is at work.
    """

    def __init__(self, sock: Given, terms: Terms, pager: Pager, endpoint: int, turns: Turns) -> None:
        self._sock = sock
        self._terms = terms
        self._pager = pager
        self._endpoint = endpoint
        self._turns = turns
        self._sequence = self._next = 1  # behind ATTACHED, and ATTACH
        self._asked: deque[tuple[int, int, float]] = deque()  # region, page, and until when it may take
        self._told = 0  # so many of them, from the first on, have taken longer
        self._frame = memoryview(bytearray(PAGE_HEAD_BYTES + CHUNK_BYTES))
        self._filled = 0

    def run(self) -> None:
        """Until the other side ends the connection.

        Raises:
            SternaError: something is wrong with what has come.
            OSError: the connection is lost, or the other side takes no requests.
        """
        self._sock.setblocking(False)
        faults, answers = self._pager.fileno(), self._sock.fileno()
        patience_ms = self._terms.patience_s * 1000
        poll = select.poll()
        poll.register(faults, select.POLLIN)
        poll.register(answers, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll(patience_ms if self._told < len(self._asked) else None):
                if descriptor == faults:
                    for region, page in self._pager.news():
                        if not self._ask(region, page):
                            self._tell(region, page)
                elif not self._take():
                    return
            self._lose_patience()
            self._turns.take()

    def _ask(self, region: int, page: int) -> bool:
        """Ask for it and what is missing around it; False if that would be too much, or is the endpoint's."""
        block = CHUNK_BYTES // self._terms.sizes[region]
        if len(self._asked) + block > self._terms.most:
            return False
        wanted = self._pager.wanted(region, page)
        until, frames = time.monotonic() + self._terms.patience_s, []
        for first, count in wanted:
            frames.append(encode_request(self._terms.stream, self._sequence, region, first, count))
            self._sequence += 1
            self._asked.extend((region, each, until) for each in range(first, first + count))
        data = b"".join(frames)
        if data and self._sock.send(data) != len(data):
            raise BlockingIOError("the other side takes no requests")
        return bool(data)

    def _take(self) -> bool:
        """Whatever has come; False at the end of the connection."""
        while True:
            size = self._terms.sizes[self._asked[0][0]] if self._asked else 0
            try:
                count = self._sock.recv_into(self._frame[self._filled : PAGE_HEAD_BYTES + size])
            except (BlockingIOError, ssl.SSLWantReadError):
                return True
            except ssl.SSLEOFError:
                return False  # no close_notify: who is killed announces nothing
            if not count:
                return False
            if not size:
                raise _unexpected("a frame that nobody has asked for")
            self._filled += count
            if self._filled == PAGE_HEAD_BYTES + size:
                self._filled = 0
                self._install(size)

    def _install(self, size: int) -> None:
        """A frame is there: the page may be the guest's, unless it has come with its group meanwhile."""
        came = decode_page(self._frame[:PAGE_HEAD_BYTES], self._terms.stream, self._next)
        self._next += 1
        if came.hash and not self._terms.hashed:
            detail = "a hash in a session without"
            raise remote_error(ErrorCode.BAD_VALUE, detail, clause="PGS-25", frame=FrameType.PAGES)
        content = self._frame[PAGE_HEAD_BYTES : PAGE_HEAD_BYTES + size]
        region, page, _ = self._asked.popleft()
        self._told = max(self._told - 1, 0)
        found = (came.attempt, came.round), came.region, came.page, came.size_bytes
        if found != (self._terms.position, region, page, size):
            raise _unexpected(f"page {came.page} of region {came.region}, expected was {page} of {region}")
        hashed = page_hash(content) if self._terms.hashed else 0
        if came.hash != hashed:
            detail = f"page {page} of region {region} differs from its hash"
            raise remote_error(ErrorCode.PAGE_HASH, detail, clause="PCY-34", frame=FrameType.PAGES)
        if not self._pager.install(region, page, content, hashed) and self._pager.is_missing(region, page):
            self._tell(region, page)  # on its way with its group, which may come damaged

    def _lose_patience(self) -> None:
        """What has not come in time is the endpoint's, too."""
        now = time.monotonic()
        while self._told < len(self._asked):
            region, page, until = self._asked[self._told]
            if until >= now:
                return
            self._tell(region, page)
            self._told += 1

    def _tell(self, region: int, page: int) -> None:
        with suppress(BlockingIOError):  # it has much to read; every page comes in its turn
            os.write(self._endpoint, FAULT.pack(region, page))


def _unexpected(detail: str) -> RemoteProtocolError:
    return remote_error(ErrorCode.UNEXPECTED_FRAME, detail, clause="PCY-27", frame=FrameType.PAGES)
