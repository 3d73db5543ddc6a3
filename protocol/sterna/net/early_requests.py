"""A destination's part of pages that come early: who asks for them, and that no group overwrites them."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence

import trio

from sterna.core.destination import DestinationMachine
from sterna.core.events import Event, PagesFollow
from sterna.guest.api import DestinationGuest, EarlyRoom, PagesEarly
from sterna.net.asking import Asking, Terms
from sterna.net.kept import KeptSession
from sterna.wire.records import Region

_log = logging.getLogger(__name__)


class EarlyRequests:
    """Asks for single pages as soon as the guest runs, if the source has opened a demand connection."""

    def __init__(self) -> None:
        self._follow = trio.Event()

    def on_event(self, event: Event) -> None:
        """Of the session's machine."""
        if isinstance(event, PagesFollow):
            self._follow.set()

    async def run(
        self,
        kept: KeptSession,
        guest: DestinationGuest,
        regions: Sequence[Region],
        machine: DestinationMachine,
        ask: Callable[[], None],
    ) -> None:
        """Beside the pump. Whatever goes wrong here, every page comes with its group.

        Args:
            kept: the session, which is given the connection.
            guest: whose pages follow.
            regions: its own.
            machine: the session's.
            ask: called when the endpoint has to look at faults again.
        """
        await self._follow.wait()
        await kept.demanded.wait()
        early = guest.early_pages() if isinstance(guest, PagesEarly) else None
        connection, position = kept.demand, machine.position
        if early is None or connection is None or position is None:
            return
        try:
            told, tells = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            _log.warning("pages do not come early, there is no pipe for them: %s", error)
            connection.close()
            return
        try:
            sizes = {region.id: 1 << region.granule_log2 for region in regions}
            selection = kept.ticket.selection
            most = selection.limits.page_requests
            terms = Terms(connection.stream, position, selection.hashed, most, sizes)
            if not connection.serve(_ask, terms, early, tells, keep=(tells, *early.descriptors())):
                os.close(told)
                connection.close()  # nobody would ask there
                return
        finally:
            os.close(tells)
        early.on_stuck = connection.kill
        early.hear(told)
        try:
            await connection.wait()
        finally:
            connection.close()
            early.hear_kernel()
        ask()


def _ask(sock: socket.socket, terms: Terms, early: EarlyRoom, endpoint: int) -> None:
    """What the forked process does."""
    Asking(sock, terms, early.pager(), endpoint).run()
