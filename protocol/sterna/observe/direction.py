"""One direction of a recorded connection: its bytes become frames that know where they stand.

`sterna.wire.FrameReader` decides what a frame is. What is added here is what a reader of a recording wants
beside: the offset of each frame, its raw bytes to look at, and which of its pages match their hashes. The
bulk part of a PAGES frame is hashed and forgotten.

The limits that a recording states are whatever its writer liked. Bulk parts and long bodies come out of the
budget of sterna.observe.budget; bodies have a bound of their own, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from sterna.errors import RemoteProtocolError, SternaError
from sterna.limits import HANDSHAKE_BODY_BYTES, HEADER_BYTES, PREFACE_BYTES, Limits
from sterna.memory.pages import damaged_pages
from sterna.memory.unpacking import Unpacker, is_packed
from sterna.memory.zstd import WINDOW_LOG2_MIN
from sterna.observe.budget import Share, TooMuchError
from sterna.registry import ErrorCode
from sterna.wire import (
    Buffer,
    FrameReader,
    FrameReceived,
    Header,
    PageRange,
    Pages,
    PagesAnnounced,
    PagesReceived,
    PrefaceReceived,
    Record,
    UnknownFrame,
)

# The widest window of zstd; to look at a frame costs no memory for it.
WINDOW_LOG2_SANE: Final = 31
# The longest body that is held, whatever was announced: sixteen times the registry's default.
CONTROL_MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of one direction.

    Attributes:
        offset: of its header in the direction's bytes, preface included.
        header: its header.
        record: what it says; None for a frame of unknown type, which was skipped.
        damaged: pages whose bytes do not match their hash.
        raw: as many of its first bytes as were asked for.
    """

    offset: int
    header: Header
    record: Record | None
    damaged: tuple[PageRange, ...] = ()
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Preface:
    """The first bytes of a direction."""

    major: int
    draft: int
    raw: bytes = b""


