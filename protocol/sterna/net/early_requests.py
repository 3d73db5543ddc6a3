"""A destination's part of pages that come early: who asks for them, and that no group overwrites them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Final

import trio

from sterna.core.destination import DestinationMachine
from sterna.core.events import Event, PagesFollow
from sterna.guest.api import DestinationGuest, EarlyRoom, PagesEarly
from sterna.net.asking import Asking, Terms, Turns
from sterna.net.demand import DemandConnection
from sterna.net.kept import KeptSession
from sterna.net.transport import Given
from sterna.wire.records import Region

_log = logging.getLogger(__name__)

# How long the pager may leave a fault unread. It reads within microseconds if it has a processor.
STANDS_STILL_S: Final = 0.25


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
        sizes = {region.id: 1 << region.granule_log2 for region in regions}
        selection = kept.ticket.selection
        terms = Terms(
            stream=connection.stream,
            position=position,
            hashed=selection.hashed,
            most=selection.limits.page_requests,
            sizes=sizes,
            rtt_s=connection.rtt_s,
        )
        turns = Turns()
        told = _fork(connection, terms, early, turns)
        if told is None:
            connection.close()  # nobody would ask there
            return
        early.on_stuck = connection.kill
        early.hear(told)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_if_still, connection, early, turns)
                await connection.wait()
                nursery.cancel_scope.cancel()
        finally:
            connection.close()
            early.hear_kernel()
        ask()


def _fork(connection: DemandConnection, terms: Terms, early: EarlyRoom, turns: Turns) -> int | None:
    """Have a process ask on the connection: the pipe on which it tells of faults; None if there is none."""
    try:
        told, tells = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        _log.warning("pages do not come early, there is no pipe for them: %s", error)
        return None
    try:
        if connection.serve(_ask, terms, early, tells, turns, keep=(tells, *early.descriptors())):
            return told
    finally:
        os.close(tells)
    os.close(told)
    return None


async def _end_if_still(connection: DemandConnection, early: EarlyRoom, turns: Turns) -> None:
    """A process that is stopped reads no faults, and nobody else does: the guest would wait for the push."""
    seen: int | None = None
    while seen is None or seen != turns.count or not early.any_unread():
        seen = turns.count if early.any_unread() else None
        await trio.sleep(STANDS_STILL_S)
    _log.warning("pages do not come early any more: the process that asks for them stands still")
    connection.kill()


def _ask(sock: Given, terms: Terms, early: EarlyRoom, endpoint: int, turns: Turns) -> None:
    """What the forked process does."""
    Asking(sock, terms, early.pager(), endpoint, turns).run()
