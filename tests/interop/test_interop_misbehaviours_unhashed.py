"""Sessions without page hashes. The clauses stand in the rows."""

from __future__ import annotations

from dataclasses import replace

from peer_support import check_row, played, rows

from sterna.registry import Feature
from sterna_interop.cases_misbehaving import case_of
from sterna_interop.contract import Role
from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.misbehaviours_unhashed import of_unhashed

EVERY = (*of_unhashed(Role.SOURCE), *of_unhashed(Role.DESTINATION))


@rows(EVERY)
def test_sterna_answers_it(row: Misbehaviour) -> None:
    check_row(row)


@rows(row for row in EVERY if row.about is not None)
def test_an_endpoint_that_goes_with_hashes_has_tried_nothing(row: Misbehaviour) -> None:
    assert row.about is Feature.UNHASHED
    came = played(replace(case_of(row), unverified=False))
    assert came.untried == f"the {row.role.other} does without unhashed"
    assert came.wrong is None
    assert came.strict
