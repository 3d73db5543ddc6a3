"""4.1: headers of frames."""

from __future__ import annotations

import struct
from typing import Any, Final

from vector_cases.book import Group
from vector_cases.layout import REGISTRY, integer
from vector_cases.wholes import header

PING: Final = 0x8050
BYE: Final = 0x8043
PAGES: Final = 0x8011
GREASE: Final = 0x7F00
CRITICAL: Final = 0xFF00  # of no frame
U16_MAX: Final = 2**16 - 1
U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1
CONTROL: Final = 1048576
BULK: Final = 16777216
HANDSHAKE: Final = 65536


def headers() -> list[Group]:
    """4.1, in the middle of a session."""
    clauses = [*(f"HDR-{number}" for number in range(2, 10)), "FRM-6"]
    control = Group("header", "header", "", clauses, {"stream": 0, "sequence": 0})
    right: dict[str, int] = {"body_bytes": 8, "body_crc": 0x01020304}

    def valid(group: Group, name: str, comment: str, number: int, *flags: str, **fields: int) -> None:
        value = {
            "type": number,
            "flags": 0,
            "stream": 0,
            "sequence": 0,
            "body_bytes": 0,
            "bulk_bytes": 0,
            "body_crc": 0,
        }
        value |= fields
        data = header(number, **fields)
        value["header_crc"] = struct.unpack("<I", data[-4:])[0]
        shown = {key: integer(field) for key, field in value.items()}
        group.add(name, comment, flags or ["Boundary"], "HDR-2", data, value=shown)

    valid(control, "basic", "a PING", PING, "Basic", **right)
    valid(control, "no-body", "a BYE has no body: the checksum of nothing is 0", BYE)
    valid(control, "body-limit", "as long a body as announced", PING, body_bytes=CONTROL)
    valid(control, "bulk-limit", "as long a bulk part as announced", PAGES, body_bytes=48, bulk_bytes=BULK)
    valid(
        control, "unknown", "a type that is not registered and need not be known", GREASE, "Unknown", **right
    )
    valid(control, "unknown-zero", "type 0", 0, "Unknown", **right)
    valid(control, "unknown-7fff", "the last type without the critical bit", 0x7FFF, "Unknown", **right)
    valid(control, "crc-extremes", "a checksum of ones", PING, body_bytes=8, body_crc=U32_MAX)
    groups = [control]
    for stream in (1, 16):
        group = Group("header", "header", "", ["HDR-5"], {"stream": stream, "sequence": 0})
        valid(
            group,
            f"stream-{stream}",
            f"stream {stream} on data connection {stream - 1}",
            PAGES,
            stream=stream,
            body_bytes=48,
        )
        for other in (0, stream + 1):
            data = header(PAGES, stream=other, body_bytes=48)
            comment = f"stream {other} on data connection {stream - 1}"
            group.add(f"stream-{other}-on-{stream}", comment, ["Sequence"], "HDR-5", data, error="bad_header")
        groups.append(group)
    _header_faults(control, right)
    _header_order(control)
    early = Group("header", "header", "", ["LIM-5"], {"stream": 0, "sequence": 0, "handshake": True})
    valid(
        early,
        "handshake-limit",
        "as long a body as a handshake frame may have",
        0x8001,
        "Handshake",
        body_bytes=HANDSHAKE,
    )
    for number, word in ((0x8001, "hello"), (0x8002, "welcome"), (GREASE, "unknown")):
        for size in (HANDSHAKE + 1, CONTROL, U32_MAX):
            comment = f"{word}: {size} bytes before limits were announced"
            early.add(
                f"handshake-{word}-{size}",
                comment,
                ["Handshake", "Limit"],
                "LIM-5",
                header(number, body_bytes=size),
                error="limit_control",
            )
    for size in (1, 4096, U32_MAX):
        comment = f"a bulk part of {size} bytes before limits were announced"
        early.add(
            f"handshake-bulk-{size}",
            comment,
            ["Handshake", "Limit"],
            "LIM-5",
            header(PAGES, body_bytes=48, bulk_bytes=size),
            error="limit_bulk",
        )
    small = Group(
        "header",
        "header",
        "",
        ["HDR-7", "HDR-9"],
        {"stream": 0, "sequence": 0, "limits": {"control_bytes": 65536, "bulk_bytes": 4096}},
    )
    valid(small, "limit-body", "as long a body as announced", PING, body_bytes=65536)
    valid(small, "limit-bulk", "as long a bulk part as announced", PAGES, body_bytes=48, bulk_bytes=4096)
    small.add(
        "limit-body-more",
        "a byte more than announced",
        ["Limit"],
        "HDR-7",
        header(PING, body_bytes=65537),
        error="limit_control",
    )
    small.add(
        "limit-bulk-more",
        "a byte more than announced",
        ["Limit"],
        "HDR-9",
        header(PAGES, body_bytes=48, bulk_bytes=4097),
        error="limit_bulk",
    )
    return [*groups, early, small]


