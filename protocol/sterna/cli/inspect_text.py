"""Fields and bytes of frames as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from sterna.limits import HEADER_BYTES
from sterna.observe.describe import Value
from sterna.registry import FrameType

# Fields that hold a peer's words: they are quoted, whatever they are [SEC-12].
_PEER_TEXT: Final = frozenset({"agent", "name", "host", "text", "items", "identity", "cpu_features"})
# A set of named numbers longer than this is told by its length; --json has all of it.
_NUMBERS_SHOWN: Final = 6

_LINE_BYTES: Final = 16
# Where tokens stand in bodies: what is shown of them is a row of zeros [SEC-5].
_TOKENS: Final[Mapping[int, slice]] = {
    FrameType.HELLO: slice(72, 104),
    FrameType.WELCOME: slice(40, 72),
    FrameType.ATTACH: slice(16, 48),
}


def fields_text(fields: Mapping[str, Value]) -> str:
    """The fields of a frame in a line: ``attempt 1, round 2, pages 16``."""
    return ", ".join(f"{name} {_text(value, quoted=name in _PEER_TEXT)}" for name, value in fields.items())


def _text(value: Value, *, quoted: bool) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case str():
            return repr(value) if quoted else value
        case int():
            return str(value)
        case list():
            return f"[{', '.join(_text(each, quoted=quoted) for each in value)}]"
        case _:
            if len(value) > _NUMBERS_SHOWN and all(isinstance(each, int) for each in value.values()):
                return f"({len(value)} of them)"
            return f"({fields_text(value)})"


def masked(frame: int, raw: bytes) -> bytes:
    """The first bytes of a frame, those of a token replaced by zeros."""
    token = _TOKENS.get(frame)
    if token is None:
        return raw
    start, stop = token.start + HEADER_BYTES, min(token.stop + HEADER_BYTES, len(raw))
    return raw[:start] + bytes(max(stop - start, 0)) + raw[max(stop, start) :]


def hex_lines(raw: bytes) -> Iterator[str]:
    """A dump: offset, hex, and what is ASCII of it."""
    for at in range(0, len(raw), _LINE_BYTES):
        line = raw[at : at + _LINE_BYTES]
        readable = "".join(chr(each) if 0x20 <= each < 0x7F else "." for each in line)
        yield f"    {at:06x}  {line.hex(' '):<47}  {readable}"
