"""Pauses between tries of something that may work later: each twice as long as the one before, up to a bound.

Short at first, because most of what fails comes back at once; bounded, because whoever brings back what was
gone does not want to wait much longer than that.
"""

from __future__ import annotations

from typing import Final

import trio


class Pauses:
    """The pauses of one series of tries.

    Args:
        first_s: the first one.
        longest_s: where they stop growing.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._next_s = min(first_s, longest_s)
        self._longest_s: Final = longest_s

    async def next(self) -> None:
        """Let the next one pass."""
        await trio.sleep(self._next_s)
        self._next_s = min(2 * self._next_s, self._longest_s)
