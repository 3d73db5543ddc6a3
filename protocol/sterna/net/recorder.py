"""Records what passes on connections, beside the migration and never in its way (spec/recording.md).

`record` opens a recording; `Recorder.wrap` puts a transport around another one and writes down what it moves.
What is sent is copied first: memory of a running guest changes while it is sent, and a recording of other
bytes than those that left would show damage where there was none [REC-15].

Writing happens in a thread, as a disk may take seconds. What waits for it is bounded by `SPOOL_BYTES`; beyond
that the connection waits too, for `PATIENCE_S` at most, and then the recording gives up, as it does at the
first error of the file. The migration goes on in any case [REC-14].
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

import trio

from sterna.errors import ConfigError, TransportError
from sterna.net.transport import OnSent, Transport
from sterna.observe.recording import (
    OTHER,
    How,
    RecordClock,
    RecordingWriter,
    Side,
    create,
)
from sterna.registry import Sender

# What waits for the disk: half a second of a fast link.
SPOOL_BYTES: Final = 64 << 20
# How long a connection waits for the disk. Peers endure more, see the deadlines of sterna.core.deadlines.
PATIENCE_S: Final = 1.0
# How long the last bytes may take when all is over.
FLUSH_S: Final = 10.0

Clock: TypeAlias = Callable[[], int]
OnFailure: TypeAlias = Callable[[str], None]


class _Spool:
    """What the recording's writer has written and the file has not taken yet."""

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        self.parts.append(data)
        self.bytes += len(data)
        return len(data)

    def take(self) -> list[bytes | memoryview]:
        parts, self.parts, self.bytes = self.parts, [], 0
        return parts


class Recorder:
    """A recording under way. Made by `record`.

    Attributes:
        failure: why it ended early; empty if it has not.
    """

    def __init__(
        self, file: BinaryIO, side: Side, on_failure: OnFailure, now_ns: Clock, clock: RecordClock
    ) -> None:
        self.failure = ""
        self._file: Final = file
        self._own: Final = Sender.SOURCE if side is Side.SOURCE else Sender.DESTINATION
        self._on_failure = on_failure
        self._now_ns: Final = now_ns
        self._started_ns: Final = now_ns()
        self._spool: Final = _Spool()
        self._writer: Final = RecordingWriter(self._spool, side, clock=clock, started_ns=time.time_ns())
        self._changed: Final = trio.lowlevel.ParkingLot()
        self._in_hand_bytes = 0  # what the thread is writing
        self._closing = False
        self._left_alone: Final = threading.Event()
        self._ended = trio.Event()
        self._scope: Final = trio.CancelScope(shield=True)

    def wrap(self, transport: Transport) -> Transport:
        """A transport that records what passes; the same one, if it cannot be recorded."""
        if self.failure:
            return transport
        return _RecordedTransport(transport, _Line(self, self._own))

    def begin(self) -> int | None:
        """The number of a connection, at its first record: they are numbered in that order [REC-7].

        None if it cannot be recorded.
        """
        try:
            return self._writer.connect()
        except ConfigError as error:
            self._on_failure(f"a connection is not recorded: {error}")
            return None

    @property
    def time_ns(self) -> int:
        """The time by the recording's clock."""
        return self._now_ns() - self._started_ns

    def passed(self, connection: int, sender: Sender, data: memoryview | bytes) -> None:
        """Bytes passed, which do not change any more."""
        if not self.failure:
            self._writer.passed(connection, sender, data, self.time_ns)
            self._changed.unpark_all()

    def ended(self, connection: int, sender: Sender, how: How, text: str) -> None:
        """A direction ended."""
        if not self.failure:
            self._writer.ended(connection, sender, how, self.time_ns, text)
            self._changed.unpark_all()

    async def room(self) -> None:
        """Wait until the file has taken enough; give the recording up if that takes too long."""
        if self._waiting_bytes <= SPOOL_BYTES or self.failure:
            return
        with trio.move_on_after(PATIENCE_S) as patience:
            while self._waiting_bytes > SPOOL_BYTES and not self.failure:
                await self._changed.park()
        if patience.cancelled_caught:
            text = "the file is slower than the connection"
            self._writer.close(self.time_ns, gave_up=True, text=text)
            self._give_up(text)

    async def run(self) -> None:
        """Write the file, until `close` has been called and all is written, or the recording has failed."""
        with self._scope:
            while (await self._wait_for_work()) and await self._write():
                pass
        self._ended.set()

    async def close(self) -> None:
        """Let what is left be written."""
        if not self.failure:
            self._writer.close(self.time_ns)
        self._closing = True
        self._changed.unpark_all()
        with trio.move_on_after(FLUSH_S, shield=True) as patience:
            await self._ended.wait()
        if patience.cancelled_caught:
            self._give_up("the file did not take the last bytes")
            self._left_alone.set()
            self._scope.cancel()
        else:
            self._file.close()

    @property
    def _waiting_bytes(self) -> int:
        return self._spool.bytes + self._in_hand_bytes

    async def _wait_for_work(self) -> bool:
        while not self._spool.parts:
            if self._closing:
                return False
            await self._changed.park()
        return True

    async def _write(self) -> bool:
        """Write what waits. Whether that worked."""
        self._in_hand_bytes = self._spool.bytes
        parts = self._spool.take()
        try:
            await trio.to_thread.run_sync(
                _write_all, self._file, parts, self._left_alone, abandon_on_cancel=True
            )
        except OSError as error:
            self._spool.take()
            self._give_up(error.strerror or str(error))
            return False
        finally:
            self._in_hand_bytes = 0
            self._changed.unpark_all()
        return True

    def _give_up(self, why: str) -> None:
        if not self.failure:
            self.failure = why
            self._on_failure(f"the recording ends here, and the migration does not: {why}")


