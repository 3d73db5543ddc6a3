"""Peers that end, vanish or fall silent, at every frame that they owe. The clauses stand in the rows."""

from __future__ import annotations

import pytest
from peer_support import check_row, rows

from sterna.registry import FRAMES, IMPLEMENTED_FRAMES, OPTIONAL_FRAMES, FrameType, Sender
from sterna_interop.contract import Role
from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.misbehaviours_ends import of_ends

# What is owed to nobody, and ROUND_ACK, which a source that makes no round does not wait for.
UNOWED = {
    *(FrameType[name] for name in ("PING", "PONG", "PROGRESS", "ABORT", "REFUSE", "NOT_READY", "ROUND_ACK"))
}


@rows(each for role in Role for each in of_ends(role))
def test_sterna_answers_it(row: Misbehaviour) -> None:
    check_row(row)


@pytest.mark.parametrize(
    ("role", "sender"), [(Role.SOURCE, Sender.SOURCE), (Role.DESTINATION, Sender.DESTINATION)]
)
def test_every_frame_that_is_owed_is_there(role: Role, sender: Sender) -> None:
    everybody_has = IMPLEMENTED_FRAMES - OPTIONAL_FRAMES
    owed = {frame for frame in everybody_has if FRAMES[frame].sender in {sender, Sender.BOTH}} - UNOWED
    assert {row.place.frame for row in of_ends(role) if row.place is not None} == owed
