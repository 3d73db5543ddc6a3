"""Sterna's answers to what can be wrong with data connections; and the teeth of these cases."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from peer_support import check_row, played, rows

from sterna.core.carry import Ticket
from sterna.core.connected import Connected
from sterna.core.destination import DestinationMachine
from sterna.core.joining import Joining
from sterna.core.source import SourceMachine
from sterna.core.tables import DESTINATION, DestinationInput, DestinationState, Row
from sterna.wire import FrameReader
from sterna_interop.case import Wire
from sterna_interop.cases_misbehaving import case_of
from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.misbehaviours_streams import of_granted_streams, of_streams

Patch = pytest.MonkeyPatch


@rows(row for row in of_streams() if row.wire is Wire.PLAIN)
def test_at_the_destination(row: Misbehaviour) -> None:
    """[STR-1] [STR-2] [STR-3] [STR-4] [STR-5] [STR-6] [STR-8] [STR-9] [STR-13] [STR-14] [STR-18] [ATT-1]

    [ATT-2]
    """
    check_row(row)


@rows(of_granted_streams())
def test_at_the_source(row: Misbehaviour) -> None:
    """[STR-2] [STR-3] [STR-14] [ATT-6] [ACC-2] [ACC-3]"""
    check_row(row)


# ---- endpoints that lack something ----

CASES = {row.case: case_of(row) for row in (*of_streams(), *of_granted_streams())}


def lets_anybody_in(patch: Patch) -> None:
    patch.setattr(Ticket, "check_attach", lambda *_: None)


def lets_them_in_at_any_time(patch: Patch) -> None:
    for state in DestinationState:
        patch.setitem(DESTINATION, (state, DestinationInput.STREAM_JOINS), Row(state, "ATTACHED there", ""))


def reads_ahead(patch: Patch) -> None:
    patch.setattr(Joining, "_is_ahead", lambda *_: False)


def ends_rounds_at_once(patch: Patch) -> None:
    patch.setattr(Joining, "_lacks", lambda *_: False)


def does_not_miss_connections(patch: Patch) -> None:
    for machine in (DestinationMachine, SourceMachine):
        patch.setattr(machine, "_needs_data_lanes", property(lambda _: False))


def takes_any_frame_there(patch: Patch) -> None:
    patch.setattr(Connected, "_data_frame", lambda *_: None)


def begins_again_at_one(patch: Patch) -> None:
    whole = FrameReader.go_on_from
    patch.setattr(FrameReader, "go_on_from", lambda self, _: whole(self, 1))


def takes_pages_on_two_at_once(patch: Patch) -> None:
    patch.setattr(DestinationMachine, "_check_alone", lambda *_: None)


@pytest.mark.parametrize(
    ("defect", "case"),
    [
        (lets_anybody_in, "stream-001"),
        (lets_anybody_in, "stream-003"),
        (lets_anybody_in, "stream-004"),
        (lets_anybody_in, "stream-005"),
        (lets_anybody_in, "stream-013"),
        (lets_them_in_at_any_time, "stream-008"),
        (lets_them_in_at_any_time, "stream-009"),
        (reads_ahead, "stream-023"),
        (ends_rounds_at_once, "stream-022"),
        (does_not_miss_connections, "stream-040"),
        (does_not_miss_connections, "stream-118"),
        (takes_any_frame_there, "stream-060"),
        (takes_any_frame_there, "stream-117"),
        (begins_again_at_one, "stream-025"),
        (takes_pages_on_two_at_once, "stream-075"),
    ],
)
def test_a_defect_is_found(defect: Callable[[Patch], None], case: str, monkeypatch: Patch) -> None:
    """The same case passes without the defect."""
    defect(monkeypatch)
    assert played(CASES[case]).wrong is not None
