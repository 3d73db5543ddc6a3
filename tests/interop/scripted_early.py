"""Two scripted peers with early pages, who talk to each other."""

from __future__ import annotations

from scripted_pair import Part, meet

from sterna.registry import Feature
from sterna.wire import FeatureOffer
from sterna_interop.contract import Role
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
    return meet({Role.SOURCE: Part(sends, Manner(), *control), Role.DESTINATION: Part(takes)})
