"""A source's part of pages that come early: the demand connection is dialled, and served from RUNNING on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import trio

from sterna.core.events import Event, PagesFollow, StreamAttached
from sterna.core.source import SourceMachine
from sterna.errors import SternaError
from sterna.guest.api import SourceGuest
from sterna.net.answering import Answering, Image, Near
from sterna.net.demand import DemandConnection, open_demand
from sterna.net.redial import Reconnect
from sterna.net.transport import Given, Peer
from sterna.registry import Transfer
from sterna.wire.records import Region

_log = logging.getLogger(__name__)

# How often the push is told where the guest is: what it pushes meanwhile is some mebibytes.
NEAR_S: Final = 0.005


class EarlyAnswers:
    """Single pages of a guest's image, for a destination that asks for them. Whoever makes it closes it."""

    def __init__(self, guest: SourceGuest, regions: Sequence[Region]) -> None:
        self._guest = guest
        self._regions = tuple(region for region in regions if region.transfer is Transfer.COPY)
        self._attached = trio.Event()
        self._follow = trio.Event()
        self._connection: DemandConnection | None = None

    def on_event(self, event: Event) -> None:
        """Of the session's machine."""
        if isinstance(event, StreamAttached):
            self._attached.set()
        elif isinstance(event, PagesFollow):
            self._follow.set()

    async def run(self, machine: SourceMachine, reconnect: Reconnect, peer: Peer) -> None:
        """Beside the pump. Whatever goes wrong here, every page comes with its group."""
        await self._attached.wait()  # data connections are dialled first, and then ACCEPT has come [PCY-26]
        if (attach := machine.demand_attach) is None:
            return
        try:
            self._connection = connection = await open_demand(reconnect, peer, attach)
        except SternaError as error:
            _log.info("no demand connection: %s", error)
            return
        await self._follow.wait()
        groups, position, selection = machine.groups, machine.position, machine.selection
        assert groups is not None
        assert position is not None
        assert selection is not None
        memory = {region.id: (region, self._guest.memory(region.id)) for region in self._regions}
        image, near = Image(memory, groups, position, selection.hashed), Near()
        if connection.serve(_answer, connection.stream, image, near):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_guest, machine, near)
                await connection.wait()
                nursery.cancel_scope.cancel()
        else:
            connection.close()  # nobody would answer there

    async def _follow_guest(self, machine: SourceMachine, near: Near) -> None:
        """The push goes on where the guest is."""
        while True:
            await trio.sleep(NEAR_S)
            if (found := near.news()) is not None:
                machine.push_near(*found)

    def close(self) -> None:
        """Nothing of the image is read when this returns. Legal twice."""
        if self._connection is not None:
            self._connection.close()


def _answer(sock: Given, stream: int, image: Image, near: Near) -> None:
    """What the forked process does."""
    Answering(sock, stream, image, near.tell).run()
