"""The scripted destination: what it finds in a source that breaks the specification."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripted_pair import Scripted, talk

from sterna.registry import ErrorCode, Feature, FrameType
from sterna.wire import Hello, PageRange, Pages, Refuse, RoundEnd, Runner
from sterna_interop import peer_acts as do
from sterna_interop.contract import Role
from sterna_interop.guest import GuestSpec
from sterna_interop.peer_destination import ranges_of
from sterna_interop.peer_steps import Act, Place

F = FrameType
NO_HASHES = do.alter(
    Hello, lambda hello: replace(hello, features=tuple(each for each in hello.features if each.id != 16))
)
MORE = do.alter(RoundEnd, lambda end: replace(end, pages=end.pages + 1))


def content(table: Pages) -> Pages:
    return replace(table, hashes=table.hashes ^ np.uint64(1))


@pytest.mark.parametrize(
    ("frame", "nth", "act", "clause"),
    [
        (F.HELLO, 1, do.change(versions=(5,)), "does not list"),
        (F.HELLO, 1, NO_HASHES, "MEM-17"),
        (F.HELLO, 1, do.change(epoch=8), "HEL-7"),
        (F.GUEST, 1, do.change(name="other"), "another guest"),
        (F.ROUND, 1, do.change(round=3), "CON-20"),
        (F.ROUND, 2, do.change(attempt=2), "CON-23"),
        (F.PAGES, 1, do.change(round=3), "CON-21"),
        (F.PAGES, 1, do.twice(), "CON-27"),
        (F.PAGES, 1, do.run(-1, first=256), "PGS-7"),
        (F.ROUND_END, 1, MORE, "RND-3"),
        (F.ROUND_END, 1, do.change(last_sequences=()), "STR-8"),
        (F.SWITCHOVER, 1, do.change(attempt=2), "CON-23"),
        (F.SWITCHOVER, 1, do.change(style=1), "SWI-1"),
        (F.STATE, 2, do.instead(), "STA-5"),
        (F.STATE, 5, do.instead(), "SEA-3"),
        (F.SEAL, 1, do.change(state_bytes=1), "SEA-3"),
        (F.SEAL, 1, do.change(last_sequences=((0, 1),)), "STR-8"),
        (F.SEAL, 1, do.change(digest=bytes(16)), "MEM-14"),
        (F.SEAL, 1, do.change(state_digest=bytes(16)), "MEM-19"),
        (F.HANDOVER, 1, do.change(epoch=8), "HND-1"),
        (F.RELEASE, 1, do.change(epoch=7), "CMP-4"),
        (F.RELEASE, 1, do.instead(), "CON-3"),
    ],
)
def test_breaches_are_found(frame: FrameType, nth: int, act: Act, clause: str) -> None:
    accounts = talk(Scripted(place=Place(frame, nth), act=act))
    assert accounts[Role.SOURCE].acted
    assert clause in accounts[Role.DESTINATION].breach
    assert not accounts[Role.DESTINATION].completed


def test_a_wrong_hash_in_the_blackout_is_a_breach() -> None:
    """[CON-47] [PGS-13]"""
    source = Scripted({"rounds": 0}, place=Place(F.PAGES), act=do.alter(Pages, content))
    assert "PGS-13" in talk(source)[Role.DESTINATION].breach


def test_a_page_that_was_never_sent_is_missed() -> None:
    """[MEM-11] Though both sides agree in their digests."""
    accounts = talk(Scripted({"omitted": ((1, 77),)}))
    assert "MEM-11" in accounts[Role.DESTINATION].breach


def test_another_image_than_the_guests_is_noticed() -> None:
    """[MEM-12] [CON-48]: agreeing digests do not prove that the right bytes were sent."""
    accounts = talk(Scripted({"guest": GuestSpec(seed=2)}))
    assert "MEM-12" in accounts[Role.DESTINATION].breach


def test_refusals() -> None:
    """[CON-9] [CON-14]"""
    refusal = Refuse(ErrorCode.FULL, text="full")
    for plan, last in (({"refuse_hello": refusal}, "HELLO"), ({"refuse_guest": refusal}, "GUEST")):
        accounts = talk(destination=Scripted(plan))
        assert accounts[Role.SOURCE].answer == refusal
        assert accounts[Role.SOURCE].said[-1] == last


def test_rejections_are_sent_again() -> None:
    """[RAK-4] [CON-34]"""
    pages = GuestSpec(writes=())
    rejected = (PageRange(1, 0, 40),)
    accounts = talk(
        Scripted({"guest": pages, "rejected": rejected}), Scripted({"guest": pages, "rejects": 40})
    )
    assert accounts[Role.DESTINATION].completed
    lazy = {"guest": pages, "rejected": rejected, "resends": False}
    accounts = talk(Scripted(lazy), Scripted({"guest": pages, "rejects": 40}))
    assert "MEM-11" in accounts[Role.DESTINATION].breach


def test_zero_pages_only_if_they_are_selected() -> None:
    """[PGS-9]"""
    accounts = talk(destination=Scripted({"features": ()}))
    assert "PGS-9" in accounts[Role.DESTINATION].breach
    offered = {"features": (Feature.ENCODING_ZERO, Feature.PROGRESS)}
    assert talk(destination=Scripted(offered))[Role.DESTINATION].completed


def test_ranges_are_as_long_as_can_be() -> None:
    """[RAK-3]"""
    names = {(1, 0), (1, 1), (1, 3), (2, 4), (2, 5)}
    assert ranges_of(names) == [PageRange(1, 0, 2), PageRange(1, 3, 1), PageRange(2, 4, 2)]


def test_another_runner_is_noticed() -> None:
    accounts = talk(Scripted({"runner": Runner("elsewhere", bytes(16))}))
    assert "HEL-7" in accounts[Role.DESTINATION].breach
