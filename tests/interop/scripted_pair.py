"""Two scripted peers and a pipe: neither knows anything of Sterna's endpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from sterna.net.memory import memory_transport_pair
from sterna_interop.case import Line
from sterna_interop.contract import Role
from sterna_interop.peer import Peer
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
    accounts: dict[Role, Account] = {}

    async def one(role: Role, line: Line, how: Scripted) -> None:
        peer = Peer(line, how.manner, how.place, how.act)
        accounts[role] = peer.account
        await peer.converse(talks[role], patience_s)
        await line.end()

    async def both() -> None:
        near, far = map(Line, memory_transport_pair())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, Role.SOURCE, near, source)
            nursery.start_soon(one, Role.DESTINATION, far, destination)

    trio.run(both, clock=MockClock(autojump_threshold=0))
    return accounts
