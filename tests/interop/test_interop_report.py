"""report.json has everything by name."""

from __future__ import annotations

from pathlib import Path

from interop_support import implementation, report_of

from sterna_interop.report import CaseInfo, Run
from sterna_interop.resources import Musts
from sterna_interop.results import CaseResult, Kind, Verdict

RESULT = CaseResult(
    case="matrix-001",
    kind=Kind.MATRIX,
    source="mine",
    destination="mine",
    transport="tls",
    verdict=Verdict.FAIL,
    expected="this",
    actual="that",
    artifacts={"source stderr": "<b>"},
)
RUN = Run(
    kit_version="0.1.0",
    spec_version="sterna/1-draft.1",
    seed=3,
    started="2026-01-01T00:00:00+00:00",
    ended="2026-01-01T00:00:09+00:00",
    peers=[implementation("")],
    cases=[CaseInfo("matrix-001", "matrix", "a title", ("HDR-2",), "MUST", "interop")],
    clauses={},
    results=[RESULT],
    musts=Musts(434, 1, 103),
)


def test_the_document(tmp_path: Path) -> None:
    assert RUN.write_json(tmp_path) == tmp_path / "report.json"
    document = report_of(tmp_path)
    assert document["schema"] == 1
    assert document["peers"]["mine"]["roles"] == ["destination", "source"]
    assert document["cases"]["matrix-001"]["clauses"] == ["HDR-2"]
    (result,) = document["results"]
    assert (result["verdict"], result["expected"], result["unexpected"]) == ("fail", "this", "that")
    assert result["artifacts"] == {"source stderr": "<b>"}
    assert document["summary"]["musts"] == {"total": 434, "covered": 1, "excused": 103}
    assert document["summary"]["unexpected"] == 1
