"""Two scripted peers with early pages, who talk to each other."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from sterna.net.memory import memory_transport_pair
from sterna.registry import Feature
from sterna.wire import FeatureOffer
from sterna_interop.case import Line, Wire
from sterna_interop.contract import Role
from sterna_interop.peer import Peer
from sterna_interop.peer_destination import DestinationPlan
from sterna_interop.peer_early import EarlyPlan
from sterna_interop.peer_early_destination import EarlyDestination
from sterna_interop.peer_early_source import EarlySource
from sterna_interop.peer_lanes import LanePlan
from sterna_interop.peer_source import SourcePlan
from sterna_interop.peer_steps import Account, Act, Manner, Place

FOLLOWING = (Feature.ENCODING_ZERO, Feature.POST_COPY, Feature.EARLY_PAGES)


def talk(
    source: EarlyPlan | None = None,
    destination: EarlyPlan | None = None,
    *,
    control: tuple[Place, Act] | tuple[None, None] = (None, None),
    features: tuple[Feature, ...] = FOLLOWING,
    offered: tuple[Feature, ...] = FOLLOWING,
) -> dict[Role, Account]:
    """Let them talk, in virtual time; what each makes of the other. `control`: how the source misbehaves."""
    offers = tuple(FeatureOffer(each) for each in offered)
    sends = EarlySource(
        SourcePlan(features=offers, unhashed=Feature.UNHASHED in offered), source or EarlyPlan()
    )
    plan = DestinationPlan(features=features, unhashed=Feature.UNHASHED in offered)
    takes = EarlyDestination(plan, LanePlan(count=1), destination or EarlyPlan())
    accounts: dict[Role, Account] = {}

    async def both() -> None:
        calls, called = trio.open_memory_channel[Line](16)

        async def dial(_wire: Wire | None) -> Line:
            near, far = map(Line, memory_transport_pair())
            await calls.send(far)
            return near

        async def answer(_wire: Wire | None) -> Line:
            return await called.receive()

        near, far = memory_transport_pair()
        peers = {
            Role.SOURCE: Peer(Line(near, another=dial), Manner(), *control),
            Role.DESTINATION: Peer(Line(far, another=answer), Manner()),
        }
        talks = {Role.SOURCE: sends, Role.DESTINATION: takes}

        async def one(role: Role) -> None:
            accounts[role] = await peers[role].converse(talks[role], 5.0)
            await peers[role].line.end()

        async with trio.open_nursery() as nursery:
            for role in Role:
                nursery.start_soon(one, role)

    trio.run(both, clock=MockClock(autojump_threshold=0))
    return accounts