def _header_faults(group: Group, right: dict[str, int]) -> None:
    def wrong(name: str, comment: str, clause: str, error: str, data: bytes, *flags: str) -> None:
        group.add(name, comment, flags, clause, data, error=error)

    good = header(PING, **right)
    for at in range(32):
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        wrong(
            f"flip-{at}",
            f"bit {at % 8} of byte {at} is flipped",
            "HDR-2",
            "header_checksum",
            bytes(data),
            "Checksum",
        )
    for name, comment, crc in (("zero", "header_crc is 0", 0), ("max", "header_crc is 2^32 - 1", U32_MAX)):
        wrong(
            f"crc-{name}",
            comment,
            "HDR-2",
            "header_checksum",
            header(PING, header_crc=crc, **right),
            "Checksum",
        )
    turned = good[:28] + good[:27:-1]
    wrong(
        "crc-big-endian", "header_crc in the wrong byte order", "HDR-2", "header_checksum", turned, "Checksum"
    )
    wrong(
        "zeros",
        "a header of zeros: its checksum would not be 0",
        "HDR-2",
        "header_checksum",
        bytes(32),
        "Checksum",
    )
    for bit in range(16):
        wrong(
            f"flags-{bit}",
            f"bit {bit} of flags is set",
            "HDR-3",
            "bad_header",
            header(PING, flags=1 << bit, **right),
            "Reserved",
        )
        wrong(
            f"reserved-{bit}",
            f"bit {bit} of the reserved field is set",
            "HDR-4",
            "bad_header",
            header(PING, reserved=1 << bit, **right),
            "Reserved",
        )
    for stream in (1, 17, U16_MAX):
        wrong(
            f"stream-{stream}-on-control",
            f"stream {stream} on a control connection",
            "HDR-5",
            "bad_header",
            header(PING, stream=stream, **right),
            "Sequence",
        )
    for sequence in (1, 2**32, 2**63, U64_MAX):
        wrong(
            f"sequence-{sequence}",
            f"the first frame has number {sequence}",
            "HDR-6",
            "bad_sequence",
            header(PING, sequence=sequence, **right),
            "Sequence",
        )
    for number in (0x8000, 0x8009, 0x8FFF, CRITICAL, 0xFFFF, 0x8052):
        wrong(
            f"critical-{number:04x}",
            f"type 0x{number:04X}, which is critical and not registered",
            "FRM-6",
            "unknown_critical",
            header(number, **right),
            "Unknown",
        )
    for size in (CONTROL + 1, 2**31, U32_MAX):
        wrong(
            f"body-{size}",
            f"a body of {size} bytes; the default limit is {CONTROL}",
            "HDR-7",
            "limit_control",
            header(PING, body_bytes=size),
            "Limit",
        )
        wrong(
            f"unknown-body-{size}",
            f"a frame to be skipped, with a body of {size} bytes",
            "HDR-7",
            "limit_control",
            header(GREASE, body_bytes=size),
            "Limit",
            "Unknown",
        )
    for size in (BULK + 1, 2**31, U32_MAX):
        wrong(
            f"bulk-{size}",
            f"a bulk part of {size} bytes; the default limit is {BULK}",
            "HDR-9",
            "limit_bulk",
            header(PAGES, body_bytes=48, bulk_bytes=size),
            "Limit",
        )
    for name, row in REGISTRY["frames"].items():
        if name != "PAGES":
            slug = name.lower().replace("_", "-")
            wrong(
                f"bulk-in-{slug}",
                f"a bulk part in {name}",
                "HDR-8",
                "bad_header",
                header(row["type"], bulk_bytes=1),
                "CrossField",
            )
    wrong(
        "bulk-in-unknown",
        "a bulk part in a frame to be skipped",
        "HDR-8",
        "bad_header",
        header(GREASE, bulk_bytes=1, **right),
        "Unknown",
    )


def _header_order(group: Group) -> None:
    """HDR-11: each header breaks a clause and all that come behind it."""
    everything: dict[str, Any] = {
        "flags": 1,
        "reserved": 1,
        "stream": 1,
        "sequence": 1,
        "bulk_bytes": U32_MAX,
        "body_bytes": U32_MAX,
    }
    for clause, error, repaired, number in (
        ("HDR-2", "header_checksum", (), CRITICAL),
        ("HDR-3", "bad_header", ("crc",), CRITICAL),
        ("HDR-4", "bad_header", ("flags",), CRITICAL),
        ("HDR-5", "bad_header", ("flags", "reserved"), CRITICAL),
        ("HDR-6", "bad_sequence", ("flags", "reserved", "stream"), CRITICAL),
        ("FRM-6", "unknown_critical", ("flags", "reserved", "stream", "sequence"), CRITICAL),
        ("HDR-8", "bad_header", ("flags", "reserved", "stream", "sequence"), PING),
        ("HDR-7", "limit_control", ("flags", "reserved", "stream", "sequence"), PAGES),
        ("HDR-9", "limit_bulk", ("flags", "reserved", "stream", "sequence", "body_bytes"), PAGES),
    ):
        fields = {name: value for name, value in everything.items() if name not in repaired}
        if clause == "HDR-2":
            fields["header_crc"] = 0
        data = header(number, **fields)
        comment = f"{clause} is broken, and all that is checked behind it"
        group.add(f"order-{clause.lower()}", comment, ["Order"], clause, data, error=error)
