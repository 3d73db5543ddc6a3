from __future__ import annotations

import pytest

import sterna.core.records as module
from sterna.core.records import KINDS, Record


def test_every_kind_has_a_name_and_stands_in_the_table() -> None:
    names = [kind.kind for kind in KINDS]
    assert len(set(names)) == len(names)
    rows = [
        line.split()[0] for line in (module.__doc__ or "").splitlines() if line[:1].isupper() and "  " in line
    ]
    assert [row.lower() for row in rows] == names


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_cannot_be_changed(kind: type[Record]) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert hasattr(kind, "__slots__")