class Direction:
    """The bytes that one side sent.

    Attributes:
        reader: decodes them, held to the bounds that are set there.
        offset: where the frame begins that is being read.
        bytes: that have come.
        keep_bytes: how much of each frame's raw bytes is kept.
        announced: what its receiver takes.
        unpacker: takes packed pages apart.
        tells_hashes: whether what passed tells if pages have hashes; where it does not, none is compared.
        error: what ended it, if anything has: the bytes behind it are counted, and not looked at.
    """

    def __init__(self, share: Share, *, keep_bytes: int = 0, stream: int | None = 0) -> None:
        """`stream`: as for `FrameReader`."""
        self.reader: Final = FrameReader(stream=stream, read_ahead_bytes=1)  # bytes come by receive_data
        self.offset = 0
        self.bytes = 0
        self.keep_bytes: Final = keep_bytes
        self.tells_hashes = True
        self.error: SternaError | None = None
        self._share: Final = share
        self.unpacker = Unpacker()
        self.announced = Limits()
        self._raw = bytearray()  # of the frame at `offset`, at most keep_bytes of it
        self._bulk = memoryview(bytearray())
        self._held_bytes = HANDSHAKE_BODY_BYTES  # of a body; this much everybody has

    def set_limits(self, announced: Limits) -> None:
        """The receiver has announced these."""
        self.announced = announced
        control_bytes = min(announced.control_bytes, CONTROL_MAX_BYTES)
        self.reader.set_limits(replace(announced, control_bytes=control_bytes))

    def look_back(self, window_log2: int) -> None:
        """Frames of packed pages may do so over so many bytes, whatever this side would take itself."""
        self.unpacker = Unpacker(max(WINDOW_LOG2_MIN, min(window_log2, WINDOW_LOG2_SANE)))

    @property
    def unfinished_bytes(self) -> int:
        """Bytes behind the last whole frame."""
        return self.bytes - self.offset

    def feed(self, data: Buffer) -> Iterator[Frame | Preface]:
        """The frames that end in the next bytes. Exhaust it before the next call.

        Between two frames the owner may tell `reader` what it has learnt.

        Raises:
            RemoteProtocolError: the bytes are none that any session may have.
            TooMuchError: this reader does not take as much as was announced.
        """
        start, self.bytes = self.bytes, self.bytes + len(data)
        if self.error is not None:
            return
        try:
            self.reader.receive_data(data)
            while (event := self.reader.next_event()) is not None:
                match event:
                    case PagesAnnounced():
                        self._supply(event.header.bulk_bytes)
                    case PrefaceReceived(major, draft):
                        yield Preface(major, draft, self._finish(PREFACE_BYTES, data, start))
                    case _:
                        yield self._frame(event, data, start)
            self._hold(self.reader.held_bytes)
        except RemoteProtocolError as error:
            self._keep(data, start)
            self.error = self._judged(error)
            raise self.error from error
        except TooMuchError as error:
            self.error = error
            raise
        self._keep(data, start)

    def end(self) -> None:
        """No more bytes come.

        Raises:
            RemoteProtocolError: they end inside the preface or a frame, or are no preface.
        """
        if self.error is None:
            try:
                self.reader.receive_eof()
            except RemoteProtocolError as error:
                self.error = error
                raise

    def close(self) -> None:
        """No more bytes are looked at; let go of the memory for them."""
        self.error = self.error or TooMuchError("closed")
        self._bulk = memoryview(b"")

    def raw_rest(self) -> bytes:
        """The first bytes behind the last whole frame, at most keep_bytes."""
        return bytes(self._raw)

    def _frame(self, event: FrameReceived | PagesReceived | UnknownFrame, data: Buffer, start: int) -> Frame:
        header = event.header
        offset, size = self.offset, HEADER_BYTES + header.body_bytes + header.bulk_bytes
        record = None if isinstance(event, UnknownFrame) else event.record
        self._hold(0 if record is None else header.body_bytes)  # however its bytes were cut
        damaged: tuple[PageRange, ...] = ()
        if isinstance(event, PagesReceived):
            regions = self.reader.bounds.regions
            assert regions is not None  # the codec refuses PAGES before that
            granule_log2 = regions[event.record.region].granule_log2
            bulk = self._bulk[: header.bulk_bytes]
            damaged = tuple(self._damaged(event.record, bulk, granule_log2))
        return Frame(offset, header, record, damaged, self._finish(size, data, start))

    def _damaged(self, table: Pages, bulk: memoryview, granule_log2: int) -> list[PageRange]:
        hashed = self.reader.bounds.hashed and self.tells_hashes
        if not is_packed(table):
            return damaged_pages(table, bulk, granule_log2) if hashed else []
        self._hold(int(table.runs["count"].max()) << granule_log2)  # a run is taken apart at a time
        return self.unpacker.damaged(table, bulk, granule_log2, hashed=hashed)

    def _hold(self, size_bytes: int) -> None:
        if size_bytes > self._held_bytes:
            self._share.take(size_bytes - self._held_bytes, "a long frame")
            self._held_bytes = size_bytes

    def _supply(self, bulk_bytes: int) -> None:
        if not bulk_bytes:
            return
        if len(self._bulk) < bulk_bytes:
            self._share.take(bulk_bytes - len(self._bulk), "a batch of pages")
            self._bulk = memoryview(bytearray(bulk_bytes))
        self.reader.supply_bulk([self._bulk[:bulk_bytes]])

    def _finish(self, size: int, data: Buffer, start: int) -> bytes:
        """The frame at `offset` ends after `size` bytes; its first ones."""
        self._keep(data, start)
        raw = bytes(self._raw[:size])
        self.offset += size
        self._raw.clear()
        return raw

    def _keep(self, data: Buffer, start: int) -> None:
        """Keep what of `data`, which begins at `start`, belongs to the first bytes of the frame."""
        room = self.keep_bytes - len(self._raw)
        if room > 0:
            begin = self.offset + len(self._raw) - start
            self._raw += memoryview(data)[begin : begin + room]

    def _judged(self, error: RemoteProtocolError) -> RemoteProtocolError | TooMuchError:
        """A limit of this reader's own is not the sender's fault."""
        announced = self.announced.control_bytes
        if error.code is ErrorCode.LIMIT_CONTROL and announced > CONTROL_MAX_BYTES:
            return TooMuchError(f"a longer frame than this reader takes, {CONTROL_MAX_BYTES} bytes")
        return error
