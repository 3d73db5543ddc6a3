"""Properties become tests only when they are bound."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from sterna_fuzz.target import Given, Machine, Stateful, Target

CALM = settings(max_examples=5, database=None, deadline=None, suppress_health_check=list(HealthCheck))


class Log:
    def __init__(self):
        self.begun = 0
        self.words = []

    def begins(self):
        self.begun += 1

    def reached(self, words):
        self.words += words


def configure(test):
    return seed(1)(CALM(test))


class Counting(Machine):
    def __init__(self):
        super().__init__()
        self.steps = 0

    @rule()
    def step(self):
        self.steps += 1

    def reached(self):
        return ("some",) if self.steps else ()


def test_a_property_of_values_counts_its_examples_and_their_ends():
    log = Log()
    each = Given("name", "round-trip", "text", {"number": st.integers(0, 9)}, lambda number: (str(number),))
    each.bind(log, configure)()
    assert log.begun == len(log.words) == 5
    assert set(log.words) <= set("0123456789")


def test_a_property_of_histories_does_too():
    log = Log()
    Stateful("name", "one-runner", "text", Counting).bind(log, configure)()
    assert log.begun == len(log.words) == 5
    assert set(log.words) == {"some"}


def test_a_state_machine_runs_without_an_observer_too():
    assert list(Machine.reached(Counting())) == []


def test_a_bad_example_is_raised():
    def check(number):
        assert number < 0, "bad"
        return ()

    with pytest.raises(AssertionError, match="bad"):
        Given("name", "bounded", "text", {"number": st.just(1)}, check).bind(Log(), configure)()


def make(mutators):
    text = f"with {' '.join(mutators) or 'all'}"
    return [Given(name, "bounded", text, {}, lambda: ()) for name in ("one", "two")]


TARGET = Target("target", "text", make, {"flip": "flips", "drop": "drops"})


def test_a_target_selects_properties_by_name():
    assert [each.name for each in TARGET.properties()] == ["one", "two"]
    assert [each.name for each in TARGET.properties(["two"])] == ["two"]


def test_a_target_hands_mutators_on():
    assert [each.text for each in TARGET.properties(["flip"])] == ["with flip"] * 2
    (only,) = TARGET.properties(["one", "drop", "flip"])
    assert (only.name, only.text) == ("one", "with drop flip")


def test_a_target_says_what_it_has():
    with pytest.raises(ValueError, match="three: not in target, which has one, two, drop, flip"):
        TARGET.properties(["one", "three"])
