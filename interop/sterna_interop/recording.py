"""Recordings of what passed in a case, for `sterna inspect` and `sterna verify` (spec/recording.md).

The hooks are those of the relay and of a case's peer: whoever sees bytes hands them over. A relay records
what it passes on, with what its fault did to them. Bytes under TLS are not worth recording.
"""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sterna.observe.recording import OTHER, How, RecordingWriter, Side, create
from sterna.registry import Sender
from sterna_interop.faults import Way

_SENDERS: Final = {Way.TO_DESTINATION: Sender.SOURCE, Way.TO_SOURCE: Sender.DESTINATION}


class CaseRecording:
    """A file with the connections of a case. Use it as a context manager around their lives.

    Args:
        path: where to; an earlier file there is replaced.
        side: where the bytes are seen.

    Attributes:
        first: the first connection.

    Raises:
        ConfigError: there is something else with that name.
    """

    def __init__(self, path: Path, side: Side = Side.BETWEEN) -> None:
        self._own: Final = Sender.DESTINATION if side is Side.DESTINATION else Sender.SOURCE
        self._file: Final = create(path)
        self._started_ns: Final = _now_ns()
        self._writer: Final = RecordingWriter(self._file, side, started_ns=time.time_ns())
        self._all: Final[list[Recorded]] = []
        self.first: Final = self.another()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._all:
            each.end()
        self._writer.close(_now_ns() - self._started_ns)
        self._file.close()

    def another(self) -> Recorded:
        """One connection more."""
        self._all.append(Recorded(self._writer, self._own, self._started_ns))
        return self._all[-1]


class Recorded:
    """One connection in a recording."""

    def __init__(self, writer: RecordingWriter, own: Sender, started_ns: int) -> None:
        self._writer: Final = writer
        self._own: Final = own
        self._started_ns: Final = started_ns

    def on_relay(self, way: Way, data: bytes) -> None:
        """For `relay(on_bytes=...)`."""
        self._writer.passed(self._connection, _SENDERS[way], data, self._time_ns)

    def on_peer(self, ours: bool, data: bytes) -> None:
        """For a peer of the kit's own, at the side that was given: whether it has sent or received `data`."""
        self._writer.passed(self._connection, self._own if ours else OTHER[self._own], data, self._time_ns)

    def end(self) -> None:
        """Nothing more comes."""
        for sender in OTHER:
            self._writer.ended(self._connection, sender, How.CLOSED_HERE, self._time_ns)

    @cached_property
    def _connection(self) -> int:
        """Its number: they are numbered in the order of their first records [REC-7]."""
        return self._writer.connect()

    @property
    def _time_ns(self) -> int:
        return _now_ns() - self._started_ns


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
