"""Scripted peers where pages follow and come early, with each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_early import FOLLOWING, talk

from sterna.registry import Feature, FrameType, Style
from sterna.wire import PageRequest
from sterna_interop import peer_acts as do
from sterna_interop.contract import Role
from sterna_interop.peer_early import LAST_WRITTEN, EarlyPlan, style_of
from sterna_interop.peer_steps import End, Place, Say

F = FrameType
BY_BITMAP = (Feature.ENCODING_ZERO, Feature.BITMAP, Feature.EARLY_PAGES)


def test_they_agree() -> None:
    """[PCY-26] [PCY-27] [PCY-28]"""
    accounts = talk()
    assert all(each.completed and not each.breach for each in accounts.values()), accounts
    assert not any(each.untried for each in accounts.values())


@pytest.mark.parametrize("features", [BY_BITMAP, (*FOLLOWING, Feature.UNHASHED)])
def test_they_agree_behind_rounds_and_without_hashes(features: tuple[Feature, ...]) -> None:
    """[PCY-3] [PCY-27]"""
    accounts = talk(destination=EarlyPlan(asks=LAST_WRITTEN), features=features, offered=features)
    assert all(each.completed and not each.breach for each in accounts.values()), accounts
    assert not any(each.untried for each in accounts.values())
    assert accounts[Role.SOURCE].has_heard(F.ROUND_ACK) == (features is BY_BITMAP)


def test_styles() -> None:
    assert style_of(FOLLOWING) is style_of({*FOLLOWING, *BY_BITMAP}) is Style.POST_COPY
    assert style_of(BY_BITMAP) is Style.BITMAP
    assert style_of(FOLLOWING[:1]) is Style.STOP_AND_COPY


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


@pytest.mark.parametrize("role", Role)
def test_a_demand_connection_that_goes_on_is_a_breach(role: Role) -> None:
    """[PCY-27] [PCY-28]: neither of the two ends one."""
    (once,) = asks = (PageRequest(1, 37, 1),)
    honest = EarlyPlan(asks=asks)
    twice = replace(honest, place=Place(F.PAGE_REQUEST), act=do.after(Say(once, stream=1)), ends=True)
    again = EarlyPlan(place=Place(F.PAGES), act=do.twice(), ends=True)
    source, destination = (again, honest) if role is Role.SOURCE else (None, twice)
    assert "goes on" in talk(source, destination)[role].breach
