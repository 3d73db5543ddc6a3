"""What a source does wrong from SWITCHOVER to BYE. The clauses stand in the rows."""

from __future__ import annotations

from peer_support import check_row, rows

from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.misbehaviours_blackout import of_blackout


@rows(of_blackout())
def test_sterna_answers_it(row: Misbehaviour) -> None:
    check_row(row)
