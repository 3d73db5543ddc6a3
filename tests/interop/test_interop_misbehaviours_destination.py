"""What a destination does wrong up to the last round. The clauses stand in the rows."""

from __future__ import annotations

from peer_support import check_row, rows

from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.misbehaviours_destination import of_destination


@rows(of_destination())
def test_sterna_answers_it(row: Misbehaviour) -> None:
    check_row(row)
