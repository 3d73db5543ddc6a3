"""What a record says, as plain values: for JSON, and for the lines that people read.

Long lists are cut, and say how long they were. Numbers that the registry has names for are given by name.
Bytes of the guest's state are counted and not shown; a session's token is a secret of its two sides and is
never shown [SEC-5]. Texts are a peer's: whoever shows them quotes them [SEC-12].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np

from sterna.registry import Architecture, Encoding, ErrorCode, Feature, FrameType, Limit, Phase, StateKind
from sterna.wire.records import (
    NO_VCPU,
    Attach,
    FeatureChoice,
    FeatureOffer,
    Hello,
    PageRange,
    Pages,
    Record,
    Runs,
    State,
    Welcome,
)

Value: TypeAlias = "str | int | bool | list[Value] | dict[str, Value] | None"

# Items of a list that are shown.
SHOWN: Final = 8

_HIDDEN: Final = "hidden"
# Fields whose numbers the registry has names for, as far as it knows them.
_NAMES: Final[Mapping[str, type[IntEnum]]] = {
    "architecture": Architecture,
    "code": ErrorCode,
    "phase": Phase,
}
_FRAMES: Final = {int(each): each.name for each in FrameType}


def describe(record: Record, shown: int = SHOWN) -> dict[str, Value]:
    """The fields of a record by name, those left out that say that there is nothing.

    Args:
        record: what a frame says.
        shown: the most items of a list.
    """
    if isinstance(record, Pages):
        return _pages(record, shown)
    plain = _plain(record, shown)
    match record:
        case Hello():
            plain["versions"] = _some(map(_version, record.versions), shown)
            plain["features"] = _some(map(_feature, record.features), shown)
        case Welcome():
            plain["version"] = _version(record.version)
            plain["features"] = _some(map(_feature, record.features), shown)
        case State():
            plain["kind"] = _name(StateKind, record.kind)
            plain["vcpu"] = None if record.vcpu == NO_VCPU else record.vcpu
            plain["data"] = len(record.data)
        case _:
            pass
    if isinstance(record, Hello | Welcome):
        plain["limits"] = {_name(Limit, number): value for number, value in record.limits.items()}
    if isinstance(record, Hello | Welcome | Attach) and "token" in plain:
        plain["token"] = _HIDDEN
    return plain


def frame_name(number: int) -> str:
    """The name of a frame type, or its number."""
    return _FRAMES.get(number, f"0x{number:04x}")


def _plain(value: object, shown: int) -> dict[str, Value]:
    """The fields of a record, or of a part of one."""
    assert is_dataclass(value)
    named = ((field.name, getattr(value, field.name)) for field in fields(value))
    return {name: _value(name, each, shown) for name, each in named if not _is_nothing(each)}


def _is_nothing(value: object) -> bool:
    if isinstance(value, bytes):
        return not any(value)
    return isinstance(value, str | tuple) and not value


def _value(name: str, value: object, shown: int) -> Value:
    match value:
        case bool() | str():
            return value
        case int() if name == "frame":
            return frame_name(value) if value else None
        case IntEnum():
            return value.name.lower()
        case int():
            return _name(_NAMES[name], value) if name in _NAMES else value
        case bytes():
            return len(value) if name == "data" else value.hex()
        case PageRange(region, first, count):
            return f"{region}: {first}+{count}"
        case (int(stream), int(sequence)):
            return f"{stream}: {sequence}"
        case tuple():
            return _some((_value("", each, shown) for each in value[: shown + 1]), shown, len(value))
        case Mapping():
            return {str(key): each for key, each in value.items()}
        case _:
            return _plain(value, shown)


def _pages(record: Pages, shown: int) -> dict[str, Value]:
    runs = record.runs
    counted: dict[str, Value] = {
        encoding.name.lower(): int(runs["count"][runs["encoding"] == encoding].sum(dtype=np.uint64))
        for encoding in Encoding
        if np.count_nonzero(runs["encoding"] == encoding)
    }
    return {
        "attempt": record.attempt,
        "round": record.round,
        "region": record.region,
        "pages": counted,
        "chunks": len(record.hashes),
        "runs": _some(_runs(runs[: shown + 1]), shown, len(runs)),
    }


def _runs(runs: Runs) -> Iterable[str]:
    for run in runs:
        yield f"{int(run['first'])}+{int(run['count'])} {Encoding(int(run['encoding'])).name.lower()}"


def _some(items: Iterable[Value], shown: int, count: int | None = None) -> list[Value]:
    """The first ones, and how many more there are; `count` of all of them if `items` are cut already."""
    listed = list(items)
    more = (len(listed) if count is None else count) - shown
    return [*listed[:shown], f"{more} more"] if more > 0 else listed


def _feature(feature: FeatureOffer | FeatureChoice) -> str:
    parameter = f"={feature.parameter}" if feature.parameter else ""
    required = " required" if isinstance(feature, FeatureOffer) and feature.required else ""
    return f"{_name(Feature, feature.id)}{parameter}{required}"


def _version(version: int) -> str:
    major, draft = version >> 16, version & 0xFFFF
    return f"{major}-draft.{draft}" if draft else str(major)


def _name(kind: type[IntEnum], number: int) -> str:
    """The registry's name of a number, or the number as registries are written."""
    return kind(number).name.lower() if number in {int(each) for each in kind} else f"0x{number:04x}"
