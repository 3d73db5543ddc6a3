"""Checks of raw bytes: what a fuzzer needs that makes its inputs itself, and knows nothing of records."""

from __future__ import annotations

from typing import Final

from sterna.registry import FrameType
from sterna.wire import crc32
from sterna_fuzz.bodies import check_body
from sterna_fuzz.conversations import HEADER_BYTES, PREFACE_BYTES
from sterna_fuzz.drafts import BODY, BODY_CRC, BULK, HEADER_CRC, SEQUENCE, field, with_field
from sterna_fuzz.streams import read

TYPES: Final = tuple(FrameType)
_SIZES: Final = (7, 33)
_BYTEWISE_MAX: Final = 300  # byte by byte only for short inputs: the time is better spent on other bytes


def one_stream(data: bytes) -> None:
    """Any bytes as one direction of a connection, as they are and with right numbers and checksums."""
    _however_cut(data)
    mended = mend(data)
    if mended != data:
        _however_cut(mended)


def mend(data: bytes) -> bytes:
    """The same frames, with right sequence numbers and checksums as far as their bytes are there.

    Guided by coverage alone nobody finds a checksum, and would stay in front of it for ever.
    """
    parts, at, number = [data[:PREFACE_BYTES]], PREFACE_BYTES, 0
    while len(data) - at >= HEADER_BYTES:
        header = data[at : at + HEADER_BYTES]
        body_bytes, bulk_bytes = field(header, BODY), field(header, BULK)
        end = at + HEADER_BYTES + body_bytes + bulk_bytes
        body = data[at + HEADER_BYTES : at + HEADER_BYTES + body_bytes]
        start = header[:BODY_CRC] + crc32(body).to_bytes(4, "little") + header[HEADER_CRC:]
        parts += [with_field(start, SEQUENCE, number), data[at + HEADER_BYTES : end]]
        at, number = end, number + 1
    return b"".join([*parts, data[at:]])


def _however_cut(data: bytes) -> None:
    """The same events and the same end."""
    whole = read([data])
    for size in (1, *_SIZES) if len(data) <= _BYTEWISE_MAX else _SIZES:
        cut = read(data[at : at + size] for at in range(0, len(data), size))
        assert (cut.events, cut.ending) == (whole.events, whole.ending), f"in pieces of {size}: {cut.ending}"


def one_body(data: bytes) -> None:
    """A first byte that chooses the type of a frame, and the bytes of its body."""
    if data:
        check_body(TYPES[data[0] % len(TYPES)], data[1:])


def body_input(frame: FrameType, body: bytes) -> bytes:
    """The input of `one_body` for a body."""
    return bytes([TYPES.index(frame)]) + body
