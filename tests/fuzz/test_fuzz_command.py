"""`sterna fuzz`: what it prints, how it ends, and that a failure can be seen again as it says."""

from __future__ import annotations

import builtins
import json
import shlex

import pytest

from sterna.cli.main import main
from sterna.wire import framing
from sterna_fuzz import command


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments, capsys):
    code = main(["fuzz", *arguments])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else None, captured.err


def test_a_run_without_a_failure(capsys):
    code, result, err = run("frames", "--examples", "30", "--seed", "1", "--json", capsys=capsys)
    assert code == 0
    assert result["schema"] == 1
    assert (result["target"], result["seed"], result["failures"], result["failed"]) == ("frames", 1, 0, [])
    assert result["examples"] == sum(each["examples"] for each in result["properties"].values()) >= 30
    assert "seed 1, 30 examples" in err


def test_people_get_a_table(capsys):
    code, result, err = run("frames", "--examples", "20", "--only", "bytes", capsys=capsys)
    assert (code, result) == (0, None)
    assert "malformed" in err
    assert "20 examples in " in err
    assert "failures: 0" in err


def test_the_same_seed_gives_the_same_run(capsys):
    arguments = ("frames", "--examples", "60", "--seed", "5", "--json")
    _, first, _ = run(*arguments, capsys=capsys)
    _, second, _ = run(*arguments, capsys=capsys)
    first.pop("seconds"), second.pop("seconds")
    assert first == second


def test_time_bounds_a_run(capsys):
    code, result, _ = run("frames", "--time", "100ms", "--only", "bytes", "--json", capsys=capsys)
    assert code == 0
    assert result["examples"] > 0


def test_nothing_is_left_where_the_user_stands(capsys, tmp_path):
    run("frames", "--examples", "20", capsys=capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_prints_the_command_that_shows_it_again(capsys, monkeypatch):
    arguments = ("frames", "--examples", "200", "--seed", "1", "--only", "refusal", "--json")
    with monkeypatch.context() as broken:
        broken.setattr(framing.FrameReader, "receive_eof", lambda self: None)
        code, result, _ = run(*arguments, capsys=capsys)
        assert (code, result["failures"]) == (1, 1)
        (failure,) = result["failed"]
        assert failure["error"] == "AssertionError: truncate was not noticed"
        assert "mutator='truncate'" in failure["example"]
        program, fuzz, *replay = shlex.split(failure["replay"])
        assert (program, fuzz) == ("sterna", "fuzz")
        code, again, _ = run(*replay, "--json", capsys=capsys)
        assert (code, again["examples"]) == (1, 1)
        assert again["failed"] == result["failed"]
        code, _, err = run(*replay, capsys=capsys)
        assert code == 1
        assert failure["replay"] in err.replace("\n", "")
        assert "truncate was not noticed" in err
    code, again, _ = run(*replay, "--json", capsys=capsys)
    assert (code, again["failures"]) == (0, 0), "and it is gone when the bug is"


def test_what_there_is(capsys):
    code, result, _ = run("frames", "--list", "--json", capsys=capsys)
    assert code == 0
    assert "chunking" in [each["name"] for each in result["properties"]]
    assert "flip_body" in [each["name"] for each in result["mutators"]]
    _, _, err = run("frames", "--list", "--only", "chunking", capsys=capsys)
    assert "mutator" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--only", "nonsense"), "nonsense: not in frames, which has"),
        (("--replay", "nonsense"), "'nonsense' is not what a failure of frames prints"),
        (("--replay", "body:1.0:AXic"), "version"),
        (("--seed", "-1"), "--seed"),
        (("--jobs", "0"), "--jobs"),
        (("--examples", "0"), "--examples"),
        (("--time", "5"), "has no unit"),
    ],
)
def test_wrong_usage(arguments, text, capsys):
    code, _, err = run("frames", *arguments, capsys=capsys)
    assert code == 2
    assert text in err


def test_without_hypothesis_it_says_what_to_install(capsys, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **named):
        if name == "hypothesis":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    code, _, err = run("frames", capsys=capsys)
    assert code == 2
    assert "pip install '.[fuzz]'" in err


def test_where_there_is_no_blob_the_run_is_repeated():
    from sterna_fuzz.running import Failure, Wish

    failure = Failure("chunking", "chunking", "error", "", (), "", "")
    assert (
        command.again("frames", ("flip_bulk",), failure, Wish(3, 50, 60.0))
        == "sterna fuzz frames --only flip_bulk --seed 3 --examples 50 --time 1min"
    )
