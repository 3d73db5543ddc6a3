"""Each check of a body passes what is right, and fails for a receiver that overlooks something."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.errors import PeerMisbehaved
from sterna.registry import ErrorCode, FrameType
from sterna.wire import records as r
from sterna_fuzz import bodies
from sterna_fuzz.bodies import Patch, check_body, check_frame, check_patched, check_round_trip, patches

ROUND = r.Round(1, 2, 3)


def test_what_is_right_passes():
    assert check_round_trip(ROUND) == ("round",)
    assert check_frame(ROUND, (1,)) == ("round",)
    assert check_body(FrameType.ROUND, bodies.encode_body(ROUND)) == ("accepted",)
    assert check_patched(ROUND, [Patch(more=b"\0")]) == ("trailing_bytes",)
    assert check_patched(ROUND, [Patch(cut=1)]) == ("malformed",)


def test_patches_change_a_body():
    assert Patch(1, b"xy").apply(b"abcd") == b"axyd"
    assert Patch(3, b"xy").apply(b"abcd") == b"abcx"
    assert Patch(cut=9, more=b"z").apply(b"abcd") == b"z"
    assert Patch(5, b"x").apply(b"abcd") == b"xbcd"


@given(st.binary(max_size=40), patches())
def test_patches_fit_any_body(body, patch):
    assert len(patch.apply(body)) <= len(body) + 16


def test_too_large_frames_are_left_out():
    runs = bodies.strategies.make_runs([(0, 64, 0)], 13)
    table = r.Pages(1, 1, 7, runs, bodies.strategies.np.zeros(8, "<u8"))
    assert check_frame(table, ()) == ("too large",)


def test_a_record_that_comes_back_changed_is_noticed(monkeypatch):
    monkeypatch.setattr(bodies, "decode_body", lambda *_: r.Round(1, 2, 4))
    with pytest.raises(AssertionError, match="decoded: Round"):
        check_round_trip(ROUND)


def test_bytes_that_are_overlooked_are_noticed(monkeypatch):
    """[FRM-2]"""
    decode = bodies.decode_body
    monkeypatch.setattr(bodies, "decode_body", lambda frame, body, bounds: decode(frame, body[:16], bounds))
    with pytest.raises(AssertionError, match="it is written differently"):
        check_body(FrameType.ROUND, bodies.encode_body(ROUND) + b"\0")


def test_a_rule_that_only_the_writer_has_is_noticed(monkeypatch):
    """[RND-1] Rounds begin with 1."""
    monkeypatch.setattr(bodies, "decode_body", lambda *_: r.Round(1, 0, 0))
    with pytest.raises(AssertionError, match="must not be sent"):
        check_body(FrameType.ROUND, bytes(16))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PeerMisbehaved(ErrorCode.BAD_VALUE, offset=32), "no clause"),
        (PeerMisbehaved(ErrorCode.BAD_VALUE, clause="FRM-3"), "no offset"),
        (PeerMisbehaved(ErrorCode.BAD_VALUE, clause="FRM-3", offset=99), "offset 99"),
    ],
)
def test_an_error_that_says_too_little_is_noticed(monkeypatch, error, text):
    def refuse(*_):
        raise error

    monkeypatch.setattr(bodies, "decode_body", refuse)
    with pytest.raises(AssertionError, match=text):
        check_body(FrameType.ROUND, bytes(16))
