"""Targets by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sterna_fuzz.targets import TARGETS

README = Path(__file__).parents[2] / "fuzz" / "README.md"
INVARIANTS = {
    "one-runner", "same-memory", "no-stale-page", "bounded", "coded-refusal", "chunking", "round-trip",
    "skips-unknown", "converges", "rollback",
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_what_it_is_called(name):
    target = TARGETS[name]()
    properties = target.properties()
    assert target.name == name
    assert target.text
    assert len({each.name for each in properties}) == len(properties)
    assert {each.invariant for each in properties} <= INVARIANTS
    assert all(each.text and each.weight > 0 for each in properties)


def test_the_table_of_the_readme_has_all_properties():
    rows = re.findall(
        r"^\| (?:`([a-z]+)` )?\| `([a-z-]+)` \| `([a-z-]+)` \|", README.read_text(), re.MULTILINE
    )
    told, name = set(), ""
    for target, *row in rows:
        name = target or name
        told.add((name, *row))
    made = {
        (name, each.name, each.invariant) for name, make in TARGETS.items() for each in make().properties()
    }
    assert told == made
