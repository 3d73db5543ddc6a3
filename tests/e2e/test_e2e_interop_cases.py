"""A sample of the kit's endpoint cases with real shims, connections and certificates, for both of its peers.

All cases are played against Sterna's endpoints in tests/interop, in one process and virtual time.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna_interop.cases import CASES
from sterna_interop.credentials import Credentials
from sterna_interop.endpoints import endpoint_cell
from sterna_interop.implementations import MINIMAL, STERNA, Implementation
from sterna_interop.results import Verdict
from sterna_interop.runner import Settings, run_cells

SAMPLE = frozenset(
    (
        *("honest-001", "honest-101", "honest-006", "honest-106", "honest-019", "honest-119"),
        *("honest-020", "honest-120", "honest-125"),
        *("tls-001", "tls-002", "tls-003", "tls-101", "tls-102", "tls-103"),
        *("preface-001", "preface-101", "end-005", "end-107", "time-003", "time-106"),
        *("guest-012", "hash-005", "hash-006", "state-013", "ack-006", "ready-006"),
        *("commit-010", "commit-011", "commit-013", "running-001", "running-009", "complete-001"),
    )
)

STREAMS = frozenset(
    (
        *("stream-001", "stream-011", "stream-012", "stream-020", "stream-025"),
        *("stream-042", "stream-101", "stream-119"),
    )
)


@pytest.mark.parametrize("implementation", [STERNA, MINIMAL], ids=lambda one: one.name)
async def test_cases_over_sockets(implementation: Implementation, tmp_path: Path) -> None:
    settings = Settings(tmp_path / "cases", Credentials.make(tmp_path / "pki"))
    wanted = SAMPLE | STREAMS
    chosen = [case for case in CASES if case.id in wanted]
    assert len(chosen) == len(wanted)
    cells = [endpoint_cell(settings, case, implementation) for case in chosen]
    results = await run_cells(cells, jobs=2, on_result=lambda _: None)
    unsupported = STREAMS if implementation is MINIMAL else frozenset()
    for result in results:
        wished = Verdict.UNSUPPORTED if result.case in unsupported else Verdict.PASS
        assert result.verdict is wished, result
