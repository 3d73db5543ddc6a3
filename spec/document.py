"""What the build writes into protocol.md: tables of the registry, and the state machines of the core.

A generated part stands between ``<!-- registry:NAME -->`` or ``<!-- tables:ROLE -->`` and the closing
comment of the same word; everything else in the document is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sterna.core.tables import Input, State, Table

_PART = re.compile(r"<!-- (?P<kind>registry|tables):(?P<name>\w+) -->\n.*?<!-- /(?P=kind) -->\n", re.DOTALL)


def fill(text: str, registry: dict[str, Any]) -> str:
    """The document with all its generated parts as they must be.

    Raises:
        KeyError: a marker names a table that does not exist.
    """

    def part(match: re.Match[str]) -> str:
        kind, name = match["kind"], match["name"]
        content = REGISTRY_TABLES[name](registry) if kind == "registry" else machine(name)
        return f"<!-- {kind}:{name} -->\n{content}<!-- /{kind} -->\n"

    return _PART.sub(part, text)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


# ---- the registry ----


def _frames(registry: dict[str, Any]) -> str:
    rows = [
        (f"0x{row['type']:04X}", name, row["from"], row["phase"], row["status"], _optional(row))
        for name, row in registry["frames"].items()
    ]
    return table(("type", "frame", "from", "phase", "status", "feature"), rows)


def _optional(frame: dict[str, Any]) -> str:
    """What brings a frame: its features, nothing for what everybody has."""
    features = " or ".join(f"`{each}`" for each in frame.get("feature", ()))
    return features or ("optional" if frame.get("optional") else "")


def _features(registry: dict[str, Any]) -> str:
    rows = [
        (row["id"], f"`{name}`", row["parameter"], row["status"])
        for name, row in registry["features"].items()
    ]
    return table(("id", "feature", "parameter", "status"), rows)


def _checksums(registry: dict[str, Any]) -> str:
    rows = [
        (row["id"], f"`{name}`", row["bytes"], row["use"], row["status"])
        for name, row in registry["checksums"].items()
    ]
    return table(("id", "checksum", "bytes", "use", "status"), rows)


def _limits(registry: dict[str, Any]) -> str:
    rows = [(row["id"], f"`{name}`", row["unit"], row["default"]) for name, row in registry["limits"].items()]
    return table(("id", "limit", "bounds", "default"), rows)


def _errors(registry: dict[str, Any]) -> str:
    rows = [
        (f"0x{row['code']:04X}", f"`{name}`", row["class"], row["text"])
        for name, row in registry["errors"].items()
    ]
    return table(("code", "name", "class", "meaning"), rows)


def _constants(registry: dict[str, Any]) -> str:
    protocol, header = registry["protocol"], registry["header"]
    rows = [
        ("major version", protocol["major"]),
        ("draft number", protocol["draft"]),
        ("version in HELLO and WELCOME", f"0x{protocol['major'] << 16 | protocol['draft']:08X}"),
        ("ALPN protocol id", f"`{protocol['alpn']}`"),
        ("magic", f"`{bytes.fromhex(protocol['magic']).hex(' ').upper()}`"),
        ("critical bit", f"0x{header['critical_bit']:04X}"),
        ("types that are never assigned", f"0x{header['grease_first']:04X} to 0x{header['grease_last']:04X}"),
    ]
    return table(("constant", "value"), rows)


def _numbered(name: str, what: str) -> Callable[[dict[str, Any]], str]:
    """A table of ids with their status."""

    def make(registry: dict[str, Any]) -> str:
        rows = [(row["id"], f"`{key}`", row["status"]) for key, row in registry[name].items()]
        return table(("id", what, "status"), rows)

    return make


def _plain(name: str, what: str, digits: int = 0) -> Callable[[dict[str, Any]], str]:
    """A table of bare numbers."""

    def make(registry: dict[str, Any]) -> str:
        rows = [
            (f"0x{number:0{digits}X}" if digits else number, f"`{key}`")
            for key, number in registry[name].items()
        ]
        return table(("number", what), rows)

    return make


REGISTRY_TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "frames": _frames,
    "features": _features,
    "encodings": _numbered("encodings", "encoding"),
    "bitmap_encodings": _numbered("bitmap_encodings", "encoding"),
    "checksums": _checksums,
    "limits": _limits,
    "errors": _errors,
    "constants": _constants,
    "phases": _plain("phases", "phase"),
    "modes": _numbered("modes", "mode"),
    "styles": _numbered("styles", "style"),
    "owners": _plain("owners", "owner"),
    "architectures": _plain("architectures", "architecture"),
    "region_kinds": _plain("region_kinds", "kind"),
    "transfers": _plain("transfers", "transfer"),
    "state_kinds": _plain("state_kinds", "kind", 4),
}


# ---- the state machines ----


def machine(role: str) -> str:
    """States, transitions and diagram of one role, from sterna.core.tables."""
    # Imported late: the tables read registry.py, which the same build may just have written.
    from sterna.core.tables import DESTINATION, PHASES, SOURCE, TERMINAL, DestinationState, SourceState

    rows, states = {"source": (SOURCE, SourceState), "destination": (DESTINATION, DestinationState)}[role]
    meanings = [
        (each.name, each.value, PHASES[each].name.lower() if each in PHASES else "") for each in states
    ]
    ends = [each.name for each in states if each in TERMINAL]
    return f"{table(('state', 'meaning', 'phase'), meanings)}\n{_transitions(rows)}\n{_diagram(rows, ends)}"


def _label(what: Input | State) -> str:
    """A frame by its name, a happening in its own words."""
    return what.value if isinstance(what.value, str) else what.name


def _transitions(rows: Table) -> str:
    """One line for each transition; those that differ in the state alone are joined."""
    joined: dict[tuple[str, str, str, str], list[str]] = {}
    for (state, what), row in rows.items():
        following = "the same" if row.next is state else row.next.name
        key = (_label(what), following, row.does, row.clause)
        joined.setdefault(key, []).append(state.name)
    lines = []
    for (label, following, does, clause), names in joined.items():
        lines.append([", ".join(names), label, following, does, clause])
    return table(("state", "input", "next state", "what the side does", "clause"), lines)


def _diagram(rows: Table, ends: Iterable[str]) -> str:
    """A mermaid diagram, without failures: they lead from almost everywhere to the same few states."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> IDLE"]
    for (state, what), row in rows.items():
        if what.name != "LOST" and row.next is not state:
            label = re.sub(r"[{}:]+", " ", _label(what)).strip()  # these mean something to mermaid
            lines.append(f"    {state.name} --> {row.next.name} : {label}")
    lines += [f"    {name} --> [*]" for name in ends]
    return "\n".join([*lines, "```", ""])
