"""Who may send what, when, and of which attempt. All states and frames at once are in test_core_session."""

from __future__ import annotations

import pytest

from sterna.core.conduct import check_epoch, check_selected, check_sender, is_of_old_attempt, row_of, wrong
from sterna.core.tables import (
    DESTINATION,
    SOURCE,
    DestinationInput,
    DestinationState,
    SourceInput,
    SourceState,
)
from sterna.errors import LocalProtocolError, PeerMisbehaved, RemoteProtocolError
from sterna.registry import FRAMES, ErrorCode, Feature, FrameType, Sender
from sterna.wire.records import Handover, Ping, Ready, Release


def test_an_error_names_code_clause_and_frame():
    error = wrong(ErrorCode.BAD_ROUND, "round 3 of 2", "CON-30", Ready(1))
    assert isinstance(error, RemoteProtocolError)
    assert (error.code, error.clause, error.frame) == (ErrorCode.BAD_ROUND, "CON-30", FrameType.READY)


@pytest.mark.parametrize("receiver", [Sender.SOURCE, Sender.DESTINATION])
def test_frames_have_a_direction(receiver):
    """[CON-4]"""
    own = {frame for frame in FrameType if FRAMES[frame].sender is receiver}
    for frame in set(FrameType) - own:
        check_sender(frame, receiver)
    for frame in own:
        with pytest.raises(PeerMisbehaved, match="for this side to send") as caught:
            check_sender(frame, receiver)
        assert (caught.value.code, caught.value.clause) == (ErrorCode.WRONG_DIRECTION, "CON-4")
    assert own


def test_the_row_of_a_frame_and_of_a_happening():
    state = DestinationState.STANDBY
    assert row_of(DESTINATION, state, FrameType.ROUND).next is DestinationState.RECEIVING
    assert row_of(SOURCE, SourceState.IDLE, SourceInput.START).next is SourceState.GREETING


def test_a_frame_that_the_state_does_not_allow():
    """[CON-3]"""
    with pytest.raises(PeerMisbehaved, match="READY while nothing sent yet") as caught:
        row_of(SOURCE, SourceState.IDLE, FrameType.READY)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.UNEXPECTED_FRAME, "CON-3")
    with pytest.raises(PeerMisbehaved, match="ROUND while"):
        row_of(DESTINATION, DestinationState.IDLE, DestinationInput.NEW_ATTEMPT, FrameType.ROUND)


def test_a_call_that_the_state_does_not_allow_is_this_side_s_fault():
    with pytest.raises(LocalProtocolError, match=r"start\(\) while done"):
        row_of(SOURCE, SourceState.ENDED, SourceInput.START)


def test_a_frame_of_what_was_not_selected():
    """[NEG-7] One of its features is enough; most frames have none."""
    check_selected(FrameType.PAGES, {})
    check_selected(FrameType.DIRTY_BITMAP, {Feature.STOP_AND_COPY: 0, Feature.POST_COPY: 0})
    with pytest.raises(RemoteProtocolError, match="DIRTY_BITMAP without bitmap or post_copy") as caught:
        check_selected(FrameType.DIRTY_BITMAP, {Feature.STOP_AND_COPY: 0})
    assert (caught.value.code, caught.value.clause) == (ErrorCode.NOT_SELECTED, "NEG-7")
    assert caught.value.frame == FrameType.DIRTY_BITMAP


def test_attempts():
    """[CON-22] [CON-23] [CON-24] [CON-25]"""
    assert [is_of_old_attempt(Ready(attempt), 3) for attempt in (1, 2, 3)] == [True, True, False]
    assert not is_of_old_attempt(Ping(1), 3)  # belongs to no attempt
    for record, clause in (
        (Handover(0, 7), "CON-22"),
        (Handover(4, 7), "CON-23"),
        (Ready(0), "CON-25"),
        (Ready(4), "CON-25"),
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            is_of_old_attempt(record, 3)
        assert (caught.value.code, caught.value.clause) == (ErrorCode.BAD_ATTEMPT, clause)


def test_epochs():
    """[RUN-1] [HND-1]"""
    check_epoch(Handover(1, 7), 7, "HND-1")
    for epoch in (6, 8):
        with pytest.raises(RemoteProtocolError, match=f"epoch {epoch}, expected 7") as caught:
            check_epoch(Release(epoch), 7, "REL-1")
        assert (caught.value.code, caught.value.clause) == (ErrorCode.BAD_EPOCH, "REL-1")
