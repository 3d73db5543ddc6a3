"""Two scripted peers and a pipe: neither knows anything of Sterna's endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from sterna.net.memory import memory_transport_pair
from sterna_interop.case import Line, Wire
from sterna_interop.contract import Role
from sterna_interop.peer import Conversation, Peer
from sterna_interop.peer_destination import Destination, DestinationPlan
from sterna_interop.peer_source import Source, SourcePlan
from sterna_interop.peer_steps import Account, Act, Manner, Place


@dataclass
class Scripted:
    """What one of the two does."""

    plan: dict[str, object] = field(default_factory=dict)
    manner: Manner = field(default_factory=Manner)
    place: Place | None = None
    act: Act | None = None


def talk(
    source: Scripted | None = None, destination: Scripted | None = None, *, patience_s: float = 5.0
) -> dict[Role, Account]:
    """Let them talk, in virtual time; what each makes of the other."""
    source, destination = source or Scripted(), destination or Scripted()
    talks = {
        Role.SOURCE: Source(SourcePlan(**source.plan)),  # type: ignore[arg-type]
        Role.DESTINATION: Destination(DestinationPlan(**destination.plan)),  # type: ignore[arg-type]
    }
    parts = {
        role: Part(talks[role], how.manner, how.place, how.act)
        for role, how in ((Role.SOURCE, source), (Role.DESTINATION, destination))
    }
    return meet(parts, patience_s=patience_s)


@dataclass(frozen=True)
class Part:
    """What one of two says, and how it departs from that."""

    talk: Conversation
    manner: Manner = field(default_factory=Manner)
    place: Place | None = None
    act: Act | None = None


def meet(parts: Mapping[Role, Part], *, patience_s: float = 5.0) -> dict[Role, Account]:
    """Let two talk, in virtual time, over as many connections as the source dials."""
    accounts: dict[Role, Account] = {}

    async def both() -> None:
        calls, called = trio.open_memory_channel[Line](16)

        async def dial(_wire: Wire | None) -> Line:
            near, far = map(Line, memory_transport_pair())
            await calls.send(far)
            return near

        async def answer(_wire: Wire | None) -> Line:
            return await called.receive()

        async def one(role: Role, line: Line) -> None:
            part = parts[role]
            peer = Peer(line, part.manner, part.place, part.act)
            accounts[role] = peer.account
            await peer.converse(part.talk, patience_s)
            await line.end()

        near, far = memory_transport_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, Role.SOURCE, Line(near, another=dial))
            nursery.start_soon(one, Role.DESTINATION, Line(far, another=answer))

    trio.run(both, clock=MockClock(autojump_threshold=0))
    return accounts
