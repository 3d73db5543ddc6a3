"""What --follow and --json say of a migration: names and types that programs rely on."""

from __future__ import annotations

import json
import typing
from dataclasses import replace

import pytest

from sterna.cli.events import (
    code_name,
    connection_fields,
    event_fields,
    holder_fields,
    peer_fields,
    phase_name,
    result_fields,
    resumed_text,
    round_fields,
)
from sterna.core import events
from sterna.core.events import (
    BlackoutStep,
    Decided,
    Finished,
    Outcome,
    PagesFollow,
    PagesFollowed,
    PeerProgress,
    PhaseEntered,
    Result,
    RoundFinished,
    RoundStarted,
    SessionOpened,
    SessionResumed,
    StreamAttached,
    Suspended,
)
from sterna.core.policy import Action, Decision, RoundStats
from sterna.core.serving import AfterStats
from sterna.errors import GuestError
from sterna.guest.holder_client import HolderStatus
from sterna.net.transport import Peer, TlsInfo, Transport
from sterna.registry import ErrorCode, Phase
from sterna.wire.records import NO_RUNNER, Progress

STATS = RoundStats(
    3, 100, 409600, 0.5, 7, 28672, rejected_pages=2, throttle=0.25, versions_asked=9, versions_found=6
)
HUGE = (1 << 64) - 1
EVENTS = {
    "session_opened": SessionOpened(b"s" * 16, "agent", 65537, {}),
    "phase": PhaseEntered(Phase.BLACKOUT),
    "stream_attached": StreamAttached(2, 1),
    "round_started": RoundStarted(3, 100, last=True),
    "round_finished": RoundFinished(STATS),
    "decided": Decided(Decision(Action.THROTTLE, 0.2, 1.5, 1e9, 2e9, "too much")),
    "pages_follow": PagesFollow(HUGE),
    "pages_followed": PagesFollowed(AfterStats(5, 2, 3, seconds=0.5)),
    "peer_progress": PeerProgress(Progress(Phase.ROUNDS, 2, HUGE, HUGE, HUGE, HUGE, HUGE, HUGE)),
    "link_lost": Suspended(GuestError("lost"), 2),
    "session_resumed": SessionResumed(2, 7, 100),
    "finished": Finished(Result(Outcome.ROLLED_BACK, ErrorCode.CANCELLED)),
}


@pytest.mark.parametrize(("times", "text"), [(0, ""), (1, "came back once"), (3, "came back 3 times")])
def test_how_often_the_link_came_back(times: int, text: str) -> None:
    assert resumed_text(Result(Outcome.COMPLETED, resumed=times)).endswith(text)


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_is_an_object_with_its_name(name: str) -> None:
    fields = event_fields(EVENTS[name])
    assert fields["event"] == name
    json.dumps(fields, allow_nan=False)


def test_every_event_has_its_object() -> None:
    assert {type(event) for event in EVENTS.values()} == set(typing.get_args(events.Event))


def test_numbers_of_a_peer_stay_exact_for_every_reader() -> None:
    fields = event_fields(EVENTS["peer_progress"])
    assert fields["pages_total"] == fields["pages_remaining"] == (1 << 53) - 1
    started = event_fields(RoundStarted(1, HUGE, last=False))
    assert started["pages"] == (1 << 53) - 1


def test_a_round() -> None:
    assert round_fields(STATS) == {
        "round": 3,
        "pages": 100,
        "bytes": 409600,
        "seconds": 0.5,
        "dirty_pages": 7,
        "dirty_bytes": 28672,
        "rejected_pages": 2,
        "throttle": 0.25,
        "versions_asked": 9,
        "versions_found": 6,
    }


def test_a_result() -> None:
    result = Result(
        Outcome.COMPLETED,
        epoch=2,
        rounds=(STATS,),
        bytes_sent=10,
        seconds=1.5,
        blackout_s=0.1,
        blackout_steps=(BlackoutStep("pausing", 0.1),),
        digest=b"d" * 16,
    )
    fields = result_fields(result)
    assert fields["outcome"] == "completed"
    assert fields["code"] is None
    assert fields["text"] == ""
    assert fields["digest"] == (b"d" * 16).hex()
    assert fields["verified"] is None  # nothing was agreed on
    assert result_fields(replace(result, verified=True))["verified"] is True
    assert result_fields(replace(result, verified=False))["verified"] is False
    assert fields["seconds_blackout"] == 0.1
    assert fields["blackout_steps"] == [{"state": "pausing", "seconds": 0.1}]
    assert fields["rounds"] == [round_fields(STATS)]
    json.dumps(fields, allow_nan=False)


def test_a_result_without_an_end() -> None:
    error = GuestError("it is gone")
    fields = result_fields(Result(Outcome.ROLLED_BACK, error.code, error=error, phase=Phase.ROUNDS))
    assert (fields["code"], fields["phase"]) == ("guest_failed", "rounds")
    assert fields["digest"] is None
    assert fields["seconds_blackout"] is None
    assert "it is gone" in str(fields["text"])


def test_an_error_that_did_not_matter_is_not_told() -> None:
    """A session may complete with a connection that was lost after BYE."""
    assert result_fields(Result(Outcome.COMPLETED, error=GuestError("late")))["text"] == ""


class Connected(Transport):
    """A transport that is only looked at."""

    async def _send(self, views: object, sent: object) -> None:
        raise AssertionError

    async def _receive_into(self, view: object) -> int:
        raise AssertionError

    async def _finish(self) -> None:
        raise AssertionError

    def _dispose(self, *, abrupt: bool) -> None:
        raise AssertionError


def test_connections() -> None:
    tls = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", mutual=True)
    secured = connection_fields(Connected(Peer("host:1", "host-a", bytes(32)), tls))
    assert secured == {
        "peer": {"address": "host:1", "identity": "host-a"},
        "tls": {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "mutual": True},
    }
    assert connection_fields(Connected(Peer("host:1")))["tls"] is None
    assert peer_fields(Peer("host:1"))["identity"] is None


def test_held_guests() -> None:
    status = HolderStatus("running", 2, 0, NO_RUNNER, "userfaultfd", False, {"writes": 7})
    assert holder_fields(status) == {
        "state": "running",
        "epoch": 2,
        "tracker": "userfaultfd",
        "tracking": False,
        "writes": 7,
    }


def test_names() -> None:
    assert code_name(ErrorCode.PEER_NOT_LISTED) == "peer_not_listed"
    assert code_name(None) is None
    assert phase_name(Phase.ROUNDS) == "rounds"
    assert phase_name(Phase.ANY) is None
