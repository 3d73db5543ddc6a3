"""A scripted destination with early pages: what it finds that is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_early import talk

from sterna.registry import GREASE_FIRST, Encoding, FrameType
from sterna.wire import Attach, DirtyBitmap, Pages, Ping
from sterna_interop import peer_acts as do
from sterna_interop.contract import Role
from sterna_interop.peer_early import EarlyPlan
from sterna_interop.peer_steps import Act, Place, Say

F = FrameType


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
