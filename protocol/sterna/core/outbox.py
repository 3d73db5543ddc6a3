"""What this side says: frames encoded and numbered, queued, taken by the driver, and gone.

A frame is encoded when it is queued, because its number is part of it; so nothing overtakes. Whoever queues
much (pages, state) therefore queues it piece by piece, when the queue is empty, and heartbeats pass between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sterna.errors import LocalProtocolError
from sterna.registry import GREASE_FIRST, GREASE_LAST, ErrorCode
from sterna.wire import GREASE_BODY_BYTES, Buffer, FrameWriter
from sterna.wire.records import Abort, Bye, Record, Refuse


@dataclass(frozen=True, slots=True)
class Grease:
    """A frame of a reserved type, to be sent after so many others [FRM-9]. The driver throws the dice.

    Raises:
        LocalProtocolError: BAD_VALUE for a type that is not reserved for this, or too long a payload.
    """

    after_frames: int
    type: int
    payload: bytes = b""

    def __post_init__(self) -> None:
        if not GREASE_FIRST <= self.type <= GREASE_LAST or len(self.payload) > GREASE_BODY_BYTES:
            raise LocalProtocolError(ErrorCode.BAD_VALUE, "no GREASE frame", clause="FRM-9", frame=self.type)


class Outbox:
    """The sending direction of a connection. The preface is queued from the start.

    Attributes:
        writer: numbers and encodes.
        connected: whether bytes can still leave.
        silent: whether the last frame has been queued: ABORT, REFUSE or BYE.
        greases: whether GREASE may be sent.
        queued_bytes: all that was ever queued.
        in_flight_bytes: what the driver has taken and not seen leave yet.
        sent_bytes: what has left.
    """

    def __init__(self, grease: Iterable[Grease] = (), *, stream: int = 0) -> None:
        self.writer = FrameWriter(stream=stream)
        self.connected = True
        self.silent = False
        self.greases = False
        self.queued_bytes = self.in_flight_bytes = self.sent_bytes = 0
        self._queue: deque[list[Buffer]] = deque()
        self._grease = deque(sorted(grease, key=lambda each: each.after_frames))
        self._put([self.writer.preface()])

    def __bool__(self) -> bool:
        """Whether something is queued."""
        return bool(self._queue)

    @property
    def takes(self) -> bool:
        """Whether a frame can be queued."""
        return self.connected and not self.silent

    @property
    def has_unsent(self) -> bool:
        """Whether something queued, or taken by the driver, has not left yet."""
        return self.connected and bool(self._queue or self.in_flight_bytes)

    @property
    def unsent_bytes(self) -> int:
        """How much that is, of what still can."""
        return self.queued_bytes - self.sent_bytes if self.connected else 0

    def send(self, record: Record, buffers: Sequence[memoryview] = ()) -> None:
        """Queue a frame; does nothing after the last one, or without a connection [ABT-1] [PNG-3].

        Raises:
            LocalProtocolError: the record breaks a rule, or is more than the peer takes; nothing is queued.
        """
        if not self.takes:
            return
        self._put(self.writer.frame(record, buffers))
        self.silent = isinstance(record, (Abort, Refuse, Bye))
        if self.silent or not self.greases:
            return
        while self._grease and self._grease[0].after_frames <= self.writer.next_sequence:
            grease = self._grease.popleft()
            self._put([self.writer.grease(grease.type, grease.payload)])

    def take(self) -> list[Buffer]:
        """The next unit to be sent, empty if there is none."""
        if not self._queue:
            return []
        buffers = self._queue.popleft()
        self.in_flight_bytes += sum(len(buffer) for buffer in buffers)
        return buffers

    def left(self, count: int) -> None:
        """So many of the bytes that were taken have left this process.

        Raises:
            LocalProtocolError: not so many were taken.
        """
        if not self.connected:
            return
        if not 0 <= count <= self.in_flight_bytes:
            detail = f"{count} bytes of {self.in_flight_bytes} have left"
            raise LocalProtocolError(ErrorCode.INTERNAL, detail)
        self.in_flight_bytes -= count
        self.sent_bytes += count

    def disconnect(self) -> None:
        """The connection has ended: what has not left never will."""
        self.connected = False
        self._queue.clear()
        self.in_flight_bytes = 0

    def _put(self, buffers: list[Buffer]) -> None:
        self._queue.append(buffers)
        self.queued_bytes += sum(len(buffer) for buffer in buffers)
