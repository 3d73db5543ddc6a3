"""Where a side may stand: the tables, seen from outside."""

from __future__ import annotations

from copy import copy

import pytest

from observe_support import OTHER, D, S, migration
from sterna.core.tables import DestinationState, SourceState
from sterna.observe.places import Places
from sterna.registry import FRAMES, FrameType, Sender

F = FrameType
ANYWHERE = {F.PING, F.PONG, F.PROGRESS, F.ABORT}
MIGRATION = [
    (unit.sender, FrameType(unit.type))
    for unit in migration()
    if unit.type != 0x5389 and unit.type not in ANYWHERE
]


def places(count: int) -> dict[Sender, Places]:
    """Both sides, after so many frames of a migration."""
    both = {S: Places(S), D: Places(D)}
    for sender, frame in MIGRATION[:count]:
        assert both[OTHER[sender]].hears(frame)
        assert both[sender].sends(frame)
    return both


def after(*frames: FrameType) -> dict[Sender, Places]:
    """Both sides, when these are the last frames that passed, for the first time."""
    kinds = [frame for _, frame in MIGRATION]
    at = next(n for n in range(len(kinds)) if tuple(kinds[n : n + len(frames)]) == frames)
    return places(at + len(frames))


def test_a_migration_leads_from_end_to_end() -> None:
    both = places(len(MIGRATION))
    assert both[S].states == {SourceState.CLOSED}
    assert both[D].states == {DestinationState.CLOSED}


@pytest.mark.parametrize("at", range(len(MIGRATION)))
def test_out_of_turn(at: int) -> None:
    """[CON-3] At each moment, every frame of the migration that is not due is out of turn for somebody."""
    due = {MIGRATION[at][1]}
    if at and MIGRATION[at - 1][1] is not F.ROUND_END:
        due |= {F.PAGES, F.ROUND_END} if MIGRATION[at - 1][1] in {F.ROUND, F.PAGES} else set()
    state = MIGRATION[at - 1][1] if at else None
    due |= {
        F.ACCEPT: {F.ROUND, F.SWITCHOVER},
        F.ROUND_ACK: {F.ROUND, F.SWITCHOVER},
        F.SWITCHOVER: {F.READY, F.NOT_READY},
        F.STATE: {F.STATE, F.SEAL},
        F.HELLO: {F.WELCOME, F.REFUSE, F.VERDICT},
        # Who sees WELCOME does not know whether a session is taken up again, and where it was: HELLO tells.
        F.WELCOME: {F.GUEST, F.HELD, F.ROUND, F.PAGES, F.PAGE_REQUEST, F.COMPLETE},
        F.GUEST: {F.ACCEPT, F.REFUSE},
        F.HANDOVER: {F.RUNNING, F.HANDBACK},
        # Who sees RUNNING does not know whether pages follow: that is for whoever saw DIRTY_BITMAP.
        F.RUNNING: {F.PAGES, F.PAGE_REQUEST, F.COMPLETE},
    }.get(state, set())
    if state is F.ROUND_END and MIGRATION[at][1] in {F.STATE, F.SEAL}:
        due |= {F.DIRTY_BITMAP, F.STATE, F.SEAL}
    for frame in set(F) - ANYWHERE:
        for sender in (S, D):
            if FRAMES[frame].sender not in {sender, Sender.BOTH}:
                continue
            both = places(at)
            turn = both[OTHER[sender]].hears(frame) and (frame is F.REFUSE or both[sender].sends(frame))
            expected = frame in due and (frame is not F.BYE or sender is MIGRATION[at][0])
            assert turn == expected, (frame, sender)


def test_what_a_side_may_hear_the_other_may_send() -> None:
    """The tables agree, wherever a session may lead. (Rows of failures, which send REFUSE, are left out.)"""
    found = [(Places(S), Places(D))]
    seen = {(found[0][0].states, found[0][1].states)}
    while found:
        source, destination = found.pop()
        for frame in set(F) - ANYWHERE - {F.REFUSE, F.ATTACH, F.ATTACHED}:
            for sender in (S, D):
                if FRAMES[frame].sender is OTHER[sender]:
                    continue
                both = {S: copy(source), D: copy(destination)}
                if frame is F.PAGES and DestinationState.RUNNING in both[D].states:
                    continue  # they were under way when COMPLETE was sent, and move nobody
                if both[OTHER[sender]].hears(frame):
                    assert both[sender].sends(frame), (frame, source.name, destination.name)
                    states = both[S].states, both[D].states
                    if states not in seen:
                        seen.add(states)
                        found.append((both[S], both[D]))
    assert len(seen) > 15


