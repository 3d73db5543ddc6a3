"""Files, groups and tests of the vectors, and the cases that follow from a layout alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vector_cases.layout import (
    LAYOUTS,
    REGISTRY,
    Field,
    Part,
    Value,
    join,
    lay,
    names,
    numbers,
    patched,
    plain,
)

_DIRECTION: Final = {"S": "source", "D": "destination", "B": "both"}


@dataclass
class Group:
    """Tests that are read under the same circumstances.

    Attributes:
        file: name of the vector file, without its end.
        kind: what `hex` is: a body, a header, a preface or a stream.
        frame: the frame type's name; "" where it is not of one frame.
        clauses: the clauses that define what is tested.
        context: limits (those that are not the registry's defaults), regions, encodings, unhashed, stream.
    """

    file: str
    kind: str
    frame: str
    clauses: Sequence[str]
    context: Mapping[str, Any] = field(default_factory=dict)
    tests: list[dict[str, Any]] = field(default_factory=list)

    def head(self) -> dict[str, Any]:
        """The group without its tests."""
        about: dict[str, Any] = {"kind": self.kind}
        if self.frame:
            row = REGISTRY["frames"][self.frame]
            about |= {"frame": self.frame, "type": row["type"], "status": row["status"]}
            about["direction"] = _DIRECTION[row["from"]]
        else:
            about["direction"] = "both"
        return about | {"clauses": list(self.clauses), "context": dict(self.context)}

    def _flags(self, flags: Sequence[str]) -> list[str]:
        row = REGISTRY["frames"].get(self.frame, {})
        if row.get("status") == "reserved":
            return [*flags, "ReservedFeature"]
        return [*flags, *(["OptionalFeature"] if row.get("feature") or row.get("optional") else [])]

    def add(
        self, name: str, comment: str, flags: Sequence[str], clause: str, data: bytes, **rest: Any
    ) -> None:
        """A test; `rest` has its value or error, and what else its kind needs."""
        test = {"id": f"{self.file}/{name}", "comment": comment, "flags": self._flags(flags)}
        test |= {"clause": clause, "hex": data.hex()} | rest
        self.tests.append(test | {"result": "invalid" if "error" in rest else "valid"})

    def valid(self, name: str, comment: str, value: Value, *flags: str, clause: str = "FRM-1") -> None:
        """A body that is read as `value`."""
        parts = lay(self.frame, value)
        rest: dict[str, Any] = {"value": plain(LAYOUTS[self.frame], value)}
        if found := names(parts):
            rest["names"] = found
        self.add(name, comment, flags or ("Basic",), clause, join(parts), **rest)

    def wrong(self, name: str, comment: str, clause: str, error: str, body: bytes, *flags: str) -> None:
        """A body that breaks `clause`, and for which a receiver names `error`."""
        assert error in REGISTRY["errors"], error
        self.add(name, comment, flags, clause, body, error=error)

    def wrong_value(
        self, name: str, comment: str, clause: str, error: str, value: Value, *flags: str, **counts: int
    ) -> None:
        """A value that its layout can express and a clause forbids."""
        self.wrong(name, comment, clause, error, join(lay(self.frame, value, **counts)), *flags)


def slug(path: str) -> str:
    """A path as a part of an id."""
    return path.replace(".", "-").replace("_", "-").replace("@", "-")


def derive(group: Group, base: Value, *, extremes: Sequence[str] = ()) -> None:
    """All that follows from the layout: cuts, bytes behind the end, reserved bytes, booleans, texts.

    Args:
        group: where the cases go.
        base: a right value in which each list has an item at least.
        extremes: fields that may have any number of their width.
    """
    parts = lay(group.frame, base)
    _cuts(group, parts)
    whole = join(parts)
    group.wrong(
        "trailing-0",
        "a zero byte behind the last field",
        "FRM-2",
        "trailing_bytes",
        whole + b"\0",
        "Trailing",
    )
    group.wrong(
        "trailing-many",
        "many bytes behind the last field",
        "FRM-2",
        "trailing_bytes",
        whole + b"\xff" * 33,
        "Trailing",
    )
    for part in parts:
        if part.field.kind == "res":
            _reserved(group, parts, part)
        elif part.field.kind == "bool":
            _bools(group, parts, part)
        elif part.field.closed:
            _closed(group, parts, part)
        elif part.field.kind == "text":
            _texts(group, parts, part)
    _extremes(group, base, extremes)


def _cuts(group: Group, parts: Sequence[Part]) -> None:
    """The body ends before each field and, of longer ones, before their last byte."""
    whole = join(parts)
    for part in parts:
        ends = {"before": part.offset}
        if len(part.raw) > 1:
            ends["in"] = part.offset + len(part.raw) - 1
        for where, end in ends.items():
            group.wrong(
                f"cut-{where}-{slug(part.path)}",
                f"the body ends {'inside' if where == 'in' else where} {part.path}",
                _cut_clause(group.frame, parts, part, end),
                "malformed",
                whole[:end],
                "Truncated",
            )


def _least(item: Field) -> int:
    """The fewest bytes that a field of a list's item has."""
    return 1 if item.kind == "text" else item.size


def _cut_clause(frame: str, parts: Sequence[Part], part: Part, end: int) -> str:
    """What a body breaks that ends inside a part: its list's count, its text's length, or its layout."""
    listed = next((f for f in LAYOUTS[frame] if f.kind == "list" and f.name == part.path.split(".")[0]), None)
    if part.field.kind == "blob":
        return "FRM-12"
    if listed is not None:
        inside = [each for each in parts if each.path.startswith(listed.name + ".")]
        items = len({each.path.split(".")[1] for each in inside})
        if end - inside[0].offset < items * sum(map(_least, listed.items)):
            return "FRM-12"
    return "TXT-1" if part.field.kind == "text" and end > part.offset else "FRM-1"


def _reserved(group: Group, parts: Sequence[Part], part: Part) -> None:
    low = b"\1" + part.raw[1:]
    comment = f"the reserved bytes {part.path.replace('res@', 'at ')} are not zero"
    group.wrong(
        f"{slug(part.path)}-low", comment, "FRM-3", "bad_value", patched(parts, part.path, low), "Reserved"
    )
    high = part.raw[1:] + b"\x80"
    group.wrong(
        f"{slug(part.path)}-high",
        f"{comment}, in the highest bit",
        "FRM-3",
        "bad_value",
        patched(parts, part.path, high),
        "Reserved",
    )


def _bools(group: Group, parts: Sequence[Part], part: Part) -> None:
    for number in (*(1 << bit for bit in range(1, 8)), 3, 255):
        group.wrong(
            f"{slug(part.path)}-{number}",
            f"the boolean {part.path} is {number}",
            "FRM-5",
            "bad_value",
            patched(parts, part.path, bytes([number])),
            "Bool",
        )


def _closed(group: Group, parts: Sequence[Part], part: Part) -> None:
    known = numbers(part.field.table)
    for number in sorted({max(known) + 1, 0x80, 0xFF} | ({0} - known.keys())):
        group.wrong(
            f"{slug(part.path)}-{number}",
            f"{part.path} is {number}, which is not registered",
            "FRM-4",
            "bad_value",
            patched(parts, part.path, bytes([number])),
            "ClosedEnum",
        )


def _texts(group: Group, parts: Sequence[Part], part: Part) -> None:
    """The likeliest faults of every text field; text.json has the rest."""

    def case(name: str, comment: str, clause: str, encoded: bytes) -> None:
        new = bytes([len(encoded)]) + encoded
        body = patched(parts, part.path, new)
        group.wrong(f"{slug(part.path)}-{name}", f"{part.path} {comment}", clause, "bad_text", body, "Text")

    case("nul", "has a NUL", "TXT-3", b"a\0b")
    case("escape", "begins a terminal's escape sequence", "TXT-3", b"\x1b[2J")
    case("overlong", "has an overlong form of the slash", "TXT-2", b"..\xc0\xaf")


def _extremes(group: Group, base: Value, fields: Sequence[str]) -> None:
    sizes = {f.name: f.size for f in LAYOUTS[group.frame]}
    for name in fields:
        for word, number in (("zero", 0), ("max", (1 << 8 * sizes[name]) - 1)):
            group.valid(f"{slug(name)}-{word}", f"{name} is {number}", {**base, name: number}, "Boundary")


def closed_values(group: Group, base: Value, name: str) -> None:
    """Every registered number of a closed enumeration is well-formed, reserved ones included."""
    table = next(f.table for f in LAYOUTS[group.frame] if f.name == name)
    for number, word in numbers(table).items():
        group.valid(
            f"{slug(name)}-{word.replace('_', '-')}",
            f"{name} is {word}",
            {**base, name: number},
            clause="FRM-4",
        )


def text_lengths(group: Group, base: Value, name: str) -> None:
    """A text of no and of 255 bytes, and of characters of every width."""
    for word, content in (
        ("empty", ""),
        ("255", "n" * 255),
        ("wide", "\u00e9\u20ac\U0001f426 \u00a0"),
    ):
        group.valid(
            f"{slug(name)}-text-{word}",
            f"{name}: {word}",
            {**base, name: content},
            "Boundary",
            clause="TXT-1",
        )
