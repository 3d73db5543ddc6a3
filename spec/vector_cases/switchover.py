"""SWITCHOVER, READY, NOT_READY, STATE, SEAL, LOADED."""

from __future__ import annotations

from typing import Any, Final

from vector_cases.book import Group, closed_values, derive, text_lengths
from vector_cases.layout import join, lay, patched
from vector_cases.rounds import streams

U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1
DIGEST: Final = bytes(range(0xC0, 0xD0))
STATE_LIMIT: Final = 64 * 2**20


def prepare() -> list[Group]:
    """5.12."""
    group = Group("switchover", "body", "SWITCHOVER", ["FRM-4"])
    base: dict[str, Any] = {"attempt": 0x01020304, "style": 0, "predicted_downtime_us": 0x1112131415161718}
    group.valid("basic", "the source wants to pause", base)
    closed_values(group, base, "style")
    derive(group, base, extremes=["attempt", "predicted_downtime_us"])
    ready = Group("ready", "body", "READY", ["FRM-1", "FRM-3"])
    ready.valid("basic", "all is prepared", {"attempt": 0x01020304})
    derive(ready, {"attempt": 0x01020304}, extremes=["attempt"])
    refusal = Group("not-ready", "body", "NOT_READY", ["FRM-4"])
    base = {"attempt": 0x01020304, "code": 0x0408, "text": "could not prepare the switchover"}
    refusal.valid("basic", "not now", base)
    refusal.valid(
        "code-unknown",
        "a code of no registry is well-formed",
        {**base, "code": 0xEEEE},
        "OpenEnum",
        clause="FRM-4",
    )
    text_lengths(refusal, base, "text")
    derive(refusal, base, extremes=["attempt", "code"])
    return [group, ready, refusal]


STATE: Final[dict[str, Any]] = {
    "attempt": 0x01020304,
    "architecture": 1,
    "kind": 2,
    "vcpu": 0x05060708,
    "version": 0x090A0B0C,
    "instance": 0x0D0E0F10,
    "total_bytes": 0x00020406,
    "offset": 0x00010203,
    "last": False,
    "data": b"\xde\xad\xbe\xef",
}


def state() -> list[Group]:
    """5.13."""
    group = Group("state", "body", "STATE", ["STA-1", "STA-2", "STA-3", "STA-4"])
    group.valid("basic", "a fragment in the middle of a section", STATE)
    whole = {**STATE, "total_bytes": 4, "offset": 0, "last": True}
    group.valid("whole", "a section in one fragment", whole, clause="STA-3")
    empty = {**STATE, "total_bytes": 0, "offset": 0, "last": True, "data": b""}
    group.valid("empty-section", "a section of no bytes", empty, "Boundary", clause="STA-4")
    group.valid(
        "last-fragment",
        "the last fragment of a section",
        {**whole, "total_bytes": 10, "offset": 6},
        clause="STA-3",
    )
    group.valid("first-fragment", "the first fragment of a section", {**STATE, "offset": 0}, clause="STA-2")
    group.valid(
        "one-left",
        "a fragment that leaves one byte",
        {**STATE, "total_bytes": 11, "offset": 6},
        "Boundary",
        clause="STA-2",
    )
    group.valid("no-vcpu", "vcpu 2^32 - 1: none", {**STATE, "vcpu": U32_MAX}, "Boundary", clause="STA-9")
    numbers = {"architecture": 0xEEEE, "kind": 0xDDDD}
    comment = "an architecture and a kind that are not registered are well-formed"
    group.valid("unknown", comment, {**STATE, **numbers}, "OpenEnum", clause="FRM-4")
    large = {**STATE, "total_bytes": STATE_LIMIT, "offset": STATE_LIMIT - 4, "last": True}
    group.valid("total-limit", "64 MiB, the default limit", large, "Boundary", clause="STA-1")
    derive(group, STATE, extremes=["attempt", "architecture", "kind", "vcpu", "version", "instance"])
    wrong = group.wrong_value
    for number in (STATE_LIMIT + 1, 2**63, U64_MAX):
        wrong(
            f"total-{number}",
            f"{number} bytes of state",
            "STA-1",
            "limit_state",
            {**STATE, "total_bytes": number},
            "Limit",
        )
    wrong(
        "end-behind",
        "a fragment that ends a byte behind its section",
        "STA-2",
        "bad_fragment",
        {**STATE, "total_bytes": 9, "offset": 6},
        "Fragment",
    )
    wrong(
        "end-behind-last",
        "the same, and said to be the last",
        "STA-2",
        "bad_fragment",
        {**STATE, "total_bytes": 9, "offset": 6, "last": True},
        "Fragment",
    )
    wrong(
        "offset-behind",
        "a fragment that begins behind its section",
        "STA-2",
        "bad_fragment",
        {**whole, "total_bytes": 4, "offset": 5},
        "Fragment",
    )
    wrong(
        "offset-wraps",
        "offset and data_bytes whose sum wraps to 0",
        "STA-2",
        "bad_fragment",
        {**whole, "offset": U64_MAX - 3},
        "Fragment",
    )
    wrong(
        "offset-wraps-end",
        "offset and data_bytes whose sum wraps to total_bytes",
        "STA-2",
        "bad_fragment",
        {**whole, "total_bytes": 3, "offset": U64_MAX},
        "Fragment",
    )
    wrong(
        "section-empty",
        "bytes in a section of none",
        "STA-2",
        "bad_fragment",
        {**whole, "total_bytes": 0},
        "Fragment",
    )
    wrong(
        "last-missing",
        "the section ends, and last is not set",
        "STA-3",
        "bad_fragment",
        {**whole, "last": False},
        "Fragment",
    )
    wrong(
        "last-early",
        "last is set, and a byte is missing",
        "STA-3",
        "bad_fragment",
        {**whole, "total_bytes": 5},
        "Fragment",
    )
    wrong(
        "last-missing-empty",
        "a section of no bytes whose end is not set",
        "STA-3",
        "bad_fragment",
        {**empty, "last": False},
        "Fragment",
    )
    wrong(
        "fragment-empty",
        "no bytes in the middle of a section",
        "STA-4",
        "bad_fragment",
        {**STATE, "data": b""},
        "Fragment",
    )
    wrong(
        "fragment-empty-last",
        "no bytes at the end of a section",
        "STA-4",
        "bad_fragment",
        {**whole, "offset": 4, "data": b""},
        "Fragment",
    )
    count = {"data_bytes": U32_MAX}
    wrong("data-bytes-max", "data_bytes is 2^32 - 1", "FRM-12", "malformed", STATE, "Count", **count)
    wrong(
        "data-bytes-more",
        "the last byte of the data is missing",
        "FRM-12",
        "malformed",
        STATE,
        "Count",
        data_bytes=5,
    )
    wrong(
        "data-bytes-less",
        "data_bytes is less than what comes",
        "FRM-2",
        "trailing_bytes",
        STATE,
        "Count",
        "Trailing",
        data_bytes=3,
    )
    _state_order(group)
    small = Group("state", "body", "STATE", ["STA-1"], {"limits": {"state_bytes": 4}})
    small.valid("limit-4", "as much state as announced", whole, "Boundary", clause="STA-1")
    small.wrong_value(
        "limit-5",
        "a byte more than announced",
        "STA-1",
        "limit_state",
        {**whole, "total_bytes": 5, "last": False},
        "Limit",
    )
    return [group, small]


