"""Migrations whose link is lost and comes back: every connection is a new pair of memory transports."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio
from endpoint_support import Migration

from sterna.core.events import Event, SessionResumed
from sterna.errors import TransportError
from sterna.net.destination import Destination
from sterna.net.kept import Sessions
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.source import Source
from sterna.net.transport import Transport
from sterna.registry import ErrorCode

NAMES = ("host-s", "host-d")


@dataclass
class Resuming(Migration):
    """A migration over connections that are cut after so many bytes of the source; the last one lives.

    Attributes:
        cuts: for each connection, after how many bytes it is lost; what is behind the last lives.
        refuse: how many calls to reconnect are in vain before one is answered.
        caller: the identity that the source shows when it comes back.
        callee: the identity that answers then.
        called: set when the source dials again.
        back: set when the session was taken up again.
    """

    cuts: tuple[int, ...] = ()
    refuse: int = 0
    caller: str = NAMES[0]
    callee: str = NAMES[1]
    calls: int = 0
    link: dict[str, object] = field(default_factory=lambda: {"identities": NAMES, "rate_bytes_s": 20e6})

    def __post_init__(self) -> None:
        self.events: list[Event] = []
        self.called, self.back = trio.Event(), trio.Event()
        self.source_options["on_event"] = self.on_event
        self.sessions = Sessions()
        self.others: list[Destination] = []
        self.nears: list[MemoryTransport] = []  # the source's ends of their connections
        super().__post_init__()
        if self.cuts:
            self.near.cut_after(self.cuts[0])
        self.source = Source(
            self.guest,
            self.near,
            epoch=1,
            runner=self.guest.machine.runner,
            host=self.source_host,
            options=self._options(self.source_options),
            reconnect=self.reconnect,
        )
        self.destination = self.destination_of(self.far)

    def destination_of(self, transport: Transport) -> Destination:
        return Destination(
            lambda _: self.room,
            transport,
            host=self.destination_host,
            options=self._options(self.destination_options),
            sessions=self.sessions,
        )

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, SessionResumed):
            self.back.set()

    async def reconnect(self) -> MemoryTransport:
        self.calls += 1
        self.called.set()
        await trio.sleep(0.01)
        if self.refuse:
            self.refuse -= 1
            raise TransportError(ErrorCode.CONNECT_FAILED, "nothing listens there")
        near, far = await self.connection()
        made = len(self.others) + 1
        if made < len(self.cuts):
            near.cut_after(self.cuts[made])
        other = self.destination_of(far)
        self.others.append(other)
        self.nears.append(near)
        self.nursery.start_soon(other.run)
        return near

    async def connection(self) -> tuple[Transport, Transport]:
        return memory_transport_pair(**self.link | {"identities": (self.caller, self.callee)})

    async def run(self, meanwhile=None) -> Migration:
        async with trio.open_nursery() as self.nursery:
            return await super().run(meanwhile)
