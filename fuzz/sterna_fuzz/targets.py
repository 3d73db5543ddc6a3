"""The targets by name. Importing one takes a moment, so each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from sterna_fuzz.target import Target


def _frames() -> Target:
    from sterna_fuzz.frames import TARGET

    return TARGET


def _state() -> Target:
    from sterna_fuzz.state import TARGET

    return TARGET


def _converge() -> Target:
    from sterna_fuzz.converge import TARGET

    return TARGET


TARGETS: Final[Mapping[str, Callable[[], Target]]] = {
    "frames": _frames,
    "state": _state,
    "converge": _converge,
}
