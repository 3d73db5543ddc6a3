"""`interop/BENCHMARKS.md`: the latest table of each benchmark, with its conditions; --write writes it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sterna.cli.output import Output
from sterna.errors import ConfigError
from sterna_interop.measured import Report, Table

HEAD: Final = """\
# Benchmarks

The latest table of each benchmark, as `sterna bench NAME --write` has written it; nothing here is written by
hand. All figures of a table are of one run, taken in turns. A figure of another machine, or of another run,
says nothing beside them. Ratios are Sterna's by the other's, turn by turn, and their median.
"""


def check_file(_type: object, path: str | None) -> None:
    """Before anything is measured: whether a report can be put there. A validator of --write.

    Raises:
        ConfigError: the file cannot be read or written, or is another one.
    """
    if path is None:
        return
    _read(Path(path))
    if not os.access(path if os.path.lexists(path) else os.path.dirname(path) or ".", os.W_OK):
        raise ConfigError(f"cannot write {path}: name another file, in a directory that is there")


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else HEAD
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not text.startswith(HEAD.partition("\n")[0] + "\n"):
        raise ConfigError(f"{path} is another file: name one that does not exist, or BENCHMARKS.md")
    return text


def write_section(report: Report, path: Path, output: Output) -> None:
    """Put a report in the place of the last one of its benchmark.

    Raises:
        ConfigError: the file cannot be read or written, or is another one.
    """
    text = with_section(_read(path), report.name, section(report.table()))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    output.say(f"  written to {path}")


def section(table: Table) -> str:
    """A table in Markdown, and below it what has to be known."""
    name, _, facts = table.title.partition("; ")
    lines = [
        f"## {name}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}; {facts}",
        "",
        _line(table.columns),
        _line(["---"] * len(table.columns)),
        *(_line(row) for row in table.rows),
        "",
        *(f"- {note}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def with_section(text: str, name: str, new: str) -> str:
    """`text` with this section instead of the last one of its name, sections by name."""
    head, *sections = ("\n" + text).split("\n## ")
    by_name = {each.partition(",")[0]: each.strip("\n") for each in sections}
    by_name[name] = new.removeprefix("## ").strip("\n")
    return "\n\n## ".join([head.strip("\n"), *(by_name[each] for each in sorted(by_name))]) + "\n"


def _line(cells: object) -> str:
    assert isinstance(cells, list | tuple)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
