"""The two frames of a demand connection, with struct alone: pages that are asked for, and one page [PCY-27].

A guest waits for each of them, and the general codec takes longer over one than the kernel to deliver it.
Either has one form only, so a frame is right if it is what this side would have written of the same numbers.
What is wrong with any other the general reader tells, who need not be quick about it.

What depends on the session is for the caller: regions and their granules, attempt and round, whether there
are hashes, and whether a page was asked for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sterna.errors import RemoteProtocolError, remote_error
from sterna.limits import CHUNK_BYTES, HEADER_BYTES, Limits
from sterna.registry import Encoding, ErrorCode, FrameType
from sterna.wire.framing import FrameReader
from sterna.wire.header import encode_header, encode_preface
from sterna.wire.integrity import Buffer
from sterna.wire.page_rules import PAGE_SPACE
from sterna.wire.records import PageRequest, Region

_REQUEST: Final = struct.Struct("<IIQQ")  # region; urgent, and what is reserved; first; count
_PAGE: Final = struct.Struct("<IIIIIIQIIQQ")  # the table's head; a run, with what is reserved in it; a hash
_ASKED: Final = struct.Struct(f"<{HEADER_BYTES}xI4xQQ")  # what differs from one to the next
_COMING: Final = struct.Struct(f"<{HEADER_BYTES}xIII12xQ4xI8xQ")

# A request in whole, and a page's frame as far as its bytes.
REQUEST_BYTES: Final = HEADER_BYTES + _REQUEST.size
PAGE_HEAD_BYTES: Final = HEADER_BYTES + _PAGE.size

_GRANULE_BYTES: Final = frozenset(1 << log2 for log2 in range(12, 17))
_PAGES_MOST: Final = CHUNK_BYTES // min(_GRANULE_BYTES)  # that can lie in one block
_SPACE_BYTES: Final = 1 << 63  # more than any region has
_FROM_SOURCE: Final = int(FrameType.PAGES)
_FROM_DESTINATION: Final = int(FrameType.PAGE_REQUEST)
_RAW: Final = int(Encoding.RAW)


@dataclass(frozen=True, slots=True)
class SinglePage:
    """A page that comes alone: what its frame says of the `size_bytes` that follow."""

    attempt: int
    round: int
    region: int
    page: int
    size_bytes: int
    hash: int


def encode_request(stream: int, sequence: int, region: int, first: int, count: int) -> bytes:
    """The frame that asks for these pages, which somebody waits for.

    Raises:
        struct.error: a number does not fit its field.
    """
    body = _REQUEST.pack(region, 1, first, count)
    return encode_header(_FROM_DESTINATION, stream, sequence, body) + body


def decode_request(frame: Buffer, stream: int, sequence: int) -> PageRequest:
    """What is asked for in the first REQUEST_BYTES of `frame`: at most as many pages as a block can have.

    Args:
        frame: what has come.
        stream: number of the connection.
        sequence: number that the frame must have.

    Raises:
        RemoteProtocolError: what is wrong with the frame; UNEXPECTED_FRAME for one of another form.
    """
    whole = bytes(frame[:REQUEST_BYTES])
    if len(whole) == REQUEST_BYTES:
        region, first, count = _ASKED.unpack(whole)
        usual = 0 < count <= _PAGES_MOST and first + count <= PAGE_SPACE
        if usual and whole == encode_request(stream, sequence, region, first, count):
            return PageRequest(region, first, count)
    raise _wrong(whole, REQUEST_BYTES, stream, sequence)


def encode_page(  # noqa: PLR0917 - a number a field, and a record to hold them would take as long again
    stream: int,
    sequence: int,
    position: tuple[int, int],
    region: int,
    page: int,
    size_bytes: int,
    hash_: int,
) -> bytes:
    """Header and table of the frame with this page; its bytes follow.

    Args:
        stream: number of the connection.
        sequence: number of the frame.
        position: attempt and round [PCY-8].
        region: id of the region.
        page: number of the page in it.
        size_bytes: the region's granule.
        hash_: XXH3-64 of the page, 0 in a session without hashes [PGS-25].

    Raises:
        struct.error: a number does not fit its field.
    """
    body = _PAGE.pack(*position, region, 1, 1, 0, page, 1, size_bytes, _RAW, hash_)
    return encode_header(_FROM_SOURCE, stream, sequence, body, size_bytes) + body


def decode_page(head: Buffer, stream: int, sequence: int) -> SinglePage:
    """What the first PAGE_HEAD_BYTES of a frame say of the page that follows; its size is that of a granule.

    Arguments and errors as for `decode_request`.
    """
    whole = bytes(head[:PAGE_HEAD_BYTES])
    if len(whole) == PAGE_HEAD_BYTES:
        attempt, number, region, page, size, hash_ = _COMING.unpack(whole)
        usual = size in _GRANULE_BYTES and (page + 1) * size <= _SPACE_BYTES
        if usual and whole == encode_page(stream, sequence, (attempt, number), region, page, size, hash_):
            return SinglePage(attempt, number, region, page, size, hash_)
    raise _wrong(whole, PAGE_HEAD_BYTES, stream, sequence)


def _wrong(frame: bytes, size: int, stream: int, sequence: int) -> RemoteProtocolError:
    """What the general reader finds in a frame as far as it is looked at, or that it has another form."""
    if len(frame) < size:
        return remote_error(ErrorCode.TRUNCATED, clause="FRM-10")
    reader = FrameReader(stream=stream)
    reader.receive_data(encode_preface())
    reader.next_event()
    reader.go_on_from(sequence)
    reader.set_limits(Limits())
    reader.set_encodings(frozenset(Encoding))
    if size == PAGE_HEAD_BYTES:
        _, _, region, _, granule_bytes, _ = _COMING.unpack(frame)
        granule = granule_bytes if granule_bytes in _GRANULE_BYTES else min(_GRANULE_BYTES)
        whole = Region(region, 0, _SPACE_BYTES, granule_log2=granule.bit_length() - 1)
        reader.set_regions({region: whole})
    try:
        reader.receive_data(frame)
        reader.next_event()
    except RemoteProtocolError as error:
        return error
    detail = "neither pages that are asked for nor one page"
    return remote_error(ErrorCode.UNEXPECTED_FRAME, detail, clause="PCY-27")
