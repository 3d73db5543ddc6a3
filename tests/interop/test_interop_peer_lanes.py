"""Scripted peers over data connections: with each other, and what each finds that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from scripted_pair import Part, meet

from sterna.limits import Limits
from sterna.registry import ErrorCode, Feature, FrameType
from sterna.wire import Attach, Attached, FeatureOffer, RoundEnd
from sterna_interop import peer_acts as do
from sterna_interop.contract import Role
from sterna_interop.peer_destination import DestinationPlan
from sterna_interop.peer_lanes import HANG_UP, LanePlan, StreamDestination, StreamSource, attempt
from sterna_interop.peer_source import SourcePlan
from sterna_interop.peer_steps import Account, Act, End, Manner, Place, Say

F = FrameType
MANNER = Manner(limits=Limits(memory_bytes=1 << 26, bulk_bytes=1 << 20, data_streams=16))


@dataclass
class Side:
    """What one of the two does on its connections."""

    lanes: LanePlan = field(default_factory=LanePlan)
    place: Place | None = None
    act: Act | None = None


def talk(source: Side | None = None, destination: Side | None = None) -> dict[Role, Account]:
    """Let them talk, in virtual time; what each makes of the other."""
    source, destination = source or Side(), destination or Side()
    zeros = FeatureOffer(Feature.ENCODING_ZERO)
    offer = FeatureOffer(Feature.DATA_STREAMS, parameter=source.lanes.count)
    sends = StreamSource(SourcePlan(features=(zeros, offer)), source.lanes)
    features = (Feature.ENCODING_ZERO, Feature.DATA_STREAMS)
    takes = StreamDestination(DestinationPlan(features=features), destination.lanes)
    return meet(
        {
            Role.SOURCE: Part(sends, MANNER, source.place, source.act),
            Role.DESTINATION: Part(takes, MANNER, destination.place, destination.act),
        }
    )


@pytest.mark.parametrize(
    "lanes",
    [
        LanePlan(),
        LanePlan(count=5),
        LanePlan(ends_first=True),
        LanePlan(pages_first=True),
        LanePlan(turns=True),
    ],
)
def test_they_agree(lanes: LanePlan) -> None:
    """[STR-1] [STR-2] [STR-8]"""
    hangs_up = Side(lanes, Place(F.HANDOVER), do.before(HANG_UP))
    for source in (Side(lanes), hangs_up):
        accounts = talk(source, Side(LanePlan(count=lanes.count)))
        assert all(account.completed and not account.breach for account in accounts.values()), accounts


def test_fewer_are_enough_and_none_are_too() -> None:
    accounts = talk(destination=Side(LanePlan(granted=1)))
    assert all(account.completed for account in accounts.values())
    accounts = talk(destination=Side(LanePlan(granted=0)))
    assert "asks for 0 data connections" in accounts[Role.SOURCE].breach


def wrong_source(place: FrameType, act: Act, *, there: bool = True) -> Side:
    """On the second data connection, or on the control connection."""
    if there:
        return Side(LanePlan(lane=2, place=Place(place), act=act))
    return Side(place=Place(place), act=act)


def rows(how: Callable[[tuple[tuple[int, int], ...]], tuple[tuple[int, int], ...]]) -> Act:
    return do.alter(RoundEnd, lambda end: replace(end, last_sequences=how(end.last_sequences)))


@pytest.mark.parametrize(
    ("side", "clause"),
    [
        (wrong_source(F.ATTACH, do.change(generation=3)), "STR-5"),
        (wrong_source(F.ATTACH, do.change(token=bytes(32))), "ATT-3"),
        (wrong_source(F.ATTACH, do.alter(Attach, lambda one: replace(one, index=0))), "HDR-5"),
        (wrong_source(F.PAGES, lambda moment: [replace(do.honest(moment), stream=1)]), "HDR-5"),
        (wrong_source(F.PAGES, lambda moment: [Say(Attached(1, 0, 0), stream=2)]), "Attached where Pages"),
        (wrong_source(F.ROUND_END, rows(lambda _: ()), there=False), "STR-8"),
        (wrong_source(F.ROUND_END, rows(lambda old: (*old, (9, 1))), there=False), "STR-8"),
    ],
)
def test_what_a_destination_finds(side: Side, clause: str) -> None:
    assert clause in talk(source=side)[Role.DESTINATION].breach


@pytest.mark.parametrize(
    ("act", "clause"),
    [
        (do.change(generation=1), "ATT-6"),
        (do.change(last_sequence=3), "ATT-4"),
        (do.instead(End.RESET), ""),
    ],
)
def test_what_a_source_finds(act: Act, clause: str) -> None:
    account = talk(destination=Side(LanePlan(place=Place(F.ATTACHED), act=act)))[Role.SOURCE]
    assert clause in account.breach
    assert not account.completed


def test_a_lane_that_ends_ends_the_round() -> None:
    """[STR-14]"""
    accounts = talk(source=wrong_source(F.PAGES, do.instead(End.RESET)))
    assert not any(account.completed for account in accounts.values())
    assert not accounts[Role.SOURCE].breach


def test_who_ought_to_be_refused_is_waited_for() -> None:
    """[STR-4] No answer to it is none to the conversation."""
    stranger = do.before(attempt(ErrorCode.BAD_TOKEN))
    account = talk(source=Side(place=Place(F.ROUND), act=stranger))[Role.SOURCE]
    assert "no answer after" in account.breach
