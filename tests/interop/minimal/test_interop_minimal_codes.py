"""The codes were typed from the document; they are the registry's."""

from __future__ import annotations

from sterna.registry import ErrorCode
from sterna_interop.minimal.codes import NAMES, NUMBERS, from_peer


def test_they_are_the_registrys() -> None:
    assert {code.name.lower(): int(code) for code in ErrorCode} == NUMBERS
    assert len(NAMES) == len(NUMBERS)


def test_a_code_that_nobody_knows() -> None:
    """[ABT-3] [REF-3]"""
    assert from_peer(0xEEEE).code == "internal"
    assert from_peer(0x0301).code == "limit_control"
    assert from_peer(0x0301).by_peer
