"""Streams of several frames: numbers, unknown types, checksums, ends."""

from __future__ import annotations

import struct
from typing import Any, Final

from vector_cases.book import Group
from vector_cases.handshake import BARE
from vector_cases.layout import join, lay
from vector_cases.wholes import event, frame, header, preface

PING: Final = 0x8050
PONG: Final = 0x8051
BYE: Final = 0x8043
GREASE: Final = 0x7F00
CRITICAL: Final = 0xFF00  # of no frame
U32_MAX: Final = 2**32 - 1
HANDSHAKE: Final = 65536
SKIPPED: Final = 256


class Stream:
    """A connection's bytes, frame by frame, with what a reader reports."""

    def __init__(self) -> None:
        self.data = preface()
        self.events = [event("preface")]
        self.sequence = 0

    def add(
        self, number: int, body: bytes = b"", value: dict[str, Any] | None = None, **fields: int
    ) -> Stream:
        """The next frame; one without a value is skipped."""
        sequence = fields.pop("sequence", self.sequence)
        self.data += frame(number, body, b"", sequence=sequence, **fields)
        if value is None:
            self.events.append(event("skipped", number, sequence))
        else:
            self.events.append(event("frame", number, sequence, value=value))
        self.sequence += 1
        return self

    def ping(self, number: int = PING, **fields: int) -> Stream:
        """A PING, or PONG, that is numbered by its id too."""
        return self.add(number, struct.pack("<Q", self.sequence), {"id": self.sequence}, **fields)


def streams() -> list[Group]:
    """Several frames, one behind the other."""
    clauses = ["HDR-1", "HDR-6", "HDR-10", "HDR-11", "FRM-6", "FRM-7", "FRM-8", "FRM-10", "FRM-11"]
    group = Group("stream", "stream", "", clauses, {"regions": None})

    def good(name: str, comment: str, clause: str, stream: Stream, *flags: str) -> None:
        group.add(
            name, comment, flags or ["Basic"], clause, stream.data, value={"events": stream.events}, eof=True
        )

    def bad(
        name: str,
        comment: str,
        clause: str,
        error: str,
        data: bytes,
        accepted: int,
        *flags: str,
        eof: bool = False,
    ) -> None:
        rest = {"eof": True} if eof else {}
        group.add(name, comment, flags, clause, data, error=error, accepted=accepted, **rest)

    good(
        "preface-only",
        "a preface and nothing else: the end of the connection is no error of its bytes",
        "FRM-10",
        Stream(),
        "Boundary",
    )
    good("one", "one frame", "HDR-6", Stream().ping())
    good("three", "three frames", "HDR-6", Stream().ping().ping(PONG).add(BYE, value={}))
    _skipped(good, bad)
    _sequences(bad)
    _checksums(bad)
    _ends(bad)
    long = Stream().add(GREASE, bytes(HANDSHAKE)).ping()
    early = Group("stream", "stream", "", ["LIM-5"], {"handshake": True})
    early.add(
        "handshake-64-kib",
        "a frame to be skipped, as long as a body may be before limits were announced",
        ["Handshake", "Boundary"],
        "LIM-5",
        long.data,
        value={"events": long.events},
        eof=True,
    )
    return [group, early]


def _skipped(good: Any, bad: Any) -> None:
    """FRM-6 to FRM-8."""
    good(
        "skip-first",
        "a frame to be skipped comes first",
        "FRM-7",
        Stream().add(GREASE, b"noise").ping(),
        "Unknown",
    )
    good(
        "skip-between",
        "frames to be skipped between two others",
        "FRM-7",
        Stream().ping().add(GREASE).add(0x7FFF, bytes(1024)).ping(),
        "Unknown",
    )
    good(
        "skip-last", "a frame to be skipped comes last", "FRM-7", Stream().ping().add(0x0001, b"x"), "Unknown"
    )
    good(
        "skip-any",
        "its body may look like anything",
        "FRM-7",
        Stream().add(GREASE, preface() + header(PING)).ping(),
        "Unknown",
    )
    full = Stream()
    for number in range(SKIPPED):
        full.add(GREASE + number % 256)
    full.ping()
    good(
        "skip-256",
        "256 skipped frames, the most that is allowed between two others",
        "FRM-8",
        full,
        "Unknown",
        "Boundary",
    )
    again = Stream()
    for _ in range(2):
        for _ in range(SKIPPED):
            again.add(GREASE)
        again.ping()
    good("skip-256-twice", "a known frame begins the count anew", "FRM-8", again, "Unknown", "Boundary")
    over = Stream()
    for _ in range(SKIPPED + 1):
        over.add(GREASE)
    bad("skip-257", "257 skipped frames", "FRM-8", "limit_rate", over.data, SKIPPED, "Unknown", "Limit")
    over = Stream().ping()
    for _ in range(SKIPPED):
        over.add(GREASE)
    over.add(GREASE, b"x", body_crc=1)
    bad(
        "skip-257-checksum",
        "257 skipped frames behind a known one, the last with a wrong checksum",
        "FRM-8",
        "limit_rate",
        over.data,
        SKIPPED + 1,
        "Unknown",
        "Order",
    )
    bad(
        "critical-second",
        "a critical frame of unknown type behind a known one",
        "FRM-6",
        "unknown_critical",
        Stream().ping().add(CRITICAL, b"x").ping().data,
        1,
        "Unknown",
    )
    bad(
        "critical-body",
        "the same, of whose body nothing has come",
        "FRM-6",
        "unknown_critical",
        Stream().ping().data + header(CRITICAL, sequence=1, body_bytes=9),
        1,
        "Unknown",
    )


