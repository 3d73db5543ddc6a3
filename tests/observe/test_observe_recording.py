"""Recordings: what is written is read back, and a damaged file ends in one error that names its place."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import stat
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sterna.errors import ConfigError
from sterna.observe.recording import (
    CONNECTIONS_MAX,
    DATA_MAX_BYTES,
    HEADER_BYTES,
    MAGIC,
    RECORD_HEADER_BYTES,
    DirectionEnded,
    How,
    Passed,
    RecordClock,
    RecordingClosed,
    RecordingError,
    RecordingReader,
    RecordingWriter,
    Side,
    create,
)
from sterna.registry import Sender

S, D = Sender.SOURCE, Sender.DESTINATION


class Trickle(io.BytesIO):
    """A pipe: a read gives what there is, a write takes some."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 3))

    def write(self, data, /) -> int:
        return super().write(bytes(data)[:5])


def header(version: int = 1, side: int = 1, clock: int = 1, started_ns: int = 0, reserved: int = 0) -> bytes:
    """A file header as the text says, whatever its values [REC-2]."""
    head = struct.pack("<12sHBBQI", MAGIC, version, side, clock, started_ns, reserved)
    return head + struct.pack("<I", zlib.crc32(head))


def record(
    data: bytes = b"x",
    *,
    kind: int = 1,
    direction: int = 1,
    how: int = 0,
    reserved: int = 0,
    time_ns: int = 0,
    connection: int = 1,
    data_bytes: int | None = None,
) -> bytes:
    """A record, whatever its values."""
    size = len(data) if data_bytes is None else data_bytes
    head = struct.pack("<IBBBBQI", size, kind, direction, how, reserved, time_ns, connection)
    return head + struct.pack("<I", zlib.crc32(head)) + data


def end(direction: int, connection: int = 1, **fields: int) -> bytes:
    return record(b"", kind=2, direction=direction, how=1, connection=connection, **fields)


CLOSE = record(b"", kind=3, direction=0, how=1, connection=0)


def read(data: bytes) -> tuple[list[object], RecordingReader]:
    reader = RecordingReader(io.BytesIO(data))
    return list(reader), reader


def test_what_is_written_is_read() -> None:
    file = Trickle()
    writer = RecordingWriter(file, Side.BETWEEN, started_ns=7)
    first = writer.connect()
    second = writer.connect()
    writer.passed(first, S, b"hello", 10)
    writer.passed(second, D, memoryview(b"there"), 10)
    writer.ended(first, S, How.PROPERLY, 12, "done")
    writer.ended(first, D, How.LOST, 11)  # a clock that ran backwards does not show
    writer.passed(second, S, bytearray(b"last"), 15)
    writer.close(16)
    reader = RecordingReader(Trickle(file.getvalue()))
    assert (reader.side, reader.clock, reader.started_ns) == (Side.BETWEEN, RecordClock.SINCE_START, 7)
    assert list(reader) == [
        Passed(1, S, 10, b"hello"),
        Passed(2, D, 10, b"there"),
        DirectionEnded(1, S, 12, How.PROPERLY, "done"),
        DirectionEnded(1, D, 12, How.LOST),
        Passed(2, S, 15, b"last"),
        RecordingClosed(16),
    ]
    assert not reader.cut_off
    assert reader.open_connections == (2,)
    assert reader.offset == len(file.getvalue())


class Stream(io.RawIOBase):
    """Many records out of a pipe: no seeking, no size, and they are made as they are read."""

    def __init__(self, count: int, data: bytes) -> None:
        self._parts = itertools.chain(
            [header()], (record(data) for _ in range(count)), [end(1), end(2), CLOSE]
        )
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        self._rest = self._rest or next(self._parts, b"")
        got, self._rest = self._rest[:size], self._rest[size:]
        return got


def test_a_long_recording_is_read_with_the_memory_of_one_record() -> None:
    """[REC-12]"""
    data = bytes(1 << 16)
    reader = RecordingReader(Stream(200, data))
    tracemalloc.start()
    try:
        count = sum(isinstance(item, Passed) and item.data == data for item in reader)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 200
    assert peak < 8 * len(data)  # the record, its pieces on the way, and the test's own