def _state_order(group: Group) -> None:
    """HDR-11: fields before what concerns several of them."""
    behind = {**STATE, "total_bytes": 9, "offset": 6}
    parts = lay("STATE", behind)
    cases = (
        (
            "bool-before-end",
            "a boolean of 2, in a fragment that leaves its section",
            "FRM-5",
            "bad_value",
            patched(parts, "last", b"\2"),
        ),
        (
            "reserved-before-end",
            "reserved bytes, in a fragment that leaves its section",
            "FRM-3",
            "bad_value",
            patched(parts, "res@41", b"\1" * 7),
        ),
        (
            "cut-before-end",
            "a cut body, whose fragment leaves its section",
            "FRM-12",
            "malformed",
            join(parts)[:-1],
        ),
        (
            "trailing-before-end",
            "bytes behind the end, of a fragment that leaves its section",
            "FRM-2",
            "trailing_bytes",
            join(parts) + b"\0",
        ),
        (
            "total-before-bool",
            "more than any section may have, before a boolean of 2",
            "STA-1",
            "limit_state",
            patched(lay("STATE", {**STATE, "total_bytes": U64_MAX}), "last", b"\2"),
        ),
    )
    for name, comment, clause, error, body in cases:
        group.wrong(name, comment, clause, error, body, "Order")


def seal() -> list[Group]:
    """5.14: SEAL and LOADED."""
    group = Group("seal", "body", "SEAL", ["SEA-1", "SEA-2", "FRM-16"])
    base: dict[str, Any] = {
        "attempt": 0x01020304,
        "algorithm": 3,
        "state_sections": 0x05060708,
        "state_bytes": 0x1112131415161718,
        "digest": DIGEST,
        "state_digest": bytes(reversed(DIGEST)),
        "streams": [{"stream": 0, "sequence": 0x3132333435363738}, {"stream": 16, "sequence": 2}],
    }
    group.valid("basic", "everything was sent", base)
    group.valid(
        "digest-zero",
        "digests of zeros are digests",
        {**base, "digest": bytes(16), "state_digest": bytes(16)},
        "Boundary",
    )
    derive(group, base, extremes=["attempt", "state_sections", "state_bytes"])
    for number, word in ((1, "crc32"), (2, "xxh3_64")):
        comment = f"{word} is a checksum, and no digest"
        group.wrong_value(
            f"algorithm-{word.replace('_', '-')}",
            comment,
            "SEA-1",
            "bad_value",
            {**base, "algorithm": number},
            "ClosedEnum",
        )
    streams(group, base, "SEA-2")
    loaded = Group("loaded", "body", "LOADED", ["FRM-1", "FRM-3"])
    base = {"attempt": 0x01020304, "digest": DIGEST}
    loaded.valid("basic", "everything is loaded", base)
    derive(loaded, base, extremes=["attempt"])
    return [group, loaded]
