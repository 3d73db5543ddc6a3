"""Every case can be explained, and what is said is what is checked."""

from __future__ import annotations

import pytest

from sterna_interop import plan
from sterna_interop.explain import explain, find
from sterna_interop.results import Kind


def text(id_: str) -> str:
    info = find(id_)
    assert info is not None
    return "\n".join(explain(info))


def test_an_endpoint_case() -> None:
    said = text("ack-006")
    assert "The endpoint under test is the source" in said
    assert "guest running" in said
    assert "[CON-31] A destination MUST NOT send ROUND_ACK before" in said


def test_a_scenario() -> None:
    said = text("matrix-022")
    assert "Right is undecided / rolled_back (source / destination)" in said
    assert "[ONE-20]" in said


def test_data_connections_are_told_of() -> None:
    assert "Data connections: 2." in text("stream-011")
    assert "without page hashes." in text("unhashed-001")
    assert "Data connections: 16." in text("matrix-041")
    assert "Pages may follow the guest" in text("early-001")
    assert "Pages may follow the guest" in text("matrix-052")


def test_a_vector() -> None:
    said = text("ping/basic")
    assert "Bytes (body): 0807060504030201" in said
    assert 'Right is valid: {"id": "72623859790382856"}' in said
    said = text("header/limit-body-more")
    assert 'The receiver knows: {"stream": 0' in said
    assert "Right is invalid, limit_control." in said


@pytest.mark.parametrize("id_", ["contract-001", "contract-002"])
def test_the_probes(id_: str) -> None:
    assert "nobody knows" in text(id_)


def test_all_endpoint_cases_have_words() -> None:
    for info in plan.catalogue():
        if info.kind is not Kind.VECTOR:
            assert len(list(explain(info))) > 2
    assert find("nothing-001") is None
