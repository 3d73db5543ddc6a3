"""What the kit takes from the specification: its clauses, as data of the package."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sterna.errors import ConfigError

_DATA: Final = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class ClauseText:
    """One clause of the specification.

    Attributes:
        excuse: why nothing can show that it is kept, empty if something can.
    """

    id: str
    section: str
    text: str
    levels: tuple[str, ...]
    codes: tuple[str, ...]
    excuse: str


@functools.cache
def clauses() -> Mapping[str, ClauseText]:
    """Every clause by its id, in the order of the documents.

    Raises:
        ConfigError: the installation lacks the file.
    """
    document = _load(_DATA / "clauses.json")
    return {
        one["id"]: ClauseText(
            one["id"],
            one["section"],
            one["text"],
            tuple(one["levels"]),
            tuple(one["codes"]),
            one["excuse"] or ("reserved in this draft" if one["reserved"] else ""),
        )
        for one in document["clauses"]
    }


@functools.cache
def spec_version() -> str:
    """Of the document that the clauses were taken from."""
    return str(_load(_DATA / "clauses.json")["spec_version"])


@dataclass(frozen=True, slots=True)
class Musts:
    """How many clauses with a MUST there are, how many of them something of the kit claims, and the rest."""

    total: int
    covered: int
    excused: int


def musts(claimed: Iterable[str]) -> Musts:
    """Count the MUST clauses that are among `claimed`, and those that nothing can show.

    A clause that is both is counted as covered.
    """
    wanted = {one.id: one for one in clauses().values() if "MUST" in one.levels}
    covered = wanted.keys() & set(claimed)
    excused = {one.id for one in wanted.values() if one.excuse} - covered
    return Musts(len(wanted), len(covered), len(excused))


def template(name: str) -> str:
    """The text of a file that a report is made from.

    Raises:
        ConfigError: the installation lacks it.
    """
    try:
        return (_DATA / name).read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {_DATA / name}: {error.strerror}; install sterna again") from error


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; install sterna again") from error
    assert isinstance(document, dict)
    return document
