"""The codec shim around `sterna.wire`: ``python -m sterna_interop.codec``. interop/CODEC.md is its contract.

It reads a question a line from stdin and writes an answer a line to stdout, both JSON. What stands between
the language of the vectors (spec/vectors/README.md) and that of `sterna.wire` is here too, for the tests of
the vectors as well.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Final, TextIO, TypeAlias, TypeVar

import numpy as np

from sterna import wire
from sterna.errors import RemoteProtocolError
from sterna.limits import Limits
from sterna.registry import Encoding, FrameType, RegionKind, Transfer
from sterna.wire import records as r
from sterna.wire.rules import DEFAULT_BOUNDS, Bounds
from sterna_interop.resources import spec_version

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | bool | None"
T = TypeVar("T")

JSON_INTEGER_MAX: Final = 2**53 - 1  # above it integers are decimal strings
HEADER_FIELDS: Final = (
    *("type", "flags", "stream", "reserved", "sequence"),
    *("body_bytes", "bulk_bytes", "body_crc", "header_crc"),
)
_HEADER: Final = struct.Struct("<HHHHQIIII")
_RUN_FIELDS: Final = ("first", "count", "size_bytes", "encoding")


# ---- from the vectors' language ----


def expect(kind: type[T], value: object) -> T:
    """The value, if it is of this type.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.80} is no {kind.__name__}")
    return value


def integer(value: object) -> int:
    """A number, or a decimal string."""
    return int(value) if isinstance(value, str) else expect(int, value)


@dataclass(frozen=True, slots=True)
class Context:
    """What a receiver knows: the `context` of a group of vectors.

    Attributes:
        handshake: limits have not been announced yet.
        bounds: what frames are held to.
        stream: number of the connection.
    """

    handshake: bool = False
    bounds: Bounds = DEFAULT_BOUNDS
    stream: int = 0

    @classmethod
    def from_json(cls, parts: Mapping[str, object]) -> Context:
        """Raises KeyError, TypeError or ValueError for what is no context."""
        stated = expect(dict, parts.get("limits") or {})
        limits = Limits(**{name: integer(value) for name, value in stated.items()})
        rows = parts.get("regions")
        regions = None if rows is None else {one.id: one for one in map(_region, expect(list, rows))}
        bounds = Bounds(limits, regions)
        if "encodings" in parts:
            chosen = frozenset(Encoding(integer(one)) for one in expect(list, parts["encodings"]))
            bounds = replace(bounds, encodings=chosen)
        bounds = replace(bounds, hashed=not parts.get("unhashed"))
        return cls(bool(parts.get("handshake")), bounds, integer(parts.get("stream", 0)))

    def reader(self) -> wire.FrameReader:
        """A reader that knows it."""
        made = wire.FrameReader(stream=self.stream)
        if not self.handshake:
            made.set_limits(self.bounds.limits)
        if self.bounds.regions is not None:
            made.set_regions(self.bounds.regions)
        made.set_encodings(self.bounds.encodings, hashed=self.bounds.hashed)
        return made


def _region(row: object) -> r.Region:
    numbers = {name: integer(value) for name, value in expect(dict, row).items()}
    kind, transfer = RegionKind(numbers.pop("kind")), Transfer(numbers.pop("transfer"))
    return r.Region(**numbers, kind=kind, transfer=transfer)


# ---- to the vectors' language ----


def shown(value: object, name: str = "") -> Json:
    """A record, or what is in one, as the vectors write it."""
    match value:
        case bool() | str():
            return value
        case int() | np.integer():
            number = int(value)
            return number if number <= JSON_INTEGER_MAX else str(number)
        case bytes():
            return value.hex()
        case dict():
            return [{"id": shown(number), "value": shown(limit)} for number, limit in value.items()]
        case np.ndarray() if value.dtype == r.RUN_DTYPE:
            return [{name: shown(row[name]) for name in _RUN_FIELDS} for row in value]
        case tuple() if name == "last_sequences":
            return [{"stream": stream, "sequence": shown(last)} for stream, last in value]
        case tuple() | np.ndarray():
            return [shown(item) for item in value]
    found: dict[str, Json] = {}
    for each in fields(value):  # type: ignore[arg-type]  # all that is left are dataclasses
        if not each.init:
            continue  # what a record keeps beside what it is made of
        inner = getattr(value, each.name)
        if isinstance(inner, r.Runner):
            found |= {"runner": inner.id.hex(), "runner_host": inner.host}
        else:
            found["streams" if each.name == "last_sequences" else each.name] = shown(inner, each.name)
    return found


@dataclass
class Outcome:
    """What a reader made of a connection's bytes.

    Attributes:
        received: bytes after which the error was known.
    """

    events: list[dict[str, Json]] = field(default_factory=list)
    error: RemoteProtocolError | None = None
    received: int = 0


def read(reader: wire.FrameReader, pieces: Iterable[bytes], *, eof: bool = False) -> Outcome:
    """Feed a reader, and write down what it says."""
    outcome, bulk = Outcome(), bytearray()
    try:
        for piece in pieces:
            outcome.received += len(piece)
            reader.receive_data(piece)
            for event in _drained(reader, bulk):
                outcome.events.append(event)
        if eof:
            reader.receive_eof()
    except RemoteProtocolError as error:
        outcome.error = error
    return outcome


