"""Time for simulated guests."""

from __future__ import annotations

from typing import NoReturn, Protocol

import trio


class Advancing(Protocol):
    """A guest whose time moves only when it is told to."""

    def advance(self, seconds: float) -> int:
        """Let this much time pass; returns the number of writes done in it."""
        ...


async def run_workload(guest: Advancing, tick_s: float = 0.001) -> NoReturn:
    """Let a guest live in trio's time, real or virtual, until cancelled.

    Every `tick_s` the guest is given the time that really has passed, so no time is lost when a tick is late.
    """
    last = trio.current_time()
    while True:
        await trio.sleep(tick_s)
        now = trio.current_time()
        guest.advance(now - last)
        last = now
