"""`report.json`: everything that a run found out, as keyed objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sterna_interop import endpoints, vectors
from sterna_interop.implementations import Implementation
from sterna_interop.resources import ClauseText, Musts
from sterna_interop.results import CaseResult, Summary, Verdict

SCHEMA: Final = 1
JSON: Final = "report.json"
HTML: Final = "report.html"


@dataclass(frozen=True, slots=True)
class CaseInfo:
    """What a reader of the report needs to know of a case."""

    id: str
    kind: str
    title: str
    clauses: tuple[str, ...]
    level: str
    severity: str
    role: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the kit.

    Attributes:
        started, ended: UTC, as RFC 3339 writes it.
    """

    kit_version: str
    spec_version: str
    seed: int
    started: str
    ended: str
    peers: Sequence[Implementation]
    cases: Sequence[CaseInfo]
    clauses: Mapping[str, ClauseText]
    results: Sequence[CaseResult]
    musts: Musts

    @property
    def summary(self) -> Summary:
        """The sums."""
        return Summary.of(self.results)

    @property
    def has_tried(self) -> bool:
        """Whether any case was more than asked for; a peer that supports nothing has shown nothing."""
        probes = {endpoints.PROBE, vectors.PROBE}
        asked = [one for one in self.results if one.case not in probes] or self.results
        return any(one.verdict not in {Verdict.UNSUPPORTED, Verdict.SKIP} for one in asked)

    def to_fields(self) -> dict[str, Any]:
        """The document."""
        return {
            "schema": SCHEMA,
            "kit_version": self.kit_version,
            "spec_version": self.spec_version,
            "seed": self.seed,
            "started": self.started,
            "ended": self.ended,
            "peers": {
                peer.name: {
                    "command": list(peer.command),
                    "roles": sorted(peer.roles),
                    "expect_fail": dict(peer.expect_fail),
                }
                for peer in self.peers
            },
            "cases": {
                case.id: {name: value for name, value in asdict(case).items() if name != "id"}
                for case in self.cases
            },
            "results": [_result(result) for result in self.results],
            "summary": {**asdict(self.summary), "musts": asdict(self.musts)},
        }

    def write_json(self, directory: Path) -> Path:
        """Write the file; its path."""
        path = directory / JSON
        path.write_text(json.dumps(self.to_fields(), indent=1) + "\n")
        return path


def _result(result: CaseResult) -> dict[str, Any]:
    fields = asdict(result)
    # The field's usual names: `unexpected` says what came instead of `expected`.
    fields["unexpected"] = fields.pop("actual")
    return {name: getattr(value, "value", value) for name, value in fields.items()}
