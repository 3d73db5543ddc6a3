"""How far ahead the source pushes pages that follow the guest, and on which connection [13.2].

What the guest waits for waits for what is on its way and not read yet, and so the push stays only a little
ahead of what the destination has read. How little follows from the guest: each request closes the window to
one group, and each answer that comes without one opens it again by a part, so that a guest that has found its
working set does not slow the push.

With data connections the push goes on these, and what was asked for on the control connection, where nothing
is in its way [STR-16]. The window only says then how large batches are.

Which pages come next is for `Serving`, which outlives connections. What is here is of one machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from sterna.core.lanes import Lane
from sterna.core.serving import PUSH_BYTES, Serving
from sterna.limits import CHUNK_BYTES
from sterna.wire.records import PageRequest, Pages

# What is pushed and not known to have been read stands in the way of what is asked for. So much of it keeps a
# link of little delay busy; of one with more, twice what it holds.
WINDOW_BYTES: Final = 2 * PUSH_BYTES
# While the guest waits again and again there is room for so much, or for half of what the link holds: the
# push goes on, however often it is asked for something.
WINDOW_LEAST_BYTES: Final = CHUNK_BYTES
# PINGs tell what was read: so many of them in a window, which is far below what a peer must answer at once.
_PINGS: Final = 2
# It opens by this part of what was read: from the least to the most in ten round trips.
_OPENING: Final = 4


class Window:
    """How far the push is ahead of what the destination has read, seen by its answers to PING [PCY-23]."""

    def __init__(self, rate_bytes_s: float, rtt_s: float) -> None:
        """For a link of this rate and round trip, as far as they are known."""
        holds = int(rate_bytes_s * rtt_s)
        self._most: Final = max(WINDOW_BYTES, 2 * holds)
        self._least: Final = max(WINDOW_LEAST_BYTES, holds // 2)
        self._size = self._least
        self._ahead = 0
        self._unmarked = 0
        self._marks: deque[tuple[int, int]] = deque()  # number of a PING, bytes that went before it

    def is_open(self, waits_for: Callable[[int], bool]) -> bool:
        """Whether more may be pushed; `waits_for` tells whether a PING is unanswered."""
        while self._marks and not waits_for(self._marks[0][0]):
            read = self._marks.popleft()[1]
            self._ahead -= read
            self.open(read)
        # Closed without a PING under way it would stay so: a request has just made it small.
        return self._has_room or not self._marks

    @property
    def _has_room(self) -> bool:
        return self._ahead + self.batch_bytes <= self._size

    def open(self, read_bytes: int) -> None:
        """So much was read, or need not be waited for: on a connection of its own."""
        self._size = min(self._size + read_bytes // _OPENING, self._most)

    @property
    def batch_bytes(self) -> int:
        """How much to push at once."""
        return min(max(self._size // _PINGS, CHUNK_BYTES), PUSH_BYTES)

    def close(self) -> None:
        """The guest waits for pages: what it waits for next should not find much in its way."""
        self._size = self._least

    def pushed(self, size_bytes: int) -> bool:
        """So much was sent. Whether a PING should follow, to be told to `marked`."""
        self._ahead += size_bytes
        self._unmarked += size_bytes
        return self._unmarked >= self._size // _PINGS or not (self._has_room or self._marks)

    def marked(self, ping: int) -> None:
        """This PING was sent behind it."""
        self._marks.append((ping, self._unmarked))
        self._unmarked = 0


class Push:
    """The stale pages of one migration, on the connections of one machine.

    Attributes:
        window: is told of PINGs that follow pages.
    """

    def __init__(self, serving: Serving, window: Window, *, apart: bool) -> None:
        """Begin. `apart`: there are data connections, or will be."""
        self.window: Final = window
        self._serving: Final = serving
        self._apart: Final = apart

    def request(self, record: PageRequest) -> None:
        """The destination asks for pages.

        Raises:
            RemoteProtocolError: as for `Serving.request`.
        """
        self._serving.request(record)
        self.window.close()

    def next_batch(
        self, lane: Lane, waits_for: Callable[[int], bool], *, zeros: bool
    ) -> tuple[Pages, Sequence[memoryview]] | None:
        """The next PAGES frame of this connection; None if there is none, or none that may go now [PCY-23].

        Args:
            lane: the connection.
            waits_for: whether a PING is unanswered.
            zeros: as for `Serving.next_batch`.
        """
        pushes = lane.attached if self._apart else self.window.is_open(waits_for)
        if not pushes and not (lane.stream == 0 and self._serving.is_asked):
            return None
        take = self._serving.next_push if lane.stream else self._serving.next_batch
        return take(zeros=zeros, push_bytes=self.window.batch_bytes)

    def sent(self, stream: int, size_bytes: int) -> bool:
        """So much was queued on a connection. Whether a PING should follow, to be told to the window."""
        if stream:
            self.window.open(size_bytes)
            return False
        return not self._apart and self.window.pushed(size_bytes)
