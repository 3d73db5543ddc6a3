"""Packed pages that are wrong. The clauses stand in the rows."""

from __future__ import annotations

from peer_support import check_row, rows

from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.misbehaviours_packed import of_packed


@rows(of_packed())
def test_sterna_answers_it(row: Misbehaviour) -> None:
    check_row(row)
