"""A guest's room at its destination: memory that can be let go of, and what the guest in it waits for."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sterna.core.destination import DestinationMachine
from sterna.errors import GuestError
from sterna.guest.api import DestinationGuest
from sterna.memory.pages import PageSink
from sterna.wire.records import PageRange, Pages

_log = logging.getLogger(__name__)


class Room:
    """A `PageSink` that can let go of the memory, so that its owner can free it."""

    def __init__(self, pages: PageSink) -> None:
        self._pages: PageSink | None = pages

    def targets(self, table: Pages) -> list[memoryview]:
        """See `PageSink.targets`."""
        assert self._pages is not None
        return self._pages.targets(table)

    def commit(self, table: Pages) -> list[PageRange]:
        """See `PageSink.commit`."""
        assert self._pages is not None
        return self._pages.commit(table)

    def close(self) -> None:
        """Nothing can be received any more."""
        self._pages = None


async def tell_faults(
    guest: DestinationGuest,
    machine: DestinationMachine,
    kick: Callable[[], None],
    clock: Callable[[], float],
) -> None:
    """Tell a machine what its guest waits for, for as long as the guest says so.

    If it stops to, nothing is lost but time: every page comes in its turn [PCY-13].
    """
    try:
        while True:
            for pages in await guest.faults():
                machine.fault(pages.region, pages.first, pages.count, clock())
            kick()
    except GuestError:
        _log.exception("the guest does not say any more what it waits for")
