"""Memory comes out of one budget, and goes back."""

from __future__ import annotations

import pytest

from sterna.observe.budget import Budget, TooMuchError


def test_shares_of_one_budget() -> None:
    budget = Budget(100)
    one, other = budget.share(), budget.share()
    one.take(60, "this")
    with pytest.raises(TooMuchError, match=r"that takes 41 B .* 40 B of 100 B are left: allow more"):
        other.take(41, "that")
    other.take(40, "that")
    one.release()
    one.release()
    assert budget.left_bytes == 60
    other.take(60, "more of that")
    other.release()
    assert budget.left_bytes == 100
