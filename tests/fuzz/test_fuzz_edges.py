"""Every limit from both sides of its edge, and that a limit off by one is noticed either way."""

from __future__ import annotations

import pytest

from sterna.registry import ErrorCode
from sterna.wire import framing
from sterna_fuzz import edges
from sterna_fuzz.edges import EDGES, check_edge


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_is_where_it_should_be(name):
    for size in (0, 1, 89, 500):
        assert check_edge(name, size) == (EDGES[name].code.name.lower(),)


def test_a_limit_that_takes_one_more_is_noticed(monkeypatch):
    """[FRM-8]"""
    monkeypatch.setattr(framing, "UNKNOWN_FRAMES_IN_A_ROW", 257)
    with pytest.raises(AssertionError, match="257 are taken, allowed are 256"):
        check_edge("skipped frames in a row", 0)


def test_a_limit_that_takes_one_less_is_noticed(monkeypatch):
    """[FRM-8]"""
    monkeypatch.setattr(framing, "UNKNOWN_FRAMES_IN_A_ROW", 255)
    with pytest.raises(AssertionError, match="256 are allowed: limit_rate"):
        check_edge("skipped frames in a row", 0)


def test_another_code_is_noticed(monkeypatch):
    wrong = edges.Edge(EDGES["NICs"].make, ErrorCode.FULL, 64)
    monkeypatch.setattr(edges, "EDGES", {"NICs": wrong})
    with pytest.raises(AssertionError, match=r"bad_value: .* instead of full"):
        check_edge("NICs", 0)


def test_announced_limits_are_among_them():
    announced = {edges._ANNOUNCED.get(name, name) for name, edge in EDGES.items() if edge.most is None}
    assert announced == {
        "control_bytes", "bulk_bytes", "batch_runs", "rejected_runs", "regions", "memory_bytes",
        "state_bytes",
    }  # fmt: skip
