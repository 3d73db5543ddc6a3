"""Faults: what happens to the bytes of a connection on their way between two endpoints.

They know as much of the protocol as is needed for cutting in the right place: preface, header, lengths
(chapters 3 and 4), read with `struct`. Under TLS one sees records only, and counts bytes.

A fault is asked about every piece that arrives and answers with what shall happen: bytes to pass on, a
pause, the end. Both directions share one fault, so that what happens in one can depend on the other.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol, TypeAlias

from sterna.registry import FrameType

PREFACE_BYTES: Final = 16
HEADER_BYTES: Final = 32

_HEADER: Final = struct.Struct("<HHHHQIIII")


class Way(Enum):
    """Direction of a byte."""

    TO_DESTINATION = "to destination"
    TO_SOURCE = "to source"


class End(Enum):
    """Ways in which a connection can go."""

    RESET = "reset"  # both sides see a reset
    FIN = "fin"  # both see the end of the stream, without what TLS or the protocol say before it
    SILENCE = "silence"  # nothing passes any more in either direction, and nothing is closed
    HALF = "half"  # the destination sees a reset, the source hears nothing any more


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing passes in this direction for so long."""

    seconds: float


Action: TypeAlias = bytes | Wait | End


class Fault(Protocol):
    """What happens to the bytes on their way."""

    def passing(self, way: Way, data: bytes) -> Iterator[Action]:
        """What shall happen now that `data` has come; at most one `End`, as the last thing."""
        ...


MakeFault = Callable[[int], Fault]


class Clean:
    """Nothing happens."""

    def passing(self, way: Way, data: bytes) -> Iterator[Action]:
        """All of it."""
        yield data


class Delay:
    """A slow path: every piece waits."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def passing(self, way: Way, data: bytes) -> Iterator[Action]:
        """All of it, later."""
        yield Wait(self._seconds)
        yield data


class Rechunk:
    """The same bytes in other pieces: the first ones singly, then of random sizes."""

    SINGLE: Final = 200
    SIZE_MAX: Final = 4000

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._passed = dict.fromkeys(Way, 0)

    def passing(self, way: Way, data: bytes) -> Iterator[Action]:
        """All of it, in pieces."""
        at = 0
        while at < len(data):
            size = 1 if self._passed[way] < self.SINGLE else self._random.randint(1, self.SIZE_MAX)
            yield data[at : at + size]
            self._passed[way] += len(data[at : at + size])
            at += size


class AtByte:
    """At byte `at` of one direction: an end, or (without one) that byte is changed."""

    def __init__(self, way: Way, at: int, end: End | None = None) -> None:
        self._way, self._at, self._end = way, at, end
        self._passed = 0

    def passing(self, way: Way, data: bytes) -> Iterator[Action]:
        """Up to the byte, and what is then to happen."""
        if way is not self._way:
            yield data
            return
        index = self._at - self._passed
        self._passed += len(data)
        if not 0 <= index < len(data):
            yield data
        elif self._end is None:
            yield data[:index] + bytes([data[index] ^ 0x20]) + data[index + 1 :]
        else:
            yield data[:index]
            yield self._end


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a frame, as it goes by: `data` begins at `offset` of it. The preface is type 0."""

    frame: int
    offset: int
    data: bytes
    stream: int = 0
    body_bytes: int = 0
    bulk_bytes: int = 0

    @property
    def ends(self) -> bool:
        """Whether the frame ends with this part."""
        whole = HEADER_BYTES + self.body_bytes + self.bulk_bytes if self.frame else PREFACE_BYTES
        return self.offset + len(self.data) == whole


