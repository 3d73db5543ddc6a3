"""The `sterna` command. Every subcommand is a module of its own, imported when it is called.

`main` is the one place where an exception becomes an exit code. A command that fails raises a
`SternaError`; one that has done its work and found something wrong (an audit, say) returns the code.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final, TypeAlias

from cyclopts import App, CycloptsError, MissingArgumentError

from sterna.cli.exits import Exit, exit_of, gravest
from sterna.cli.hints import hint
from sterna.cli.output import Output
from sterna.cli.version import version_line
from sterna.errors import ConfigError, SternaError

# name, where it is, what it does: enough for `sterna --help` without importing any of them
Command: TypeAlias = tuple[str, str, str]
COMMANDS: Final[tuple[Command, ...]] = (
    ("demo", "sterna.cli.demo:demo", "Migrate a live guest between processes of this machine."),
    ("serve", "sterna.cli.serve:serve", "Listen for a guest."),
    ("migrate", "sterna.cli.migrate:migrate", "Send a guest away, while it runs."),
    ("holder", "sterna.cli.holder:holder", "Run a guest to be migrated, or make room for one."),
    ("inspect", "sterna.cli.inspect:inspect", "Show what a recording holds, frame by frame."),
    ("verify", "sterna.cli.verify:verify", "Check a recording against the specification."),
    ("doctor", "sterna.cli.doctor:doctor", "Tell what this machine can do, and how to make it do more."),
    ("pki", "sterna.cli.pki:app", "Make certificates for hosts."),
    ("verdict", "sterna.cli.verdict:verdict", "Tell who owns a guest, and what is to be done next."),
    ("resolve", "sterna.cli.resolve:resolve", "Decide who owns a guest, where nobody else can."),
    ("lease", "sterna.cli.lease:app", "Look into a lease store, or make one in files."),
    ("matrix", "sterna.cli.matrix:matrix", "Break migrations at every step, and look who runs the guest."),
    ("exits", "sterna.cli.exits:exits", "Print the table of exit codes."),
)

# Packages beside this one add commands of theirs: each entry point of this group is such a table.
COMMANDS_GROUP: Final = "sterna.commands"


def commands() -> list[Command]:
    """All commands: ours, then those of the packages that are installed beside us."""
    beside = sorted(entry_points(group=COMMANDS_GROUP), key=lambda each: each.name)
    return [*COMMANDS, *(command for each in beside for command in each.load())]


def application(chosen: str = "") -> App:
    """The command line, with its commands not yet imported.

    Args:
        chosen: the command that will be called. It is imported in any case, so its own help is what its
            docstring says, which is more than its line in the list of commands.
    """
    app = App(
        name="sterna",
        help="Live migration over an open wire protocol.",
        help_format="markdown",
        help_epilogue=(
            "SIZE, RATE and TIME always have a unit: 256MiB, 50MiB/s, 300ms. "
            "With --json a command writes one object to stdout; text for people goes to stderr."
        ),
        version=version_line,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
        backend="trio",
    )
    for name, path, text in commands():
        app.command(path, name=name, help=None if name == chosen else text)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the returned number is the exit code."""
    _open_standard_streams()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    # Known before parsing has succeeded: a usage error, too, is answered as it was asked for.
    output = Output(json="--json" in tokens)
    try:
        if arguments is None:
            _settle("".join(tokens[:1]))
        result = application("".join(tokens[:1]))(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        output.failure("usage", _usage(error), Exit.USAGE)
        return Exit.USAGE
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:  # noqa: BLE001 - nobody is above us
        return _failed(error, output)
    return int(result or 0)


def _usage(error: CycloptsError) -> str:
    """What is wrong with the command line. Of what was left out cyclopts says "requires an argument"."""
    if not isinstance(error, MissingArgumentError) or error.argument is None or error.unused_tokens:
        return str(error)
    if error.keyword is not None or error.argument.tokens:
        return str(error)
    return f"{error.argument.name} is missing: see sterna {' '.join(error.command_chain or ())} --help"


def _settle(chosen: str) -> None:
    """Import the command, and keep the collector of garbage away from what was imported.

    All of that stays, and to look through it takes 30 ms: as long as a guest may be paused.
    """
    for name, path, _ in commands():
        if name == chosen:
            import_module(path.partition(":")[0])
    gc.freeze()


def _open_standard_streams() -> None:
    """Whoever starts a command without them would find its first socket in their place, and text in it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - stays open


def _failed(error: BaseException, output: Output) -> Exit:
    cause, code = gravest(error), exit_of(error)
    if isinstance(cause, ConfigError):
        output.failure("usage", str(cause), code)
    elif isinstance(cause, SternaError):
        output.failure(cause.code.name.lower(), str(cause), code, hint(cause))
    elif isinstance(cause, KeyboardInterrupt):
        output.failure("interrupted", "interrupted", code)
    else:
        traceback.print_exception(error)
        output.failure("internal", f"a bug in Sterna: {type(cause).__name__}: {cause}", code)
    return code
