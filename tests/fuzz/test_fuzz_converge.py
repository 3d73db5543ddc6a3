"""The target `converge` holds for this policy, and finds a policy that is broken on purpose."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.core import policy, style
from sterna.core.policy import Action, PolicySettings
from sterna_fuzz.converge import (
    TARGET,
    World,
    check_convergence,
    check_end,
    check_foresight,
    check_throttle,
)
from sterna_fuzz.running import Wish, run

BUSY = World(bandwidth_bytes_s=12.5e6, full_copy_s=0.5, write_share=0.6)
FAST = replace(BUSY, write_share=5.0)


@pytest.mark.slow
def test_it_holds():
    report = run(TARGET.properties(), Wish(1, 24))
    assert report.failures == []
    assert set(report.examples) == {"ends", "converges", "throttles", "foresees"}


def test_worlds_by_hand():
    assert check_convergence(BUSY) == ("6 rounds",)
    assert check_throttle(FAST) == ("moved, slowed down",)
    assert check_throttle(replace(BUSY, write_share=0.0)) == ("moved",)
    assert check_end(FAST, PolicySettings(max_throttle=0.0, max_rounds=2)) == ("not_converging",)
    assert check_foresight(BUSY) == ("within the factor",)


def noticed(check, *arguments, text):
    with pytest.raises(AssertionError, match=text):
        check(*arguments)


def decided(monkeypatch, change):
    """The policy, with its decisions changed."""
    decide = policy.decide

    def changed(history, *arguments):
        return change(history, decide(history, *arguments))

    monkeypatch.setattr(style, "decide", changed)


def test_rounds_without_end_are_noticed(monkeypatch):
    """[CON-36]"""
    decided(monkeypatch, lambda history, found: replace(found, action=Action.CONTINUE))
    monkeypatch.setattr("sterna.sim.migration._EVENTS_MAX", 2000)
    with pytest.raises(RuntimeError, match="no end"):
        check_end(replace(BUSY, full_copy_s=0.05), PolicySettings(max_rounds=3))


def test_a_round_too_many_is_noticed(monkeypatch):
    def more(history, found):
        return replace(found, action=Action.CONTINUE) if len(history) < 4 else found

    decided(monkeypatch, more)
    noticed(check_end, BUSY, PolicySettings(max_rounds=3), text="4 rounds, allowed are 3")


def test_giving_up_too_early_is_noticed(monkeypatch):
    decided(monkeypatch, lambda history, found: replace(found, action=Action.GIVE_UP) if history else found)
    noticed(check_convergence, BUSY, text="it does not move")
    noticed(check_throttle, FAST, text="it does not move")
    noticed(check_end, BUSY, PolicySettings(on_exhausted="switch"), text="switched over in any case")


def test_switching_over_too_early_is_noticed(monkeypatch):
    decided(
        monkeypatch, lambda history, found: replace(found, action=Action.SWITCHOVER) if history else found
    )
    noticed(check_convergence, BUSY, text="s were foreseen")


def test_foresight_that_is_wrong_is_noticed(monkeypatch):
    decided(monkeypatch, lambda _, found: replace(found, predicted_downtime_s=found.predicted_downtime_s * 9))
    noticed(check_foresight, BUSY, text="foreseen were")
    decided(
        monkeypatch, lambda _, found: replace(found, predicted_downtime_s=found.predicted_downtime_s / 90)
    )
    noticed(check_foresight, replace(BUSY, request_s=0.0, latency_s=0.02), text="foreseen were")


def test_a_throttle_that_is_loosened_is_noticed(monkeypatch):
    def loosened(history, found):
        return replace(found, throttle=0.5 if len(history) == 1 else 0.0)

    decided(monkeypatch, loosened)
    noticed(check_end, FAST, PolicySettings(max_throttle=0.99), text="a throttle was loosened")


def test_stale_pages_are_noticed(monkeypatch):
    """[MEM-11]"""
    monkeypatch.setattr("sterna.sim.guest.PhantomGuest.commit", lambda self, table, *, hashed: [])
    noticed(check_end, BUSY, PolicySettings(), text="pages are not those of the pause")
