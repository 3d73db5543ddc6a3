"""Frames out of a stream of bytes. No I/O, no clock, nothing but bytes and events.

`FrameReader` has two doors for bytes and one for events::

    receive_data(data)                         bytes that somebody else read
    get_buffer() / buffer_updated(n)           a place to read into (recv_into), then how much came
    next_event()                               an event, or None: feed me

Drain the events until None before more bytes are fed: the reader keeps what it was given and no more, so
what it holds never exceeds one read buffer, one body, and what the owner supplied. How the bytes are cut
changes nothing but the calls [FRM-13].

Page bytes go straight into their place. For PAGES the reader first yields `PagesAnnounced` with the decoded
table; the owner answers with `supply_bulk(targets)`, a list of writable buffers (guest memory), or with
`discard_bulk()`. From then on `get_buffer()` returns those buffers' own memory, and `PagesReceived` comes
when they are full. Only the start of a bulk part, which may come in the same read as its table, is copied.

Order of suspicion [HDR-11]: a header's checksum is verified before any field is believed, its length
before anything is allocated, a body's checksum before it is decoded. An unknown frame that may be skipped
is checksummed as it flows by and stored nowhere. The first error is final: it is raised again by every
later call [FRM-11].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, auto
from itertools import islice
from typing import Final, NoReturn, TypeAlias

import numpy as np

from sterna.errors import LocalProtocolError, RemoteProtocolError, remote_error
from sterna.limits import (
    CHUNK_BYTES,
    GRANULE_MIN_LOG2,
    HANDSHAKE_BODY_BYTES,
    HEADER_BYTES,
    PREFACE_BYTES,
    STREAMS_MAX,
    UNKNOWN_FRAMES_IN_A_ROW,
    Limits,
)
from sterna.registry import MAGIC, Encoding, ErrorCode, FrameType
from sterna.wire.codec import decode_body
from sterna.wire.header import Header, decode_header, decode_preface, diagnose_preface
from sterna.wire.integrity import Buffer, crc32
from sterna.wire.records import Pages, Record, Region
from sterna.wire.rules import Bounds

# One read takes many small frames, or one that answers a request for pages: a chunk with its table. Larger
# would only copy more of each bulk part's start.
READ_AHEAD_BYTES: Final = CHUNK_BYTES + 4096

# So much of a bulk part is read at once: as much as a core's own cache holds, from which it is hashed then.
BULK_READ_BYTES: Final = 1 << 20
# Of one recvmsg: as many single pages, and the read buffer.
BUFFERS_MOST: Final = (BULK_READ_BYTES >> GRANULE_MIN_LOG2) + 1

_KNOWN: Final = frozenset(int(frame) for frame in FrameType)
_NOTHING: Final = memoryview(b"")
_NO_STREAM: Final = -1  # of a connection whose frames do not agree


@dataclass(frozen=True, slots=True)
class PrefaceReceived:
    """The peer speaks Sterna; the numbers are those of the newest version that it knows."""

    major: int
    draft: int


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """A whole frame of any type but PAGES."""

    header: Header
    record: Record


@dataclass(frozen=True, slots=True)
class UnknownFrame:
    """A frame of unknown, non-critical type was skipped."""

    header: Header


@dataclass(frozen=True, slots=True)
class PagesAnnounced:
    """The table of a PAGES frame. Unless `header.bulk_bytes` is 0, answer it with `supply_bulk`."""

    header: Header
    record: Pages


@dataclass(frozen=True, slots=True)
class PagesReceived:
    """The bulk part of the frame announced before is in the buffers that were supplied. Not yet hashed."""

    header: Header
    record: Pages


Event: TypeAlias = PrefaceReceived | FrameReceived | UnknownFrame | PagesAnnounced | PagesReceived


class _State(IntEnum):  # looked up for each event, which takes a hash
    PREFACE = auto()
    HEADER = auto()
    BODY = auto()
    SKIP = auto()  # the body of an unknown frame flows by
    ANNOUNCED = auto()  # the owner is to say where a bulk part goes
    BULK = auto()


class FrameReader:
    """Frames of one direction of one connection.

    Until `set_limits` a body is held to the bound of the handshake and no bulk part is taken [LIM-5];
    until `set_regions` no PAGES frame is [PGS-1]. A frame that was received before such a call, but is
    yielded after it, is held to the new bounds.

    Args:
        stream: number of the connection: 0 control, 1 + index data [HDR-5]; None for a connection of which
            the first frame tells what it is.
        read_ahead_bytes: size of the read buffer.
    """

    def __init__(self, *, stream: int | None = 0, read_ahead_bytes: int = READ_AHEAD_BYTES) -> None:
        self._stream = stream
        self._undecided = stream is None  # no known frame has come yet
        self._bounds = Bounds()
        self._control_limit = HANDSHAKE_BODY_BYTES
        self._bulk_limit = 0
        self._announced = False
        self._sequence = 0
        self._last_sequence = 0
        self._unknown_in_a_row = 0
        self._state = _State.PREFACE
        self._error: RemoteProtocolError | None = None
        # What was received and not consumed: a part of the caller's data or of the read buffer.
        self._input = _NOTHING
        self._read_ahead = np.empty(read_ahead_bytes, np.uint8).data  # untouched, it takes no memory
        self._lent: list[memoryview] = []  # what get_buffer returned last
        # A unit (preface, header, body) that comes in pieces, and how much of it is there.
        self._unit = _NOTHING
        self._filled = 0
        self._header = Header(0, 0, 0, 0, 0, 0)
        self._pages: Pages | None = None
        self._targets: deque[memoryview] = deque()  # what of the bulk part is still to be filled, in order
        self._left = 0  # bytes of the bulk part, or of a skipped body, still to come
        self._skip_crc = 0

    # --- what the owner knows -------------------------------------------------------------------

    def set_limits(self, limits: Limits) -> None:
        """From now on the peer is held to `limits`, which this side has announced."""
        self._bounds = replace(self._bounds, limits=limits)
        self._control_limit = limits.control_bytes
        self._bulk_limit = limits.bulk_bytes
        self._announced = True

    def set_regions(self, regions: Mapping[int, Region]) -> None:
        """The session's region table by id: page tables and ranges are held to it."""
        self._bounds = replace(self._bounds, regions=regions)

    def set_encodings(self, encodings: frozenset[Encoding], *, hashed: bool = True) -> None:
        """The page encodings that were selected [PGS-9], and whether chunks have hashes [PGS-25]."""
        self._bounds = replace(self._bounds, encodings=encodings, hashed=hashed)

    def go_on_from(self, sequence: int) -> None:
        """The next frame has this number: numbers of a data connection outlive it [HDR-6] [ATT-5]."""
        self._sequence = sequence

    def set_stream(self, stream: int) -> None:
        """Frames bear this number: the other direction has told what the connection is."""
        self._stream, self._undecided = stream, False

    @property
    def stream(self) -> int | None:
        """Number of the connection, None as long as nothing tells it."""
        return self._stream

    @property
    def bounds(self) -> Bounds:
        """What frames are held to now."""
        return self._bounds

    @property
    def next_sequence(self) -> int:
        """The sequence number that the next frame must have; so many frames have begun."""
        return self._sequence

    @property
    def last_sequence(self) -> int:
        """Number of the newest frame whose header has come, refused or not, for ABORT [ABT-2]; 0 before."""
        return self._last_sequence

    @property
    def is_drained(self) -> bool:
        """Whether everything that has come has been yielded as events."""
        return not self._input and not self._filled

    @property
    def held_bytes(self) -> int:
        """The size of the unit (preface, header or body) that has begun and is not whole yet; 0 if none."""
        return len(self._unit) if self._filled else 0

    @property
    def is_filling(self) -> bool:
        """Whether a bulk part is coming in, and no event can come of what is here of it."""
        return self._state is _State.BULK and self._left > 0 and not self._input

    @property
    def owed_bytes(self) -> int:
        """Bytes of a bulk part that are still to come, 0 between two of them."""
        return self._left if self._state is _State.BULK else 0

    @property
    def coming(self) -> tuple[Pages, int] | None:
        """While it is filling: the table, and how many bytes of its bulk part are in their place.

        None if they are in none, for they flow by.
        """
        if self._pages is None or not self._targets:
            return None
        return self._pages, self._header.bulk_bytes - self._left

    # --- bytes in -------------------------------------------------------------------------------

    def receive_data(self, data: Buffer) -> None:
        """Take bytes from the connection. `data` must not change until the events are drained.

        Raises:
            LocalProtocolError: events of earlier bytes have not been drained.
            RemoteProtocolError: the error that ended this reader before.
        """
        self._require_drained()
        self._lent = []
        self._input = memoryview(data).cast("B") if len(data) else _NOTHING

    def get_buffer(self) -> memoryview:
        """A place to read into, never empty: a piece of the bulk part's own place if one is coming in.

        Targets shorter than the read buffer are read by way of it: copying some pages costs less than a
        system call for each.

        Raises:
            LocalProtocolError, RemoteProtocolError: as `receive_data`.
        """
        self._require_drained()
        self._lent = [self._direct() or self._read_ahead]
        return self._lent[0]

    def get_buffers(self, most: int = BUFFERS_MOST) -> list[memoryview]:
        """As `get_buffer`, for recvmsg_into, so that short targets cost no call each, nor a copy.

        Where the bulk part comes in short targets, up to `most` buffers: of targets as many bytes as are read
        of one long one, and the read buffer behind the last target of all.
        """
        if not self._targets or len(self._targets[0]) >= BULK_READ_BYTES:
            return [self.get_buffer()]
        self._require_drained()
        lent: list[memoryview] = []
        room = BULK_READ_BYTES
        for place in islice(self._targets, most - 1):
            if len(place) >= room:
                lent.append(place[:room])
                break
            lent.append(place)
            room -= len(place)
        else:
            if len(lent) == len(self._targets):
                lent.append(self._read_ahead)
        self._lent = lent[:]
        return lent

    def buffer_updated(self, size: int) -> None:
        """`size` bytes were read into what `get_buffer` or `get_buffers` returned last.

        Raises:
            LocalProtocolError: nothing was asked for, or it was not that large.
        """
        lent, self._lent = self._lent, []
        if not 0 <= size <= sum(map(len, lent)) or not lent:
            raise _misuse(f"{size} bytes in buffers of {sum(map(len, lent))}")
        for place in lent:
            if not size:
                break
            come = min(size, len(place))
            size -= come
            if place is self._read_ahead:
                self._input = place[:come]
            elif self._state is _State.BODY:
                self._filled += come
            else:
                self._advance_bulk(come)

    def receive_eof(self) -> None:
        """The connection has ended. Returns if it ended between two frames, or before the first byte.

        That is no success: only the core knows whether the session was over [FRM-10].

        Raises:
            PeerMisbehaved: truncated [PRE-7, FRM-10], or what the start of a preface shows [PRE-2].
        """
        self._require_drained()
        if self._state in (_State.PREFACE, _State.HEADER) and not self._filled:
            return
        if self._state is not _State.PREFACE:
            frame = None if self._state is _State.HEADER else self._header.type
            error = remote_error(ErrorCode.TRUNCATED, clause="FRM-10", frame=frame)
        elif MAGIC.startswith(bytes(self._unit[: min(self._filled, len(MAGIC))])):
            error = remote_error(ErrorCode.TRUNCATED, "inside the preface", clause="PRE-7")
        else:
            error = remote_error(
                ErrorCode.BAD_MAGIC, "the first bytes are no preface's", clause="PRE-2", offset=0
            )
        self._fail(error)
        raise error

    # --- bulk -----------------------------------------------------------------------------------

    def supply_bulk(self, targets: Iterable[memoryview | bytearray]) -> None:
        """Where the bulk part of the announced PAGES frame goes: writable buffers, filled in order.

        Raises:
            LocalProtocolError: none is announced, a target cannot be written or has gaps, or their sum is
                not the header's bulk_bytes.
        """
        if self._state is not _State.ANNOUNCED:
            raise _misuse("no PAGES frame is announced")
        views = [view for view in (memoryview(target) for target in targets) if view.nbytes]
        if any(view.readonly or not view.c_contiguous for view in views):
            raise _misuse("a target is read-only or has gaps")
        places = [view.cast("B") for view in views]
        if sum(map(len, places)) != self._header.bulk_bytes:
            raise _misuse(f"targets of {sum(map(len, places))} bytes for {self._header.bulk_bytes}")
        self._targets.extend(places)
        self._state = _State.BULK

    def discard_bulk(self) -> None:
        """The bulk part of the announced PAGES frame is of no use: let it flow by.

        Raises:
            LocalProtocolError: none is announced.
        """
        if self._state is not _State.ANNOUNCED:
            raise _misuse("no PAGES frame is announced")
        self._state = _State.BULK

    def _advance_bulk(self, size: int) -> None:
        """`size` bytes at the front of the targets are filled; never more than the first one has."""
        self._left -= size
        if size == len(self._targets[0]):
            self._targets.popleft()
        else:
            self._targets[0] = self._targets[0][size:]

    # --- events out -----------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        """The next event of what was received, None when more bytes are needed.

        Raises:
            RemoteProtocolError: the peer's bytes end the session; the same error for ever after.
            LocalProtocolError: `supply_bulk` or `discard_bulk` is due.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)
        self._lent = []
        try:
            while True:
                event = _STEPS[self._state](self)
                if event is not _Step.ON:
                    return None if event is _Step.MORE else event
        except RemoteProtocolError as error:
            self._fail(error)
            raise

    def _take(self, size: int) -> memoryview | None:
        """The next unit of `size` bytes, None until it is whole. Allocates only for units in pieces."""
        if not self._unit and len(self._input) >= size:
            unit, self._input = self._input[:size], self._input[size:]
            return unit
        if not self._unit:
            self._unit = memoryview(bytearray(size))
        come = min(size - self._filled, len(self._input))
        self._unit[self._filled : self._filled + come] = self._input[:come]
        self._input = self._input[come:]
        self._filled += come
        if self._filled < size:
            return None
        unit, self._unit, self._filled = self._unit, _NOTHING, 0
        return unit

    def _step_preface(self) -> Event | _Step:
        """Byte by byte, so that the error does not depend on how the bytes are cut."""
        start = bytes(self._unit[: self._filled]) + bytes(self._input[: PREFACE_BYTES - self._filled])
        for size in range(self._filled + 1, len(start) + 1):
            error = diagnose_preface(start[:size])
            if error is not None:
                raise error
        preface = self._take(PREFACE_BYTES)
        if preface is None:
            return _Step.MORE
        self._state = _State.HEADER
        return PrefaceReceived(*decode_preface(preface))

    def _step_header(self) -> Event | _Step:
        if not self._input:
            return _Step.MORE
        raw = self._take(HEADER_BYTES)
        if raw is None:
            return _Step.MORE
        self._last_sequence = self._sequence
        header = self._header = decode_header(raw)
        self._admit(header)
        self._sequence += 1
        if header.type in _KNOWN:
            self._unknown_in_a_row = 0
            self._state = _State.BODY
        else:
            self._left, self._skip_crc = header.body_bytes, 0
            self._state = _State.SKIP
        return _Step.ON

    def _admit(self, header: Header) -> None:
        """HDR-5 to HDR-9 and the rules for unknown types, before anything is allocated."""
        if (
            header.type in _KNOWN
            and header.stream == self._stream
            and header.sequence == self._sequence
            and header.body_bytes <= self._control_limit
            and (not header.bulk_bytes or header.type == FrameType.PAGES)
            and header.bulk_bytes <= self._bulk_limit
            and not self._undecided
        ):
            return

        def refuse(code: ErrorCode, clause: str, offset: int, detail: str) -> NoReturn:
            raise remote_error(code, detail, clause=clause, offset=offset, frame=header.type)

        known = header.type in _KNOWN
        if self._undecided:
            self._learn_stream(header, known=known)
        if header.stream != self._stream:
            refuse(ErrorCode.BAD_HEADER, "HDR-5", 4, f"stream {header.stream} on connection {self._stream}")
        if header.sequence != self._sequence:
            refuse(ErrorCode.BAD_SEQUENCE, "HDR-6", 8, f"{header.sequence} instead of {self._sequence}")
        if not known and header.critical:
            refuse(ErrorCode.UNKNOWN_CRITICAL, "FRM-6", 0, "")
        if header.bulk_bytes and header.type != FrameType.PAGES:
            refuse(ErrorCode.BAD_HEADER, "HDR-8", 20, "a bulk part where none belongs")
        if header.body_bytes > self._control_limit:
            clause = "HDR-7" if self._announced else "LIM-5"
            refuse(ErrorCode.LIMIT_CONTROL, clause, 16, f"{header.body_bytes} bytes of body")
        if header.bulk_bytes > self._bulk_limit:
            clause = "HDR-9" if self._announced else "LIM-5"
            refuse(ErrorCode.LIMIT_BULK, clause, 20, f"{header.bulk_bytes} bytes of bulk")
        if not known:
            self._unknown_in_a_row += 1
            if self._unknown_in_a_row > UNKNOWN_FRAMES_IN_A_ROW:
                refuse(ErrorCode.LIMIT_RATE, "FRM-8", 0, "too many unknown frames in a row")

    def _learn_stream(self, header: Header, *, known: bool) -> None:
        """The first known frame tells what the connection is; what is skipped before it must fit that."""
        number = header.stream
        if known:
            self._undecided = False
            fits = 0 < number <= STREAMS_MAX if header.type == FrameType.ATTACH else not number
            number = number if fits else _NO_STREAM
        if self._stream is None:
            self._stream = number
        elif self._stream != number:
            self._stream = _NO_STREAM

    def _check_crc(self, crc: int) -> None:
        if crc != self._header.body_crc:
            raise remote_error(ErrorCode.BODY_CHECKSUM, clause="HDR-10", offset=24, frame=self._header.type)

    def _step_body(self) -> Event | _Step:
        header = self._header
        body = self._take(header.body_bytes)
        if body is None:
            return _Step.MORE
        self._check_crc(crc32(body))
        # A page table's arrays are views of its body, which hence must not be the read buffer.
        record = decode_body(header.type, bytes(body), self._bounds)
        if not isinstance(record, Pages):
            self._state = _State.HEADER
            return FrameReceived(header, record)
        if record.bulk_bytes != header.bulk_bytes:
            detail = f"{header.bulk_bytes} bytes of bulk for a table of {record.bulk_bytes}"
            raise remote_error(ErrorCode.MALFORMED, detail, clause="PGS-14", offset=20, frame=header.type)
        self._pages, self._left = record, header.bulk_bytes
        self._state = _State.ANNOUNCED if header.bulk_bytes else _State.BULK
        return PagesAnnounced(header, record)

    def _step_skip(self) -> Event | _Step:
        come = self._input[: self._left]
        self._skip_crc = crc32(come, self._skip_crc)
        self._left -= len(come)
        self._input = self._input[len(come) :]
        if self._left:
            return _Step.MORE
        self._check_crc(self._skip_crc)
        self._state = _State.HEADER
        return UnknownFrame(self._header)

    def _step_announced(self) -> Event | _Step:
        raise _misuse("supply_bulk or discard_bulk is due")

    def _step_bulk(self) -> Event | _Step:
        while self._targets and self._input:
            come = min(len(self._targets[0]), len(self._input))
            self._targets[0][:come] = self._input[:come]
            self._input = self._input[come:]
            self._advance_bulk(come)
        discarded = min(self._left, len(self._input))
        self._left -= discarded
        self._input = self._input[discarded:]
        if self._left:
            return _Step.MORE
        assert self._pages is not None
        pages, self._pages = self._pages, None
        self._state = _State.HEADER
        return PagesReceived(self._header, pages)

    # --- inside ---------------------------------------------------------------------------------

    def _direct(self) -> memoryview | None:
        """The place of what comes next, if it is worth a read of its own."""
        if self._targets:
            place = self._targets[0]
        elif self._state is _State.BODY:
            place = self._unit[self._filled :]
        else:
            return None
        return place[:BULK_READ_BYTES] if len(place) >= len(self._read_ahead) else None

    def _require_drained(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._input or self._state is _State.ANNOUNCED:
            raise _misuse("drain the events first")

    def _fail(self, error: RemoteProtocolError) -> None:
        """Remember the error and let go of everything that was held for the peer."""
        self._error = error
        self._input = self._unit = _NOTHING
        self._pages = None
        self._targets.clear()
        self._lent = []


class _Step(Enum):
    """What a step of the reader says if it is no event."""

    MORE = auto()  # bytes
    ON = auto()  # to the next state


_STEPS: Final[Mapping[_State, Callable[[FrameReader], Event | _Step]]] = {
    _State.PREFACE: FrameReader._step_preface,
    _State.HEADER: FrameReader._step_header,
    _State.BODY: FrameReader._step_body,
    _State.SKIP: FrameReader._step_skip,
    _State.ANNOUNCED: FrameReader._step_announced,
    _State.BULK: FrameReader._step_bulk,
}


def _misuse(detail: str) -> LocalProtocolError:
    return LocalProtocolError(ErrorCode.INTERNAL, detail)
