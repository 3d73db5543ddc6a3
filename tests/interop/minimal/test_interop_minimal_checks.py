"""Clauses about several fields; most are shown by the vectors (test_interop_minimal_frames.py)."""

from __future__ import annotations

import pytest

from sterna.limits import Limits
from sterna_interop.minimal import checks
from sterna_interop.minimal.codes import SessionError


def test_defaults_are_the_registrys() -> None:
    stated = {number: getattr(Limits(), name) for name, number in checks.LIMIT_IDS.items()}
    assert stated == Limits().to_wire()


@pytest.mark.parametrize(
    ("number", "value"), [(1, 65535), (2, 0), (7, 0)], ids=["control_bytes", "bulk_bytes", "batch_runs"]
)
def test_limits_that_nobody_can_work_with(number: int, value: int) -> None:
    """[LIM-2] [LIM-3] [LIM-7]"""
    with pytest.raises(SessionError, match="limit_mismatch"):
        checks.limits_of([{"id": number, "value": value}])
    limits = checks.limits_of([{"id": 3, "value": 9}, {"id": 999, "value": 0}])
    assert limits == checks.DEFAULT_LIMITS | {"regions": 9}