def test_nothing_changes_where_it_is_not_their_turn() -> None:
    both = after(F.ROUND_END)
    before = both[S].states, both[D].states
    assert not both[S].hears(F.READY)
    assert not both[D].sends(F.READY)
    assert (both[S].states, both[D].states) == before


def test_what_a_side_owes_comes_first() -> None:
    """[CON-26] [CON-44] Until ROUND_ACK is sent the next round cannot come; until SEAL is, LOADED cannot."""
    both = after(F.ROUND_END)
    assert not both[D].hears(F.ROUND)
    assert both[D].sends(F.ROUND_ACK)
    assert both[D].hears(F.ROUND)
    both = after(F.STATE)
    assert not both[S].hears(F.LOADED)
    assert both[S].sends(F.SEAL)
    assert both[S].hears(F.LOADED)


def test_local_events_may_have_happened() -> None:
    both = after(F.ROUND_ACK)
    assert both[S].states == {SourceState.COLLECTING, SourceState.DECIDING, SourceState.REPLACING}
    assert both[S].name == SourceState.COLLECTING.value
    both = after(F.LOADED)
    assert both[S].states == {SourceState.CONFIRMING, SourceState.GRANTING, SourceState.RECORDING}


def test_a_question_and_its_answer() -> None:
    """[ONE-60] Who sees only that there is a HELLO knows that any of its answers may come."""
    both = after(F.HELLO)
    assert both[D].states >= {DestinationState.ADMITTING, DestinationState.ANSWERING}
    resumes = {SourceState.RESUMING, SourceState.RETURNING}
    assert both[S].states == {SourceState.GREETING, SourceState.ASKING} | resumes
    assert both[S].hears(F.VERDICT)
    assert both[D].sends(F.VERDICT)
    assert not both[S].hears(F.WELCOME)
    assert not Places(D).sends(F.VERDICT), "it answers what nobody has asked"


def test_a_session_that_is_taken_up_again() -> None:
    """[RES-5] [RES-8]"""
    both = after(F.HELLO)
    assert both[S].hears(F.WELCOME)
    assert both[D].sends(F.WELCOME)
    assert both[S].hears(F.HELD)
    assert both[D].sends(F.HELD)
    rounds = {SourceState.COMPARING, SourceState.REATTACHING, SourceState.COLLECTING, SourceState.DECIDING}
    rounds |= {SourceState.REPLACING, SourceState.CATCHING_UP, SourceState.MOVED}
    assert both[S].states == rounds
    assert both[D].states >= {DestinationState.RESUMED, DestinationState.FETCHING}
    assert not both[D].hears(F.SWITCHOVER)
    assert both[D].hears(F.ROUND)
    assert both[S].sends(F.ROUND)


def test_a_session_that_is_taken_up_again_while_pages_follow() -> None:
    """[RES-13]"""
    both = after(F.HELLO)
    for sender, frame in ((D, F.WELCOME), (D, F.HELD), (D, F.PAGE_REQUEST), (S, F.PAGES)):
        assert both[OTHER[sender]].hears(frame)
        assert both[sender].sends(frame)
    assert both[S].states == {SourceState.MOVED}
    assert DestinationState.FETCHING in both[D].states


def test_an_attempt_that_is_taken_back() -> None:
    """[CON-58] [CON-59]"""
    both = after(F.LOADED)
    assert both[D].voids()
    both[S].takes_back()
    assert (both[S].states, both[D].states) == ({SourceState.ROUND}, {DestinationState.RECEIVING})
    both = after(F.HANDOVER)
    assert not both[D].voids()


def test_a_hand_back_ends_it() -> None:
    """[ONE-35]"""
    both = after(F.HANDOVER)
    assert both[S].hears(F.HANDBACK)
    assert both[D].sends(F.HANDBACK)
    assert both[S].states == {SourceState.UNDECIDED}
    assert not both[D].sends(F.RUNNING)


def test_not_ready_leads_back() -> None:
    """[CON-42]"""
    both = after(F.SWITCHOVER)
    assert both[S].hears(F.NOT_READY)
    assert both[D].sends(F.NOT_READY)
    assert both[D].hears(F.ROUND)
    assert both[S].sends(F.ROUND)


def test_a_blackout_without_pages_and_state() -> None:
    """[CON-45] What is repeated may also be left out."""
    both = after(F.READY)
    for frame in (F.ROUND, F.ROUND_END, F.SEAL):
        assert both[D].hears(frame)
        assert both[S].sends(frame)
    assert both[S].hears(F.LOADED)
