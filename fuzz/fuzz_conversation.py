#!/usr/bin/env python3
"""Valid conversations, spoilt, and heard by real machines; guided by coverage, or drawn under pytest.

    python fuzz/fuzz_conversation.py CORPUS

Bytes become a plan by way of Hypothesis. Begin with an empty directory: vectors mean nothing here.
"""

from __future__ import annotations

from sterna_fuzz.guided import fuzz, product

with product(__name__):
    from hypothesis import given

    from sterna_fuzz.peers import check_machine
    from sterna_fuzz.plans import Plan, plans


@given(plans())
def test_conversation(plan: Plan) -> None:
    """Whatever a machine hears: one coded end, and the guest where it belongs."""
    check_machine(plan)


if __name__ == "__main__":
    fuzz(test_conversation.hypothesis.fuzz_one_input)  # type: ignore[attr-defined]
