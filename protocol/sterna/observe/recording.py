"""Recordings: what passed on connections, in a file (spec/recording.md).

`RecordingWriter` and `RecordingReader` turn records into bytes and back, on any file or pipe. They know
nothing of the protocol whose bytes they carry, and have no clock: times are arguments. `create` makes the
file that only its owner can read, for it holds a guest's memory [SEC-14].

A file that somebody hands over is hostile like a peer. The reader checks each record's header before it
believes it, holds one record at a time, and remembers the connections that are open, of which there are at
most `CONNECTIONS_MAX`.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, Protocol, TypeAlias

from sterna.errors import ConfigError
from sterna.limits import TEXT_BYTES
from sterna.registry import MAGIC as PREFACE_MAGIC
from sterna.registry import Sender
from sterna.wire import Buffer, crc32

MAGIC: Final = b"\x89STERNR\r\n\x1a\n\0"
VERSION: Final = 1

# What one record carries: as much as a large read moves. A reader has to hold it.
DATA_MAX_BYTES: Final = 1024 * 1024
# Connections that are open at once: what a reader has to remember.
CONNECTIONS_MAX: Final = 256

_FILE: Final = struct.Struct("<12sHBBQI")
_RECORD: Final = struct.Struct("<IBBBBQI")
_CRC: Final = struct.Struct("<I")
HEADER_BYTES: Final = _FILE.size + _CRC.size
RECORD_HEADER_BYTES: Final = _RECORD.size + _CRC.size


class Side(IntEnum):
    """Where a recording was made."""

    SOURCE = 1
    DESTINATION = 2
    BETWEEN = 3


class RecordClock(IntEnum):
    """What its times are."""

    SINCE_START = 1
    VIRTUAL = 2
    NONE = 3


class How(IntEnum):
    """How a direction of a connection ended."""

    PROPERLY = 1
    LOST = 2
    CLOSED_HERE = 3


class _Kind(IntEnum):
    BYTES = 1
    END = 2
    CLOSE = 3


# Whom a side talks to.
OTHER: Final = {Sender.SOURCE: Sender.DESTINATION, Sender.DESTINATION: Sender.SOURCE}

_DIRECTIONS: Final = {Sender.SOURCE: 1, Sender.DESTINATION: 2}
_SENDERS: Final = {number: sender for sender, number in _DIRECTIONS.items()}
_ASKED, _GAVE_UP = 1, 2  # `how` of close


@dataclass(frozen=True, slots=True)
class Passed:
    """Bytes that passed. `sender` is the side that sent them."""

    connection: int
    sender: Sender
    time_ns: int
    data: bytes


@dataclass(frozen=True, slots=True)
class DirectionEnded:
    """Nothing more comes from `sender`; `text` says why, for people. A file's text is hostile."""

    connection: int
    sender: Sender
    time_ns: int
    how: How
    text: str = ""


@dataclass(frozen=True, slots=True)
class RecordingClosed:
    """The recording ends in order, or because the recorder gave up, for the reason in `text`."""

    time_ns: int
    gave_up: bool = False
    text: str = ""


RecordingItem: TypeAlias = Passed | DirectionEnded | RecordingClosed


class Sink(Protocol):
    """What a writer needs of a file."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Take bytes; how many were taken."""
        ...


class RecordingError(ConfigError):
    """A file is no recording, or a damaged one.

    Attributes:
        offset: where in the file, in bytes.
        clause: of spec/recording.md.
    """

    def __init__(self, detail: str, clause: str, offset: int) -> None:
        super().__init__(f"{detail} (byte {offset} of the recording, {clause})")
        self.clause = clause
        self.offset = offset


def create(path: Path) -> BinaryIO:
    """A new file that only its owner can read, in the place of any earlier one [REC-13].

    Raises:
        ConfigError: it cannot be made, or what is there is no plain file.
    """
    try:
        if path.exists() and not stat.S_ISREG(path.lstat().st_mode):
            raise ConfigError(f"{path} is there and no plain file: give a recording another name")
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return os.fdopen(descriptor, "wb", buffering=0)


class _Connections:
    """Which connections are open, by which both reader and writer keep to [REC-7] [REC-8]."""

    def __init__(self) -> None:
        self.open: dict[int, set[Sender]] = {}  # the directions that have not ended
        self.last = 0

    @property
    def full(self) -> bool:
        return len(self.open) >= CONNECTIONS_MAX

    def begin(self) -> int:
        self.last += 1
        self.open[self.last] = set(_DIRECTIONS)
        return self.last

    def end(self, connection: int, sender: Sender) -> None:
        directions = self.open[connection]
        directions.remove(sender)
        if not directions:
            del self.open[connection]


