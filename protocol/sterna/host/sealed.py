"""Sealed lines: JSON objects that carry their own checksum, with one way to write each.

Slots of lease stores and durable records are made of them. The checksum, XXH3-128 over the object without
it, finds torn and damaged lines; it is no protection against somebody who wants to write another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import xxhash


def seal(fields: Mapping[str, object]) -> bytes:
    """The line of these fields, ended by a line feed."""
    said = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    return b'%s,"check":"%s"}\n' % (said[:-1], xxhash.xxh3_128_hexdigest(said).encode())


def unseal(line: bytes) -> dict[str, object] | None:
    """The fields of a line, None if it is not exactly what `seal` made of them. Its check is one of them."""
    try:
        fields = json.loads(line)
        said = {name: value for name, value in fields.items() if name != "check"}
        return fields if seal(said) == line else None
    except (ValueError, AttributeError, RecursionError):
        return None
