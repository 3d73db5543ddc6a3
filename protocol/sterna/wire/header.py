"""Preface and frame header: the bytes that every version of the protocol keeps.

Both are read with struct, as they come before anything can be believed; the schema has their declarations
and a test proves the two equal.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sterna.errors import RemoteProtocolError, remote_error
from sterna.limits import HEADER_BYTES, PREFACE_BYTES
from sterna.registry import CRITICAL_BIT, MAGIC, VERSION_DRAFT, VERSION_MAJOR, ErrorCode
from sterna.wire.integrity import Buffer, crc32

VERSION: Final = VERSION_MAJOR << 16 | VERSION_DRAFT  # as HELLO and WELCOME write it [VRS-1]
VERSIONS: Final = (VERSION,)  # all that this release speaks

_VERSION: Final = struct.Struct("<HH")
_HEADER: Final = struct.Struct("<HHHHQIIII")
_CHECKED: Final = struct.Struct("<HHHHQIII")  # what header_crc covers

# Methods of RFC 9110, PATCH, and what an HTTP/2 client without TLS begins with.
_HTTP: Final = (
    *(method + b" " for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS")),
    *(method + b" " for method in (b"TRACE", b"PATCH", b"PRI")),
    b"HTTP/",
)
_TLS: Final = (b"\x16\x03", b"\x15\x03")  # a handshake record, an alert
# What byte 0x89 becomes when its top bit is lost, or when something recodes it as text.
_NAME: Final = MAGIC[1:7]
_RECODED: Final = tuple(lead + _NAME for lead in (b"\x09", b"?", b"\xc2\x89", b"\xef\xbf\xbd", b""))


@dataclass(frozen=True, slots=True)
class Header:
    """A verified frame header, without its own checksum.

    Attributes:
        type: number of the frame type; may be one that this release does not know.
        body_bytes: length of the control part that follows.
        bulk_bytes: length of the page bytes behind it.
    """

    type: int
    stream: int
    sequence: int
    body_bytes: int
    bulk_bytes: int
    body_crc: int

    @property
    def critical(self) -> bool:
        """True if a receiver that does not know the type must end the session."""
        return bool(self.type & CRITICAL_BIT)


def encode_preface(major: int = VERSION_MAJOR, draft: int = VERSION_DRAFT) -> bytes:
    """The first bytes of every connection, naming the newest version that the sender speaks."""
    return MAGIC + _VERSION.pack(major, draft)


def diagnose_preface(start: bytes) -> RemoteProtocolError | None:
    """What is wrong with the first bytes of a connection, as soon as they show it [PRE-2 to PRE-5].

    Args:
        start: all bytes so far, at most a preface.

    Returns:
        The error, or None while `start` may still become a preface or needs a byte more to be named. The
        answer depends on the bytes alone: an error for some bytes is the error for all that begin so.
    """
    magic = start[: len(MAGIC)]
    if MAGIC.startswith(magic):
        return None
    known = (
        (_TLS, ErrorCode.TLS_ON_PLAIN, "PRE-4"),
        (_HTTP, ErrorCode.HTTP_ON_PLAIN, "PRE-5"),
        ((*_RECODED, MAGIC[:7]), ErrorCode.TEXT_MODE_DAMAGE, "PRE-3"),
    )
    for signatures, code, clause in known:
        if start.startswith(signatures):
            return remote_error(code, repr(start), clause=clause, offset=0)
    if any(signature.startswith(start) for signatures, _, _ in known for signature in signatures):
        return None
    return remote_error(ErrorCode.BAD_MAGIC, repr(start), clause="PRE-2", offset=0)


def decode_preface(preface: Buffer) -> tuple[int, int]:
    """Major and draft number of a whole preface whose magic was diagnosed."""
    major, draft = _VERSION.unpack_from(preface, PREFACE_BYTES - _VERSION.size)
    return major, draft


def encode_header(frame_type: int, stream: int, sequence: int, body: Buffer, bulk_bytes: int = 0) -> bytes:
    """The header of a frame with this body.

    Raises:
        struct.error: a number does not fit its field.
    """
    checked = _CHECKED.pack(frame_type, 0, stream, 0, sequence, len(body), bulk_bytes, crc32(body))
    return checked + crc32(checked).to_bytes(4, "little")


def decode_header(raw: Buffer) -> Header:
    """The header in `raw`, which has HEADER_BYTES.

    Raises:
        PeerMisbehaved: header_checksum [HDR-2], bad_header [HDR-3, HDR-4].
    """
    number, flags, stream, reserved, sequence, body_bytes, bulk_bytes, body_crc, crc = _HEADER.unpack(raw)
    if crc32(memoryview(raw)[: HEADER_BYTES - 4]) != crc:
        raise remote_error(ErrorCode.HEADER_CHECKSUM, clause="HDR-2", offset=HEADER_BYTES - 4)
    if flags:
        raise remote_error(
            ErrorCode.BAD_HEADER, f"flags 0x{flags:04x}", clause="HDR-3", offset=2, frame=number
        )
    if reserved:
        raise remote_error(
            ErrorCode.BAD_HEADER, "a reserved field is not zero", clause="HDR-4", offset=6, frame=number
        )
    return Header(number, stream, sequence, body_bytes, bulk_bytes, body_crc)
