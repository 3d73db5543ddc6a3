"""What commands write: text for people on stderr, and with --json one object on stdout.

So a pipe only ever carries data. Text may hold what a peer or a file said; it is never read as markup, and
control characters are shown as escapes, so that nobody's terminal is written to from outside.
Colours and widths are rich's business, which also honours NO_COLOR.
"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

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

            self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        return self._console

    @property
    def live(self) -> bool:
        """Whether somebody watches who would like a display that moves."""
        return not self.json and self.console.is_terminal

    def say(self, text: str, *, style: str = "") -> None:
        """A line for people."""
        self.console.print(printable(text), style=style or None, markup=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
        """A table for people; nothing with --json, where the result says it all."""
        if self.json:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=box.SIMPLE_HEAD, title=title or None, title_justify="left")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self.console.print(table, soft_wrap=False)

    def result(self, fields: Mapping[str, object]) -> None:
        """The command's one object on stdout; nothing without --json.

        Numbers must be finite: JSON has no word for anything else.
        """
        if self.json:
            text = json_module.dumps({"schema": SCHEMA, **fields}, allow_nan=False, ensure_ascii=False)
            print(text, file=sys.stdout, flush=True)

    def failure(self, code: str, text: str, exit_code: Exit) -> None:
        """What went wrong: a line for people, or the error as the result."""
        if self.json:
            self.result({"error": {"code": code, "text": text, "exit": int(exit_code)}})
        else:
            self.say(f"sterna: {text}", style="red")
