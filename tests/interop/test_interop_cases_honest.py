"""What an endpoint has to be able to do, and to bear; the clauses stand in the cases."""

from __future__ import annotations

import pytest
from peer_support import check

from sterna_interop.case import Case, Wire
from sterna_interop.cases_honest import HONEST, TLS

PLAIN = [case for case in HONEST if case.wire is Wire.PLAIN]


@pytest.mark.parametrize("case", PLAIN, ids=[case.id for case in PLAIN])
def test_sterna_passes(case: Case) -> None:
    check(case)


def test_each_kind_of_tls_is_there() -> None:
    """They need sockets and certificates: tests/e2e runs them."""
    wires = {(case.role, case.wire) for case in (*HONEST, *TLS)}
    assert len(wires) == 2 * len(Wire)