def test_layout_is_that_of_the_text() -> None:
    """spec/recording.md, chapters 1 and 2: byte by byte, without the writer's own structs."""
    file = io.BytesIO()
    writer = RecordingWriter(file, Side.SOURCE, started_ns=3)
    writer.passed(writer.connect(), D, b"abc", 9)
    writer.ended(1, S, How.LOST, 9, "cut")
    writer.close(9, gave_up=True, text="disk full")
    assert file.getvalue() == (
        header(started_ns=3)
        + record(b"abc", direction=2, time_ns=9)
        + record(b"cut", kind=2, direction=1, how=2, time_ns=9)
        + record(b"disk full", kind=3, direction=0, how=2, time_ns=9, connection=0)
    )
    assert bytes.fromhex("89 53 54 45 52 4E 52 0D 0A 1A 0A 00") == MAGIC
    assert (len(header()), len(record(b""))) == (HEADER_BYTES, RECORD_HEADER_BYTES) == (32, 24)


def test_long_data_takes_several_records() -> None:
    """[REC-3]"""
    file = io.BytesIO()
    writer = RecordingWriter(file, Side.SOURCE, clock=RecordClock.NONE)
    data = os.urandom(DATA_MAX_BYTES + 1)
    writer.passed(writer.connect(), S, data, 5)
    writer.passed(1, S, b"")  # nothing passed: nothing is written
    items, _ = read(file.getvalue())
    assert items == [Passed(1, S, 0, data[:-1]), Passed(1, S, 0, data[-1:])]


def test_sentences_are_cut_between_characters() -> None:
    """[REC-4]"""
    file = io.BytesIO()
    writer = RecordingWriter(file, Side.SOURCE)
    writer.connect()
    writer.ended(1, S, How.LOST, 0, "ä" * 200 + "\udcff")
    (item,), _ = read(file.getvalue())
    assert isinstance(item, DirectionEnded)
    assert item.text == "ä" * 127


def test_a_writer_knows_its_connections() -> None:
    """[REC-7] [REC-8]"""
    writer = RecordingWriter(io.BytesIO(), Side.SOURCE)
    with pytest.raises(KeyError):
        writer.passed(1, S, b"x")
    writer.connect()
    writer.ended(1, S, How.PROPERLY)
    with pytest.raises(KeyError, match="the source has ended"):
        writer.passed(1, S, b"x")
    writer.passed(1, D, b"x")
    writer.ended(1, D, How.PROPERLY)
    with pytest.raises(KeyError):
        writer.ended(1, D, How.PROPERLY)
    numbers = [writer.connect() for _ in range(CONNECTIONS_MAX)]
    assert numbers[0] == 2
    with pytest.raises(ConfigError, match="at once"):
        writer.connect()


