#!/usr/bin/env python3
"""Histories of two machines, with every invariant; guided by coverage, or drawn under pytest.

    python fuzz/fuzz_state.py CORPUS

Bytes become the steps of a history by way of Hypothesis. Begin with an empty directory.
"""

from __future__ import annotations

from sterna_fuzz.guided import fuzz, product

with product(__name__):
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import get_state_machine_test

    from sterna_fuzz.histories import History

TestState = History.TestCase
TestState.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)

if __name__ == "__main__":
    history = get_state_machine_test(History, settings=TestState.settings)
    fuzz(history.hypothesis.fuzz_one_input)  # type: ignore[attr-defined]
