"""What is run for whom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from interop_support import settings

from sterna_interop import plan
from sterna_interop.contract import Role
from sterna_interop.implementations import Implementation
from sterna_interop.resources import clauses
from sterna_interop.results import Kind

MINE = Implementation("mine", ("x",))
OTHER = Implementation("other", ("x",))
SENDER = Implementation("sender", ("x",), frozenset({Role.SOURCE}))


def test_the_catalogue_is_in_order() -> None:
    every = plan.catalogue()
    ids = [info.id for info in every]
    assert len(ids) == len(set(ids))
    form = {Kind.VECTOR: r"[a-z0-9-]+/[a-z0-9-]+|contract-002"}
    assert all(re.fullmatch(form.get(info.kind, r"[a-z0-9-]+-\d{3}"), info.id) for info in every)
    assert not {clause for info in every for clause in info.clauses} - clauses().keys()
    assert all(info.title and info.level and info.severity for info in every)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (("matrix-001",), ["matrix-001"]),
        (("matrix-00[12]", "contract-*"), ["contract-001", "matrix-001", "matrix-002", "contract-002"]),
    ],
)
def test_globs(only: tuple[str, ...], expected: list[str]) -> None:
    assert [info.id for info in plan.catalogue(only)] == expected


def pairs(given: list[Implementation], partners: list[Implementation], directory: Path) -> set[str]:
    cells = plan.cells(settings(directory), given, partners, ("matrix-001",))
    return {f"{cell.blank.source}>{cell.blank.destination}" for cell in cells}


def test_the_matrix_is_of_all_pairs_with_a_given_one(tmp_path: Path) -> None:
    assert pairs([MINE], [], tmp_path) == {"mine>mine"}
    assert pairs([MINE], [OTHER], tmp_path) == {"mine>mine", "mine>other", "other>mine"}
    assert pairs([SENDER], [OTHER], tmp_path) == {"sender>other"}


def test_endpoint_cases_are_for_the_roles_that_there_are(tmp_path: Path) -> None:
    for cell in plan.cells(settings(tmp_path), [SENDER], [OTHER]):
        if cell.blank.kind is Kind.ENDPOINT:
            assert cell.blank.source == "sender"


async def test_a_cell_that_is_not_tried(tmp_path: Path) -> None:
    cell = plan.cells(settings(tmp_path), [MINE], [], ("matrix-001",))[0]
    result = await plan.skipped(cell, "a reason").run()
    assert (result.verdict, result.detail) == ("skip", "a reason")