def _write_all(file: BinaryIO, parts: list[bytes | memoryview], left_alone: threading.Event) -> None:
    """Write all of it.

    A thread that hangs here is left alone, and the file is its own: closed by others, its number would be
    given to another file or connection, which then got the rest.
    """
    try:
        for part in parts:
            rest = memoryview(part)
            while rest.nbytes:
                rest = rest[os.write(file.fileno(), rest) :]
    finally:
        if left_alone.is_set():
            file.close()


@asynccontextmanager
async def record(
    path: Path,
    side: Side,
    on_failure: OnFailure,
    *,
    now_ns: Clock = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    clock: RecordClock = RecordClock.SINCE_START,
) -> AsyncIterator[Recorder]:
    """A recording, for as long as the context lasts.

    Args:
        path: where to; an earlier file there is replaced.
        side: SOURCE or DESTINATION: which endpoint this is.
        on_failure: told, for people, when the recording cannot go on.
        now_ns: a clock that never runs backwards, in nanoseconds.
        clock: what kind of clock that is.

    Raises:
        ConfigError: the file cannot be made.
    """
    recorder = Recorder(create(path), side, on_failure, now_ns, clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        try:
            yield recorder
        finally:
            await recorder.close()


class _Line:
    """One connection in a recording: what its own side sends, and what it receives."""

    def __init__(self, recorder: Recorder, own: Sender) -> None:
        self._recorder = recorder
        self._number: int | None = None
        self._begun = False
        self._own = own
        self._ended: set[Sender] = set()

    def sent(self, data: memoryview) -> None:
        self._passed(self._own, data)

    def received(self, data: memoryview) -> None:
        self._passed(OTHER[self._own], bytes(data))

    def peer_ended(self, how: How, text: str = "") -> None:
        self._end(OTHER[self._own], how, text)

    def closed(self, how: How) -> None:
        """This side has closed the connection."""
        self._end(self._own, how, "")
        self._end(OTHER[self._own], How.CLOSED_HERE, "")

    async def room(self) -> None:
        await self._recorder.room()

    def _passed(self, sender: Sender, data: memoryview | bytes) -> None:
        number = self._number if self._begun else self._begin()
        if number is not None and sender not in self._ended:
            self._recorder.passed(number, sender, data)

    def _end(self, sender: Sender, how: How, text: str) -> None:
        number = self._number if self._begun else self._begin()
        if number is not None and sender not in self._ended:
            self._ended.add(sender)
            self._recorder.ended(number, sender, how, text)

    def _begin(self) -> int | None:
        self._begun = True
        self._number = None if self._recorder.failure else self._recorder.begin()
        return self._number


class _RecordedTransport(Transport):
    """Another transport, of which everything that passes is written down."""

    def __init__(self, inner: Transport, line: _Line) -> None:
        super().__init__(inner.peer, inner.tls)
        self._inner = inner
        self._line = line

    @property
    def wears(self) -> bool:
        """That of the transport inside."""
        return self._inner.wears

    @property
    def worn(self) -> TransportError | None:
        """That of the transport inside."""
        return self._inner.worn

    @property
    def rtt_s(self) -> float | None:
        """That of the transport inside."""
        return self._inner.rtt_s

    def _before_send(self, size: int) -> None:
        self._inner._before_send(size)

    async def _send(self, views: list[memoryview], sent: OnSent) -> None:
        await self._line.room()  # before anything has left: a send that is cancelled later is torn
        copies = [memoryview(bytes(view)) for view in views]
        left = deque(copies)

        def passed(count: int) -> None:
            rest = count
            while rest:
                piece, left[0] = left[0][:rest], left[0][rest:]
                self._line.sent(piece)
                rest -= len(piece)
                if not left[0]:
                    left.popleft()
            sent(count)

        await self._inner.send(copies, passed)

    async def _receive_into(self, view: memoryview) -> int:
        await self._line.room()  # not afterwards: no byte may be lost when this is cancelled
        try:
            count = await self._inner.receive_into(view)
        except TransportError as error:
            self._line.peer_ended(How.LOST, str(error))
            raise
        if count:
            self._line.received(view[:count])
        else:
            self._line.peer_ended(How.PROPERLY)
        return count

    async def _finish(self) -> None:
        await self._inner.close()

    def _dispose(self, *, abrupt: bool) -> None:
        if not self._inner.closed or abrupt:
            self._inner.abort()
        self._line.closed(How.LOST if abrupt else How.PROPERLY)
