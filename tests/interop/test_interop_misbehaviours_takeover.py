"""What a destination does wrong from READY to BYE. The clauses stand in the rows."""

from __future__ import annotations

from peer_support import check_row, rows

from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.misbehaviours_takeover import of_takeover


@rows(of_takeover())
def test_sterna_answers_it(row: Misbehaviour) -> None:
    check_row(row)
