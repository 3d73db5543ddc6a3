"""Sterna's own shim: what it knows, and what it tells. test_interop_session.py shows that it migrates."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from interop_support import params

from sterna.core.events import Outcome as CoreOutcome
from sterna.core.events import PhaseEntered, Result, RoundFinished, RoundStarted
from sterna.core.policy import RoundStats
from sterna.registry import ErrorCode, Phase
from sterna_interop.contract import Exit, GuestState, Order, Outcome, Role
from sterna_interop.shim import Rounds, deadlines, options, report, room_for, supported
from sterna_interop.shim_following import FollowedRoom
from sterna_interop.shim_guest import RoomForGuest, ScriptedSource

STATS = RoundStats(1, 1, 1, 1.0, 1, 1)


class Endpoint:
    cancelled = ""

    def cancel(self, reason: str = "") -> None:
        self.cancelled = reason


@pytest.mark.parametrize(
    ("role", "order", "known"),
    [
        (Role.SOURCE, Order(), True),
        (Role.SOURCE, Order("cancel"), True),
        (Role.SOURCE, Order("refuse", code="full"), False),
        (Role.DESTINATION, Order("refuse", code="full"), True),
        (Role.DESTINATION, Order("refuse", code="no_such_code"), False),
        (Role.DESTINATION, Order("cancel"), False),
        (Role.DESTINATION, Order("a3f9"), False),
    ],
)
def test_what_is_known(role: Role, order: Order, known: bool) -> None:
    assert supported(replace(params(role), order=order)) == known


def test_an_unknown_limit_is_not_ignored() -> None:
    assert supported(replace(params(), limits={"regions": 3}))
    assert not supported(replace(params(), limits={"wishes": 3}))


def test_data_connections_are_asked_for_and_nothing_is_resumed() -> None:
    made = options(replace(params(), streams=3), Rounds(params()))
    assert (made.streams, made.resume_s) == (3, 0)


def test_hashes_are_left_out_only_where_that_was_told() -> None:
    """[MEM-21]"""
    assert options(params(), Rounds(params())).verified
    assert not options(replace(params(), unverified=True), Rounds(params())).verified


def test_pages_follow_the_guest_only_where_that_was_told() -> None:
    made, told = (
        options(each, Rounds(each)) for each in (params(), replace(params(), streams=1, follows=True))
    )
    assert not made.post_copy
    assert not made.early_pages
    assert told.post_copy
    assert told.early_pages
    assert told.policy is not None
    assert told.policy.switchover == "post-copy"
    assert isinstance(room_for(params()), RoomForGuest)
    with closing(room_for(replace(params(), follows=True))) as room:
        assert isinstance(room, FollowedRoom)


def test_a_guest_that_waits_in_vain_has_moved() -> None:
    """[CON-64]"""
    source = ScriptedSource(params().guest)
    source.running = False
    told = report(params(), Result(CoreOutcome.STRANDED, ErrorCode.CONNECTION_LOST, epoch=8), source, 0)
    assert told.outcome is Outcome.MOVED


def test_deadlines_and_limits_are_what_was_told() -> None:
    made = options(replace(params(), deadline_s=2.0, limits={"regions": 3}), Rounds(params()))
    assert (made.deadlines.round_s, made.deadlines.silence_s, made.deadlines.heartbeat_s) == (2, 2, 0.5)
    assert made.limits.regions == 3
    assert deadlines(0).round_s > 10


@pytest.mark.parametrize(("round_", "expected"), [(0, 0), (1, 1), (2, None)])
def test_it_cancels_after_the_right_round(round_: int, expected: int | None) -> None:
    rounds = Rounds(replace(params(), order=Order("cancel", round=round_)))
    rounds.endpoint = endpoint = Endpoint()  # type: ignore[assignment]
    rounds.on_event(PhaseEntered(Phase.ROUNDS))
    seen = [bool(endpoint.cancelled)]
    for last in (False, True):
        rounds.on_event(RoundStarted(1, 1, last))
        rounds.on_event(RoundFinished(STATS))
        seen.append(bool(endpoint.cancelled))
    assert (seen.index(True) if True in seen else None) == expected
    assert rounds.counted == 1


def test_the_report_is_of_the_guest_itself() -> None:
    result = Result(CoreOutcome.UNDECIDED, ErrorCode.CONNECTION_LOST, epoch=7, session=b"s" * 16)
    source = ScriptedSource(params().guest)
    source.running = False
    told = report(params(), result, source, 2)
    assert (told.outcome, told.guest, told.code) == (
        Outcome.UNDECIDED,
        GuestState.PAUSED,
        "connection_lost",
    )
    assert told.memory == params().guest.memory_hash(0)
    room = RoomForGuest(Order())
    lost = report(params(Role.DESTINATION), replace(result, outcome=CoreOutcome.ROLLED_BACK), room, 0)
    assert (lost.guest, lost.memory, lost.state) == (GuestState.NONE, None, None)
    unanswered = report(params(Role.DESTINATION), replace(result, session=bytes(16)), room, 0)
    assert unanswered.guest is GuestState.NONE  # it was asked, and no session was opened


@pytest.mark.slow
def test_as_a_program(tmp_path: Path) -> None:
    def run() -> int:
        command = [sys.executable, "-m", "sterna_interop.shim", "--params", str(path), "--out", str(tmp_path)]
        return subprocess.run(command, check=False, timeout=60, stderr=subprocess.DEVNULL).returncode

    path = tmp_path / "params.json"
    path.write_text(replace(params(), order=Order("b7c1")).to_json())
    assert run() == Exit.UNSUPPORTED
    path.write_text(replace(params(), connect="127.0.0.1:1").to_json())
    assert run() == Exit.FAILED
