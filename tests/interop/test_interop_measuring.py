"""Taking turns, medians and ratios; the clock of these tests is a list of numbers."""

from __future__ import annotations

import io
import threading
from itertools import count

import pytest
from rich.console import Console

from sterna.cli.output import Output
from sterna_interop.measuring import (
    BARE,
    OURS,
    CpuTime,
    Last,
    Measure,
    Taken,
    at_least,
    at_most,
    progress,
    take,
)


def measure(**changes):
    fields = {"name": "copy", "text": "a copy", "ways": {}, "yardstick": "memcpy"} | changes
    return Measure(**fields)


def test_ways_take_turns_and_the_first_turn_does_not_count():
    """Every other run goes through a measure's ways the other way round."""
    order, said = [], []

    def turn(name):
        numbers = count(0.0)

        def work():
            order.append(name)
            return next(numbers)

        return work

    first = measure(name="a", ways={OURS: turn("a ours"), BARE: turn("a bare")})
    second = measure(name="b", ways={OURS: turn("b ours"), BARE: turn("b bare")})
    taken = take([first, second], 2, said.append)
    forth, back = ["a ours", "a bare", "b ours", "b bare"], ["a bare", "a ours", "b bare", "b ours"]
    assert order == forth + back + forth
    assert [each.values for each in taken] == [{OURS: [1.0, 2.0], BARE: [1.0, 2.0]}] * 2
    places = {"warming up": (OURS, BARE), "run 1 of 2": (BARE, OURS), "run 2 of 2": (OURS, BARE)}
    assert said == [f"{where}: {way}" for where, ways in places.items() for way in ways * 2]


TAKEN = Taken(measure(target=2.0), {OURS: [3.0, 1.0, 2.0], BARE: [1.0, 2.0, 1.0]})


def test_ratios_are_of_the_same_turn():
    assert TAKEN.median() == 2.0
    assert TAKEN.ratios() == [3.0, 0.5, 2.0]


@pytest.mark.parametrize(
    ("unit", "target", "met"),
    [("s", None, None), ("s", 2.0, True), ("s", 1.9, False), ("bytes/s", 2.0, True), ("bytes/s", 2.1, False)],
)
def test_targets(unit, target, met):
    taken = Taken(measure(unit=unit, target=target), TAKEN.values)
    assert taken.met is met


def test_bounds_are_of_the_median_of_ratios():
    taken = Taken(
        measure(bounds={BARE: at_most(1.9, 1.0), "other": at_least(2.0, 3.0)}),
        TAKEN.values | {"other": [1.0, 1.0, 2.0], "none": [0.0, 1.0, 1.0], "more": [1.0, 1.0, 1.0]},
    )
    assert [taken.keeps(way) for way in (BARE, "other", "none", "more")] == [False, False, None, None]
    assert taken.ratios("none") == []
    assert (at_most(2.0, 1.0).text, at_least(0.5, 1.0).text) == ("≤ 2", "≥ 0.5")
    assert at_least(0.5, 1.0).met(0.5)


def test_the_best_one_takes_the_name_of_all():
    taken = Taken(measure(), TAKEN.values | {"x": [1.0, 1.0, 1.0], "y": [2.0, 2.0, 2.0]})
    assert taken.best("z", ["x", "y"], "y").values == TAKEN.values | {"z": [2.0, 2.0, 2.0]}
    assert TAKEN.best("z", ["x", "y"], "y").values == TAKEN.values


class Counting:
    """A way that says how often it has moved, and whether that was watched."""

    def __init__(self):
        self.moves = 0

    def move(self, *, watched=False):
        self.moves += 1
        return self.moves, watched


def test_what_the_last_turn_gave_is_told_without_another():
    last = Last(Counting())
    watched = last.turn(lambda moved: float(moved[1]), watched=True)
    moves = last.told(lambda moved: moved[0])
    assert (watched(), moves(), moves()) == (1.0, 1, 1)
    assert (last.turn(lambda moved: float(moved[1]))(), moves()) == (0.0, 2)


def test_what_is_warm_counts_from_the_first_turn():
    numbers = count(0.0)
    (taken,) = take([measure(ways={OURS: lambda: next(numbers)})], 2, lambda _: None, warm=True)
    assert taken.values == {OURS: [0.0, 1.0]}


def test_short_work_is_repeated_until_the_clock_can_tell(monkeypatch):
    """The clock of this test moves by the work alone: a millisecond a call."""
    clock = [0.0]
    monkeypatch.setattr("sterna_interop.measuring.time.thread_time", lambda: clock[0])

    def work():
        clock[0] += 0.001

    turn = CpuTime(work, least_s=0.01)
    assert turn() == pytest.approx(0.001)
    calls = clock[0] / 0.001
    assert turn() == pytest.approx(0.001)
    assert clock[0] / 0.001 - calls == pytest.approx(turn._calls)  # the number is kept
    assert turn._calls >= 10


def test_who_does_not_watch_is_not_told(capsys):
    with progress(Output(json=True)) as say:
        say("run 1 of 3")
    with progress(Output()) as say:  # stderr is no terminal here
        say("run 1 of 3")
    assert capsys.readouterr().err == ""


def test_who_watches_is_told():
    """And no thread draws: there are benchmarks that fork."""
    shown = io.StringIO()
    output = Output()
    output._console = Console(file=shown, force_terminal=True)
    threads = threading.active_count()
    with progress(output) as say:
        say("warming up")
        assert threading.active_count() == threads
    assert "warming up" in shown.getvalue()
