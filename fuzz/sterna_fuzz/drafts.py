"""A stream that is being changed, frame by frame, and what a mutator needs to do that.

A draft knows of each part only where it begins: mutators make parts that are no frames at all. Checksums are
right unless a mutator wants them wrong, so that a receiver looks further than at the first checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sterna.registry import FrameType
from sterna.wire import crc32, decode_body, unchecked
from sterna.wire.records import Record, Region, RoundEnd, Seal
from sterna.wire.rules import Bounds
from sterna_fuzz.conversations import HEADER_BYTES

TYPE, FLAGS, STREAM, RESERVED, SEQUENCE, BODY, BULK, BODY_CRC, HEADER_CRC = 0, 2, 4, 6, 8, 16, 20, 24, 28
_WIDTHS: Final = {TYPE: 2, FLAGS: 2, STREAM: 2, RESERVED: 2, SEQUENCE: 8, BODY: 4, BULK: 4}
_KNOWN: Final = frozenset(map(int, FrameType))


def field(frame: bytes, offset: int) -> int:
    """A field of a frame's header."""
    return int.from_bytes(frame[offset : offset + _WIDTHS[offset]], "little")


def with_field(frame: bytes, offset: int, value: int) -> bytes:
    """The frame with another value in a field of its header; header_crc is right, body_crc as it was."""
    width = _WIDTHS[offset]
    new = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
    return with_header_crc(frame[:offset] + new + frame[offset + width :])


def with_header_crc(frame: bytes) -> bytes:
    """The frame with the right header_crc."""
    return frame[:HEADER_CRC] + struct.pack("<I", crc32(frame[:HEADER_CRC])) + frame[HEADER_BYTES:]


def is_frame(part: bytes) -> bool:
    """Whether a part is long enough for a header."""
    return len(part) >= HEADER_BYTES


@dataclass(slots=True)
class Draft:
    """Parts of a stream: the preface first, then what were frames.

    Attributes:
        parts: in order.
        other: frames of the other direction of this conversation.
        strangers: frames of this direction of another conversation.
        regions: the guest's.
    """

    parts: list[bytes]
    other: Sequence[bytes]
    strangers: Sequence[bytes]
    regions: Sequence[Region]

    def pick(self, at: int) -> int:
        """The index of a frame."""
        return 1 + at % (len(self.parts) - 1) if len(self.parts) > 1 else 0

    def place(self, at: int) -> int:
        """Where a frame can be put in: behind the preface, between frames, at the end."""
        return 1 + at % len(self.parts)

    def renumber(self) -> None:
        """Right sequence numbers, in the frames that repeat those of others too [STR-8].

        What is too short for a header has none.
        """
        number, became = 0, dict[int, int]()
        for index, part in enumerate(self.parts[1:], 1):
            if is_frame(part):
                became[field(part, SEQUENCE)] = number
                self.parts[index] = with_field(part, SEQUENCE, number)
                number += 1
                self._restate(index, became)

    def _restate(self, index: int, became: Mapping[int, int]) -> None:
        """Let ROUND_END and SEAL name the frames that they have named before."""
        if field(self.parts[index], TYPE) not in {FrameType.ROUND_END, FrameType.SEAL}:
            return
        record = self.record(index)
        if isinstance(record, (RoundEnd, Seal)):
            named = tuple((stream, became.get(last, last)) for stream, last in record.last_sequences)
            self.put_body(index, unchecked.body(replace(record, last_sequences=named)))

    def insert(self, at: int, *frames: bytes) -> None:
        """Put frames in, and give everything its right number."""
        place = self.place(at)
        self.parts[place:place] = frames
        self.renumber()

    def body_of(self, index: int) -> bytes:
        """The body of a part, as far as it is there."""
        part = self.parts[index]
        return part[HEADER_BYTES : HEADER_BYTES + field(part, BODY)] if is_frame(part) else b""

    def put_body(self, index: int, body: bytes) -> None:
        """Give a frame another body, with the right length and checksums."""
        part = self.parts[index]
        bulk = part[HEADER_BYTES + field(part, BODY) :]
        self.parts[index] = unchecked.frame(
            field(part, TYPE), body, bulk, sequence=field(part, SEQUENCE), stream=field(part, STREAM)
        )

    def record(self, index: int) -> Record | None:
        """What a frame says; None for what cannot be read."""
        part = self.parts[index]
        if not is_frame(part) or field(part, TYPE) not in _KNOWN:
            return None
        bounds = Bounds(regions={region.id: region for region in self.regions})
        try:
            return decode_body(field(part, TYPE), self.body_of(index), bounds)
        except Exception:  # noqa: BLE001 - an earlier mutator has been here; whether it may is looked at elsewhere
            return None

    @property
    def data(self) -> bytes:
        """The stream."""
        return b"".join(self.parts)
