"""How much memory following takes, whatever a recording announces.

What has to be kept of a session grows with what its sides announced: an entry for each page of the guest, a
bulk part, the execution state. All of it comes out of one budget for all sessions of a recording, and goes
back when a session is over.
"""

from __future__ import annotations

from typing import Final

from sterna.core.words import size_text
from sterna.errors import SternaError

# Enough for guests of 400 GiB in pages of 4 KiB.
BUDGET_BYTES: Final = 1 << 30


class TooMuchError(SternaError):
    """A recording asks its reader for more than the reader takes. No fault of anybody's."""


class Budget:
    """Memory for all sessions of a recording."""

    def __init__(self, size_bytes: int = BUDGET_BYTES) -> None:
        self.size_bytes: Final = size_bytes
        self.left_bytes = size_bytes

    def share(self) -> Share:
        """What one session takes of it; nothing yet."""
        return Share(self)


class Share:
    """What one session has taken."""

    def __init__(self, budget: Budget) -> None:
        self._budget: Final = budget
        self._taken_bytes = 0

    def take(self, size_bytes: int, what: str) -> None:
        """Ask for more, before it is allocated; `what` it is for.

        Raises:
            TooMuchError: there is not so much left.
        """
        budget = self._budget
        if size_bytes > budget.left_bytes:
            need = f"{what} takes {size_text(size_bytes)} of memory to follow"
            left = f"{size_text(budget.left_bytes)} of {size_text(budget.size_bytes)} are left"
            raise TooMuchError(f"{need}, {left}: allow more with --memory")
        budget.left_bytes -= size_bytes
        self._taken_bytes += size_bytes

    def release(self) -> None:
        """The session is over: give everything back."""
        self._budget.left_bytes += self._taken_bytes
        self._taken_bytes = 0
