"""A scripted source with early pages: what it finds that is wrong."""

from __future__ import annotations

import pytest
from scripted_early import talk

from sterna.registry import Feature, FrameType
from sterna.wire import PageRequest, Ping
from sterna_interop import peer_acts as do
from sterna_interop.contract import Role
from sterna_interop.peer_early import EarlyPlan
from sterna_interop.peer_steps import Act, Place, Say

F = FrameType


def test_early_pages_alone_are_a_breach() -> None:
    """[PCY-25]"""
    accounts = talk(features=(Feature.ENCODING_ZERO, Feature.EARLY_PAGES))
    assert "PCY-25" in accounts[Role.SOURCE].breach


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
