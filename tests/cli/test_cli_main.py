from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest

from sterna.cli import main as cli
from sterna.cli.main import COMMANDS, COMMANDS_GROUP, commands, main
from sterna.cli.version import version_line
from sterna.errors import TransportError
from sterna.registry import ErrorCode


@pytest.fixture
def boom(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A command `boom`, whose `run` a test replaces."""
    module = types.ModuleType("sterna_test_boom")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "COMMANDS", [("boom", f"{module.__name__}:run", "Fails.")])
    return module


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == version_line() + "\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, _, text in commands():
        assert name in out
        assert text in out


@pytest.mark.parametrize("name", [name for name, _, _ in commands()])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: sterna {name}" in capsys.readouterr().out


def test_packages_beside_this_one_add_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        name = "beside"

        @staticmethod
        def load() -> tuple[tuple[str, str, str], ...]:
            return (("other", "somewhere:run", "Does something else."),)

    monkeypatch.setattr(cli, "entry_points", lambda group: [Found] if group == COMMANDS_GROUP else [])
    assert commands() == [*COMMANDS, ("other", "somewhere:run", "Does something else.")]


def test_a_command_s_own_help_says_more_than_its_line_in_the_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["holder", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The guest belongs to this process: Ctrl-C ends both." in out


def test_closed_streams_are_opened_before_anything_else_gets_their_numbers() -> None:
    code = (
        "import os, sys; from sterna.cli.main import main; status = main(['exits', '--json']); "
        "first = os.open('/', os.O_RDONLY); sys.exit(status if first > 2 else 99)"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code], check=False, timeout=60
    )
    assert done.returncode == 0


def test_help_is_quick_because_it_imports_little() -> None:
    code = (
        "import sys; from sterna.cli.main import main; main(['--help']); "
        "heavy = {'trio', 'numpy', 'construct', 'cryptography', 'asyncio'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_installed_command_starts() -> None:
    code = "from sterna.cli.main import main; import sys; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "nonsense"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith('sterna: Unknown command "nonsense".')


def test_a_collection_of_garbage_does_not_look_at_what_was_imported() -> None:
    """It could fall into a guest's blackout. Who calls `main` with arguments has other things to collect."""
    code = (
        "import gc, sys; from sterna.cli.main import main; main(['exits', '--json']); "
        "before = gc.get_freeze_count(); main(); sys.exit(gc.get_freeze_count() <= before + 1000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "exits", "--json"], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0


def test_a_usage_error_is_answered_as_it_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exits", "--nonsense", "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("serve --holder h", "--listen is missing: see sterna serve --help"),
        ("pki issue d", "NAME is missing: see sterna pki issue --help"),
        ("migrate --to", '"migrate" parameter --to requires an argument.'),
    ],
)
def test_what_was_left_out_is_named(arguments: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments.split(), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["text"].endswith(text)


def test_a_coded_error_keeps_its_code(boom: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*, json: bool = False) -> None:
        raise TransportError(ErrorCode.PEER_SILENT)

    boom.run = run
    assert main(["boom", "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "peer_silent"


def test_a_command_may_be_async_and_return_its_exit_code(boom: types.ModuleType) -> None:
    async def run() -> int:
        return 1

    boom.run = run
    assert main(["boom"]) == 1


def test_an_interrupt_inside_a_nursery_is_an_interrupt(
    boom: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        raise BaseExceptionGroup("nursery", [KeyboardInterrupt()])

    boom.run = run
    assert main(["boom"]) == 130
    assert capsys.readouterr().err == "sterna: interrupted\n"


def test_a_bug_shows_where_it_is(boom: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise ZeroDivisionError("of something")

    boom.run = run
    assert main(["boom"]) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("sterna: a bug in Sterna: ZeroDivisionError: of something\n")
