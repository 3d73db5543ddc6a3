"""Records and bodies: what is encoded is decoded to the same, and nothing else is decoded at all.

A body has exactly one form. So a receiver that accepts bytes and would write others has overlooked something:
a reserved field, bits behind the last page of a bitmap, a list out of order, a length that is not the list's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st

from sterna.errors import LocalProtocolError, RemoteProtocolError
from sterna.limits import HEADER_BYTES, Limits
from sterna.registry import ERRORS, FrameType
from sterna.testing import strategies
from sterna.wire import (
    FrameReader,
    FrameReceived,
    PagesAnnounced,
    PagesReceived,
    PrefaceReceived,
    decode_body,
    encode_body,
    encode_frame,
    encode_preface,
    unchecked,
)
from sterna.wire.records import Pages, Record
from sterna_fuzz.mutators import EDGES
from sterna_fuzz.streams import pieces
from sterna_fuzz.target import Words

_BULK_MAX: Final = 1 << 17  # of a frame that is built whole: more bytes show nothing more


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes of a body that are changed.

    Attributes:
        at: the first of them, counted around.
        new: what is written there.
        cut: bytes that are taken off behind.
        more: bytes that are put behind.
    """

    at: int = 0
    new: bytes = b""
    cut: int = 0
    more: bytes = b""

    def apply(self, body: bytes) -> bytes:
        """The body, changed."""
        at = self.at % (len(body) + 1)
        changed = (body[:at] + self.new + body[at + len(self.new) :])[: len(body)]
        return changed[: len(changed) - min(self.cut, len(changed))] + self.more


def patches() -> st.SearchStrategy[Patch]:
    """Edges where numbers are, single bits, and ends that are too early or too late."""
    words = st.sampled_from(EDGES).flatmap(
        lambda value: st.sampled_from((1, 2, 4, 8)).map(
            lambda width: (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        )
    )
    aligned = st.integers(0, 64).map(lambda word: word * 4) | st.integers(0, 1 << 16)
    overwrite = st.builds(Patch, at=aligned, new=words | st.binary(min_size=1, max_size=4))
    resize = st.builds(Patch, cut=st.integers(0, 64), more=st.binary(max_size=16))
    return overwrite | resize


def check_round_trip(record: Record) -> Words:
    """Decoding what was encoded gives the same record, and encoding that the same bytes."""
    body = encode_body(record, strategies.BOUNDS)
    again = decode_body(record.type, body, strategies.BOUNDS)
    assert again == record, f"decoded: {again!r}"
    assert encode_body(again, strategies.BOUNDS) == body, "another body"
    assert unchecked.body(record) == body, "the writer without checks writes another body"
    return (record.type.name.lower(),)


def check_frame(record: Record, marks: Sequence[int]) -> Words:
    """A frame of any record comes out of a reader as it went in, bulk part and all, however it is cut."""
    bulk = record.bulk_bytes if isinstance(record, Pages) else 0
    if bulk > _BULK_MAX:
        return ("too large",)
    sent = bytes(number % 251 for number in range(bulk))
    buffers = encode_frame(record, 0, bulk=[sent] if bulk else [], bounds=strategies.BOUNDS)
    data = encode_preface() + b"".join(bytes(each) for each in buffers)
    reader, place, found = FrameReader(), bytearray(bulk), None
    reader.set_limits(Limits())
    reader.set_regions({strategies.REGION.id: strategies.REGION})
    for piece in pieces(data, marks):
        reader.receive_data(piece)
        while (event := reader.next_event()) is not None:
            match event:
                case PagesAnnounced(header):
                    if header.bulk_bytes:
                        reader.supply_bulk([place])
                case FrameReceived() | PagesReceived():
                    found = event.record
                case _:
                    assert isinstance(event, PrefaceReceived)
    reader.receive_eof()
    assert found == record, f"received: {found!r}"
    assert place == sent, "other page bytes"
    return (record.type.name.lower(),)


def check_body(frame: FrameType, body: bytes) -> Words:
    """Bytes are a record's only body, or end in a coded error whose offset lies inside of them."""
    try:
        record = decode_body(frame, body, strategies.BOUNDS)
    except RemoteProtocolError as error:
        return _refused(error, len(body))
    assert record.type is frame, f"a record of type {record.type.name}"
    try:
        again = encode_body(record, strategies.BOUNDS)
    except LocalProtocolError as error:
        raise AssertionError(f"decoded, but must not be sent: {error}") from error
    assert again == body, f"accepted, but it is written differently: {again.hex()}"
    return ("accepted",)


def _refused(error: RemoteProtocolError, size: int) -> Words:
    assert error.code in ERRORS, f"{error.code} is not in the registry"
    assert error.clause, "no clause is named"
    assert error.offset is not None, "no offset is named"
    assert HEADER_BYTES <= error.offset <= HEADER_BYTES + size, f"offset {error.offset}"
    return (error.code.name.lower(),)


def check_patched(record: Record, patches: Sequence[Patch]) -> Words:
    """`check_body` of a body that was right before it was changed."""
    body = unchecked.body(record)
    for patch in patches:
        body = patch.apply(body)
    return check_body(record.type, body)