class RecordingWriter:
    """Writes a recording. An OSError of the file passes through; the recording is over then.

    Args:
        file: where to; nothing is read or sought.
        side: where the recording is made.
        clock: what the times are.
        started_ns: wall time of the beginning, in nanoseconds since 1970; 0 if it is not known.
    """

    def __init__(
        self,
        file: Sink,
        side: Side,
        *,
        clock: RecordClock = RecordClock.SINCE_START,
        started_ns: int = 0,
    ) -> None:
        self._file = file
        self._clock = clock
        self._connections = _Connections()
        self._last_ns = 0
        self._write(_sealed(_FILE.pack(MAGIC, VERSION, side, clock, started_ns, 0)))

    def connect(self) -> int:
        """The number of a new connection.

        Raises:
            ConfigError: too many are open.
        """
        if self._connections.full:
            raise ConfigError(f"more than {CONNECTIONS_MAX} connections at once cannot be recorded")
        return self._connections.begin()

    def passed(self, connection: int, sender: Sender, data: Buffer, time_ns: int = 0) -> None:
        """Bytes passed from this side to the other; `time_ns` as the clock has it.

        Raises:
            KeyError: there is no such connection, or its direction has ended.
        """
        self._check_open(connection, sender)
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        for at in range(0, len(view), DATA_MAX_BYTES):
            part = view[at : at + DATA_MAX_BYTES]
            self._record(_Kind.BYTES, part, time_ns, connection=connection, sender=sender)

    def ended(self, connection: int, sender: Sender, how: How, time_ns: int = 0, text: str = "") -> None:
        """Nothing more comes from this side.

        Raises:
            KeyError: there is no such connection, or its direction has ended.
        """
        self._check_open(connection, sender)
        self._record(_Kind.END, _sentence(text), time_ns, connection=connection, sender=sender, how=how)
        self._connections.end(connection, sender)

    def close(self, time_ns: int = 0, *, gave_up: bool = False, text: str = "") -> None:
        """The recording ends. The file itself stays open."""
        self._record(_Kind.CLOSE, _sentence(text), time_ns, how=_GAVE_UP if gave_up else _ASKED)

    def _check_open(self, connection: int, sender: Sender) -> None:
        if sender not in self._connections.open[connection]:
            raise KeyError(f"the {sender.name.lower()} has ended connection {connection}")

    def _record(
        self,
        kind: _Kind,
        data: bytes | memoryview,
        time_ns: int,
        *,
        connection: int = 0,
        sender: Sender | None = None,
        how: int = 0,
    ) -> None:
        if self._clock is not RecordClock.NONE:
            self._last_ns = max(self._last_ns, time_ns)
        direction = 0 if sender is None else _DIRECTIONS[sender]
        head = _RECORD.pack(len(data), kind, direction, how, 0, self._last_ns, connection)
        self._write(_sealed(head), data)

    def _write(self, *parts: bytes | memoryview) -> None:
        for part in parts:
            rest = memoryview(part)
            while rest.nbytes:  # a file without a buffer may take a part only
                rest = rest[self._file.write(rest) :]


