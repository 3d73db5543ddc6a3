"""Scripted peers where pages follow and come early: with each other, and what each finds that is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from sterna.net.memory import memory_transport_pair
from sterna.registry import GREASE_FIRST, Encoding, Feature, FrameType
from sterna.wire import Attach, DirtyBitmap, FeatureOffer, PageRequest, Pages, Ping
from sterna_interop import peer_acts as do
from sterna_interop.case import Line, Wire
from sterna_interop.contract import Role
from sterna_interop.peer import Peer
from sterna_interop.peer_destination import DestinationPlan
from sterna_interop.peer_early import EarlyDestination, EarlyPlan, EarlySource
from sterna_interop.peer_lanes import LanePlan
from sterna_interop.peer_source import SourcePlan
from sterna_interop.peer_steps import Account, Act, End, Manner, Place, Say

F = FrameType
FOLLOWING = (Feature.ENCODING_ZERO, Feature.POST_COPY, Feature.EARLY_PAGES)


def talk(
    source: EarlyPlan | None = None,
    destination: EarlyPlan | None = None,
    *,
    control: tuple[Place, Act] | tuple[None, None] = (None, None),
    features: tuple[Feature, ...] = FOLLOWING,
) -> dict[Role, Account]:
    """Let them talk, in virtual time; what each makes of the other. `control`: how the source misbehaves."""
    offers = tuple(FeatureOffer(each) for each in FOLLOWING)
    sends = EarlySource(SourcePlan(features=offers), source or EarlyPlan())
    plan = DestinationPlan(features=features)
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


def test_they_agree() -> None:
    """[PCY-26] [PCY-27] [PCY-28]"""
    accounts = talk()
    assert all(each.completed and not each.breach for each in accounts.values()), accounts
    assert not any(each.untried for each in accounts.values())


@pytest.mark.parametrize(
    ("source", "destination", "untried"),
    [
        (EarlyPlan(opens=False), None, {Role.DESTINATION: "the source opens no demand connection"}),
        (
            None,
            EarlyPlan(asks=()),
            {Role.SOURCE: "the destination asks for no page on the demand connection"},
        ),
        (
            EarlyPlan(place=Place(F.PAGES), act=do.instead(End.PROPER)),
            None,
            {Role.DESTINATION: "the source does without the demand connection"},
        ),
        (
            None,
            EarlyPlan(place=Place(F.ATTACHED), act=do.instead(End.PROPER)),
            {Role.SOURCE: "the destination does not take the demand connection"},
        ),
        (
            EarlyPlan(differs=True),
            EarlyPlan(asks=(PageRequest(1, 37, 1),)),
            {Role.SOURCE: "the destination has no page early"},
        ),
    ],
)
def test_either_may_do_without(
    source: EarlyPlan | None, destination: EarlyPlan | None, untried: dict[Role, str]
) -> None:
    """[PCY-30]"""
    accounts = talk(source, destination)
    assert all(each.completed and not each.breach for each in accounts.values()), accounts
    assert {role: each.untried for role, each in accounts.items() if each.untried} == untried


@pytest.mark.parametrize("features", [FOLLOWING[:1], FOLLOWING[:2]])
def test_what_is_not_selected_is_not_done(features: tuple[Feature, ...]) -> None:
    accounts = talk(features=features)
    assert all(each.completed and not each.breach for each in accounts.values()), accounts


def test_early_pages_alone_are_a_breach() -> None:
    """[PCY-25]"""
    accounts = talk(features=(Feature.ENCODING_ZERO, Feature.EARLY_PAGES))
    assert "PCY-25" in accounts[Role.SOURCE].breach


def grown(table: Pages) -> Pages:
    return do.with_run(table, 0, first=int(table.runs["first"][0]) + 1)


def empty(table: Pages) -> Pages:
    return do.with_run(table, 0, encoding=Encoding.ZERO)


@pytest.mark.parametrize(
    ("place", "act", "clause"),
    [
        (F.ATTACH, do.change(token=bytes(32)), "ATT-3"),
        (F.ATTACH, do.alter(Attach, lambda one: replace(one, generation=1)), "STR-5"),
        (F.PAGES, do.alter(Pages, grown), "PCY-28"),
        (F.PAGES, do.change(round=1), "PCY-27"),
        (F.PAGES, do.wrong_hash(), "PGS-13"),
        (F.PAGES, do.before(Say(Ping(1), stream=1)), "PING"),
        (F.PAGES, do.before(do.frame(GREASE_FIRST, stream=1)), "PCY-27"),
        (F.PAGES, do.numbered(1), "its bytes"),
    ],
)
def test_what_a_destination_finds(place: FrameType, act: Act, clause: str) -> None:
    source = EarlyPlan(place=Place(place), act=act)
    assert clause in talk(source)[Role.DESTINATION].breach


@pytest.mark.parametrize(
    ("place", "act", "clause"),
    [
        (F.DIRTY_BITMAP, do.change(attempt=2), "PCY-2"),
        (F.DIRTY_BITMAP, do.alter(DirtyBitmap, lambda one: replace(one, data=bytes(len(one.data)))), "PCY-2"),
        (F.PAGES, do.change(round=1), "PCY-8"),
        (F.PAGES, do.alter(Pages, empty), ""),
        (F.PAGES, do.wrong_hash(), "PGS-13"),
        (F.SWITCHOVER, do.change(attempt=2), "CON-23"),
    ],
)
def test_what_a_destination_finds_on_the_control_connection(place: FrameType, act: Act, clause: str) -> None:
    account = talk(control=(Place(place), act))[Role.DESTINATION]
    assert clause in account.breach
    assert account.breach


@pytest.mark.parametrize(
    ("place", "act", "clause"),
    [
        (F.ATTACHED, do.change(generation=1), "ATT-6"),
        (F.PAGE_REQUEST, do.change(urgent=False), "PCY-27"),
        (F.PAGE_REQUEST, do.change(first=1 << 20), "PCY-28"),
        (F.PAGE_REQUEST, do.change(first=40, count=16), "PCY-27"),
        (F.PAGE_REQUEST, do.before(Say(Ping(1), stream=1)), "PING"),
        (F.PAGE_REQUEST, do.numbered(1), "its bytes"),
    ],
)
def test_what_a_source_finds(place: FrameType, act: Act, clause: str) -> None:
    destination = EarlyPlan(place=Place(place), act=act)
    assert clause in talk(destination=destination)[Role.SOURCE].breach


def test_too_many_requests_are_a_breach() -> None:
    """[PCY-29]"""
    asks = tuple(PageRequest(1, 16 * number, 16) for number in range(16)) * 2
    destination = EarlyPlan(
        asks=asks, place=Place(F.PAGE_REQUEST), act=do.after(*(Say(each, stream=1) for each in asks))
    )
    assert "PCY-29" in talk(EarlyPlan(answers=False), destination)[Role.SOURCE].breach


@pytest.mark.parametrize("role", Role)
def test_a_demand_connection_that_goes_on_is_a_breach(role: Role) -> None:
    """[PCY-27] [PCY-28]: neither of the two ends one."""
    (once,) = asks = (PageRequest(1, 37, 1),)
    honest = EarlyPlan(asks=asks)
    twice = replace(honest, place=Place(F.PAGE_REQUEST), act=do.after(Say(once, stream=1)), ends=True)
    again = EarlyPlan(place=Place(F.PAGES), act=do.twice(), ends=True)
    source, destination = (again, honest) if role is Role.SOURCE else (None, twice)
    assert "goes on" in talk(source, destination)[role].breach
