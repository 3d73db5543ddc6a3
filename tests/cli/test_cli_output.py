from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.cli.exits import Exit
from sterna.cli.output import Output, printable


def test_text_goes_to_stderr_and_data_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json=True)
    output.say("for people")
    output.result({"answer": 42})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema": 1, "answer": 42}
    assert out.count("\n") == 1
    assert err == "for people\n"


def test_without_json_there_is_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.table(("name", "value"), [("a", "1")], title="all of it")
    output.result({"answer": 42})
    out, err = capsys.readouterr()
    assert out == ""
    assert "all of it" in err
    assert "value" in err


def test_with_json_a_table_would_say_it_twice(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True).table(("name",), [("a",)])
    assert capsys.readouterr() == ("", "")


def test_foreign_text_is_neither_markup_nor_terminal_control(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.say("[red]\x1b[31mowned\x07[/red]")
    output.table(("[b]",), [("[link=x]\x9b2J",)])
    err = capsys.readouterr().err
    assert "[red]\\x1b[31mowned\\x07[/red]" in err
    assert "[link=x]\\x9b2J" in err


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    assert all(character.isprintable() or character == "\n" for character in printable(text))


def test_a_long_line_is_left_to_the_terminal_to_break(capsys: pytest.CaptureFixture[str]) -> None:
    Output().say("x" * 500)
    assert capsys.readouterr().err == "x" * 500 + "\n"


def test_no_number_leaves_that_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Output(json=True).result({"rate": math.inf})


def test_a_failure_is_a_line_or_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    Output().failure("full", "not enough memory", Exit.REFUSED)
    assert capsys.readouterr() == ("", "sterna: not enough memory\n")
    Output(json=True).failure("full", "not enough memory", Exit.REFUSED)
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "schema": 1,
        "error": {"code": "full", "text": "not enough memory", "exit": 4},
    }
    assert err == ""


def test_colours_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    Output().failure("full", "no", Exit.REFUSED)
    assert "\x1b[31" not in capsys.readouterr().err


def test_a_display_moves_only_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Output().live
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Output().live
    assert not Output(json=True).live
