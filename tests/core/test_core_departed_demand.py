"""What whoever serves single pages has to know of a session that goes on beside it."""

from __future__ import annotations

from core_support import DestinationRig, FetchingRig, ServingRig, SourceRig

from sterna.core.tables import DestinationState as D
from sterna.core.tables import SourceState as S


def test_the_source_serves_pages_that_follow_from_running_on():
    """[PCY-8]"""
    rig = ServingRig()
    for before in (S.ROUND, S.PREPARING, S.PAUSING, S.BLACKOUT, S.SEALED, S.HANDED_OVER):
        assert rig.until(before).machine.position is None
        rig.machine.push_near(0, 1)
    assert rig.until(S.MOVED).machine.position == (1, 3)


def test_where_no_page_follows_there_is_no_number():
    """[PCY-8] [PCY-21]"""
    source, destination = SourceRig(), DestinationRig()
    for state in (S.SEALED, S.HANDED_OVER, S.MOVED):
        assert source.until(state).machine.position is None
    for state in (D.LOADED, D.RUNNING):
        assert destination.until(state).machine.position is None


def test_the_destination_knows_it_from_seal_on():
    """[PCY-8]"""
    rig = FetchingRig().until(D.FROZEN)
    assert rig.machine.position is None
    for state in (D.LOADING, D.FETCHING):
        assert rig.until(state).machine.position == (1, 3)


def test_the_push_goes_on_where_the_guest_is():
    """[PCY-13]"""
    rig = ServingRig().until(S.MOVED)
    rig.machine._serving._cursor = 9
    rig.machine.push_near(0, 2)
    assert rig.machine._serving._cursor == 0


def test_who_serves_single_pages_knows_what_was_agreed_on_and_which_pages_follow():
    """[PCY-28]"""
    rig = ServingRig()
    assert rig.machine.selection is None
    assert rig.until(S.SEALED).machine.groups is None
    groups = rig.until(S.MOVED).machine.groups
    assert groups is not None
    assert groups.pages > 0
    assert rig.machine.selection.hashed
