"""What a benchmark has found, as JSON and as tables."""

from __future__ import annotations

import json

import pytest

from sterna.cli.output import Output
from sterna_interop.measured import Report
from sterna_interop.measuring import BARE, OURS, QEMU, Measure, Taken, at_least


def measure(**changes):
    fields = {"name": "copy", "text": "a copy", "ways": {}, "yardstick": "memcpy"} | changes
    return Measure(**fields)


TAKEN = Taken(measure(target=2.0), {OURS: [3.0, 1.0, 2.0], BARE: [1.0, 2.0, 1.0]})
GOODPUT = Taken(
    measure(name="goodput", text="goodput", unit="bytes/s", yardstick="", bounds={QEMU: at_least(1.0, 1.5)}),
    {OURS: [2e9, 1e9], BARE: [4e9, 4e9], QEMU: [1e9, 2e9]},
)
MEMORY = Taken(
    measure(name="memory", text="memory", unit="bytes", yardstick="", target=float(1 << 20)),
    {OURS: [1 << 20, 3 << 20], QEMU: [0, 4096]},
)
COMPARISON = Report(
    bench="memory", runs=2, taken=[GOODPUT, MEMORY], principal="goodput", conditions={"memory": "1 GiB"}
)


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
    assert found["ratios"] == {"copy_vs_bare": {"median": 2.0, "pairs": [3.0, 0.5, 2.0]}}
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
        "0.012-1.23 ms",
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


def test_ratios_are_named_by_what_they_are_of():
    found = COMPARISON.fields()
    bare = {"median": 0.375, "pairs": [0.5, 0.25]}
    qemu = {"median": 1.25, "pairs": [2.0, 0.5], "at_least": 1.0, "goal": 1.5, "met": True}
    assert found["ratios"] == {
        "vs_bare": bare,
        "goodput_vs_bare": bare,
        "vs_qemu": qemu,
        "goodput_vs_qemu": qemu,
    }
    assert found["missed"] == ["memory"]
    assert found["conditions"] == {"memory": "1 GiB"}


def test_a_measure_may_have_another_name():
    report = Report(bench="b", runs=2, taken=[GOODPUT], also={"goodput": "cpu"})
    assert set(report.fields()["ratios"]) == {
        f"{name}_vs_{way}" for name in ("cpu", "goodput") for way in (BARE, QEMU)
    }


def test_a_bound_that_is_missed_is_told_by_the_name_of_the_ratio():
    taken = Taken(GOODPUT.measure, {OURS: [1e9], QEMU: [2e9]})
    assert Report(bench="b", runs=1, taken=[taken], principal="goodput").missed == ["vs_qemu"]
    assert Report(bench="b", runs=1, taken=[taken]).missed == ["goodput_vs_qemu"]


def test_several_yardsticks_have_a_line_each():
    table = COMPARISON.table()
    assert table.rows == [
        ["goodput", "Sterna", "1.5 GB/s", "1-2 GB/s", "", ""],
        ["", "bare", "4 GB/s", "4 GB/s", "0.38", ""],
        ["", "QEMU", "1.5 GB/s", "1-2 GB/s", "1.25", "≥ 1: met"],
        ["memory", "Sterna", "2 MiB", "1-3 MiB", "", "1 MiB: missed"],
        ["", "QEMU", "2 KiB", "0-4 KiB", "", ""],
    ]
    assert "goodput by QEMU: 2.00 0.50" in table.notes
    assert "memory: 1 GiB" in table.notes


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("s", 12.34e-6, "12.3 µs"),
        ("s", 1234.0, "1.23e+03 s"),
        ("bytes", 1000.0, "0.977 KiB"),
        ("bytes", 100 << 30, "100 GiB"),
        ("bytes/s", 999.6, "1 kB/s"),
    ],
)
def test_three_digits(unit, value, text):
    taken = Taken(measure(unit=unit), {OURS: [value], BARE: [value]})
    assert Report(bench="b", runs=1, taken=[taken]).table().rows[0][1] == text
