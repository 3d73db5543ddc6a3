"""Sterna's answers to what can be wrong with data connections."""

from __future__ import annotations

from peer_support import check_row, rows

from sterna_interop.case import Wire
from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.misbehaviours_streams import of_granted_streams, of_streams


@rows(row for row in of_streams() if row.wire is Wire.PLAIN)
def test_at_the_destination(row: Misbehaviour) -> None:
    """[STR-1] [STR-2] [STR-3] [STR-4] [STR-5] [STR-6] [STR-8] [STR-9] [STR-13] [STR-14] [ATT-1] [ATT-2]"""
    check_row(row)


@rows(of_granted_streams())
def test_at_the_source(row: Misbehaviour) -> None:
    """[STR-2] [STR-3] [STR-14] [ATT-6] [ACC-2] [ACC-3]"""
    check_row(row)
