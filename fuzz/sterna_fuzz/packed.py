"""Pages as a source packs them, and as it should not: what the bytes of a run are made into.

Recorded conversations carry pages as they are. A mutator takes one run of a batch, packs it in one of these
ways, and makes the table, and what later frames state of the batch, fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import numpy as np

from sterna.limits import CHUNK_BYTES
from sterna.registry import Encoding, FrameType
from sterna.testing.zstd_frames import frame, raw_frame, zeros
from sterna.wire import page_hash, unchecked
from sterna.wire.records import Pages, RoundEnd
from sterna_fuzz.conversations import HEADER_BYTES
from sterna_fuzz.drafts import BULK, SEQUENCE, STREAM, TYPE, Draft, field

_BOMB_BYTES: Final = 1 << 24

Make = Callable[[bytes], bytes]


def _size(content: bytes) -> bytes:
    return len(content).to_bytes(4, "little")


def base(content: bytes, hashed: int = 0) -> bytes:
    """The base hashes of a `delta`: those of as many bytes of one value."""
    chunks = -(-len(content) // CHUNK_BYTES)
    return page_hash(bytes([hashed]) * min(len(content), CHUNK_BYTES)).to_bytes(8, "little") * chunks


# What each comes to is the receiver's matter: the same pages, an error, or pages that are rejected.
WAYS: Final[Mapping[str, tuple[Encoding, Make]]] = MappingProxyType(
    {
        "honest": (Encoding.ZSTD, frame),
        "checksum": (Encoding.ZSTD, lambda content: frame(content, write_checksum=True)),
        "other content": (Encoding.ZSTD, lambda content: frame(content[::-1])),
        "bomb": (Encoding.ZSTD, lambda content: zeros(len(content), _BOMB_BYTES)),
        "bomb stated": (Encoding.ZSTD, lambda _: zeros(_BOMB_BYTES, _BOMB_BYTES)),
        "short": (Encoding.ZSTD, lambda content: zeros(len(content), len(content) - 1)),
        "size missing": (Encoding.ZSTD, lambda content: frame(content, write_content_size=False)),
        "two frames": (Encoding.ZSTD, lambda content: zeros(len(content), len(content)) * 2),
        "trailing": (Encoding.ZSTD, lambda content: frame(content) + b"\0"),
        "torn": (Encoding.ZSTD, lambda content: frame(content)[:-3]),
        "skippable": (Encoding.ZSTD, lambda _: b"\x50\x2a\x4d\x18\x08\0\0\0" + bytes(8)),
        "no frame": (Encoding.ZSTD, lambda content: content[:40]),
        "window": (Encoding.ZSTD, lambda content: raw_frame(0x80, b"\xa8" + _size(content), content[:4096])),
        "dictionary": (
            Encoding.ZSTD,
            lambda content: raw_frame(0xA1, b"\x07" + _size(content), content[:4096]),
        ),
        "empty": (Encoding.ZSTD, lambda _: b""),
        "large": (Encoding.ZSTD, lambda content: frame(content).ljust(len(content) + 1, b"\0")),
        "change of zeros": (Encoding.DELTA, lambda content: base(content) + frame(content)),
        "change of nothing": (Encoding.DELTA, lambda content: base(content, 7) + frame(content)),
        "change of itself": (
            Encoding.DELTA,
            lambda content: _hashes(content) + frame(bytes(len(content))),
        ),
        "hashes alone": (Encoding.DELTA, base),
        "change without hashes": (Encoding.DELTA, frame),
        "change bomb": (Encoding.DELTA, lambda content: base(content) + zeros(len(content), _BOMB_BYTES)),
    }
)


def _hashes(content: bytes) -> bytes:
    chunks = (content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES))
    return b"".join(page_hash(chunk).to_bytes(8, "little") for chunk in chunks)


def pack(draft: Draft, index: int, where: int, name: str) -> bool:
    """Pack a run of a PAGES frame in a way of `WAYS`. Whether it is one that has a run of bytes."""
    part, record = draft.parts[index], draft.record(index)
    if not isinstance(record, Pages):
        return False
    bulk = part[HEADER_BYTES + len(draft.body_of(index)) :]
    raw: Sequence[int] = np.flatnonzero(record.runs["encoding"] == Encoding.RAW).tolist()
    sizes = record.runs["size_bytes"].tolist()
    if not raw or len(bulk) != sum(sizes):
        return False
    number = raw[where % len(raw)]
    at = sum(sizes[:number])
    encoding, make = WAYS[name]
    made = make(bulk[at : at + sizes[number]])
    runs = record.runs.copy()
    runs["encoding"][number], runs["size_bytes"][number] = encoding, len(made)
    draft.parts[index] = unchecked.frame(
        field(part, TYPE),
        unchecked.body(replace(record, runs=runs)),
        bulk[:at] + made + bulk[at + sizes[number] :],
        sequence=field(part, SEQUENCE),
        stream=field(part, STREAM),
    )
    _restate(draft, index, field(draft.parts[index], BULK) - len(bulk))
    return True


def _restate(draft: Draft, index: int, more: int) -> None:
    """The next ROUND_END counts the bytes of what was packed [RND-3]."""
    for later in range(index + 1, len(draft.parts)):
        part = draft.parts[later]
        if len(part) >= HEADER_BYTES and field(part, TYPE) == FrameType.ROUND_END:
            record = draft.record(later)
            if isinstance(record, RoundEnd) and record.bulk_bytes + more >= 0:
                draft.put_body(later, unchecked.body(replace(record, bulk_bytes=record.bulk_bytes + more)))
            return
