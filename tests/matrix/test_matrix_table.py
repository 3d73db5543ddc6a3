"""The table itself: rules to cells, and what no table may say whatever its rules are."""

from __future__ import annotations

import re
from collections import Counter

import pytest

import clauses
from sterna.core import events, recovery
from sterna.core.records import Claiming, Complete, Granted, HandBack, RunnerRecord, Start
from sterna.matrix.table import STYLES, Matrix, Recovery, Survivor, load, parse
from sterna.registry import Style

SOURCE, DESTINATION, LOST = Survivor

SMALL = """
schema = 1
[codes]
lost = ["connection_lost", "truncated"]
[steps.early]
stop = "before Reserve"
side = "destination"
text = "early"
[steps.late]
stop = "after Pause"
side = "source"
styles = ["bitmap"]
text = "late"
[faults.cut]
text = "cut"
back = "never"
[faults.gone]
text = "gone"
back = "it comes back"
store = [true]
"""

RULE = """
[[rule]]
fault = "{fault}"
steps = "{steps}"
{more}
runs = {runs}
source = "{source}"
destination = "nothing"
recovery = "itself"
clauses = ["CON-62"]
"""


def rule(fault: str, steps: str, runs: str = '"source"', source: str = "completed", more: str = "") -> str:
    return RULE.format(fault=fault, steps=steps, runs=runs, source=source, more=more)


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return load()


def test_the_last_rule_that_fits_decides() -> None:
    text = SMALL + rule("cut", "early..late") + rule("cut", "late", '"lost"', more="store = false")
    found = parse(text + rule("gone", "early..late", '["source", "destination"]'))
    runs = {cell.name: cell.expected.runs for cell in found.cells}
    assert runs["late/cut/bitmap/no_store"] == {LOST}
    assert runs["late/cut/bitmap/store"] == {SOURCE}
    assert runs["early/cut/post_copy/no_store"] == {SOURCE}
    assert runs["early/gone/stop_and_copy/store"] == {SOURCE, DESTINATION}
    assert "early/gone/stop_and_copy/no_store" not in runs
    assert "late/cut/stop_and_copy/store" not in runs
    assert len(runs) == 3 * 2 + 3 + 2 + 1


def test_what_a_side_may_say() -> None:
    source = "moved lost / rolled_back stale_epoch / completed"
    cell = parse(SMALL + rule("cut", "early..late", source=source) + rule("gone", "early..late")).cells[0]
    accepts = cell.expected.accepts
    assert accepts(SOURCE, "moved", "truncated")
    assert not accepts(SOURCE, "moved", "stale_epoch")
    assert not accepts(SOURCE, "moved", None)
    assert accepts(SOURCE, "rolled_back", "stale_epoch")
    assert accepts(SOURCE, "completed", None)
    assert accepts(SOURCE, "completed", "guest_failed")
    assert not accepts(SOURCE, "undecided", None)
    assert cell.expected.destination == ()
    assert not accepts(DESTINATION, "completed", None)


def test_a_guest_without_all_of_its_pages_is_stranded(matrix: Matrix) -> None:
    cells = {cell.name: cell for cell in matrix.cells}
    assert cells["fetching/cut/bitmap/store"].accepts(DESTINATION, "stranded", "connection_lost")
    assert cells["running/cut/stop_and_copy/store"].accepts(DESTINATION, "moved", "connection_lost")
    assert not cells["running/cut/stop_and_copy/store"].accepts(DESTINATION, "stranded", "connection_lost")


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        (rule("cut", "early..late"), "gone at early in STOP_AND_COPY: no rule"),
        (rule("cut", "late..early"), "in the wrong order"),
        (rule("cut", "early", source="moved lots"), "no such code: lots"),
        (rule("cut", "early", source="gone"), "'gone' is not a valid Outcome"),
        (rule("cut", "early", '"nobody"'), "'nobody' is not a valid Survivor"),
        (
            rule("cut", "late") + rule("cut", "early..late") + rule("gone", "early..late"),
            "rules that decide nothing: cut at late",
        ),
    ],
)
def test_a_table_that_contradicts_itself(rules: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse(SMALL + rules)


def test_every_cell_is_there(matrix: Matrix) -> None:
    """Steps that a style has times faults times styles, with a store and without; a store's own only with."""
    names = [cell.name for cell in matrix.cells]
    assert len(set(names)) == len(names)
    count = Counter(cell.style for cell in matrix.cells)
    for style in STYLES:
        steps = sum(style in step.styles for step in matrix.steps)
        assert count[style] == steps * sum(len(fault.store) for fault in matrix.faults)
    assert len(matrix.faults) == 10
    assert [step.name for step in matrix.steps if Style.STOP_AND_COPY not in step.styles] == ["fetching"]


def test_every_clause_exists(matrix: Matrix) -> None:
    known = clauses.load()
    assert {clause for cell in matrix.cells for clause in cell.expected.clauses} <= set(known)


def test_every_stop_is_a_request(matrix: Matrix) -> None:
    records = {each.__name__ for each in (Claiming, Complete, Granted, HandBack, RunnerRecord, Start)}
    stops = {cell.stop for cell in matrix.cells}
    assert stops == {stop for step in matrix.steps for stop in (step.stop, step.stop_with_store) if stop}
    for stop in stops:
        when, request = stop.split()
        name, _, record = request.partition(":")
        assert when in {"before", "after"}
        assert hasattr(events, name) or hasattr(recovery, name), stop
        assert bool(record) == (name in {"Persist", "ProbeStore", "Note"})
        assert not record or record in {*records, "last"}


def test_who_hands_back_was_refused(matrix: Matrix) -> None:
    """Nothing else fails of itself; and rules for ranges of the steps before do not reach these."""
    fails = [step.fails for step in matrix.steps]
    assert fails == sorted(fails)
    assert {name for name in fails if name} == {events.TakeStorage.__name__}
    for cell in matrix.cells:
        assert {SOURCE, LOST} & cell.expected.runs or not cell.step.fails, cell.name


def test_nobody_runs_an_older_image_because_a_newer_one_is_lost(matrix: Matrix) -> None:
    """What is lost is lost for good, unless a source's endpoint happens to have the pages yet."""
    for cell in matrix.cells:
        assert {SOURCE, LOST} != cell.expected.runs, cell.name
        assert (cell.expected.recovery is Recovery.NONE) >= (cell.expected.runs == {LOST}), cell.name


def test_before_the_mark_only_the_source_can_own_the_guest(matrix: Matrix) -> None:
    """[ONE-64] But for a holder that dies with it, and a destination that stands still."""
    steps = [step.name for step in matrix.steps]
    later = {"source_holder_killed", "destination_frozen"}
    for cell in matrix.cells:
        if steps.index(cell.step.name) < steps.index("loaded") and cell.fault.name not in later:
            assert cell.expected.runs == {SOURCE}, cell.name


def test_who_is_killed_is_told_nothing(matrix: Matrix) -> None:
    for cell in matrix.cells:
        assert (not cell.expected.source) == (cell.fault.name == "source_killed"), cell.name
        assert (not cell.expected.destination) == (cell.fault.name == "destination_killed"), cell.name
