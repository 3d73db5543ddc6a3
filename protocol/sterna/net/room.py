"""A guest's room at its destination: memory that can be let go of, and what the guest in it waits for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from sterna.core.carry import Ticket
from sterna.core.destination import DestinationMachine
from sterna.core.events import Installed
from sterna.errors import GuestError
from sterna.guest.api import DestinationGuest, PromptGuest
from sterna.memory.merging import Claims, Merging
from sterna.memory.pages import PageSink, RegionPages, RegionSink
from sterna.memory.unpacking import Unpacking
from sterna.wire.records import PageRange, Pages

_log = logging.getLogger(__name__)


class Room:
    """A `PageSink` that can let go of the memory, so that its owner can free it."""

    def __init__(self, pages: RegionPages, ticket: Ticket | None = None) -> None:
        """`ticket`: of the session, which says whether pages may come packed."""
        window_log2 = 0 if ticket is None else ticket.selection.window_log2
        self._memory: RegionPages | None = pages
        self._window_log2: Final = window_log2
        self._claims: Claims | None = None
        self._pages: PageSink | None = self._packed(pages)
        self._early_pages = 0  # when it was closed

    def spare(self, claims: Claims) -> None:
        """From now on nothing is received in the place of a page that the guest has by then [PCY-33].

        Nothing may be under way. Legal again, with the same claims.
        """
        if claims is not self._claims and self._memory is not None:
            self._claims = claims
            self._pages = self._packed(Merging(self._memory, claims))

    def _packed(self, pages: RegionSink) -> PageSink:
        return Unpacking(pages, self._window_log2) if self._window_log2 else pages

    def targets(self, table: Pages) -> list[memoryview]:
        """See `PageSink.targets`."""
        assert self._pages is not None
        return self._pages.targets(table)

    def came(self, table: Pages, size_bytes: int) -> None:
        """See `PageSink.came`."""
        assert self._pages is not None
        self._pages.came(table, size_bytes)

    def commit(self, table: Pages, *, hashed: bool = True) -> list[PageRange]:
        """See `PageSink.commit`."""
        assert self._pages is not None
        return self._pages.commit(table, hashed=hashed)

    @property
    def early_pages(self) -> int:
        """See `PageSink.early_pages`."""
        return self._early_pages if self._pages is None else self._pages.early_pages

    def close(self) -> None:
        """Nothing can be received any more."""
        self._early_pages, self._pages, self._memory = self.early_pages, None, None


async def tell_faults(
    guest: DestinationGuest,
    machine: DestinationMachine,
    ask: Callable[[], None],
    clock: Callable[[], float],
) -> None:
    """Tell a machine what its guest waits for, for as long as the guest says so.

    If it stops to, nothing is lost but time: every page comes in its turn [PCY-13].
    """
    try:
        while True:
            for pages in await guest.faults():
                machine.fault(pages.region, pages.first, pages.count, clock())
            ask()
    except GuestError:
        _log.exception("the guest does not say any more what it waits for")


class Prompt:
    """Sees to a guest that waits for pages, whenever something has come and without a turn of any task."""

    def __init__(self, guest: PromptGuest, machine: DestinationMachine, clock: Callable[[], float]) -> None:
        self._guest = guest
        self._machine = machine
        self._clock = clock
        self._silent = False

    def see_to(self) -> None:
        """Let the guest go on with what has come."""
        while isinstance(request := self._machine.prompt_request, Installed) and self._install(request):
            pass

    def tell(self) -> bool:
        """Tell the machine what the guest waits for; whether there was anything to tell."""
        if self._silent:
            return False
        try:
            found = self._guest.waited_for()
            for pages in found:
                self._machine.fault(pages.region, pages.first, pages.count, self._clock())
            return bool(found)
        except GuestError:
            self._silent = True
            _log.exception("the guest does not say any more what it waits for")
            return False

    def _install(self, request: Installed) -> bool:
        """False: somebody has to wait for it."""
        try:
            done = [self._guest.let_go(each.region, each.first, each.count) for each in request.pages]
        except GuestError as error:
            self._machine.poll_request()
            self._machine.fail(request, error, self._clock())
            return False
        if not all(done):
            return False
        self._machine.poll_request()
        self._machine.complete(request, None, self._clock())
        return True
