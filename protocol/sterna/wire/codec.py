"""Bodies to records and back. The one door through which every failure leaves as one coded error.

Reading: `decode_body` raises `RemoteProtocolError` (misbehaved, incompatible or limit) and nothing else,
whatever the bytes. Writing: `encode_body` raises `LocalProtocolError` for a record that breaks the same
rules. Offsets count from the first byte of the frame's header, as ABORT states them.
"""

from __future__ import annotations

import io
import struct
from typing import Final, NoReturn, cast

from construct import ConstructError, TerminatedError

from sterna.errors import LocalProtocolError, remote_error
from sterna.limits import HEADER_BYTES
from sterna.registry import ErrorCode, FrameType
from sterna.wire import pages, requests
from sterna.wire.fields import build_into, parse_from
from sterna.wire.header import VERSIONS
from sterna.wire.integrity import Buffer
from sterna.wire.records import Hello, PageRequest, Pages, Record
from sterna.wire.rules import DEFAULT_BOUNDS, Bounds, Violation
from sterna.wire.schema import BODIES, HELLO_OF_ANY_VERSION

# What parsing and building can raise inside, Construct's own errors apart: a number too large, a wrong
# type in a record, text that is none. Listed, so that a fault of this program (an assertion, no memory)
# is not blamed on the peer.
_INSIDE: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


def decode_body(frame_type: int, body: Buffer, bounds: Bounds = DEFAULT_BOUNDS) -> Record:
    """The record of a frame's body.

    Args:
        frame_type: a type of the registry.
        body: the whole body, without header and bulk part.
        bounds: this side's announced limits, and the session's region table once GUEST is known
            (PAGES cannot be read without).

    Raises:
        RemoteProtocolError: the body breaks a rule; nothing else is ever raised for any bytes.
        LocalProtocolError: `frame_type` is not in the registry.
    """
    schema = BODIES.get(cast("FrameType", frame_type))
    if schema is None:
        raise LocalProtocolError(ErrorCode.UNKNOWN_CRITICAL, f"no layout for type 0x{frame_type:04x}")
    if frame_type == FrameType.PAGES:
        try:
            return pages.parse(body, bounds)
        except Violation as violation:
            _blame(violation, frame_type)
    if frame_type == FrameType.PAGE_REQUEST and (request := requests.parse(body, bounds)) is not None:
        return request
    stream = io.BytesIO(body)
    try:
        if frame_type == FrameType.HELLO:
            return _hello(stream, bounds)
        return cast("Record", parse_from(schema, stream, bounds=bounds))
    except Violation as violation:
        _blame(violation, frame_type)
    except TerminatedError:
        offset = stream.tell() - 1
        _blame(
            Violation(ErrorCode.TRAILING_BYTES, "FRM-2", "bytes behind the last field", offset), frame_type
        )
    except (ConstructError, *_INSIDE) as error:
        _blame(Violation(ErrorCode.MALFORMED, "FRM-1", type(error).__name__, stream.tell()), frame_type)


def _hello(stream: io.BytesIO, bounds: Bounds) -> Hello:
    """Layout first, then the versions, then the values [VRS-3].

    A HELLO with values that only its own versions can explain is answered by saying that none of them is
    spoken here. One that merely lists no common version is a record like any other: the core refuses it.
    """
    try:
        return cast("Hello", parse_from(BODIES[FrameType.HELLO], stream, bounds=bounds))
    except Violation as violation:
        stream.seek(0)
        versions = parse_from(HELLO_OF_ANY_VERSION, stream, bounds=bounds).versions
        if not set(versions).isdisjoint(VERSIONS):
            raise
        detail = f"a HELLO of other versions: {violation.detail}"
        raise Violation(ErrorCode.NO_COMMON_VERSION, "NEG-1", detail, violation.offset) from None


def _blame(violation: Violation, frame_type: int) -> NoReturn:
    """A violation in a peer's body, as the error that ends the session."""
    raise remote_error(
        violation.code,
        violation.detail,
        clause=violation.clause,
        offset=HEADER_BYTES + violation.offset,
        frame=int(frame_type),
    ) from None


def encode_body(record: Record, bounds: Bounds = DEFAULT_BOUNDS) -> bytes:
    """The body of a frame.

    Args:
        record: any record.
        bounds: the peer's announced limits, and the session's region table: with it, page tables
            and ranges are checked against their regions.

    Raises:
        LocalProtocolError: the record breaks a rule that the peer would refuse it for.
    """
    try:
        if isinstance(record, Pages):
            return pages.build(record, bounds)
        if isinstance(record, PageRequest) and (body := requests.build(record, bounds)) is not None:
            return body
        stream = io.BytesIO()
        build_into(BODIES[record.type], record, stream, bounds=bounds)
        return stream.getvalue()
    except Violation as violation:
        raise LocalProtocolError(
            violation.code,
            violation.detail,
            clause=violation.clause,
            offset=HEADER_BYTES + violation.offset,
            frame=int(record.type),
        ) from None
    except (ConstructError, *_INSIDE) as error:
        kind = getattr(record, "type", None)
        raise LocalProtocolError(
            ErrorCode.MALFORMED,
            f"{type(record).__name__} cannot be encoded: {error}",
            clause="FRM-1",
            frame=kind,
        ) from error
