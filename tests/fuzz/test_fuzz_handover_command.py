"""`sterna fuzz handover`: what it finds, prints and returns."""

from __future__ import annotations

import json

import pytest

from sterna.cli.main import main
from sterna_fuzz import handover_command


def run(*arguments, capsys):
    code = main(["fuzz", "handover", *arguments])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else None, captured.err


def test_both_ways(capsys):
    code, result, err = run("--faults", "0", "--json", capsys=capsys)
    assert code == 0
    assert (result["schema"], result["faults"], result["violations"]) == (1, 0, 0)
    assert [each["store"] for each in result["explored"]] == [True, False]
    assert result["states"] == sum(each["states"] for each in result["explored"]) > 50
    assert all(each["ends"] == {"runs": 1} for each in result["explored"])
    assert "states in" in err


@pytest.mark.slow
def test_in_two_processes(capsys, monkeypatch):
    monkeypatch.setattr(handover_command, "PROGRESS_S", 0.01)
    _, one, _ = run("--faults", "0", "--json", capsys=capsys)
    code, two, err = run("--faults", "0", "--jobs", "2", "--json", capsys=capsys)
    assert code == 0
    assert two["states"] == one["states"]
    assert "with a lease store and without one: 0 and 0 states" in err


def test_the_plain_way_finds_as_many(capsys):
    arguments = ("--faults", "1", "--no-store", "--kind", "record-fails", "--json")
    _, found, _ = run(*arguments, capsys=capsys)
    _, plain, _ = run(*arguments, "--plain", capsys=capsys)
    (one,), (other,) = found["explored"], plain["explored"]
    for name in ("states", "steps", "ends"):
        assert one[name] == other[name]


def test_a_defect_is_found_and_the_way_there_told(capsys):
    arguments = ("--faults", "0", "--store", "--defect", "runs-before-claim")
    code, result, _ = run(*arguments, "--json", capsys=capsys)
    assert (code, result["violations"]) == (1, 1)
    (found,) = result["explored"]
    assert "slot 2 is not beta's" in found["violation"]
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 1
    assert all(line in err for line in found["path"])


def test_more_than_can_be_explored(capsys, monkeypatch):
    def explore(**_):
        raise OverflowError(
            "more than 131072 different first hosts have no number: explore with fewer faults"
        )

    monkeypatch.setattr(handover_command, "explore", explore)
    code, result, err = run("--faults", "0", "--no-store", "--json", capsys=capsys)
    assert (code, result["error"]["code"]) == (2, "usage")
    assert "with fewer faults" in result["error"]["text"]
    assert "bug" not in err


def test_one_way(capsys):
    code, result, err = run("--faults", "0", "--no-store", capsys=capsys)
    assert (code, result) == (0, None)
    assert "guest_lost" not in err


def test_faults_of_a_kind(capsys):
    _, cuts, _ = run("--faults", "1", "--no-store", "--kind", "cut", "--json", capsys=capsys)
    kinds = ("--kind", "cut", "--kind", "mark-fails")
    _, more, err = run("--faults", "1", "--no-store", *kinds, "--json", capsys=capsys)
    assert (cuts["kinds"], cuts["violations"], more["violations"]) == (["cut"], 0, 0)
    assert more["states"] > cuts["states"]
    assert "1 fault of cut, mark-fails" in err


def test_a_source_takes_its_session_up(capsys):
    """[RES-19]"""
    arguments = ("--faults", "1", "--no-store", "--kind", "source-killed", "--switchover", "post-copy")
    _, ends, _ = run(*arguments, "--json", capsys=capsys)
    code, goes_on, _ = run(*arguments, "--resume", "--json", capsys=capsys)
    assert (code, ends["resume"], goes_on["resume"]) == (0, False, True)
    assert goes_on["states"] > ends["states"]


def test_from_the_first_round_on(capsys):
    """[RES-11]"""
    arguments = ("--faults", "0", "--no-store", "--resume", "--json")
    _, late, _ = run(*arguments, capsys=capsys)
    code, whole, _ = run(*arguments, "--rounds", capsys=capsys)
    assert (code, late["rounds"], whole["rounds"]) == (0, False, True)
    assert whole["states"] > late["states"]


def test_pages_that_follow(capsys):
    arguments = ("--faults", "0", "--no-store", "--json")
    _, whole, _ = run(*arguments, capsys=capsys)
    _, early, _ = run(*arguments, "--switchover", "post-copy", capsys=capsys)
    assert (whole["switchover"], early["switchover"]) == ("stop-and-copy", "post-copy")
    assert early["violations"] == 0
    assert early["states"] > whole["states"]


def test_a_kind_that_takes_time(capsys):
    code, _, err = run("--kind", "record-slow", capsys=capsys)
    assert code == 2
    assert "--kind record-slow: no step of an exploration; it knows cut, torn, deadline" in err


@pytest.mark.parametrize("arguments", [("--faults", "-1"), ("--faults", "9"), ("--jobs", "3")])
def test_wrong_usage(arguments, capsys):
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 2
    assert arguments[0] in err
