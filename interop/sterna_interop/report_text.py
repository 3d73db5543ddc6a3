"""The end of a run in two tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from sterna_interop.report import Run
from sterna_interop.results import CaseResult, Kind, Summary, Verdict

Table: TypeAlias = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def tables(run: Run) -> Iterator[Table]:
    """Title, columns and rows: what came out for each kind, and the matrix."""
    kinds = [(kind, [one for one in run.results if one.kind is kind]) for kind in Kind]
    rows = [_row(kind, results) for kind, results in kinds if results]
    if rows:
        yield "", ("", "cases", "as expected", "unexpected", "others"), rows
    pairs = [one for one in run.results if one.kind is Kind.MATRIX]
    destinations = list(dict.fromkeys(one.destination for one in pairs))
    if pairs:
        yield (
            "source to destination",
            ("", *destinations),
            [
                (source, *(_cell(pairs, source, destination) for destination in destinations))
                for source in dict.fromkeys(one.source for one in pairs)
            ],
        )


def _row(kind: Kind, results: Sequence[CaseResult]) -> Sequence[str]:
    summary = Summary.of(results)
    known = {verdict for verdict in Verdict if verdict.is_as_expected or verdict.is_unexpected}
    others = [f"{count} {name}" for name, count in summary.verdicts.items() if name not in known]
    counts = (len(results), summary.as_expected, summary.unexpected)
    return kind, *map(str, counts), ", ".join(others)


def _cell(pairs: Sequence[CaseResult], source: str, destination: str) -> str:
    here = [one for one in pairs if (one.source, one.destination) == (source, destination)]
    good = sum(one.verdict in {Verdict.PASS, Verdict.NON_STRICT} for one in here)
    return f"{good} of {len(here)}" if here else ""
