"""The list of all endpoint cases."""

from __future__ import annotations

import re
from collections import Counter

from sterna.registry import ERRORS
from sterna_interop.cases import CASES, MISBEHAVIOURS
from sterna_interop.cases_honest import HONEST
from sterna_interop.contract import Role
from sterna_interop.resources import clauses


def test_ids_are_unique_and_well_formed() -> None:
    assert [name for name, count in Counter(case.id for case in CASES).items() if count > 1] == []
    assert all(re.fullmatch(r"[a-z]+-\d{3}", case.id) for case in CASES)
    assert len({(row.role, row.name) for row in MISBEHAVIOURS}) == len(MISBEHAVIOURS)


def test_clauses_exist() -> None:
    known = clauses().keys()
    for case in CASES:
        assert case.clauses, case.id
        assert set(case.clauses) <= known, case.id


def test_titles_are_sentences() -> None:
    assert all(case.title[0].isupper() and not case.title.endswith(".") for case in CASES)
    assert [title for title, count in Counter((c.role, c.title) for c in CASES).items() if count > 1] == []


def test_there_are_enough() -> None:
    assert len({row.name for row in MISBEHAVIOURS}) >= 100
    assert min(Counter(case.role for case in CASES).values()) >= 100
    assert min(Counter(case.role for case in HONEST).values()) >= 20


def test_codes_are_those_of_the_registry() -> None:
    names = {code.name.lower() for code in ERRORS} | {""}
    for case in CASES:
        for ends in (case.expect, *(ends for ends, _ in case.tolerated)):
            assert ends.codes <= names, case.id


def test_silence_is_told_to_end_soon() -> None:
    """A case in which nobody says anything ends by the endpoint's deadlines, which are short there."""
    for case in CASES:
        assert case.deadline_s < case.timeout_s / 4
        assert {case.role, case.role.other} == set(Role)
