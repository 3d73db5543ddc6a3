"""The scripted source: what it finds in a destination that breaks the specification."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_pair import Scripted, talk

from sterna.limits import Limits
from sterna.registry import Feature, FrameType
from sterna.wire import Accept, FeatureChoice, PageRange, RoundAck, Welcome
from sterna_interop import peer_acts as do
from sterna_interop.contract import Role
from sterna_interop.guest import GuestSpec
from sterna_interop.peer_source import SourcePlan, fragments
from sterna_interop.peer_steps import Act, Place

F = FrameType


def chooses(*features: FeatureChoice) -> Act:
    return do.alter(Welcome, lambda welcome: replace(welcome, features=features))


REQUIRED = (FeatureChoice(Feature.STOP_AND_COPY), FeatureChoice(Feature.HASH_XXH3_64))
REJECTS = do.alter(
    RoundAck,
    lambda ack: replace(ack, pages=ack.pages - 1, rejected=(PageRange(1, 0, 1),)),
)


@pytest.mark.parametrize(
    ("frame", "act", "clause"),
    [
        (F.WELCOME, do.change(version=5), "NEG-2"),
        (F.WELCOME, chooses(*REQUIRED, FeatureChoice(Feature.RESUME)), "NEG-5"),
        (F.WELCOME, chooses(*REQUIRED, FeatureChoice(Feature.ENCODING_ZERO, 9)), "NEG-8"),
        (F.WELCOME, chooses(FeatureChoice(Feature.STOP_AND_COPY)), "NEG-4"),
        (F.ACCEPT, do.alter(Accept, lambda accept: Accept(accept.reserved_bytes - 1)), "CON-17"),
        (F.ACCEPT, do.change(data_streams=1), "ACC-3"),
        (F.ROUND_ACK, do.change(round=2), "CON-30"),
        (F.ROUND_ACK, do.change(pages=1), "CON-32"),
        (F.ROUND_ACK, REJECTS, "CON-3"),
        (F.ROUND_ACK, do.instead(), "no answer after ROUND_END"),
        (F.READY, do.change(attempt=2), "SWI-3"),
        (F.LOADED, do.change(digest=bytes(16)), "CON-52"),
        (F.RUNNING, do.change(epoch=7), "RUN-1"),
        (F.COMPLETE, do.change(epoch=7), "CMP-4"),
        (F.COMPLETE, do.change(digest=bytes(16)), "CMP-1"),
    ],
)
def test_breaches_are_found(frame: FrameType, act: Act, clause: str) -> None:
    accounts = talk(destination=Scripted(place=Place(frame), act=act))
    assert clause in accounts[Role.SOURCE].breach
    assert not accounts[Role.SOURCE].completed


@pytest.mark.parametrize("times", [1, 3])
def test_ready_is_due_as_often_as_was_ordered(times: int) -> None:
    """[CON-42] [CON-22]"""
    plan = {"not_ready": times}
    accounts = talk(Scripted(plan), Scripted(plan))
    assert accounts[Role.SOURCE].completed
    assert accounts[Role.SOURCE].said.count("SWITCHOVER") == times + 1
    assert "NotReady" not in talk(Scripted(), Scripted(plan))[Role.SOURCE].heard
    assert "told to be ready" in talk(Scripted(), Scripted(plan))[Role.SOURCE].breach


def test_the_script_is_written_between_rounds() -> None:
    """[CON-34] What was written is sent again, the rest in the blackout."""
    guest = GuestSpec()
    for rounds in (0, 1, 5):
        accounts = talk(Scripted({"rounds": rounds}))
        assert accounts[Role.DESTINATION].completed  # which compares the image with the guest's
        assert accounts[Role.SOURCE].said.count("ROUND") == rounds + 1
    assert len(guest.writes) == 3


def test_hello_states_what_the_peer_takes() -> None:
    hello = SourcePlan(epoch=9).hello(Limits(batch_runs=5))
    assert (hello.epoch, hello.limits[7]) == (9, 5)
    assert [each.id for each in hello.features if each.required] == [1, 16]


def test_fragments() -> None:
    """[STA-2] [STA-3] [STA-4]"""
    for section in GuestSpec().state:
        parts = list(fragments(section, 4, 100))
        assert b"".join(part.data for part in parts) == section.data
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
        assert all(part.attempt == 4 for part in parts)
