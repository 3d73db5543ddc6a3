"""Frames into bytes. The caller's own page buffers pass through untouched, as in h11."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Final

from sterna.errors import LocalProtocolError
from sterna.limits import HANDSHAKE_BODY_BYTES, Limits
from sterna.registry import GREASE_FIRST, GREASE_LAST, Encoding, ErrorCode
from sterna.wire.codec import encode_body
from sterna.wire.header import encode_header, encode_preface
from sterna.wire.integrity import Buffer
from sterna.wire.records import Pages, Record, Region
from sterna.wire.rules import DEFAULT_BOUNDS, Bounds

GREASE_BODY_BYTES: Final = 1024  # FRM-9
_NBYTES: Final = attrgetter("nbytes")  # of a memoryview; bytes have none


def encode_frame(
    record: Record,
    sequence: int,
    *,
    stream: int = 0,
    bulk: Sequence[Buffer] = (),
    bounds: Bounds = DEFAULT_BOUNDS,
) -> list[Buffer]:
    """A whole frame as buffers to send in order: header and body as one, then `bulk` as it was given.

    Args:
        record: what the frame says.
        sequence: number of the frame on its stream and direction.
        stream: number of the connection.
        bulk: the page bytes of a PAGES frame, any number of buffers.
        bounds: the peer's limits and the region table.

    Raises:
        LocalProtocolError: the record breaks a rule, is longer than the peer takes, or `bulk` is not as
            long as the table says.
    """
    body = encode_body(record, bounds)
    bulk_bytes = _total(bulk)
    expected = record.bulk_bytes if isinstance(record, Pages) else 0
    frame = int(record.type)
    if bulk_bytes != expected:
        detail = f"{bulk_bytes} bytes of bulk for a table of {expected}"
        raise LocalProtocolError(ErrorCode.MALFORMED, detail, clause="PGS-14", offset=20, frame=frame)
    if len(body) > bounds.limits.control_bytes:
        raise LocalProtocolError(
            ErrorCode.LIMIT_CONTROL, f"{len(body)} bytes", clause="HDR-7", offset=16, frame=frame
        )
    if bulk_bytes > bounds.limits.bulk_bytes:
        raise LocalProtocolError(
            ErrorCode.LIMIT_BULK, f"{bulk_bytes} bytes", clause="HDR-9", offset=20, frame=frame
        )
    return [encode_header(frame, stream, sequence, body, bulk_bytes) + body, *bulk]


def _total(bulk: Sequence[Buffer]) -> int:
    """Bytes of all parts. Scattered pages are hundreds of views, which need not be viewed once more."""
    try:
        return sum(map(_NBYTES, bulk))
    except AttributeError:
        return sum(memoryview(part).nbytes for part in bulk)


def encode_grease(frame_type: int, payload: bytes, sequence: int, *, stream: int = 0) -> bytes:
    """A frame that every receiver must skip [FRM-9]. Where it goes and what is in it is the caller's dice.

    Args:
        frame_type: GREASE_FIRST to GREASE_LAST.
        payload: at most GREASE_BODY_BYTES of anything.
        sequence: number of the frame on its stream and direction; skipped frames count too.
        stream: number of the connection.

    Raises:
        LocalProtocolError: a type that is not reserved for this, or too long a payload.
    """
    if not GREASE_FIRST <= frame_type <= GREASE_LAST or len(payload) > GREASE_BODY_BYTES:
        raise LocalProtocolError(ErrorCode.BAD_VALUE, "no GREASE frame", clause="FRM-9", frame=frame_type)
    return encode_header(frame_type, stream, sequence, payload) + payload


class FrameWriter:
    """Numbers and encodes the frames of one direction of one connection.

    Until `set_limits` a body may have what any receiver takes in the handshake [LIM-5]. A frame that is
    refused takes no number: the writer is as it was.
    """

    def __init__(self, *, stream: int = 0) -> None:
        self._stream = stream
        self._sequence = 0
        self._bounds = Bounds(limits=Limits(control_bytes=HANDSHAKE_BODY_BYTES, bulk_bytes=0))

    def set_limits(self, limits: Limits) -> None:
        """What the peer has announced."""
        self._bounds = replace(self._bounds, limits=limits)

    def set_regions(self, regions: Mapping[int, Region]) -> None:
        """The session's region table by id: page tables and ranges are held to it."""
        self._bounds = replace(self._bounds, regions=regions)

    def set_encodings(self, encodings: frozenset[Encoding], *, hashed: bool = True) -> None:
        """The page encodings that were selected [PGS-9], and whether chunks have hashes [PGS-25]."""
        self._bounds = replace(self._bounds, encodings=encodings, hashed=hashed)

    @property
    def next_sequence(self) -> int:
        """Number of the next frame."""
        return self._sequence

    def go_on_from(self, sequence: int) -> None:
        """The next frame has this number: numbers of a data connection outlive it [HDR-6] [ATT-5]."""
        self._sequence = sequence

    def preface(self) -> bytes:
        """The first bytes of the connection."""
        return encode_preface()

    def frame(self, record: Record, bulk: Sequence[Buffer] = ()) -> list[Buffer]:
        """The next frame, see `encode_frame`."""
        buffers = encode_frame(record, self._sequence, stream=self._stream, bulk=bulk, bounds=self._bounds)
        self._sequence += 1
        return buffers

    def grease(self, frame_type: int, payload: bytes) -> bytes:
        """The next frame, one to be skipped: see `encode_grease`."""
        frame = encode_grease(frame_type, payload, self._sequence, stream=self._stream)
        self._sequence += 1
        return frame
