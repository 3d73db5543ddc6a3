"""What a source does wrong up to its last round. The clauses stand in the rows."""

from __future__ import annotations

from peer_support import check_row, rows

from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.misbehaviours_source import of_source


@rows(of_source())
def test_sterna_answers_it(row: Misbehaviour) -> None:
    check_row(row)
