"""Pages that come early. The clauses stand in the rows. A process is given sockets only, in real time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from peer_support import check, played, played_over_sockets, rows

from sterna.core import negotiate
from sterna.guest.early_pages import EarlyPages
from sterna.memory.groups import Groups
from sterna.memory.merging import Merging
from sterna.net import asking
from sterna.net.demand import DemandConnection
from sterna.registry import Feature
from sterna_interop.case import Wire
from sterna_interop.cases import CASES
from sterna_interop.cases_misbehaving import case_of
from sterna_interop.contract import Role
from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.misbehaviours_early import of_early

EVERY = [row for role in Role for row in of_early(role) if row.wire is Wire.PLAIN]
BY_ID = {case.id: case for case in CASES}
Patch = pytest.MonkeyPatch


@rows(EVERY)
def test_sterna_answers_it(row: Misbehaviour) -> None:
    check(case_of(row), played_over_sockets)


@rows(row for row in EVERY if row.about is Feature.EARLY_PAGES)
def test_an_endpoint_that_does_without_has_tried_nothing(row: Misbehaviour) -> None:
    came = played(replace(case_of(row), follows=False))
    assert came.untried == f"the {row.role.other} does without early_pages"
    assert came.wrong is None
    assert came.strict


def test_an_endpoint_that_makes_no_use_of_it_has_tried_nothing(monkeypatch: Patch) -> None:
    monkeypatch.setattr(DemandConnection, "serve", lambda *_, **__: False)  # no process could be forked
    came = played_over_sockets(BY_ID["early-001"])
    assert came.untried == "the destination asks for no page on the demand connection"
    assert came.wrong is None


# ---- endpoints that lack something ----


def selects_it_alone(patch: Patch) -> None:
    patch.setattr(negotiate, "_follows", lambda _: True)


def compares_nothing(patch: Patch) -> None:
    patch.setattr(Merging, "_is_as_noted", lambda *_: True)


def overwrites_early_pages(patch: Patch) -> None:
    patch.setattr(Merging, "_early_runs", lambda *_: set())


class _AnyHash(int):
    """Equal to whatever a frame states."""

    def __ne__(self, _other: object) -> bool:
        return False

    __hash__ = int.__hash__


def believes_early_pages(patch: Patch) -> None:
    patch.setattr(asking, "page_hash", lambda _: _AnyHash())


def answers_whatever_is_asked(patch: Patch) -> None:
    patch.setattr(Groups, "holds", lambda *_: True)


def asks_without_end(patch: Patch) -> None:
    patch.setattr(asking, "CHUNK_BYTES", 0)


def takes_what_is_taken(patch: Patch) -> None:
    patch.setattr(EarlyPages, "take_all", lambda *_: True)


TEETH: list[tuple[Callable[[Patch], None], str]] = [
    (selects_it_alone, "early-004"),
    (compares_nothing, "early-006"),
    (overwrites_early_pages, "early-006"),
    (overwrites_early_pages, "early-051"),
    (takes_what_is_taken, "early-006"),
    (believes_early_pages, "early-032"),
    (asks_without_end, "early-008"),
    (answers_whatever_is_asked, "early-121"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defect", "case"), TEETH, ids=[f"{case}-{defect.__name__}" for defect, case in TEETH]
)
def test_a_defect_is_found(defect: Callable[[Patch], None], case: str, monkeypatch: Patch) -> None:
    """The same case passes without the defect, see above."""
    defect(monkeypatch)
    assert played_over_sockets(BY_ID[case]).wrong is not None
