"""`sterna bench wire` measures what it says; how long that takes is not for a test to say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sterna.cli.main import main
from sterna.linux.errors import CapabilityMissing
from sterna.registry import FrameType
from sterna_interop import bench_wire, measuring
from sterna_interop.bench_wire import batches, collecting, control_frames
from sterna_interop.measuring import BARE, OURS

GUEST = "4MiB"


@pytest.fixture
def quick(monkeypatch):
    """Every piece of work is done once a turn."""

    def once(self):
        self.work()
        return 1e-6

    monkeypatch.setattr(measuring.CpuTime, "__call__", once)


def bench(capsys, *arguments):
    code = main(["bench", "wire", "--runs", "1", "--guest", GUEST, "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_one_object(quick, capsys):
    code, found = bench(capsys)
    assert code == 0
    frames = {f"frame_{frame.name.lower()}" for frame in FrameType} - {"frame_pages"}
    assert {*frames, "control_frame", "batch_1_runs", "batch_16_runs", "batch_256_runs"} <= set(
        found["measures"]
    )
    for each in found["measures"].values():
        assert each["unit"] == "s"
        assert all({"median", "min", "max"} <= each[way].keys() for way in (OURS, BARE))
    assert found["ratios"].keys() == {f"{name}_vs_bare" for name in found["measures"]}


def test_a_missed_target_is_told_and_fails_only_if_asked_to(quick, capsys, monkeypatch):
    monkeypatch.setattr(bench_wire, "BATCH_TARGET_S", 0.0)
    code, found = bench(capsys)
    assert (code, found["missed"]) == (0, ["batch_1_runs", "batch_16_runs", "batch_256_runs"])
    assert bench(capsys, "--check")[0] == 1
    monkeypatch.setattr(bench_wire, "BATCH_TARGET_S", 1.0)
    assert bench(capsys, "--check")[0] == 0


def test_without_tracking_the_rest_is_measured(quick, capsys, monkeypatch):
    def missing(*_):
        raise CapabilityMissing("userfaultfd", "not in this kernel", "another kernel")

    monkeypatch.setattr(bench_wire, "UffdTracker", missing)
    code, found = bench(capsys, "--check")
    assert code == 0
    assert "not in this kernel" in found["skipped"]["collect"]
    assert not any(name.startswith("collect") for name in found["measures"])
    assert "batch_1_runs" in found["measures"]


def test_people_see_the_slowest_frame_or_all(quick, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command = ["bench", "wire", "--runs", "1", "--guest", GUEST]
    assert main(command) == 0
    err = capsys.readouterr().err
    assert "control frame, the slowest: " in err
    assert "HANDOVER" not in err
    assert main([*command, "--verbose"]) == 0
    assert "HANDOVER" in capsys.readouterr().err


def test_every_way_does_its_work():
    for measure in (*batches(), *control_frames()):
        for turn in measure.ways.values():
            replaced = replace(turn, least_s=0.0) if hasattr(turn, "least_s") else turn
            assert replaced() >= 0


@pytest.mark.needs("pagemap_scan")
def test_the_kernel_s_tracking_collects_what_was_written(monkeypatch):
    """In every turn the pattern is written first, and the collect that is timed answers it whole."""
    answers = []
    collect = bench_wire.UffdTracker.collect

    def recorded(self):
        answers.append(collect(self))
        return answers[-1]

    monkeypatch.setattr(bench_wire.UffdTracker, "collect", recorded)
    with collecting(4 << 20) as measures:
        for measure in measures:
            assert measure.ways[BARE]() >= 0
            assert measure.ways[OURS]() >= 0
    assert [each.count() for each in answers] == [0, 16, 1024]
