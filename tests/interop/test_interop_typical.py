"""Frames that benchmarks use are frames of the protocol, and all of them."""

from __future__ import annotations

import pytest

from sterna.limits import Limits
from sterna.registry import FrameType
from sterna.wire import Bounds, decode_body, encode_body
from sterna_interop.typical import CONTROL_FRAMES, LONGEST_ACK, REGION

BOUNDS = Bounds(regions={REGION.id: REGION})


def test_one_of_every_type():
    assert {each.type for each in CONTROL_FRAMES} == set(FrameType) - {FrameType.PAGES}
    assert len(CONTROL_FRAMES) == len(FrameType) - 1


@pytest.mark.parametrize("record", [*CONTROL_FRAMES, LONGEST_ACK], ids=lambda each: each.type.name)
def test_they_are_right(record):
    assert decode_body(record.type, encode_body(record, BOUNDS), BOUNDS) == record


def test_the_longest_is_the_longest():
    assert len(LONGEST_ACK.rejected) == Limits().rejected_runs