def test_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """[SEC-14] [REC-13]"""
    path = tmp_path / "x.rec"
    path.write_text("an older one")
    older = path.stat().st_ino
    os.umask(os.umask(0))
    keep = path.open("rb")
    with create(path) as file:
        file.write(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_ino != older
    assert keep.read() == b"an older one"
    keep.close()
    with pytest.raises(ConfigError, match="no plain file"):
        create(tmp_path)
    with pytest.raises(ConfigError, match="cannot write"):
        create(tmp_path / "no" / "x.rec")


@pytest.mark.parametrize(
    ("data", "clause", "says"),
    [
        (b"", "REC-1", "empty"),
        (b"something else, longer than a header", "REC-1", "no recording"),
        (bytes.fromhex("89535445524E410D0A1A0A0001000100"), "REC-1", "--raw source"),
        (header()[:20], "REC-1", "ends inside its header"),
        (header(version=2), "REC-1", "version 2"),
        (header()[:-1] + b"\0", "REC-2", "checksum"),
        (header(side=0), "REC-2", "side 0"),
        (header(clock=4), "REC-2", "clock 4"),
        (header(reserved=1), "REC-2", "reserved 1"),
    ],
)
def test_what_is_no_recording_is_refused(data: bytes, clause: str, says: str) -> None:
    """[REC-1] [REC-2]"""
    with pytest.raises(RecordingError, match=says) as caught:
        RecordingReader(io.BytesIO(data))
    assert (caught.value.clause, caught.value.offset) == (clause, 0)


GOOD = header() + record(b"good", time_ns=5)


@pytest.mark.parametrize(
    ("more", "clause"),
    [
        (record(data_bytes=DATA_MAX_BYTES + 1), "REC-3"),
        (record(time_ns=5)[:20] + b"\0\0\0\0x", "REC-3"),
        (record(kind=0, time_ns=5), "REC-4"),
        (record(kind=4, time_ns=5), "REC-4"),
        (record(direction=0, time_ns=5), "REC-4"),
        (record(direction=3, time_ns=5), "REC-4"),
        (record(how=1, time_ns=5), "REC-4"),
        (record(b"", time_ns=5), "REC-4"),
        (record(reserved=1, time_ns=5), "REC-4"),
        (record(b"", kind=2, how=0, time_ns=5), "REC-4"),
        (record(b"", kind=2, how=4, time_ns=5), "REC-4"),
        (record(b"", kind=2, direction=0, how=1, time_ns=5), "REC-4"),
        (record(b"t" * 256, kind=2, how=1, time_ns=5), "REC-4"),
        (record(b"\xff", kind=2, how=1, time_ns=5), "REC-4"),
        (record(b"", kind=3, direction=1, how=1, connection=0, time_ns=5), "REC-4"),
        (record(b"", kind=3, direction=0, how=3, connection=0, time_ns=5), "REC-4"),
        (record(b"", kind=3, direction=0, how=1, connection=1, time_ns=5), "REC-4"),
        (record(b"t" * 256, kind=3, direction=0, how=1, connection=0, time_ns=5), "REC-4"),
        (record(time_ns=4), "REC-5"),
        (record(time_ns=5, connection=3), "REC-7"),
        (record(time_ns=5, connection=0), "REC-7"),
        (end(1, time_ns=5) + record(time_ns=5), "REC-7"),
        (end(1, time_ns=5) + end(2, time_ns=5) + record(time_ns=5), "REC-7"),
        (b"".join(record(time_ns=5, connection=n) for n in range(2, CONNECTIONS_MAX + 2)), "REC-8"),
        (record(b"", kind=3, direction=0, how=1, connection=0, time_ns=5) + b"x", "REC-9"),
    ],
)
def test_damage_is_named_where_it_is(more: bytes, clause: str) -> None:
    """[REC-3] [REC-4] [REC-5] [REC-7] [REC-8] [REC-9] [REC-11]: and what came before is good."""
    reader = RecordingReader(io.BytesIO(GOOD + more))
    items = []
    with pytest.raises(RecordingError) as caught:
        items.extend(iter_until_error(reader, items.append))
    assert caught.value.clause == clause
    assert items[0] == Passed(1, S, 5, b"good")
    assert caught.value.offset == reader.offset >= len(GOOD)
    assert not reader.cut_off


def iter_until_error(reader: RecordingReader, take: Callable[[object], None]) -> list[object]:
    for item in reader:
        take(item)
    return []


def test_a_clock_of_no_times_has_none() -> None:
    """[REC-5]"""
    with pytest.raises(RecordingError, match="REC-5"):
        read(header(clock=3) + record(time_ns=1))


def test_a_file_may_be_cut_anywhere() -> None:
    """[REC-10]: whole records count, and nothing but the cut is reported."""
    whole = header() + record(b"one") + record(b"two", direction=2) + end(1) + end(2) + CLOSE
    items, reader = read(whole)
    assert not reader.cut_off
    for size in range(HEADER_BYTES, len(whole)):
        some, cut = read(whole[:size])
        assert cut.cut_off
        assert some == items[: len(some)]
        assert cut.offset <= size < cut.offset + RECORD_HEADER_BYTES + 3


@given(st.binary(max_size=200), st.booleans())
@example(b"", True)
def test_any_bytes_give_records_or_one_error(data: bytes, begins_well: bool) -> None:
    """`coded-refusal` for files."""
    with contextlib.suppress(RecordingError):
        read(GOOD + data if begins_well else data)


@given(st.data())
def test_damage_of_one_byte_is_noticed(data: st.DataObject) -> None:
    """But for damage of the data itself, which the frames inside guard."""
    at = data.draw(st.integers(HEADER_BYTES, HEADER_BYTES + RECORD_HEADER_BYTES - 1))
    bit = data.draw(st.integers(0, 7))
    damaged = bytearray(GOOD)
    damaged[at] ^= 1 << bit
    with pytest.raises(RecordingError, match="REC-3"):
        read(bytes(damaged))