class RecordingReader:
    """Reads a recording from a file or a pipe, in one pass.

    Attributes:
        side: where it was made.
        clock: what its times are.
        started_ns: wall time of its beginning, 0 if that is not known.
        offset: bytes that were read and found good.
        cut_off: after the last record: whether the file ends without *close* [REC-10].
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the file header.

        Raises:
            RecordingError: the file is no recording, or its header is damaged.
        """
        self._file = file
        self._connections = _Connections()
        self._last_ns = 0
        self.offset = 0
        self.cut_off = False
        self.side, self.clock, self.started_ns = self._read_header()

    @property
    def open_connections(self) -> tuple[int, ...]:
        """Connections of which a direction has not ended."""
        return tuple(self._connections.open)

    def __iter__(self) -> Iterator[RecordingItem]:
        """The records that are left.

        Raises:
            RecordingError: the file is damaged; what came before is good [REC-11].
        """
        while True:
            head = self._take(RECORD_HEADER_BYTES)
            item = None if len(head) < RECORD_HEADER_BYTES else self._item(head)
            if item is None:
                self.cut_off = True
                return
            yield item
            if isinstance(item, RecordingClosed):
                if self._take(1):
                    self._refuse("it goes on behind its end", "REC-9")
                return

    def _read_header(self) -> tuple[Side, RecordClock, int]:
        raw = self._take(HEADER_BYTES)
        if not raw.startswith(MAGIC[: len(raw)]) or not raw:
            self._refuse(_what_else(raw), "REC-1")
        if len(raw) < HEADER_BYTES:
            self._refuse("the file ends inside its header", "REC-1")
        _, version, side, clock, started_ns, reserved = _FILE.unpack_from(raw)
        if version != VERSION:
            self._refuse(f"a recording of version {version}, this release reads {VERSION}", "REC-1")
        self._check_crc(raw, "REC-2")
        if reserved or side not in set(Side) or clock not in set(RecordClock):
            self._refuse(f"side {side}, clock {clock}, reserved {reserved}", "REC-2")
        self.offset = HEADER_BYTES
        return Side(side), RecordClock(clock), started_ns

    def _item(self, head: bytes) -> RecordingItem | None:
        """A record; None if the file ends inside of it."""
        data_bytes, kind, direction, how, reserved, time_ns, connection = _RECORD.unpack_from(head)
        if data_bytes > DATA_MAX_BYTES:
            self._refuse(f"a record of {data_bytes} bytes", "REC-3")
        self._check_crc(head, "REC-3")
        if reserved or not _belong(kind, direction, how, data_bytes):
            numbers = (
                f"kind {kind}, direction {direction}, how {how}, {data_bytes} bytes, reserved {reserved}"
            )
            self._refuse(f"a record that makes no sense: {numbers}", "REC-4")
        if time_ns < self._last_ns or (time_ns and self.clock is RecordClock.NONE):
            self._refuse(f"time {time_ns} after {self._last_ns}", "REC-5")
        data = self._take(data_bytes)
        if len(data) < data_bytes:
            return None
        item: RecordingItem
        if kind == _Kind.CLOSE:
            if connection:
                self._refuse(f"a close of connection {connection}", "REC-4")
            item = RecordingClosed(time_ns, how == _GAVE_UP, self._text(data))
        else:
            sender = _SENDERS[direction]
            self._check_connection(connection, sender)
            if kind == _Kind.BYTES:
                item = Passed(connection, sender, time_ns, data)
            else:
                item = DirectionEnded(connection, sender, time_ns, How(how), self._text(data))
                self._connections.end(connection, sender)
        self._last_ns = time_ns
        self.offset += len(head) + data_bytes
        return item

    def _check_connection(self, connection: int, sender: Sender) -> None:
        known = self._connections
        if connection == known.last + 1:
            if known.full:
                self._refuse(f"more than {CONNECTIONS_MAX} connections at once", "REC-8")
            known.begin()
        if sender not in known.open.get(connection, ()):
            self._refuse(f"a record of connection {connection}, which is over or has not begun", "REC-7")

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            self._refuse("a sentence that is not UTF-8", "REC-4")

    def _check_crc(self, raw: bytes, clause: str) -> None:
        (stated,) = _CRC.unpack_from(raw, len(raw) - _CRC.size)
        if crc32(memoryview(raw)[: -_CRC.size]) != stated:
            self._refuse("the checksum is wrong", clause)

    def _refuse(self, detail: str, clause: str) -> NoReturn:
        raise RecordingError(detail, clause, self.offset)

    def _take(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end: a pipe gives what it has."""
        parts: list[bytes] = []
        while size and (part := self._file.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _belong(kind: int, direction: int, how: int, data_bytes: int) -> bool:
    """Whether the small fields of a record fit each other [REC-4]."""
    match kind:
        case _Kind.BYTES:
            return direction in _SENDERS and not how and data_bytes > 0
        case _Kind.END:
            return direction in _SENDERS and how in set(How) and data_bytes <= TEXT_BYTES
        case _Kind.CLOSE:
            return not direction and how in {_ASKED, _GAVE_UP} and data_bytes <= TEXT_BYTES
        case _:
            return False


def _what_else(raw: bytes) -> str:
    """What a file is that is no recording, as far as its beginning shows."""
    if not raw:
        return "the file is empty"
    if raw.startswith(PREFACE_MAGIC):
        return "bytes of one direction, no recording: say who sent them, --raw source or --raw destination"
    return "this is no recording of Sterna"


def _sealed(head: bytes) -> bytes:
    return head + _CRC.pack(crc32(head))


def _sentence(text: str) -> bytes:
    return text.encode(errors="replace")[:TEXT_BYTES].decode(errors="ignore").encode()
