"""Who tells an endpoint of its guest's faults: the kernel, or a pager: spec/holder.md, section 6.2.

The pager, forked from the endpoint, reads the faults in its place and lets the guest have pages early. It
tells through a pipe of those that it leaves to the endpoint. When the pipe ends, the faults are read here
again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from sterna.guest.api import FAULT
from sterna.guest.early_pages import EarlyPages
from sterna.guest.late_entries import LateEntries
from sterna.guest.late_pager import LatePager

_RECORDS: Final = 256  # of one read of the pipe; more are there at the next


class LateFaults:
    """Faults that nobody has told yet. An `EarlyRoom` if `early` is not None. Whoever makes it closes it.

    Args:
        entries: reads what the kernel tells; its descriptor is this object's from now on.
        early: likewise, all of it.

    Attributes:
        entries: these.
        early: what came, or may come, before it counts as installed; None if there is no room to note it.
    """

    def __init__(self, entries: LateEntries, early: EarlyPages | None) -> None:
        self.entries: Final = entries
        self.early: Final = early
        self._pipe: int | None = None

    def read(self) -> list[tuple[int, int]]:
        """Region and page of what the pager, or the kernel, tells by now.

        Raises:
            GuestError: the holder tells nonsense.
        """
        if self._pipe is not None:
            try:
                data = os.read(self._pipe, _RECORDS * FAULT.size)
            except BlockingIOError:
                return []
            if data and not len(data) % FAULT.size:
                found = [(region, page) for region, page in FAULT.iter_unpack(data)]
                if all(self._exists(*place) for place in found):
                    return found
            self.hear_kernel()  # the pager has ended, or makes no sense
        return self.entries.faults()

    def _exists(self, region: int, page: int) -> bool:
        one = self.entries.regions.get(region)
        return one is not None and page < one.region.pages

    async def wait(self) -> None:
        """Until there may be something to read, or this is closed."""
        with suppress(trio.ClosedResourceError):  # by `close`, or something else is to be waited for
            await trio.lowlevel.wait_readable(self._told_by)

    def repeat(self) -> None:
        """Have every access that waits told again: another process may have read of it, and died."""
        self.entries.wake()

    def close(self) -> None:
        """Give everything back. Legal twice."""
        if not self.is_closed:
            self._listen(None)
            trio.lowlevel.notify_closing(self.entries.uffd.fileno())
        self.entries.uffd.close()
        if self.early is not None:
            self.early.close()

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be waited for any more."""
        return self.entries.uffd.fileno() < 0

    @property
    def _told_by(self) -> int:
        return self.entries.uffd.fileno() if self._pipe is None else self._pipe

    def _listen(self, pipe: int | None) -> None:
        """Wait for this pipe, or for the kernel, from now on; also who is waiting already."""
        trio.lowlevel.notify_closing(self._told_by)
        if self._pipe is not None:
            os.close(self._pipe)
        self._pipe = pipe

    # ---- early pages ----

    @property
    def claims(self) -> EarlyPages:
        """See `EarlyRoom`."""
        assert self.early is not None
        return self.early

    @property
    def on_stuck(self) -> Callable[[], None]:
        """See `EarlyRoom`."""
        return self.claims.on_stuck

    @on_stuck.setter
    def on_stuck(self, end: Callable[[], None]) -> None:
        self.claims.on_stuck = end

    def descriptors(self) -> list[int]:
        """See `EarlyRoom`."""
        return [self.entries.uffd.fileno(), self.claims.fileno()]

    def pager(self) -> LatePager:
        """See `EarlyRoom`."""
        return LatePager(self.entries, self.claims)

    def hear(self, descriptor: int) -> None:
        """See `EarlyRoom`."""
        if self.is_closed:
            os.close(descriptor)
            return
        self.hear_kernel()  # what another pager has read of is lost with it
        self._listen(descriptor)

    def any_unread(self) -> bool:
        """See `EarlyRoom`."""
        return not self.is_closed and self.entries.uffd.any_unread()

    def hear_kernel(self) -> None:
        """See `EarlyRoom`."""
        if self._pipe is not None:
            self._listen(None)
            self.repeat()
