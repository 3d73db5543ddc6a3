"""`sterna fuzz world`: its JSON, its table, and the command that a failing seed prints."""

from __future__ import annotations

import json
import shlex

import pytest

from sterna.cli.main import main
from sterna.sim.seeded import SEEDED
from sterna_fuzz.handover_command import handover
from sterna_fuzz.world_command import world


def run(*arguments, capsys):
    code = main(["fuzz", "world", *arguments])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else None, captured.err


def test_seeds_that_hold(capsys):
    code, result, err = run("--seed", "5", "--count", "12", "--json", capsys=capsys)
    assert code == 0
    wanted = {"schema": 1, "seeds": 12, "violations": 0, "guest_lost_unexpected": 0, "failed": []}
    assert {name: result[name] for name in wanted} == wanted
    assert result["faults_injected"] == sum(result["faults"].values()) > 0
    assert set(result["faults"]) == {each.value for each in SEEDED}
    assert result["migrations_completed"] + result["rolled_back"] >= 12 - result["guest_lost_expected"]
    assert result["resumed"] >= 0
    assert "12 seeds in " in err


def test_lists_of_commands_say_what_each_is(capsys):
    """What stands for commands that are imported late is what these say of themselves."""
    main(["fuzz", "--help"])
    listed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for command in (world, handover):
        assert command.__doc__.splitlines()[0] in listed


def test_people_get_a_table(capsys):
    code, result, err = run("--count", "3", capsys=capsys)
    assert (code, result) == (0, None)
    assert "source-frozen" in err


def test_a_failing_seed_prints_the_command_that_shows_it_again(capsys):
    code, result, _ = run("--count", "4", "--defect", "runs-before-claim", "--json", capsys=capsys)
    assert code == 1
    assert result["violations"] == len(result["failed"]) > 0
    program, *again = shlex.split(result["failed"][0]["replay"])
    assert program == "sterna"
    assert main(again) == 1
    err = capsys.readouterr().err
    assert result["failed"][0]["error"] in err.replace("\n", " ")
    assert "violations: 1" in err


@pytest.mark.parametrize(
    "arguments", [("--seed", "-1"), ("--count", "0"), ("--jobs", "0"), ("--defect", "nonsense")]
)
def test_wrong_usage(arguments, capsys):
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 2
    assert arguments[0] in err