class Frames:
    """Cuts one direction of a plain connection into parts of frames; holds back incomplete headers only."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._type = 0
        self._stream = 0
        self._offset = 0
        self._lengths = (0, 0)
        self._left = PREFACE_BYTES

    def parts(self, data: bytes) -> Iterator[Part]:
        """Everything that can be told now."""
        self._held += data
        while self._held:
            if not self._left:
                if len(self._held) < HEADER_BYTES:
                    return
                fields = _HEADER.unpack_from(self._held)
                self._type, self._stream, self._offset = fields[0], fields[2], 0
                self._lengths = fields[5], fields[6]
                self._left = HEADER_BYTES + sum(self._lengths)
            piece = bytes(self._held[: self._left])
            del self._held[: len(piece)]
            part = Part(self._type, self._offset, piece, self._stream, *self._lengths)
            self._offset += len(piece)
            self._left -= len(piece)
            yield part


@dataclass(slots=True)
class AtFrame:
    """At a frame of a plain connection: an end before or after it, or a changed byte in it.

    Attributes:
        frame: the first frame of this type that begins when `armed_by` has gone by.
        end: None to change the byte at `offset` of the frame (of its bulk part if `in_bulk`).
        after: whether the frame itself still passes before the end.
        armed_by: a frame of either direction; 0 for none.
    """

    frame: int
    end: End | None = None
    after: bool = False
    offset: int = 0
    in_bulk: bool = False
    armed_by: int = 0
    _here: bool = False
    _done: bool = False
    _frames: dict[Way, Frames] = field(default_factory=lambda: {way: Frames() for way in Way})

    def passing(self, way: Way, data: bytes) -> Iterator[Action]:
        """Everything up to the frame, and what is then to happen."""
        for part in self._frames[way].parts(data):
            if part.frame == self.frame and not self.armed_by and not part.offset:
                self._here = True
            elif part.frame == self.armed_by and part.ends:
                self.armed_by = 0
            if self._done or not self._here or part.frame != self.frame:
                yield part.data
            elif self.end is None:
                yield self._changed(part)
            elif self.after and not part.ends:
                yield part.data
            else:
                self._done = True
                if self.after:
                    yield part.data
                yield self.end
                return

    def _changed(self, part: Part) -> bytes:
        at = self.offset + (HEADER_BYTES + part.body_bytes if self.in_bulk else 0) - part.offset
        if not 0 <= at < len(part.data):
            return part.data
        self._done = True
        return part.data[:at] + bytes([part.data[at] ^ 0x20]) + part.data[at + 1 :]


class OfIndex:
    """One fault on the data connection of an index [HDR-5], another one on those of others.

    What it is comes with ATTACH; what passed before goes unharmed.

    Args:
        index: of ATTACH.
        there, elsewhere: the faults.
    """

    def __init__(self, index: int, there: Fault, elsewhere: Fault) -> None:
        self._stream = 1 + index
        self._faults = there, elsewhere
        self._fault: Fault | None = None
        self._frames = Frames()
        self._before: list[tuple[Way, bytes]] = []

    def passing(self, way: Way, data: bytes) -> Iterator[Action]:
        """As the fault of this connection has it."""
        if self._fault is None and way is Way.TO_DESTINATION:
            parts = list(self._frames.parts(data))
            attach = next((part for part in parts if part.frame == FrameType.ATTACH), None)
            if attach is not None:
                self._fault = self._faults[attach.stream != self._stream]
                for each in self._before:
                    list(self._fault.passing(*each))  # for what it counts: it has passed
        if self._fault is None:
            self._before.append((way, data))
            yield data
        else:
            yield from self._fault.passing(way, data)


# ---- what makes them, from the seed of a run ----


def clean(_seed: int) -> Fault:
    """Nothing happens to the connection."""
    return Clean()


def late(seconds: float) -> MakeFault:
    """See `Delay`."""
    return lambda _seed: Delay(seconds)


def at_byte(way: Way, at: int, end: End | None = None) -> MakeFault:
    """See `AtByte`."""
    return lambda _seed: AtByte(way, at, end)


def at_frame(
    frame: FrameType,
    end: End | None = None,
    *,
    after: bool = False,
    offset: int = 0,
    in_bulk: bool = False,
    armed_by: FrameType | None = None,
) -> MakeFault:
    """See `AtFrame`."""
    return lambda _seed: AtFrame(frame, end, after, offset, in_bulk, armed_by or 0)
