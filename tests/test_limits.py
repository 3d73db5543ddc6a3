from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from sterna import limits
from sterna.limits import Limits
from sterna.registry import DEFAULT_LIMITS, Limit


def test_the_fields_are_the_registrys() -> None:
    assert [field.name for field in fields(Limits)] == [limit.name.lower() for limit in Limit]
    assert Limits().to_wire() == {int(limit): value for limit, value in DEFAULT_LIMITS.items()}


@given(st.dictionaries(st.integers(0, 0xFFFF), st.integers(0, (1 << 64) - 1)))
def test_unknown_limits_are_ignored_and_missing_ones_have_the_default(pairs: dict[int, int]) -> None:
    known = {int(limit) for limit in Limit}
    expected = Limits().to_wire() | {number: value for number, value in pairs.items() if number in known}
    assert Limits.from_wire(pairs).to_wire() == expected


def test_what_is_sent_fits_what_is_announced() -> None:
    """A default peer takes a default batch, and a handshake frame is never larger than a control frame."""
    default = Limits()
    assert default.bulk_bytes >= limits.BATCH_BYTES
    assert default.control_bytes >= limits.HANDSHAKE_BODY_BYTES
    assert 1 << limits.GRANULE_MAX_LOG2 <= limits.CHUNK_BYTES
    assert default.data_streams <= limits.STREAMS_MAX
