"""Pauses double, up to a bound."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from sterna.net.pauses import Pauses


@pytest.mark.parametrize(
    ("first_s", "longest_s", "expected"),
    [(0.5, 3.0, [0.5, 1.0, 2.0, 3.0, 3.0]), (4.0, 1.0, [1.0, 1.0])],
)
async def test_they_double_up_to_a_bound(
    autojump_clock: MockClock, first_s: float, longest_s: float, expected: list[float]
) -> None:
    pauses, found = Pauses(first_s, longest_s), []
    for _ in expected:
        before = trio.current_time()
        await pauses.next()
        found.append(trio.current_time() - before)
    assert found == pytest.approx(expected)
