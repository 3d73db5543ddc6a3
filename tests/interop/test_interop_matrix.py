"""The judge: every lie that a side can tell about its guest is found, whatever the scenario."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna_interop.case import Unexpected
from sterna_interop.contract import GuestState, Outcome, Report, Role
from sterna_interop.faults import Clean
from sterna_interop.guest import GuestSpec, state_hash
from sterna_interop.matrix import Scenario, images, judge, judge_side

GUEST = GuestSpec()
ALL = frozenset((one, other) for one in Outcome for other in Outcome)
ANYTHING = Scenario(id="x", title="", clauses=(), transports=(), fault=lambda _: Clean(), ends=ALL)
GONE = Report(outcome=Outcome.COMPLETED, guest=GuestState.NONE, digest="a" * 32)
HERE = Report(
    outcome=Outcome.COMPLETED,
    guest=GuestState.RUNNING,
    memory=images(GUEST)[-1],
    state=state_hash(GUEST.state),
    digest="a" * 32,
)
KEPT = Report(
    outcome=Outcome.ROLLED_BACK, guest=GuestState.RUNNING, memory=images(GUEST)[1], code="connection_lost"
)
NOTHING = Report(outcome=Outcome.ROLLED_BACK, guest=GuestState.NONE, code="truncated")
PAUSED = Report(outcome=Outcome.UNDECIDED, guest=GuestState.PAUSED, code="connection_lost")


def verdict(source: Report, destination: Report, scenario: Scenario = ANYTHING) -> str:
    return str(judge(scenario, GUEST, source, destination) or "")


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (GONE, HERE),
        (KEPT, NOTHING),
        (PAUSED, NOTHING),
        (PAUSED, replace(HERE, outcome=Outcome.MOVED, code="connection_lost")),
        (PAUSED, PAUSED),
    ],
)
def test_ends_that_are_right(source: Report, destination: Report) -> None:
    assert not verdict(source, destination)


@pytest.mark.parametrize(
    ("source", "destination", "text"),
    [
        (KEPT, HERE, "got it runs on both"),
        (GONE, NOTHING, "got it runs nowhere"),
        (replace(GONE, guest=GuestState.PAUSED), HERE, "source: the guest none after completed"),
        (replace(GONE, code="internal"), HERE, "an error code exactly if not completed"),
        (replace(KEPT, code=None), NOTHING, "an error code exactly if not completed"),
        (PAUSED, replace(NOTHING, outcome=Outcome.GUEST_FAILED), "an outcome that a destination can have"),
        (GONE, replace(HERE, memory=images(GUEST)[0]), "the memory after entry 0 of the script"),
        (GONE, replace(HERE, memory="0" * 64), "got another memory"),
        (GONE, replace(HERE, memory=None), "got another memory"),
        (GONE, replace(HERE, state=None), "got another state"),
        (GONE, replace(HERE, digest="b" * 32), "on both sides"),
        (replace(KEPT, memory="0" * 64), NOTHING, "a memory that the script has written"),
    ],
)
def test_lies(source: Report, destination: Report, text: str) -> None:
    """[ONE-1, MEM-11, CON-62, CON-63]"""
    assert text in verdict(source, destination)


def test_a_guest_may_wait_for_pages_that_nobody_sends() -> None:
    """[CON-64]"""
    moved = replace(HERE, outcome=Outcome.MOVED, code="connection_lost", memory="0" * 64)
    source = replace(GONE, outcome=Outcome.MOVED, code="connection_lost")
    assert "got another memory" in verdict(source, moved)
    follows = replace(ANYTHING, follows=True)
    assert not verdict(source, moved, follows)
    assert "got another memory" in verdict(GONE, replace(HERE, memory="0" * 64), follows)


def test_what_a_scenario_asks_for() -> None:
    strict = replace(
        ANYTHING,
        ends=frozenset({(Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)}),
        codes=frozenset({"page_hash"}),
    )
    assert "expected rolled_back / rolled_back" in verdict(GONE, HERE, strict)
    assert "one side to end with page_hash, got connection_lost / truncated" in verdict(KEPT, NOTHING, strict)
    assert not verdict(replace(KEPT, code="page_hash"), NOTHING, strict)


def test_one_side_alone() -> None:
    assert judge_side(Role.DESTINATION, GUEST, HERE) is None
    wrong = replace(HERE, memory=None)
    assert isinstance(judge_side(Role.DESTINATION, GUEST, wrong), Unexpected)
    assert judge_side(Role.DESTINATION, GUEST, wrong, memory=False) is None
