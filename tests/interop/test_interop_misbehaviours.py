"""What any peer can do wrong, from either side; the clauses stand in the rows."""

from __future__ import annotations

import pytest
from peer_support import check_row, rows

from sterna.registry import ErrorCode
from sterna_interop.contract import Role
from sterna_interop.misbehaviours import Misbehaviour, misbehaviour, of_any


@rows(each for role in Role for each in of_any(role))
def test_sterna_answers_it(row: Misbehaviour) -> None:
    check_row(row)


def test_both_roles_misbehave_alike() -> None:
    """The cases of the source under test are those of the destination, with numbers from 101."""
    source, destination = (of_any(role) for role in Role)
    assert [row.name for row in source] == [row.name for row in destination]
    for ours, theirs in zip(source, destination, strict=True):
        area, number = ours.case.split("-")
        assert theirs.case == f"{area}-{int(number) + 100}"


def test_a_head_says_it_all() -> None:
    row = misbehaviour(Role.SOURCE, "end-042 goes: is gone [CON-69 CON-62]", None, None, ErrorCode.INTERNAL)
    assert (row.case, row.name, row.what) == ("end-042", "end-goes", "is gone")
    assert row.clauses == ("CON-69", "CON-62")
    assert row.codes == (ErrorCode.INTERNAL,)
    with pytest.raises(AssertionError):
        misbehaviour(Role.SOURCE, "is gone, without a name", None, None)
