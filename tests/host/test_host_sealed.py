from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.host.sealed import seal, unseal

values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers(), max_size=3)
objects = st.dictionaries(st.text().filter(lambda name: name != "check"), values, min_size=1, max_size=5)


@given(objects)
def test_what_is_sealed_is_read(fields: dict[str, object]) -> None:
    line = seal(fields)
    found = unseal(line)
    assert found is not None
    assert len(str(found.pop("check"))) == 32
    assert found == fields
    assert line.endswith(b"}\n")


@given(objects, st.data())
def test_a_changed_line_is_none(fields: dict[str, object], data: st.DataObject) -> None:
    line = seal(fields)
    place = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != line[place]))
    assert unseal(line[:place] + bytes([byte]) + line[place + 1 :]) is None
    assert unseal(line[:place]) is None
    assert unseal(line + b" ") is None


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[]", b"{}", b"5", b"[" * 100_000, b"9" * 5000, b'"\\ud800"', b'{"a":NaN}']
)
def test_hostile_lines(line: bytes) -> None:
    assert unseal(line) is None
