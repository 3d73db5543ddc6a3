"""Prefaces, headers and frames as bytes, right unless told otherwise."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final

from vector_cases.layout import REGISTRY, integer, numbers

MAGIC: Final = bytes.fromhex(REGISTRY["protocol"]["magic"])
HEADER_BYTES: Final = 32


def preface(magic: bytes = MAGIC, major: int = 1, draft: int = 1) -> bytes:
    """Chapter 3."""
    return magic + struct.pack("<HH", major, draft)


def header(
    number: int,
    *,
    sequence: int = 0,
    body_bytes: int = 0,
    bulk_bytes: int = 0,
    body_crc: int = 0,
    flags: int = 0,
    stream: int = 0,
    reserved: int = 0,
    header_crc: int | None = None,
) -> bytes:
    """4.1."""
    checked = struct.pack(
        "<HHHHQIII", number, flags, stream, reserved, sequence, body_bytes, bulk_bytes, body_crc
    )
    return checked + struct.pack("<I", zlib.crc32(checked) if header_crc is None else header_crc)


def frame(number: int, body: bytes = b"", bulk: bytes = b"", *, sequence: int, **fields: int) -> bytes:
    """A frame; `fields` of its header are what they are given to be."""
    right = {"body_bytes": len(body), "bulk_bytes": len(bulk), "body_crc": zlib.crc32(body)}
    # What is given wins: lengths and checksums may be wrong on purpose.
    return header(number, sequence=sequence, **{**right, **fields}) + body + bulk


def event(kind: str, number: int = 0, sequence: int = 0, **rest: Any) -> dict[str, Any]:
    """What a reader reports: the preface, a frame, a skipped frame, or pages with their bytes."""
    if kind == "preface":
        return {"event": kind, "major": 1, "draft": 1} | rest
    known = numbers("frames").get(number)
    named = {} if known is None else {"frame": known}
    return {"event": kind, **named, "type": number, "sequence": integer(sequence), **rest}
