"""Targets by name."""

from __future__ import annotations

import pytest

from sterna_fuzz.targets import TARGETS

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
