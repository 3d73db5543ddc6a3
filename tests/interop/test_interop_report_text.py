"""What the terminal is told at the end."""

from __future__ import annotations

from dataclasses import replace

from test_interop_report import RESULT, RUN

from sterna_interop.report_text import tables
from sterna_interop.results import Kind, Verdict


def test_two_tables() -> None:
    results = [
        RESULT,
        replace(RESULT, verdict=Verdict.PASS),
        replace(RESULT, verdict=Verdict.UNSUPPORTED, destination="other"),
        replace(RESULT, verdict=Verdict.XFAIL, kind=Kind.ENDPOINT),
    ]
    (_, columns, kinds), (title, names, matrix) = tables(replace(RUN, results=results))
    assert columns == ("", "cases", "as expected", "unexpected", "others")
    assert kinds == [("endpoint", "1", "1", "0", ""), ("matrix", "3", "1", "1", "1 unsupported")]
    assert title == "source to destination"
    assert names == ("", "mine", "other")
    assert matrix == [("mine", "1 of 2", "0 of 1")]


def test_nothing_ran() -> None:
    assert list(tables(replace(RUN, results=[]))) == []
