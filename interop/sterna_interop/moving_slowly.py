"""A guest whose memory changes slowly, moved by an embedder's source and destination.

It does what `data/writer.S` does in QEMU's machine: so many pages in every millisecond, in blocks of 32
neighbours that are far apart, and of each page one word, which is the number of the write. So most of a page
that is sent again has been sent before.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import trio

from sterna import EmbeddedGuest, Options, Source
from sterna.linux.memfd import PAGE_BYTES
from sterna.net.connect import Address, connect
from sterna_interop.memories import Memories
from sterna_interop.moving import Processes, Ready
from sterna_interop.moving_sterna import HOST, check, take_guest_in
from sterna_interop.moving_written import BLOCK_BYTES, HOT_FIRST, Written, WrittenMove
from sterna_interop.narrow_link import NarrowLink

_TICK_S = 0.001
_MEASURED_S = 1.0
_BLOCK_PAGES = BLOCK_BYTES // PAGE_BYTES


class SlowlyChanging(EmbeddedGuest):
    """See the module's text.

    Attributes:
        count: writes so far.
    """

    def __init__(self, memory: memoryview, written: Written) -> None:
        super().__init__(memory)
        self.count = 0
        self._written = written
        self._runs = True
        self._words = np.frombuffer(memory, np.uint32)

    def stop(self) -> None:
        """See `EmbeddedGuest`."""
        self._runs = False

    def start(self) -> None:
        """See `EmbeddedGuest`."""
        self._runs = True

    async def live(self) -> None:
        """Write, at the rate that was asked for as far as the machine lets it."""
        due, last = 0.0, trio.current_time()
        while True:
            await trio.sleep(_TICK_S)
            now = trio.current_time()
            due += (now - last) * self._written.rate_bytes_s / PAGE_BYTES if self._runs else 0.0
            last = now
            while due >= _BLOCK_PAGES:
                self._write_block()
                due -= _BLOCK_PAGES

    def _write_block(self) -> None:
        blocks = self._written.hot_bytes // BLOCK_BYTES
        stride = int(blocks * 0.618) | 1
        begin = HOT_FIRST + self.count // _BLOCK_PAGES * stride % blocks * BLOCK_BYTES
        place = self._words[begin // 4 : (begin + BLOCK_BYTES) // 4 : PAGE_BYTES // 4]
        place[:] = np.arange(self.count, self.count + _BLOCK_PAGES)
        self.count += _BLOCK_PAGES
        self.wrote(begin, BLOCK_BYTES)


class SternaSlowly:
    """A way to move such a guest."""

    def __init__(self, written: Written, memories: Memories, options: Options, link_bytes_s: float) -> None:
        """`options`: of the source. `link_bytes_s`: what the link carries, which nobody tells it."""
        self._written = written
        self._memories = memories
        self._options = options
        self._link_bytes_s = link_bytes_s

    def move(self, *, watched: bool = False) -> WrittenMove:
        """See `Way.move`.

        Raises:
            GuestError: it did not move, or not all has arrived.
        """
        with NarrowLink(self._link_bytes_s) as link:
            send = partial(self._send, link)
            moved = Processes(send, _take_in, self._memories).move(watched=watched)
        blackout_s, rate_bytes_s, sent_bytes = moved.more
        return WrittenMove(
            *(moved.seconds, blackout_s, rate_bytes_s, int(sent_bytes), sum(moved.cpu_s)),
            peak_bytes=moved.peak_bytes,
        )

    def _send(self, link: NarrowLink, view: memoryview, port: int) -> tuple[float, ...]:
        link.leads_to(port)
        told = trio.run(_send, view, link.port, self._written, self._options)
        return (*told, link.passed())


async def _send(view: memoryview, port: int, written: Written, options: Options) -> tuple[float, ...]:
    guest = SlowlyChanging(view, written)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.live)
        begin, before = time.perf_counter(), guest.count
        await trio.sleep(_MEASURED_S)
        rate = (guest.count - before) * PAGE_BYTES / (time.perf_counter() - begin)
        transport = await connect(Address(HOST, port), tls=None)
        source = Source(guest, transport, options=options)
        begin = time.perf_counter()
        result = await source.run()
        seconds = time.perf_counter() - begin
        nursery.cancel_scope.cancel()
    check(result)
    return seconds, result.blackout_s or 0.0, rate


def _take_in(view: memoryview, ready: Ready) -> None:
    trio.run(take_guest_in, view, ready, None)
