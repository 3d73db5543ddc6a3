"""Sums, and which verdicts a run fails for."""

from __future__ import annotations

from sterna_interop.results import CaseResult, Kind, Summary, Verdict


def test_verdicts_are_expected_unexpected_or_neither() -> None:
    unexpected = {verdict for verdict in Verdict if verdict.is_unexpected}
    expected = {verdict for verdict in Verdict if verdict.is_as_expected}
    assert unexpected == {Verdict.FAIL, Verdict.CRASH, Verdict.XPASS}
    assert expected == {Verdict.PASS, Verdict.NON_STRICT, Verdict.XFAIL}


def test_the_sums() -> None:
    results = [
        CaseResult(case="x", kind=kind, source="a", destination="b", verdict=verdict)
        for kind in Kind
        for verdict in Verdict
    ]
    summary = Summary.of(results)
    assert summary.cases == {"endpoint": 9, "matrix": 9, "vector": 9}
    assert summary.verdicts == {verdict.value: 3 for verdict in Verdict}
    assert (summary.as_expected, summary.unexpected) == (9, 9)
    assert (summary.unsupported, summary.kit_errors) == (3, 3)