def _drained(reader: wire.FrameReader, bulk: bytearray) -> Iterator[dict[str, Json]]:
    """Events as the vectors write them; `bulk` takes the bytes of one PAGES frame after the other."""
    while (event := reader.next_event()) is not None:
        match event:
            case wire.PrefaceReceived():
                yield {"event": "preface", "major": event.major, "draft": event.draft}
            case wire.FrameReceived():
                frame = FrameType(event.header.type).name
                yield {
                    "event": "frame",
                    "frame": frame,
                    **_about(event.header),
                    "value": shown(event.record),
                }
            case wire.UnknownFrame():
                yield {"event": "skipped", **_about(event.header)}
            case wire.PagesAnnounced():
                bulk[:] = bytes(event.header.bulk_bytes)
                if bulk:
                    reader.supply_bulk([memoryview(bulk)])
            case wire.PagesReceived():
                assert isinstance(event.record, r.Pages)
                yield {
                    "event": "pages",
                    "frame": "PAGES",
                    **_about(event.header),
                    "value": shown(event.record),
                    "bulk_bytes": len(bulk),
                    "rejected_chunks": rejected_chunks(event.record, bulk),
                }


def _about(header: wire.Header) -> dict[str, Json]:
    return {"type": header.type, "sequence": shown(header.sequence)}


def rejected_chunks(record: r.Pages, bulk: bytearray) -> list[int]:
    """Chunks whose bytes do not have their hash [PGS-13]."""
    if set(record.runs["encoding"].tolist()) - {Encoding.RAW, Encoding.ZERO}:
        return []  # nothing here decodes these
    found: list[int] = []
    at = 0
    for size in wire.bulk_lengths(record.runs):
        found += wire.chunk_hashes(memoryview(bulk)[at : at + size]).tolist()
        at += size
    return [number for number, each in enumerate(record.hashes.tolist()) if each != found[number]]


# ---- the shim ----


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be read.

    Attributes:
        piece_bytes: how many bytes the reader gets at a time; None: all at once.
    """

    kind: str
    data: bytes
    context: Context
    frame_type: int = 0
    eof: bool = False
    piece_bytes: int | None = None

    @classmethod
    def from_json(cls, parts: Mapping[str, object]) -> Question:
        """Raises KeyError, TypeError or ValueError for what is no question."""
        piece_bytes = parts.get("piece_bytes")
        return cls(
            expect(str, parts["kind"]),
            bytes.fromhex(expect(str, parts["hex"])),
            Context.from_json(expect(dict, parts.get("context", {}))),
            integer(parts.get("type", 0)),
            bool(parts.get("eof", False)),
            None if piece_bytes is None else max(integer(piece_bytes), 1),
        )

    def pieces(self, before: bytes = b"") -> list[bytes]:
        """The bytes as the reader gets them."""
        data = before + self.data
        step = self.piece_bytes or max(len(data), 1)
        return [data[at : at + step] for at in range(0, len(data), step)]


Answer: TypeAlias = dict[str, Json]


def answer(line: str) -> Answer:
    """What is to be said to one line; `error` for wrong bytes, `skip` for what is not known here."""
    parts = expect(dict, json.loads(line))
    number = integer(parts["id"])
    match parts.get("op"):
        case "hello":
            found: Answer = {"ok": {"name": "sterna", "spec_version": spec_version()}}
        case "read":
            question = Question.from_json(parts)
            reading = _READERS.get(question.kind)
            found = {"skip": f"no kind {question.kind!r}"} if reading is None else reading(question)
        case op:
            found = {"skip": f"no op {op!r}"}
    return {"id": number, **found}


def _read_preface(question: Question) -> Answer:
    outcome = read(wire.FrameReader(), question.pieces(), eof=question.eof)
    if outcome.error is not None:
        return _wrong(outcome.error)
    if not outcome.events:
        return {"ok": None}
    said = outcome.events[0]
    return {"ok": {"major": said["major"], "draft": said["draft"]}, "hex": question.data.hex()}


def _read_header(question: Question) -> Answer:
    outcome = read(question.context.reader(), question.pieces(wire.encode_preface()))
    if outcome.error is not None:
        return _wrong(outcome.error)
    numbers = zip(HEADER_FIELDS, _HEADER.unpack(question.data), strict=True)
    return {"ok": {name: shown(number) for name, number in numbers if name != "reserved"}}


def _read_body(question: Question) -> Answer:
    bounds = question.context.bounds
    try:
        record = wire.decode_body(question.frame_type, question.data, bounds)
    except RemoteProtocolError as error:
        return _wrong(error)
    return {"ok": shown(record), "hex": wire.encode_body(record, bounds).hex()}


def _read_stream(question: Question) -> Answer:
    outcome = read(question.context.reader(), question.pieces(), eof=question.eof)
    if outcome.error is not None:
        frames = sum(event["event"] != "preface" for event in outcome.events)
        return {**_wrong(outcome.error), "accepted": frames}
    return {"ok": {"events": outcome.events}}


def _wrong(error: RemoteProtocolError) -> Answer:
    return {"error": error.code.name.lower(), "clause": error.clause}


_READERS: Final[Mapping[str, Callable[[Question], Answer]]] = {
    "preface": _read_preface,
    "header": _read_header,
    "body": _read_body,
    "stream": _read_stream,
}


def serve(lines: Iterable[str], out: TextIO) -> None:
    """Answer every line until there are no more."""
    for line in lines:
        out.write(json.dumps(answer(line)) + "\n")
        out.flush()


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
