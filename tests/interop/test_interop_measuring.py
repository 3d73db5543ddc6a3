"""Taking turns, medians, and what is printed; the clock of these tests is a list of numbers."""

from __future__ import annotations

import io
import json
import threading
from itertools import count

import pytest
from rich.console import Console

from sterna.cli.output import Output
from sterna_interop.measuring import BARE, OURS, CpuTime, Measure, Report, Taken, progress, take


def measure(**changes):
    fields = {"name": "copy", "text": "a copy", "ways": {}, "yardstick": "memcpy"} | changes
    return Measure(**fields)


def test_ways_take_turns_and_the_first_turn_does_not_count():
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
    assert order == ["a ours", "a bare", "b ours", "b bare"] * 3
    assert [each.values for each in taken] == [{OURS: [1.0, 2.0], BARE: [1.0, 2.0]}] * 2
    assert said == ["warming up", "run 1 of 2", "run 2 of 2"]


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
    report = Report(bench="b", runs=3, taken=[taken])
    assert report.missed == (["copy"] if met is False else [])


def test_one_object_for_programs(capsys):
    report = Report(bench="wire", runs=3, taken=[TAKEN], skipped={"other": "no kernel"})
    report.show(Output(json=True))
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["bench"], found["runs"]) == (1, "wire", 3)
    assert found["measures"]["copy"] == {
        "sterna": {"median": 2.0, "min": 1.0, "max": 3.0},
        "bare": {"median": 1.0, "min": 1.0, "max": 2.0},
        "unit": "s",
        "text": "a copy",
        "yardstick": "memcpy",
        "target": 2.0,
        "met": True,
    }
    assert found["ratios"] == {"vs_bare": {"copy": {"median": 2.0, "pairs": [3.0, 0.5, 2.0]}}}
    assert (found["skipped"], found["missed"]) == ({"other": "no kernel"}, [])


def test_a_table_for_people(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    small = Taken(
        measure(name="d", text="a detail", detail=True, yardstick="struct"),
        {OURS: [12e-6, 1.234e-3], BARE: [1e-6, 1e-3]},
    )
    rate = Taken(measure(unit="bytes/s", target=3e9), {OURS: [2e9], BARE: [4e9]})
    report = Report(bench="wire", runs=1, taken=[TAKEN, small, rate], skipped={"other": "no kernel"})
    report.show(Output())
    err = capsys.readouterr().err
    assert "wire, 1 run; version " in err
    for text in (
        "2 s: met",
        "12 µs to 1.23 ms",
        "a detail",
        "2 GB/s",
        "3 GB/s: missed",
    ):
        assert text in err
    assert "[1] memcpy" in err
    assert "[2] struct" in err
    assert "other was skipped: no kernel" in err
    report.show(Output(), everything=False)
    assert "a detail" not in capsys.readouterr().err
    Report(bench="wire", runs=2, taken=[small]).show(Output())
    assert "target" not in capsys.readouterr().err


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
