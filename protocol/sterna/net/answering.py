"""What a source's pager does: it answers requests for single pages, on a connection of its own [PCY-28].

It reads a request and sends the pages of it, one a frame, the first of them at once, until the connection
ends or something is wrong with it. The image stands still meanwhile, and nothing of the session depends on
this: what is asked for here is sent with its group all the same.
"""

from __future__ import annotations

import mmap
import ssl
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sterna.errors import remote_error
from sterna.limits import RECORD_BYTES
from sterna.memory.groups import Groups
from sterna.net.transport import Given
from sterna.registry import ErrorCode
from sterna.wire.integrity import page_hash
from sterna.wire.records import PageRequest, Region
from sterna.wire.single import PAGE_HEAD_BYTES, REQUEST_BYTES, decode_request, encode_page

# How often, on the average, each page of the image may be asked for.
_TIMES: Final = 2
# TLS records of the answers: a quarter of what a key may protect [TLS-18], for here nobody renews it.
_RECORDS_MAX: Final = 1 << 22

_NEAR: Final = struct.Struct("=QQQ")


class Near:
    """Where the guest has asked last, told by one process and looked at by another.

    Both may be at it at the same time. Then what is read is no page that was asked for, which does no harm:
    it only says where the push goes on.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._seen = 0
        self._count = 0

    def tell(self, region: int, page: int) -> None:
        """Here."""
        self._count += 1
        _NEAR.pack_into(self._shared, 0, self._count, region, page)

    def news(self) -> tuple[int, int] | None:
        """Region and page, None if nothing was asked for since the last call."""
        count, region, page = _NEAR.unpack_from(self._shared)
        if count == self._seen:
            return None
        self._seen = count
        return region, page


@dataclass(frozen=True, slots=True)
class Image:
    """What is answered from.

    Attributes:
        memory: of the copied regions, by id.
        groups: of the pages that follow the guest; others are not to be asked for.
        position: attempt and round that the pages carry [PCY-8].
        hashed: whether they have hashes [MEM-20].
    """

    memory: Mapping[int, tuple[Region, memoryview]]
    groups: Groups
    position: tuple[int, int]
    hashed: bool


class Answering:
    """Answers on a connection.

    Args:
        sock: the connection, behind ATTACHED; blocking from here on.
        stream: its number.
        image: what is answered from.
        tell: called with region and page of every request.
    """

    def __init__(self, sock: Given, stream: int, image: Image, tell: Callable[[int, int], None]) -> None:
        self._sock = sock
        self._stream = stream
        self._image = image
        self._tell = tell
        self._sequence = 1  # behind ATTACH
        self._left = _TIMES * sum(region.pages for region, _ in image.memory.values())
        self._records_left = _RECORDS_MAX

    def run(self) -> None:
        """Until the peer has enough.

        Raises:
            SternaError: something is wrong with a request.
            OSError: the connection is lost.
        """
        self._sock.setblocking(True)
        frame = memoryview(bytearray(REQUEST_BYTES))
        number = 1  # behind ATTACHED
        while self._left > 0 and self._receive(frame):
            request = decode_request(frame, self._stream, number)
            number += 1
            if not self._image.groups.holds(request.region, request.first, request.count):
                detail = f"pages {request.first}+{request.count} of region {request.region} do not follow"
                raise remote_error(ErrorCode.UNEXPECTED_FRAME, detail, clause="PCY-28", frame=request.type)
            if not self._pays(request):
                return
            self._tell(request.region, request.first)
            self._answer(request)

    def _pays(self, request: PageRequest) -> bool:
        """Whether the connection lasts for the answer, too."""
        frame_bytes = PAGE_HEAD_BYTES + (1 << self._image.memory[request.region][0].granule_log2)
        self._left -= request.count
        self._records_left -= request.count * -(-frame_bytes // RECORD_BYTES)
        return self._records_left >= 0

    def _answer(self, request: PageRequest) -> None:
        """The guest waits for the first page, which leaves by itself; it will for others."""
        first, rest = request.first, request.first + 1
        self._sock.sendall(self._frames(request.region, range(first, rest)))
        if request.count > 1:
            self._sock.sendall(self._frames(request.region, range(rest, first + request.count)))

    def _frames(self, number: int, pages: range) -> memoryview:
        """A frame for each of these pages."""
        region, memory = self._image.memory[number]
        log2, size = region.granule_log2, 1 << region.granule_log2
        frames = memoryview(bytearray((PAGE_HEAD_BYTES + size) * len(pages)))
        rest = frames
        for page in pages:
            content = rest[PAGE_HEAD_BYTES : PAGE_HEAD_BYTES + size]
            content[:] = memory[page << log2 : page + 1 << log2]
            hashed = page_hash(content) if self._image.hashed else 0
            rest[:PAGE_HEAD_BYTES] = encode_page(
                self._stream, self._sequence, self._image.position, region.id, page, size, hashed
            )
            self._sequence += 1
            rest = rest[PAGE_HEAD_BYTES + size :]
        return frames

    def _receive(self, view: memoryview) -> bool:
        """Fill `view`; False at the end of the connection."""
        while view.nbytes:
            try:
                count = self._sock.recv_into(view)
            except ssl.SSLEOFError:
                return False  # no close_notify: who is killed announces nothing
            if not count:
                return False
            view = view[count:]
        return True
