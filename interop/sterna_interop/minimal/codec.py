"""The codec shim around the minimal endpoint's reader: ``python -m sterna_interop.minimal.codec``.

interop/CODEC.md says what it must do. What the endpoint lacks is skipped.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from sterna_interop.minimal import checks
from sterna_interop.minimal.checks import DEFAULT_LIMITS, RAW, Known, require
from sterna_interop.minimal.codes import SessionError
from sterna_interop.minimal.connection import PREFACE, Connection, Frame, Times
from sterna_interop.minimal.destination import VERSION
from sterna_interop.minimal.frames import LAYOUTS, decode, encode
from sterna_interop.minimal.image import chunks

Fields = dict[str, Any]

ZERO: Final = 1
JSON_INTEGER_MAX: Final = 2**53 - 1
HEADER: Final = struct.Struct("<HHHHQIIII")
NAMES: Final = (
    "type",
    "flags",
    "stream",
    "",
    "sequence",
    "body_bytes",
    "bulk_bytes",
    "body_crc",
    "header_crc",
)
# Where the vectors have another word than the frames of this endpoint.
WORDS: Final = {"rate": "receive_rate_bytes_s"}


class NoMore(Exception):  # noqa: N818 (it is no error)
    """The bytes end, and the connection does not."""


class Bytes(Connection):
    """A connection that gets bytes from a question, and says nothing."""

    def __init__(self, question: Mapping[str, Any], before: bytes = b"") -> None:
        near, far = socket.socketpair()
        far.close()
        context = question.get("context", {})
        super().__init__(near, "", limits_of(context), Times())
        near.close()
        self.greeted = not context.get("handshake")
        self.regions = regions_of(context)
        data = before + bytes.fromhex(question["hex"])
        step = max(int(question.get("piece_bytes") or len(data)), 1)
        self._pieces = [data[at : at + step] for at in range(0, len(data), step)]
        self._eof = bool(question.get("eof"))

    def _write(self, data: bytes) -> None:
        """Nobody listens."""

    def _fill(self, size: int, deadline: float) -> bool:
        while len(self._buffer) < size and self._pieces:
            self._buffer += self._pieces.pop(0)
        if len(self._buffer) < size and not self._eof:
            raise NoMore
        return len(self._buffer) >= size

    def frames(self) -> Iterator[tuple[tuple[int, int], Frame | None]]:
        """Type and number of each frame, and the frame; None for one that is skipped."""
        while self._buffer or self._pieces or self._eof:
            try:
                frame = self._frame(0.0)
            except SessionError as error:
                if error.code == "connection_lost":
                    return
                raise
            yield self._last, frame


def limits_of(context: Mapping[str, Any]) -> dict[str, int]:
    """What the receiver has announced."""
    return DEFAULT_LIMITS | {name: int(value) for name, value in context.get("limits", {}).items()}


def regions_of(context: Mapping[str, Any]) -> dict[int, Fields]:
    """The regions of the session by id; none before GUEST."""
    rows = context.get("regions") or ()
    return {row["id"]: {name: int(value) for name, value in row.items()} for row in rows}


def shown(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """A value as the vectors write it."""
    match value:
        case bytes() | bytearray():
            return bytes(value).hex()
        case dict():
            return {WORDS.get(name, name): shown(one) for name, one in value.items()}
        case list() | tuple():
            return [
                shown(*one.values() if isinstance(one, dict) and len(one) == 1 else (one,)) for one in value
            ]
        case bool() | str():
            return value
    return value if value <= JSON_INTEGER_MAX else str(value)


def checked(frame: str, fields: Fields, later: SessionError | None, known: Fields) -> Fields:
    """The fields, when those clauses hold that concern several of them, as the endpoints look at them."""
    match frame:
        case "HELLO":
            _check_hello(fields, later)
        case "STATE":
            checks.state(fields)
        case "PAGES":
            require(bool(known["regions"]), "unexpected_frame")
            checks.pages(
                fields, known["regions"], known["limits"], known["bulk_bytes"](fields), zero=known["zero"]
            )
        case _:
            pass
    return fields


def _check_hello(fields: Fields, later: SessionError | None) -> None:
    """VRS-3: what is wrong in a HELLO of other versions is that they are others."""
    try:
        if later is not None:
            raise later
        checks.hello_values(fields)
    except SessionError:
        require(VERSION in {row["version"] for row in fields["versions"]}, "no_common_version")
        raise


def known_of(context: Mapping[str, Any], bulk_bytes: Callable[[Fields], int]) -> Fields:
    """What `checked` needs to know of the receiver."""
    zero = 1 in context.get("encodings", (0, 1))
    return {
        "regions": regions_of(context),
        "limits": limits_of(context),
        "bulk_bytes": bulk_bytes,
        "zero": zero,
    }


def read_body(question: Mapping[str, Any]) -> Fields:
    """A body alone; a bulk part is taken to be as long as the table says."""
    frame, context = question["frame"], question.get("context", {})
    if frame not in LAYOUTS:
        return {"skip": f"{frame} is reserved"}
    if set(context.get("encodings", ())) - {RAW, ZERO}:
        return {"skip": "encodings that are reserved"}
    if context.get("unhashed"):
        return {"skip": "pages without hashes"}
    data = bytes.fromhex(question["hex"])
    known = known_of(context, lambda fields: sum(run["size_bytes"] for run in fields["runs"]))
    fields, later = decode(frame, data, Known(known["limits"], known["regions"]))
    checked(frame, fields, later, known)
    return {"ok": shown(fields), "hex": encode(frame, fields).hex()}


def read_preface(question: Mapping[str, Any]) -> Fields:
    """The first bytes of a connection."""
    data = bytes.fromhex(question["hex"])
    try:
        Bytes(question).open()
    except NoMore:
        return {"ok": None}
    major, draft = struct.unpack_from("<HH", data, 12)
    return {"ok": {"major": major, "draft": draft}, "hex": data[: len(PREFACE)].hex()}


def read_header(question: Mapping[str, Any]) -> Fields:
    """A header, behind which the body is missing."""
    if question.get("context", {}).get("stream"):
        return {"skip": "data connections are reserved"}
    line = Bytes(question, PREFACE)
    line.open()
    with suppress(NoMore):
        list(line.frames())
    numbers = HEADER.unpack(bytes.fromhex(question["hex"]))
    return {"ok": {name: shown(number) for name, number in zip(NAMES, numbers, strict=True) if name}}


def read_stream(question: Mapping[str, Any]) -> Fields:
    """A whole connection."""
    line, events = Bytes(question), list[Fields]()
    try:
        line.open()
        data = bytes.fromhex(question["hex"])
        major, draft = struct.unpack_from("<HH", data, 12)
        events.append({"event": "preface", "major": major, "draft": draft})
        for (number, sequence), frame in line.frames():
            place: Fields = {"type": number, "sequence": shown(sequence)}
            if frame is None:
                events.append({"event": "skipped", **place})
            elif frame.name not in LAYOUTS:
                return {"skip": f"{frame.name} is reserved"}
            else:
                events.append(event_of(line, frame, question.get("context", {})) | place)
    except NoMore:
        pass
    except SessionError as error:
        return {"error": error.code, "accepted": max(len(events) - 1, 0)}
    return {"ok": {"events": events}}


def event_of(line: Bytes, frame: Frame, context: Mapping[str, Any]) -> Fields:
    """A frame that is known here, its bulk part read and verified."""
    known = known_of(context, lambda _: frame.bulk_bytes)
    fields = checked(frame.name, frame.fields, frame.later, known)
    if frame.name != "PAGES":
        return {"event": "frame", "frame": frame.name, "value": shown(fields)}
    shift = known["regions"][fields["region"]]["granule_log2"]
    stated, wrong, at = [row["hash"] for row in fields["hashes"]], list[int](), 0
    for run in fields["runs"]:
        if run["encoding"] == RAW:
            for _, _, _, found in chunks(run["first"], line.read(run["size_bytes"]), shift):
                wrong += [] if found == stated[at] else [at]
                at += 1
    about = {"value": shown(fields), "bulk_bytes": frame.bulk_bytes, "rejected_chunks": wrong}
    return {"event": "pages", "frame": "PAGES", **about}


READERS: Final = {"body": read_body, "preface": read_preface, "header": read_header, "stream": read_stream}


def answer(question: Mapping[str, Any]) -> Fields:
    """What is to be said to one question."""
    reading = READERS.get(question.get("kind", "")) if question.get("op") == "read" else None
    if reading is None:
        return {"skip": "not known here"}
    try:
        return reading(question)
    except SessionError as error:
        return {"error": error.code}


if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"id": asked["id"], **answer(asked)}), flush=True)
