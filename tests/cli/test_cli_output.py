from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.cli.exits import Exit
from sterna.cli.output import Output, printable, write_line


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


def test_a_title_may_be_wider_than_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("a", "b"), [("1", "2")], title="source to destination")
    assert "source to destination" in capsys.readouterr().err.splitlines()


def test_with_json_a_table_would_say_it_twice(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True).table(("name",), [("a",)])
    assert capsys.readouterr() == ("", "")


def test_foreign_text_is_neither_markup_nor_terminal_control(capsys: pytest.CaptureFixture[str]) -> None:
    """[SEC-12]"""
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


def test_on_a_terminal_lines_are_broken_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    Output().say("one two three four five six")
    lines = capsys.readouterr().err.splitlines()
    assert [line.rstrip() for line in lines] == ["one two three four", "five six"]


def test_lines_for_programs_are_utf_8_whatever_the_locale_is(capsysbinary: pytest.CaptureFixture) -> None:
    """A path that is no text keeps its bytes, as the escape that JSON has for them."""
    write_line({"µ": "/tmp/\udcff"})
    out = capsysbinary.readouterr().out
    assert out == '{"µ": "/tmp/\\udcff"}\n'.encode()
    assert json.loads(out) == {"µ": "/tmp/\udcff"}


_PIPES = """
import os, sys
from sterna.cli.output import Output
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, 1)
os.dup2(writing, 2)
output = Output(json=True)
for _ in range(3):
    output.result({"a": 1})
    output.say("text")
sys.exit(7)
"""
_FULL = """
import os, sys
from sterna.cli.output import Output
full = os.open("/dev/full", os.O_WRONLY)
os.dup2(full, int(sys.argv[1]))
output = Output(json=True)
output.result({"a": 1})
output.say("text")
sys.exit(7)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_reader_that_has_gone_is_no_failure() -> None:
    """`sterna migrate 2>&1 | head -1` must not end a migration, nor change what its exit code says."""
    assert run(_PIPES).returncode == 7


def test_a_full_disk_is_no_failure_either() -> None:
    done = run(_FULL, "1")
    assert done.returncode == 7
    assert done.stderr == "sterna: stdout: No space left on device\ntext\n"
    done = run(_FULL, "2")
    assert (done.returncode, done.stdout) == (7, '{"schema": 1, "a": 1}\n')


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
