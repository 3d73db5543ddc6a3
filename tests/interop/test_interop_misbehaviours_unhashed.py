"""Sessions without page hashes. The clauses stand in the rows."""

from __future__ import annotations

from peer_support import check_row, rows

from sterna_interop.contract import Role
from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.misbehaviours_unhashed import of_unhashed


@rows((*of_unhashed(Role.SOURCE), *of_unhashed(Role.DESTINATION)))
def test_sterna_answers_it(row: Misbehaviour) -> None:
    check_row(row)