def _sequences(bad: Any) -> None:
    """HDR-6."""
    bad(
        "first-is-1",
        "the first frame has number 1",
        "HDR-6",
        "bad_sequence",
        Stream().ping(sequence=1).data,
        0,
        "Sequence",
    )
    bad(
        "repeated",
        "a frame comes twice",
        "HDR-6",
        "bad_sequence",
        Stream().ping().ping(sequence=0).data,
        1,
        "Sequence",
    )
    bad(
        "lost",
        "a frame is missing",
        "HDR-6",
        "bad_sequence",
        Stream().ping().ping(sequence=2).data,
        1,
        "Sequence",
    )
    bad(
        "swapped",
        "two frames in the wrong order",
        "HDR-6",
        "bad_sequence",
        Stream().ping().ping().ping(sequence=3).ping(sequence=2).data,
        2,
        "Sequence",
    )
    bad(
        "wide",
        "a number that is right in its low 32 bits",
        "HDR-6",
        "bad_sequence",
        Stream().ping().ping(sequence=2**32 + 1).data,
        1,
        "Sequence",
    )
    bad(
        "not-counted",
        "a skipped frame was not counted",
        "HDR-6",
        "bad_sequence",
        Stream().add(GREASE).ping(sequence=0).data,
        1,
        "Sequence",
        "Unknown",
    )
    bad(
        "skip-numbered",
        "a frame to be skipped has the wrong number",
        "HDR-6",
        "bad_sequence",
        Stream().ping().add(GREASE, sequence=7).data,
        1,
        "Sequence",
        "Unknown",
    )
    bad(
        "second-preface",
        "a second preface",
        "HDR-2",
        "header_checksum",
        Stream().ping().data + preface() * 2,
        1,
        "Checksum",
    )
    bad(
        "gap",
        "zeros between two frames",
        "HDR-2",
        "header_checksum",
        Stream().ping().data + bytes(4) + Stream().ping().data[16:],
        1,
        "Checksum",
    )
    bad(
        "other-stream",
        "a frame of stream 1 on a control connection",
        "HDR-5",
        "bad_header",
        Stream().ping().ping(stream=1).data,
        1,
        "Sequence",
    )


def _checksums(bad: Any) -> None:
    """HDR-10, and what is checked before and behind it."""
    for name, crc in (("zero", 0), ("max", U32_MAX)):
        bad(
            f"body-crc-{name}",
            f"body_crc is {crc}",
            "HDR-10",
            "body_checksum",
            Stream().ping(body_crc=crc).data,
            0,
            "Checksum",
        )
    for at in range(8):
        data = bytearray(Stream().ping().data)
        data[16 + 32 + at] ^= 1 << at
        bad(
            f"body-flip-{at}",
            f"bit {at} of byte {at} of the body is flipped",
            "HDR-10",
            "body_checksum",
            bytes(data),
            0,
            "Checksum",
        )
    bad(
        "empty-crc",
        "an empty body whose checksum is not 0",
        "HDR-10",
        "body_checksum",
        Stream().add(BYE, value={}, body_crc=1).data,
        0,
        "Checksum",
    )
    bad(
        "skip-crc",
        "a frame to be skipped, whose body is damaged",
        "HDR-10",
        "body_checksum",
        Stream().ping().add(GREASE, b"noise", body_crc=1).ping().data,
        1,
        "Checksum",
        "Unknown",
    )
    bad(
        "skip-crc-empty",
        "a frame to be skipped, of no body, whose checksum is not 0",
        "HDR-10",
        "body_checksum",
        Stream().add(GREASE, body_crc=1).data,
        0,
        "Checksum",
        "Unknown",
    )
    bad(
        "crc-before-body",
        "a damaged body that is too long too",
        "HDR-10",
        "body_checksum",
        Stream().add(PING, bytes(9), body_crc=1).data,
        0,
        "Order",
    )
    bad(
        "body-after-crc",
        "the same body, undamaged",
        "FRM-2",
        "trailing_bytes",
        Stream().add(PING, bytes(9)).data,
        0,
        "Trailing",
    )
    bad(
        "body-in-second",
        "the second frame's body is too short",
        "FRM-1",
        "malformed",
        Stream().ping().add(PING, bytes(7)).ping().data,
        1,
        "Truncated",
    )
    hello = join(lay("HELLO", {**BARE, "mode": 9}))
    bad(
        "first-error",
        "an unknown mode, and then a frame with the wrong number: the first error counts",
        "FRM-4",
        "bad_value",
        Stream().add(0x8001, hello).ping(sequence=9).data,
        0,
        "Order",
    )


def _ends(bad: Any) -> None:
    """FRM-10: the connection ends inside a frame; PRE-7 is in preface.json."""
    whole = Stream().ping().data
    for size in (*range(1, 32), 32, *range(33, 40)):
        where = "inside the header" if size < 32 else "behind the header" if size == 32 else "inside the body"
        bad(
            f"cut-{size}",
            f"the connection ends {where}, {size} bytes into the frame",
            "FRM-10",
            "truncated",
            whole[: 16 + size],
            0,
            "Truncated",
            eof=True,
        )
    second = Stream().ping().add(GREASE, b"noise").data
    bad(
        "cut-skipped",
        "the connection ends inside a frame to be skipped",
        "FRM-10",
        "truncated",
        second[:-1],
        1,
        "Truncated",
        "Unknown",
        eof=True,
    )
    bad(
        "cut-skipped-header",
        "the connection ends behind the header of a frame to be skipped",
        "FRM-10",
        "truncated",
        second[:-5],
        1,
        "Truncated",
        "Unknown",
        eof=True,
    )
    bad(
        "cut-second",
        "the connection ends inside the second header",
        "FRM-10",
        "truncated",
        second[:-20],
        1,
        "Truncated",
        eof=True,
    )
