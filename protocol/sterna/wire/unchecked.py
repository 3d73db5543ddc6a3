"""Wrong frames, built on purpose: for tests, fuzzers and the scripted peers of the interop kit.

Nothing here checks anything. Every field of preface and header can be set; checksums are right unless they
are given, so that a frame is wrong in exactly the way that is meant. Never used by an endpoint.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Final

from sterna.limits import HEADER_BYTES
from sterna.registry import MAGIC, VERSION_DRAFT, VERSION_MAJOR
from sterna.wire.fields import build_into
from sterna.wire.integrity import crc32
from sterna.wire.records import Pages, Record
from sterna.wire.rules import DEFAULT_BOUNDS
from sterna.wire.schema import BODIES

_CHECKED: Final = struct.Struct("<HHHHQIII")
_PAGES_HEAD: Final = struct.Struct("<IIIIII")
_BODY_CRC_OFFSET: Final = 24
_BODY_BYTES_OFFSET: Final = 16


def preface(magic: bytes = MAGIC, major: int = VERSION_MAJOR, draft: int = VERSION_DRAFT) -> bytes:
    """A preface of any magic and version."""
    return magic + struct.pack("<HH", major, draft)


def frame(
    frame_type: int,
    body: bytes = b"",
    bulk: bytes = b"",
    *,
    flags: int = 0,
    stream: int = 0,
    reserved: int = 0,
    sequence: int = 0,
    body_bytes: int | None = None,
    bulk_bytes: int | None = None,
    body_crc: int | None = None,
    header_crc: int | None = None,
) -> bytes:
    """A frame of any type, body and bulk part; lengths and checksums are the right ones unless given."""
    checked = _CHECKED.pack(
        frame_type,
        flags,
        stream,
        reserved,
        sequence,
        len(body) if body_bytes is None else body_bytes,
        len(bulk) if bulk_bytes is None else bulk_bytes,
        crc32(body) if body_crc is None else body_crc,
    )
    crc = crc32(checked) if header_crc is None else header_crc
    return checked + struct.pack("<I", crc) + body + bulk


def body(record: Record, counts: Mapping[str, int] | None = None) -> bytes:
    """The body of a record that need obey no rule.

    Text fields may be given as bytes, enumerations as any number of their width, booleans as 0 to 255.

    Args:
        record: what to encode.
        counts: by name of a list or of `data`, a count that is stated instead of the right one.
    """
    counts = counts or {}
    if isinstance(record, Pages):
        run_count = counts.get("runs", len(record.runs))
        hash_count = counts.get("hashes", len(record.hashes))
        head = _PAGES_HEAD.pack(record.attempt, record.round, record.region, run_count, hash_count, 0)
        return head + record.runs.tobytes() + record.hashes.tobytes()
    stream = io.BytesIO()
    build_into(BODIES[record.type], record, stream, bounds=DEFAULT_BOUNDS, unchecked=True, counts=counts)
    return stream.getvalue()


def patch(whole: bytes, offset: int, new: bytes, *, repair: bool = True) -> bytes:
    """A frame with bytes overwritten, offset counted from the header's first.

    Args:
        whole: an encoded frame.
        offset: where `new` goes.
        new: what goes there.
        repair: make the checksums right again.
    """
    changed = whole[:offset] + new + whole[offset + len(new) :]
    return repaired(changed) if repair else changed


def resize(whole: bytes, body_bytes: int) -> bytes:
    """A frame whose body is cut, or filled up with zeros, to `body_bytes`; no bulk part, checksums right."""
    (old,) = struct.unpack_from("<I", whole, _BODY_BYTES_OFFSET)
    kept = whole[HEADER_BYTES : HEADER_BYTES + old][:body_bytes].ljust(body_bytes, b"\0")
    head = (
        whole[:_BODY_BYTES_OFFSET]
        + struct.pack("<I", body_bytes)
        + whole[_BODY_BYTES_OFFSET + 4 : HEADER_BYTES]
    )
    return repaired(head + kept)


def repaired(whole: bytes) -> bytes:
    """The same frame with both checksums right."""
    (body_bytes,) = struct.unpack_from("<I", whole, _BODY_BYTES_OFFSET)
    body_crc = crc32(whole[HEADER_BYTES : HEADER_BYTES + body_bytes])
    checked = whole[:_BODY_CRC_OFFSET] + struct.pack("<I", body_crc)
    return checked + struct.pack("<I", crc32(checked)) + whole[HEADER_BYTES:]
