"""A scripted source that resumes: what it finds that is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from peer_support import played_over_sockets

from sterna.core.carry import Ticket
from sterna.net import options
from sterna.registry import Feature
from sterna.wire import Hello, Welcome
from sterna_interop.cases import CASES

(RESUMED,) = (case for case in CASES if case.id == "early-017")


def test_an_endpoint_without_resumption_has_tried_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    supported = options.supported
    monkeypatch.setattr(
        "sterna.net.destination.supported",
        lambda told, *, finds: supported(told, finds=finds) - {Feature.RESUME},
    )
    came = played_over_sockets(RESUMED)
    assert came.untried == "the destination does without resume"
    assert came.wrong is None


@pytest.mark.slow
def test_an_answer_about_another_session_is_a_breach(monkeypatch: pytest.MonkeyPatch) -> None:
    """[RES-5]"""
    answer = Ticket.next_welcome

    def other(ticket: Ticket, hello: Hello, complete: int, held_frames: int) -> Welcome:
        return replace(answer(ticket, hello, complete, held_frames), generation=0)

    monkeypatch.setattr(Ticket, "next_welcome", other)
    came = played_over_sockets(RESUMED)
    assert came.wrong is not None
    assert "RES-5" in str(came.wrong)


@pytest.mark.slow
def test_a_demand_connection_that_is_taken_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """[PCY-26]"""
    monkeypatch.setattr(Ticket, "of_generation", lambda ticket, _: ticket)  # it forgets that it was resumed
    came = played_over_sockets(RESUMED)
    assert came.wrong is not None
    assert "ATTACHED" in str(came.wrong)
