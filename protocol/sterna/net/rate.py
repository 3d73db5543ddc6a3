"""A bandwidth cap: a token bucket that earns nothing while it is idle.

Bytes are paid for before they are sent: `wait(n)` returns when `n` bytes fit under the cap. A task wakes late
every time, and encoding and sending take time, too. Without credit for that the rate would stay below the cap
by that much. So what a caller that always had something to send has lost is made up for, but not more of it
than `CREDIT_S`. Time in which there was nothing to send is not made up for. With grants of `GRANT_S` at most,
into which `grants` cuts what is to be sent:

    bytes within any T seconds <= rate * (T + CREDIT_S + GRANT_S)

which is 5 % more than the cap over a second, and less over any longer time; over a shorter one it is as much
as a source encodes at once (sterna.net.options).

The kernel may still hold what was sent before: a link that stalls and comes back is not slowed down by this.
Time is trio's, so under a virtual clock the rate is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import trio

from sterna.limits import RECORD_BYTES
from sterna.net.transport import Buffer

# More than a task wakes late unless all processors have other work, and together 5 % of a second.
CREDIT_S: Final = 0.04
GRANT_S: Final = 0.01


class RateLimiter:
    """Caps what its callers send together. Several tasks may wait; they are served in the order of calls.

    Args:
        rate_bytes_s: the cap.
    """

    def __init__(self, rate_bytes_s: float) -> None:
        if not 0 < rate_bytes_s < math.inf:
            raise ValueError(f"a rate is a positive number of bytes a second, not {rate_bytes_s}")
        self._rate_bytes_s: Final = rate_bytes_s
        size = max(1, int(rate_bytes_s * GRANT_S))
        # Whole records of TLS, unless that is too much.
        self._grant_bytes: Final = size - size % RECORD_BYTES if size > RECORD_BYTES else size
        self._paid_until = -math.inf  # when what was let through has passed, at the rate
        self._turn: Final = trio.StrictFIFOLock()

    def grants(self, buffers: Sequence[Buffer]) -> Iterator[list[memoryview]]:
        """What is to be sent in parts, for each of which there is a `wait` before it is sent."""
        part: list[memoryview] = []
        room = self._grant_bytes
        for buffer in buffers:
            rest = memoryview(buffer).cast("B")
            while rest.nbytes:
                part.append(rest[:room])
                rest = rest[room:]
                room -= part[-1].nbytes
                if not room:
                    yield part
                    part, room = [], self._grant_bytes
        if part:
            yield part

    async def wait(self, count: int, busy_since: float = math.inf) -> None:
        """Return when `count` bytes may be sent. If it is cancelled, they count as not sent.

        Without a turn of the event loop if they may be now: where others need long for theirs, who waited for
        one before each grant would make up for nothing. So this is no checkpoint, but a grant that is due and
        the credit behind it are soon used up.

        Args:
            count: bytes.
            busy_since: when the caller had nothing to send for the last time, in trio's time; by default that
                is now.
        """
        wanted_since = min(busy_since, trio.current_time())
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            await self._turn.acquire()
        try:
            # Looked at here, when all that went before has passed: how late that was is known only now.
            earliest = max(wanted_since, trio.current_time() - CREDIT_S)
            paid_until = max(self._paid_until, earliest) + count / self._rate_bytes_s
            if paid_until > trio.current_time():
                await trio.sleep_until(paid_until)
            self._paid_until = paid_until
        finally:
            self._turn.release()
