"""What a `FrameReader` makes of any bytes, in a form that can be compared, and what must hold of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from sterna.errors import RemoteProtocolError
from sterna.limits import Limits
from sterna.registry import ERRORS, ErrorCode
from sterna.wire import (
    FrameReader,
    FrameReceived,
    PagesAnnounced,
    PagesReceived,
    PrefaceReceived,
    UnknownFrame,
    encode_body,
)
from sterna.wire.records import Guest, Hello, Record, Region, Welcome
from sterna_fuzz.plans import Plan, Spoilt, spoil
from sterna_fuzz.target import Words

# Limits like those of a careful receiver: each lies below what a mutator can write.
LIMITS: Final = Limits(control_bytes=1 << 16, bulk_bytes=1 << 18, batch_runs=64, state_bytes=1 << 17)


# Codes that are not the reader's to name.
_OF_MACHINES: Final = frozenset({ErrorCode.CONNECTION_LOST, ErrorCode.WRONG_DIRECTION})


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream ended. Two receivers of the same bytes agree on all of it [HDR-11]."""

    code: str
    clause: str
    offset: int | None
    frame: int | None


@dataclass(slots=True)
class Reading:
    """What was read.

    Attributes:
        events: kind, type of frame, and what was in it, as bytes.
        ending: the error, None if the stream was good up to its end.
    """

    events: list[tuple[str, int, bytes]] = field(default_factory=list)
    ending: Ending | None = None

    @property
    def known(self) -> list[tuple[str, int, bytes]]:
        """Events without what was skipped."""
        return [event for event in self.events if event[0] != "skipped"]


class Listener:
    """Owns a reader as an endpoint does: limits and regions follow from what has been heard.

    Args:
        regions: the guest's, for a side that has described it itself.
        limits: what this side has announced.
        place: whether page bytes are taken; they flow by otherwise.
    """

    def __init__(
        self, regions: Sequence[Region] = (), limits: Limits = LIMITS, *, place: bool = True
    ) -> None:
        self.reading = Reading()
        self._reader = FrameReader()
        self._regions = regions
        self._limits = limits
        self._takes = place
        self._place = bytearray()

    def hear(self, data: bytes) -> bool:
        """Take bytes. Whether more make sense."""
        try:
            self._reader.receive_data(data)
            while (event := self._reader.next_event()) is not None:
                self._note(event)
        except RemoteProtocolError as error:
            self._end(error)
        return self.reading.ending is None

    def end(self) -> Reading:
        """The connection has ended."""
        if self.reading.ending is None:
            try:
                self._reader.receive_eof()
            except RemoteProtocolError as error:
                self._end(error)
        return self.reading

    def _end(self, error: RemoteProtocolError) -> None:
        assert error.code in ERRORS, f"{error.code} is not in the registry"
        assert error.clause, f"{error!r} names no clause"
        self.reading.ending = Ending(error.code.name.lower(), error.clause, error.offset, error.frame)

    def _note(self, event: object) -> None:
        events = self.reading.events
        match event:
            case PrefaceReceived(major, draft):
                events.append(("preface", major, draft.to_bytes(2, "big")))
            case UnknownFrame(header):
                events.append(("skipped", header.type, b""))
            case FrameReceived(header, record):
                self._learn(record)
                events.append(("frame", header.type, encode_body(record, self._reader.bounds)))
            case PagesAnnounced(header, record):
                self._place = bytearray(header.bulk_bytes)
                if header.bulk_bytes and self._takes:
                    self._reader.supply_bulk([self._place])
                elif header.bulk_bytes:
                    self._reader.discard_bulk()
            case PagesReceived(header, record):
                table = encode_body(record, self._reader.bounds)
                events.append(("pages", header.type, table + bytes(self._place)))
            case _:
                raise AssertionError(f"an event of no known kind: {event!r}")

    def _learn(self, record: Record) -> None:
        if isinstance(record, Hello | Welcome):
            self._reader.set_limits(self._limits)
            if self._regions:
                self._reader.set_regions({region.id: region for region in self._regions})
        elif isinstance(record, Guest):
            self._reader.set_regions({region.id: region for region in record.regions})


def read(pieces: Iterable[bytes], regions: Sequence[Region] = (), *, place: bool = True) -> Reading:
    """Everything that a receiver makes of bytes that come in these pieces, and then end."""
    listener = Listener(regions, place=place)
    for piece in pieces:
        if not listener.hear(piece):
            break
    return listener.end()


def pieces(data: bytes, marks: Sequence[int]) -> Iterator[bytes]:
    """The bytes in pieces whose sizes are `marks`, over and over; in one piece if there are none."""
    at, turn = 0, 0
    while at < len(data):
        size = marks[turn % len(marks)] if marks else len(data)
        yield data[at : at + size]
        at, turn = at + size, turn + 1


def check_chunking(plan: Plan, marks: Sequence[int]) -> Words:
    """The same bytes, cut in any way, give the same events and the same error."""
    data, regions = spoil(plan).data, plan.conversation.regions
    whole = read([data], regions)
    cut = read(pieces(data, marks), regions)
    assert cut.ending == whole.ending, f"in pieces: {cut.ending}, at once: {whole.ending}"
    assert cut.events == whole.events, f"{len(cut.events)} events in pieces, {len(whole.events)} at once"
    return (end_word(whole),)


def check_refusal(plan: Plan) -> Words:
    """Whatever comes is read, or ends in one coded error: the one that the mutator has to lead to."""
    spoilt, regions = spoil(plan), plan.conversation.regions
    found = read([spoilt.data], regions)
    _check_end(plan, spoilt, found)
    return (end_word(found),)


def _check_end(plan: Plan, spoilt: Spoilt, found: Reading) -> None:
    """What a mutator's row says of the end; that a connection is lost is not the reader's to say."""
    mutator = plan.only
    if mutator is None or not spoilt.as_said or mutator.ends <= _OF_MACHINES:
        return
    codes = sorted(code.name.lower() for code in mutator.ends)
    assert found.ending is not None, f"{mutator.name} was not noticed"
    assert found.ending.code in codes, f"{found.ending.code} instead of {' or '.join(codes)}"


def check_skipping(plan: Plan) -> Words:
    """What is to be skipped changes nothing; what must not be skipped is not."""
    spoilt, regions = spoil(plan), plan.conversation.regions
    found, honest = read([spoilt.data], regions), read([b"".join(plan.frames)], regions)
    _check_end(plan, spoilt, found)
    mutator = plan.only
    if mutator is not None and mutator.same and spoilt.as_said:
        assert found.ending == honest.ending, f"{found.ending} where nothing is wrong"
        kinds = [(kind, frame) for kind, frame, _ in found.known]
        assert kinds == [(kind, frame) for kind, frame, _ in honest.known], (
            "other frames than those that were sent"
        )
        assert len(found.events) > len(honest.events), "what was skipped is not told"
    return (end_word(found),)


def end_word(reading: Reading) -> str:
    """For the statistics."""
    return "read to its end" if reading.ending is None else reading.ending.code
