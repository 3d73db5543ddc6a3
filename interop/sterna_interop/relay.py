"""The relay between two endpoints: it passes bytes on, and does what a *fault* says.

It knows as much of the protocol as it needs for cutting in the right place: preface, header, lengths
(chapters 3 and 4), read with `struct`. Under TLS it sees records only, and a fault counts bytes.

A fault is asked about every piece that arrives and answers with what shall happen: bytes to pass on, a
pause, the end. Both directions share one fault, so that what happens in one can depend on the other.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol, TypeAlias

import trio

PREFACE_BYTES: Final = 16
HEADER_BYTES: Final = 32
PIECE_BYTES: Final = 64 * 1024

_HEADER: Final = struct.Struct("<HHHHQIIII")
_RESET: Final = struct.pack("ii", 1, 0)


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
                self._type, self._lengths, self._offset = fields[0], (fields[5], fields[6]), 0
                self._left = HEADER_BYTES + sum(self._lengths)
            piece = bytes(self._held[: self._left])
            del self._held[: len(piece)]
            part = Part(self._type, self._offset, piece, *self._lengths)
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


@dataclass(slots=True)
class Passed:
    """What went through a relay."""

    bytes: dict[Way, int] = field(default_factory=lambda: dict.fromkeys(Way, 0))
    ended: End | None = None


OnBytes = Callable[[Way, bytes], None]


async def relay(
    source: socket.socket,
    destination: socket.socket,
    fault: Fault,
    *,
    on_bytes: OnBytes | None = None,
) -> Passed:
    """Pass bytes between two connected, non-blocking sockets until both have ended; closes them.

    An end that nobody ordered is passed on as it came: FIN as FIN, a reset as a reset.
    """
    return await _Relay(source, destination, fault, on_bytes or (lambda _way, _data: None)).run()


class _Relay:
    def __init__(
        self, source: socket.socket, destination: socket.socket, fault: Fault, on_bytes: OnBytes
    ) -> None:
        self._ends = {
            Way.TO_DESTINATION: (source, destination),
            Way.TO_SOURCE: (destination, source),
        }
        self._sockets = (source, destination)
        self._fault = fault
        self._on_bytes = on_bytes
        self._passed = Passed()

    async def run(self) -> Passed:
        try:
            async with trio.open_nursery() as nursery:
                for way in Way:
                    nursery.start_soon(self._pump, way, nursery.cancel_scope)
        finally:
            for sock in self._sockets:
                if sock.fileno() != -1:
                    trio.lowlevel.notify_closing(sock)
                    sock.close()
        return self._passed

    async def _pump(self, way: Way, scope: trio.CancelScope) -> None:
        inward, outward = self._ends[way]
        while True:
            try:
                data = await _receive(inward)
            except OSError:
                data = None
            if not data or self._passed.ended is not None:
                if self._passed.ended is None:
                    self._pass_end_on(outward, reset=data is None)
                if not data:
                    return
                continue  # after an ordered end: what still comes is read and dropped
            for action in self._fault.passing(way, data):
                match action:
                    case Wait(seconds=seconds):
                        await trio.sleep(seconds)
                    case End():
                        self._order(action, scope)
                    case bytes() if not await self._pass_on(way, outward, action):
                        self._pass_end_on(inward, reset=True)
                        return
                    case _:
                        pass

    def _pass_end_on(self, sock: socket.socket, *, reset: bool) -> None:
        if reset:
            _reset(sock)
            return
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    async def _pass_on(self, way: Way, outward: socket.socket, data: bytes) -> bool:
        """Whether the peer took them, or need not any more."""
        if self._passed.ended is not None:
            return True
        self._on_bytes(way, data)  # first: once they have left, the answer to them may be told before
        try:
            await _send(outward, data)
        except OSError:
            return False
        self._passed.bytes[way] += len(data)
        return True

    def _order(self, end: End, scope: trio.CancelScope) -> None:
        self._passed.ended = end
        source, destination = self._sockets
        match end:
            case End.RESET:
                _reset(source)
                _reset(destination)
                scope.cancel()
            case End.FIN:
                for sock in self._sockets:
                    self._pass_end_on(sock, reset=False)
            case End.HALF:
                _reset(destination)
            case End.SILENCE:
                pass


def _reset(sock: socket.socket) -> None:
    if sock.fileno() == -1:
        return
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    trio.lowlevel.notify_closing(sock)
    sock.close()


async def _receive(sock: socket.socket) -> bytes:
    while True:
        try:
            return sock.recv(PIECE_BYTES)
        except BlockingIOError:
            try:
                await trio.lowlevel.wait_readable(sock)
            except trio.ClosedResourceError as error:
                raise OSError("closed") from error


async def _send(sock: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            try:
                await trio.lowlevel.wait_writable(sock)
            except trio.ClosedResourceError as error:
                raise OSError("closed") from error
    await trio.lowlevel.checkpoint()
