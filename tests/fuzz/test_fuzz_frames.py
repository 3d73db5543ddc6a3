"""The target `frames` holds for this implementation, and finds what is broken on purpose."""

from __future__ import annotations

import pytest

from sterna.wire import framing
from sterna_fuzz.frames import TARGET
from sterna_fuzz.running import Wish, run

NAMES = [each.name for each in TARGET.properties()]


@pytest.mark.parametrize("name", NAMES)
def test_a_property_holds(name):
    """A few examples of each; `sterna fuzz frames` has more."""
    report = run(TARGET.properties([name]), Wish(1, 40))
    assert report.failures == []
    assert report.examples[name] == report.reached[name].total() > 0


def test_mutators_can_be_chosen():
    report = run(TARGET.properties(["refusal", "truncate"]), Wish(1, 40))
    assert set(report.reached["refusal"]) <= {"truncated", "read to its end"}


def test_properties_without_a_mutator_of_theirs_take_what_there_is():
    assert [each.name for each in TARGET.properties(["truncate"])] == NAMES


def found(*only, examples=400):
    return {
        failure.name for failure in run(TARGET.properties(only), Wish(1, examples, shrink=False)).failures
    }


def test_a_checksum_that_is_not_checked_is_found(monkeypatch):
    """[HDR-10]"""
    monkeypatch.setattr(framing.FrameReader, "_check_crc", lambda self, crc: None)
    assert found("refusal") == {"refusal"}


def test_an_end_that_counts_as_good_is_found(monkeypatch):
    """[FRM-10]"""
    monkeypatch.setattr(framing.FrameReader, "receive_eof", lambda self: None)
    assert found("refusal") == {"refusal"}


def test_a_limit_that_is_off_by_one_is_found(monkeypatch):
    """[FRM-8]"""
    monkeypatch.setattr(framing, "UNKNOWN_FRAMES_IN_A_ROW", 257)
    assert found("skipping", "unknown_flood", examples=20) == {"skipping"}
