"""Where every field of a frame lies, read off the schema: nobody picks by hand what is attacked."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from construct import Bytes, FormatField, Renamed, Struct, Subconstruct, Terminated
from withstand_support import sample

from sterna.registry import FrameType
from sterna.wire.fields import Blob, Count, Mapped, Rows, Text
from sterna.wire.schema import BODIES


@dataclass(frozen=True, slots=True)
class Leaf:
    """One field of a body. Items of lists have their number in the path, as `regions.0.address`.

    Attributes:
        path: names from the body down; reserved fields have none of their own.
        offset: in bytes from the body's first.
        size: in bytes; of a text with its length byte.
        kind: count, integer, choice (an enumeration or boolean), text, bytes, reserved.
    """

    path: str
    offset: int
    size: int
    kind: str

    @property
    def name(self) -> str:
        """The path without the numbers of items."""
        return ".".join(part for part in self.path.split(".") if not part.isdigit())


def _walk(
    con: Any, body: bytes, at: int, path: str, found: dict[str, int], *, kind: str = "integer"
) -> Iterator[Leaf]:
    """The leaves of one construct, in order. `found` has the integers so far, by name: counts among them."""
    match con:
        case Renamed():
            yield from _walk(
                con.subcon, body, at, f"{path}.{con.name}" if path else con.name, found, kind=kind
            )
        case Struct():
            inner: dict[str, int] = {}
            for part in con.subcons:
                for leaf in _walk(part, body, at, path, inner, kind="integer" if part.name else "reserved"):
                    yield leaf
                    at = leaf.offset + leaf.size
        case Rows():
            for number in range(found[con.count]):
                for leaf in _walk(con.subcon, body, at, f"{path}.{number}", {}):
                    yield leaf
                    at = leaf.offset + leaf.size
        case Blob():
            yield Leaf(path, at, found[con.count], "bytes")
        case Text():
            yield Leaf(path, at, 1 + body[at], "text")
        case FormatField():
            found[path.rpartition(".")[2]] = int.from_bytes(body[at : at + con.length], "little")
            yield Leaf(path, at, con.length, kind)
        case Bytes():
            size = con.sizeof()
            yield Leaf(path, at, size, "reserved" if kind == "reserved" else "bytes")
        case Count():
            yield from _walk(con.subcon, body, at, path, found, kind="count")
        case Mapped() if isinstance(con.subcon, FormatField):
            yield from _walk(con.subcon, body, at, path, found, kind="choice")
        case Subconstruct():
            yield from _walk(con.subcon, body, at, path, found, kind=kind)
        case _:
            assert con is Terminated, con


@functools.cache
def leaves(frame: FrameType) -> tuple[Leaf, ...]:
    """Every field of the sample of a frame; together they are its whole body."""
    body = sample(frame)
    found = tuple(_walk(BODIES[frame], body, 0, "", {}))
    ends = [0, *(leaf.offset + leaf.size for leaf in found)]
    assert [leaf.offset for leaf in found] == ends[:-1]
    assert ends[-1] == len(body)
    return found
