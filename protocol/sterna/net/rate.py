"""A bandwidth cap: two token buckets that never lend.

Bytes are paid for before they are sent: `wait(n)` returns when `n` bytes fit under the cap. A task wakes late
every time, now and then very late on a busy machine, and nobody sends while a round is acknowledged. Without
credit for that the rate would stay below the cap by that much; with unbounded credit a flood would follow a
pause. So time that was lost is made up for, but not more of it than `CREDIT_S`, and not faster than `PEAK`
times the cap, of which a task that wakes late may have `BURST_S` at once:

    bytes within any T seconds <= rate * min(T + CREDIT_S, PEAK * (T + BURST_S))

Time is trio's, so under a virtual clock the rate is exact.
"""

from __future__ import annotations

import math
from typing import Final

import trio

# Longer than tasks and sends stall where all processors have other work. In ten seconds it is 2.5 % of a cap.
CREDIT_S: Final = 0.25
PEAK: Final = 1.25
# More than a task ever wakes late on a machine of its own, less than a switch buffers on a link of that rate.
BURST_S: Final = 0.02


class RateLimiter:
    """Caps what its callers send together. Several tasks may wait; they are served in the order of calls.

    Attributes:
        waited_s: how long callers have been held back in all, to tell a capped link from a slow one.
    """

    def __init__(self, rate_bytes_s: float | None = None) -> None:
        self.waited_s = 0.0
        self._rate_bytes_s: float | None = None
        # When the bytes let through so far have passed, at the rate and at its peak.
        self._paid_until = self._peak_until = -math.inf
        self.rate_bytes_s = rate_bytes_s

    @property
    def rate_bytes_s(self) -> float | None:
        """The cap; None is no cap. A change holds from the next `wait` on."""
        return self._rate_bytes_s

    @rate_bytes_s.setter
    def rate_bytes_s(self, value: float | None) -> None:
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"a rate is a positive number of bytes a second, not {value}")
        self._rate_bytes_s = value

    async def wait(self, count: int) -> None:
        """Return when `count` bytes may be sent. If it is cancelled, they count as not sent."""
        if self._rate_bytes_s is None:
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        now = trio.current_time()
        cost_s = count / self._rate_bytes_s
        # The first call pays in full: nothing was lost before it.
        is_first = self._paid_until == -math.inf
        self._paid_until = max(self._paid_until, now if is_first else now - CREDIT_S) + cost_s
        self._peak_until = max(self._peak_until, now if is_first else now - BURST_S) + cost_s / PEAK
        try:
            await trio.sleep_until(max(self._paid_until, self._peak_until))
        except trio.Cancelled:
            self._paid_until -= cost_s
            self._peak_until -= cost_s / PEAK
            raise
        self.waited_s += max(0.0, trio.current_time() - now)
