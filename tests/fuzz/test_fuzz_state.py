"""The target `state` holds for this implementation, and finds what is broken on purpose."""

from __future__ import annotations

import pytest

from sterna.core.destination import DestinationMachine
from sterna.core.session import Session
from sterna_fuzz.running import Wish, run
from sterna_fuzz.state import TARGET


@pytest.mark.slow
def test_it_holds():
    report = run(TARGET.properties(), Wish(1, 60))
    assert report.failures == []
    for name in ("history", "packed", "unhashed"):
        assert report.examples[name] >= 20
        assert {"completed", "handed over"} <= set(report.reached[name])


def found(examples=100):
    report = run(TARGET.properties(["history"]), Wish(1, examples, shrink=False))
    return [failure.error for failure in report.failures]


@pytest.mark.slow
def test_a_claim_that_does_not_matter_is_found(monkeypatch):
    """[ONE-29]"""
    claimed = DestinationMachine._on_claimed

    def careless(self, request, answer, now):
        claimed(self, request, request.runner, now)

    monkeypatch.setattr(DestinationMachine, "_on_claimed", careless)
    assert found() == ["AssertionError: it is to run, and nobody has claimed it [ONE-25]"]


def test_a_peer_that_is_never_told_is_found(monkeypatch):
    """[ABT-1]"""
    fail = Session._fail

    def silent(self, error, now, *, words=None, tell=True, cut=False):
        fail(self, error, now, words=words, tell=False, cut=cut)

    monkeypatch.setattr(Session, "_fail", silent)
    (error,) = found()
    assert "its peer is not told" in error
