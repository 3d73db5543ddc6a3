"""A bandwidth cap: a token bucket that never lends.

Bytes are paid for before they are sent: `wait(n)` returns when `n` bytes fit under the cap, so what leaves in
any time never exceeds rate times time by more than the credit of one `BURST_S`. The credit exists because
a task wakes a little late every time: without it the rate would stay below the cap by that much.
Time is trio's, so under a virtual clock the rate is exact.
"""

from __future__ import annotations

import math
from typing import Final

import trio

# More than a task ever wakes late on a busy machine, less than a switch buffers on a link of that rate.
BURST_S: Final = 0.02


class RateLimiter:
    """Caps what its callers send together. Several tasks may wait; they are served in the order of calls.

    Attributes:
        waited_s: how long callers have been held back in all, to tell a capped link from a slow one.
    """

    def __init__(self, rate_bytes_s: float | None = None) -> None:
        self.waited_s = 0.0
        self._rate_bytes_s: float | None = None
        self._paid_until = -math.inf  # when the bytes let through so far have passed at the rate
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
        # The first call pays in full: credit is for waking late, not for having been idle before.
        earliest = now if self._paid_until == -math.inf else now - BURST_S
        self._paid_until = max(self._paid_until, earliest) + cost_s
        try:
            await trio.sleep_until(self._paid_until)
        except trio.Cancelled:
            self._paid_until -= cost_s
            raise
        self.waited_s += max(0.0, trio.current_time() - now)
