"""Examples follow from the seed, a failure is shrunk, told and can be seen again."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from sterna_fuzz import running
from sterna_fuzz.running import Failure, Report, Wish, derived_seed, replay, run
from sterna_fuzz.target import Given, Machine, Stateful


def numbers(name="numbers", weight=1, seen=None, bad=lambda number: False):
    def check(number):
        if seen is not None:
            seen.append(number)
        assert not bad(number), f"{number} is bad"
        return ("odd" if number % 2 else "even",)

    return Given(name, "bounded", "text", {"number": st.integers(0, 10**6)}, check, weight)


class Climbing(Machine):
    height = 0

    @rule(by=st.integers(1, 9))
    def climb(self, by):
        self.height += by
        assert self.height < 20, "too high"


def test_the_same_seed_gives_the_same_examples():
    first, second, third = [], [], []
    run([numbers(seen=first)], Wish(1, 150))
    run([numbers(seen=second)], Wish(1, 150))
    run([numbers(seen=third)], Wish(2, 150))
    assert first == second
    assert len(first) == 150
    assert first != third


def test_examples_are_shared_out_by_weight():
    report = run([numbers("light"), numbers("heavy", 3)], Wish(1, 400))
    assert report.examples == {"light": 100, "heavy": 300}
    assert report.reached["heavy"].total() == 300
    assert set(report.reached["heavy"]) == {"odd", "even"}
    assert report.failures == []


def test_every_property_gets_an_example():
    report = run([numbers("light"), numbers("heavy", 1000)], Wish(1, 2))
    assert report.examples["light"] == 1


def test_a_failure_is_shrunk_and_told():
    each = numbers(bad=lambda number: number > 1000)
    report = run([each, numbers("good")], Wish(1, 300))
    (failure,) = report.failures
    assert failure.name == "numbers"
    assert failure.invariant == "bounded"
    assert failure.error == "AssertionError: 1001 is bad"
    assert "number=1001" in failure.example
    assert "reproduce" not in failure.example
    assert report.examples["good"] == 150, "the others go on"
    assert report.examples["numbers"] < 150, "it does not, and shrinking does not count"


def test_without_shrinking_the_first_bad_example_is_told():
    seen = []
    report = run([numbers(seen=seen, bad=lambda number: number > 1000)], Wish(1, 300, shrink=False))
    first = next(number for number in seen if number > 1000)
    assert report.failures[0].error == f"AssertionError: {first} is bad"


def test_a_failure_can_be_seen_again():
    each = numbers(bad=lambda number: number > 1000)
    (failure,) = run([each], Wish(1, 300)).failures
    (again,) = replay(each, failure.blob, failure.version, Wish(5)).failures
    assert again == failure
    assert replay(numbers(), failure.blob, failure.version, Wish(5)).failures == [], "the bug is gone"


def test_a_history_can_be_seen_again():
    each = Stateful("climbing", "one-runner", "text", Climbing)
    (failure,) = run([each], Wish(1, 50)).failures
    assert "state.climb(by=" in failure.example
    (again,) = replay(each, failure.blob, failure.version, Wish(5)).failures
    assert (again.error, again.example) == (failure.error, failure.example)


def test_what_is_no_example_of_a_property_is_not_replayed():
    (failure,) = run([numbers(bad=lambda number: number > 1000)], Wish(1, 300)).failures
    other = Given(
        "other", "bounded", "text", {"text": st.text(), "flag": st.booleans()}, lambda text, flag: ()
    )
    with pytest.raises(ValueError, match="no example of other"):
        replay(other, failure.blob, failure.version, Wish(1))
    with pytest.raises(ValueError, match="version"):
        replay(numbers(), failure.blob, "1.0", Wish(1))


def test_time_ends_a_run_between_two_examples(monkeypatch):
    """However long the examples take: a clock that a check moves."""
    now = [0.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])

    def check(number):
        now[0] += 1.0
        return ()

    each = Given("slow", "bounded", "text", {"number": st.integers()}, check)
    report = run([each], Wish(1, seconds=12.5))
    assert report.examples["slow"] == 13
    assert report.seconds == 13.0
    assert report.failures == []


def test_the_end_of_the_time_is_no_failure_of_a_history(monkeypatch):
    """Histories that draw again what was drawn before, and then stop: Hypothesis takes that for flaky."""
    now = [0.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])

    class Walking(Machine):
        @rule(there=st.booleans())
        def walk(self, there):
            now[0] += 1.0

    for seconds in range(1, 400, 13):
        assert run([Stateful("history", "bounded", "text", Walking)], Wish(1, seconds=seconds)).failures == []


def test_preparing_is_not_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])

    def check(number):
        now[0] += 1.0
        return ()

    class Slow(Given):
        def bind(self, observer, configure):
            now[0] += 100.0
            return super().bind(observer, configure)

    report = run([Slow("slow", "bounded", "text", {"number": st.integers()}, check)], Wish(1, seconds=5))
    assert report.examples["slow"] == 5


def test_shrinking_is_not_cut_short(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])

    def check(number):
        now[0] += 1.0
        assert number <= 1000, f"{number} is bad"
        return ()

    each = Given("slow", "bounded", "text", {"number": st.integers(0, 10**6)}, check)
    report = run([each], Wish(1, seconds=5))
    assert [failure.error for failure in report.failures] == ["AssertionError: 1001 is bad"]
    assert now[0] > 5


def test_derived_seeds_differ():
    seeds = {derived_seed(number, name, batch) for number in range(9) for name in "ab" for batch in range(9)}
    assert len(seeds) == 9 * 2 * 9
    assert max(seeds) < 1 << 64


def test_reports_add_up():
    failure = Failure("one", "bounded", "error", "", (), "", "")
    one = Report(Counter(one=3), {"one": Counter(a=3)}, [failure], 2.0)
    one.add(Report(Counter(one=1, two=2), {"one": Counter(a=1), "two": Counter(b=2)}, [failure], 1.0))
    assert one.examples == {"one": 4, "two": 2}
    assert one.reached == {"one": {"a": 4}, "two": {"b": 2}}
    assert one.failures == [failure]
    assert one.seconds == 2.0
