"""What commands write: text for people on stderr, and with --json one object on stdout.

So a pipe only ever carries data. Text may hold what a peer or a file said; it is never read as markup, and
control characters are shown as escapes, so that nobody's terminal is written to from outside.
Colours and widths are rich's business, which also honours NO_COLOR.

Nothing here ever ends a migration: a reader that has gone (``| head``), or a log on a full disk, loses text
and lines, and the guest does not notice.
"""

from __future__ import annotations

import io
import json as json_module
import os
import sys
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from rich.console import Console

    from sterna.cli.exits import Exit

SCHEMA: Final = 1


def printable(text: str) -> str:
    r"""`text` with everything that a terminal might act upon as an escape: a bell reads ``\x07``."""
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1]
        for character in text
    )


def write_line(fields: Mapping[str, object]) -> bool:
    """One object as a line on stdout. Numbers must be finite: JSON has no word for anything else.

    Returns:
        Whether somebody still reads.
    """
    return write_text(json_module.dumps(fields, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(text: str) -> bool:
    """Text on stdout, as it is. For commands whose text is what they were asked for.

    Returns:
        Whether somebody still reads.
    """
    try:
        # UTF-8 whatever the locale; of a path that is none, an escape that JSON has too.
        sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _forget(sys.stdout)
        return False
    except OSError as error:
        print(f"sterna: stdout: {error.strerror}", file=_Patient())
    return True


def _forget(stream: IO[str]) -> None:
    """Nobody reads this any more; what is in its buffer must not fail once more when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Patient(io.TextIOBase):
    """stderr as it is now (a live display puts itself in its place); what cannot be written is lost."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of stderr."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Of stderr."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """All of it, or nothing that anybody could do something about."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            _forget(self._stream)
        except OSError:
            pass  # a full disk may have room again for the next line
        return len(text)


class Output:
    """Where one command writes.

    Attributes:
        json: whether --json was given.
    """

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """The terminal of the person, on stderr."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=cast("IO[str]", _Patient()), highlight=False)
        return self._console

    @property
    def live(self) -> bool:
        """Whether somebody watches who would like a display that moves."""
        return not self.json and self.console.is_terminal

    def say(self, text: str, *, style: str = "") -> None:
        """A line for people."""
        # A terminal would break it inside of words; a file shall have it as it is.
        wrapped = self.console.is_terminal
        self.console.print(printable(text), style=style or None, markup=False, soft_wrap=not wrapped)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
        """A table for people; nothing with --json, where the result says it all."""
        if self.json:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        if title:
            self.say(title)  # as a part of the table it would be broken to the table's width
        table = Table(*columns, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self.console.print(table)

    def result(self, fields: Mapping[str, object]) -> None:
        """The command's one object on stdout; nothing without --json."""
        if self.json:
            write_line({"schema": SCHEMA, **fields})

    def failure(self, code: str, text: str, exit_code: Exit, hint: str = "") -> None:
        """What went wrong, and what to do about it: for people, or the error as the result."""
        if self.json:
            self.result({"error": {"code": code, "text": text, "exit": int(exit_code)}})
            return
        self.say(f"sterna: {text}", style="red")
        if hint:
            self.say(f"  {hint}")
