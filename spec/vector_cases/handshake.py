"""HELLO, WELCOME, REFUSE."""

from __future__ import annotations

from typing import Any, Final

from vector_cases.book import Group, derive, text_lengths
from vector_cases.layout import lay, patched

VERSION: Final = 1 << 16 | 1
OTHER: Final = 9 << 16  # a version that nobody speaks yet
ID: Final = bytes(range(0x10, 0x20))
RUNNER: Final = bytes(range(0x30, 0x40))
SESSION: Final = bytes(range(0x50, 0x60))
TOKEN: Final = bytes(range(0x80, 0xA0))
U64_MAX: Final = 2**64 - 1

HELLO: Final[dict[str, Any]] = {
    "mode": 0,
    "epoch": 0x0102030405060708,
    "generation": 0,
    "guest": ID,
    "runner": RUNNER,
    "session": bytes(16),
    "token": bytes(32),
    "runner_host": "tern-1",
    "agent": "sterna-test/1",
    "versions": [VERSION, OTHER],
    "features": [
        {"id": 1, "required": True, "parameter": 0},
        {"id": 7, "required": False, "parameter": 0x1122334455667788},
    ],
    "limits": [{"id": 1, "value": 0x10000}, {"id": 0x0B, "value": 0x8877665544332211}],
}
BARE: Final[dict[str, Any]] = {
    **HELLO,
    "runner_host": "",
    "agent": "",
    "versions": [VERSION],
    "features": [],
    "limits": [],
}
RESUME: Final[dict[str, Any]] = {**HELLO, "mode": 1, "session": SESSION, "token": TOKEN, "generation": 3}


def _features(many: int) -> list[dict[str, Any]]:
    return [{"id": number, "required": False, "parameter": number} for number in range(many)]


def _limits(many: int) -> list[dict[str, int]]:
    return [{"id": number, "value": number} for number in range(many)]


def hello() -> list[Group]:
    """5.1."""
    group = Group("hello", "body", "HELLO", ["FRM-15", "HEL-2", "HEL-3", "HEL-4", "HEL-5", "HEL-6", "HEL-8"])
    group.valid("basic", "an opening with features and limits", HELLO)
    group.valid("bare", "an opening with one version and nothing else", BARE)
    group.valid("resume", "a resumption", RESUME)
    group.valid("verdict", "a question for a verdict", {**RESUME, "mode": 2, "generation": 0})
    group.valid("stored", "the first frame of a stored stream", {**BARE, "mode": 3, "epoch": U64_MAX})
    group.valid(
        "only-others",
        "no version in common: a well-formed HELLO, which the destination refuses as NEG-1 says",
        {**BARE, "versions": [OTHER, OTHER + 1]},
        "Version",
        clause="VRS-3",
    )
    group.valid(
        "unknown-ids",
        "features and limits of unknown ids are well-formed",
        {
            **HELLO,
            "features": [{"id": 0xFFFF, "required": True, "parameter": U64_MAX}],
            "limits": [{"id": 0xFFFF, "value": U64_MAX}, {"id": 0, "value": 0}],
        },
        "OpenEnum",
        clause="LIM-2",
    )
    text_lengths(group, HELLO, "agent")
    text_lengths(group, HELLO, "runner_host")
    derive(group, HELLO)
    _hello_bounds(group)
    _hello_sessions(group)
    _hello_order(group)
    return [group]


def _hello_bounds(group: Group) -> None:
    versions = [VERSION, *(OTHER + number for number in range(16))]
    group.valid("versions-16", "16 versions", {**BARE, "versions": versions[:16]}, "Boundary", clause="HEL-2")
    group.valid("features-64", "64 features", {**BARE, "features": _features(64)}, "Boundary", clause="HEL-3")
    group.valid("limits-64", "64 limits", {**BARE, "limits": _limits(64)}, "Boundary", clause="HEL-4")
    wrong = group.wrong_value
    wrong("versions-0", "no version", "HEL-2", "bad_value", {**BARE, "versions": []}, "Boundary")
    wrong("versions-17", "17 versions", "HEL-2", "bad_value", {**BARE, "versions": versions}, "Limit")
    twice = {**BARE, "versions": [VERSION, OTHER, VERSION]}
    wrong("versions-twice", "a version twice", "HEL-2", "bad_value", twice, "Duplicate")
    wrong("features-65", "65 features", "HEL-3", "bad_value", {**BARE, "features": _features(65)}, "Limit")
    doubled = {**BARE, "features": _features(3) + _features(1)}
    wrong("features-twice", "a feature twice, with other numbers", "HEL-3", "bad_value", doubled, "Duplicate")
    wrong("limits-65", "65 limits", "HEL-4", "bad_value", {**BARE, "limits": _limits(65)}, "Limit")
    doubled = {**BARE, "limits": [*_limits(3), {"id": 1, "value": 9}]}
    wrong("limits-twice", "a limit twice, with another value", "HEL-4", "bad_value", doubled, "Duplicate")
    for name, clause, bound in (
        ("version_count", "HEL-2", 16),
        ("feature_count", "HEL-3", 64),
        ("limit_count", "HEL-4", 64),
    ):
        word = name.replace("_", "-")
        comment = f"{name} is 65535, of which the body has little"
        wrong(f"{word}-65535", comment, clause, "bad_value", BARE, "Limit", "Count", **{name: 0xFFFF})
        comment = f"{name} is {bound}, the most that is allowed, of which the body has little"
        wrong(f"{word}-lies", comment, "FRM-12", "malformed", BARE, "Count", **{name: bound})


def _hello_sessions(group: Group) -> None:
    for word, mode in (("open", 0), ("stored", 3)):
        for name, what in (("session", SESSION), ("token", TOKEN), ("generation", 1)):
            group.wrong_value(
                f"{word}-{name}",
                f"mode {word} with a {name}",
                "HEL-5",
                "bad_value",
                {**BARE, "mode": mode, name: what},
                "CrossField",
            )
    for word, mode in (("resume", 1), ("verdict", 2)):
        value = {**BARE, "mode": mode, "token": TOKEN}
        group.wrong_value(
            f"{word}-nothing", f"mode {word} without a session", "HEL-6", "bad_value", value, "CrossField"
        )
    group.valid(
        "epoch-last",
        "the last epoch that leaves two",
        {**BARE, "epoch": U64_MAX - 2},
        "Boundary",
        clause="HEL-8",
    )
    group.valid("epoch-zero", "epoch 0", {**BARE, "epoch": 0}, "Boundary", clause="HEL-8")
    for epoch in (U64_MAX - 1, U64_MAX):
        group.wrong_value(
            f"epoch-{U64_MAX - epoch}-left",
            "not two epochs are left",
            "HEL-8",
            "bad_value",
            {**BARE, "epoch": epoch},
            "Boundary",
        )
    group.valid(
        "resume-epoch",
        "a resumption may have any epoch",
        {**RESUME, "epoch": U64_MAX},
        "Boundary",
        clause="HEL-8",
    )


def _hello_order(group: Group) -> None:
    """Layout first, then versions, then values [VRS-3]."""
    ours = lay("HELLO", HELLO)
    theirs = lay("HELLO", {**HELLO, "versions": [OTHER]})
    for name, path, new in (
        ("mode", "mode", b"\x2a"),
        ("reserved", "res@1", b"\1"),
        ("bool", "features.0.required", b"\2"),
        ("session", "session", SESSION),
        ("epoch", "epoch", b"\xff" * 8),
    ):
        group.wrong(
            f"other-versions-{name}",
            f"a HELLO of other versions alone, whose {name} this one does not know: told about the versions",
            "NEG-1",
            "no_common_version",
            patched(theirs, path, new),
            "Version",
            "Order",
        )
    group.wrong(
        "other-versions-text",
        "text belongs to the layout, which no version changes",
        "TXT-2",
        "bad_text",
        patched(theirs, "agent", b"\1\xff"),
        "Version",
        "Order",
    )
    group.wrong(
        "other-versions-twice",
        "a limit twice belongs to the layout, which no version changes",
        "HEL-4",
        "bad_value",
        patched(theirs, "limits.1.id", b"\1\0"),
        "Version",
        "Order",
    )
    group.wrong(
        "layout-before-values",
        "an unknown mode, and bytes behind the end: layout comes first",
        "FRM-2",
        "trailing_bytes",
        patched(ours, "mode", b"\x2a") + b"\0",
        "Order",
    )
    group.wrong(
        "text-before-values",
        "an unknown mode, and a text that is none: layout comes first",
        "TXT-3",
        "bad_text",
        patched(lay("HELLO", {**HELLO, "agent": b"\0"}), "mode", b"\x2a"),
        "Order",
    )


WELCOME: Final[dict[str, Any]] = {
    "version": VERSION,
    "generation": 0,
    "complete_round": 0,
    "held_frames": 0,
    "session": SESSION,
    "token": TOKEN,
    "agent": "sterna-test/1",
    "features": [{"id": 1, "parameter": 0}, {"id": 7, "parameter": 0x1122334455667788}],
    "limits": [{"id": 1, "value": 0x10000}, {"id": 2, "value": 0x8877665544332211}],
}


def welcome() -> list[Group]:
    """5.2."""
    group = Group("welcome", "body", "WELCOME", ["FRM-15", "WEL-1", "WEL-2"])
    bare = {**WELCOME, "agent": "", "features": [], "limits": []}
    group.valid("basic", "a session with features and limits", WELCOME)
    group.valid("bare", "a session with nothing selected", bare)
    resumed = {**WELCOME, "generation": 0x01020304, "complete_round": 0x05060708, "held_frames": 0x090A0B0C}
    group.valid("resume", "a resumption", resumed)
    chosen = [{"id": number, "parameter": number} for number in range(65)]
    group.valid("features-64", "64 features", {**bare, "features": chosen[:64]}, "Boundary", clause="WEL-1")
    group.valid("limits-64", "64 limits", {**bare, "limits": _limits(64)}, "Boundary", clause="WEL-2")
    text_lengths(group, WELCOME, "agent")
    derive(group, WELCOME, extremes=["version", "generation", "complete_round", "held_frames"])
    wrong = group.wrong_value
    wrong("features-65", "65 features", "WEL-1", "bad_value", {**bare, "features": chosen}, "Limit")
    twice = {**bare, "features": [*chosen[:2], {"id": 1, "parameter": 9}]}
    wrong("features-twice", "a feature twice, with other numbers", "WEL-1", "bad_value", twice, "Duplicate")
    wrong("limits-65", "65 limits", "WEL-2", "bad_value", {**bare, "limits": _limits(65)}, "Limit")
    twice = {**bare, "limits": [*_limits(2), {"id": 1, "value": 9}]}
    wrong("limits-twice", "a limit twice, with another value", "WEL-2", "bad_value", twice, "Duplicate")
    for name, clause in (("feature_count", "WEL-1"), ("limit_count", "WEL-2")):
        word = name.replace("_", "-")
        wrong(
            f"{word}-65535", f"{name} is 65535", clause, "bad_value", bare, "Limit", "Count", **{name: 0xFFFF}
        )
        comment = f"{name} is 64, and the body has none"
        wrong(f"{word}-lies", comment, "FRM-12", "malformed", bare, "Count", **{name: 64})
    return [group]


def refuse() -> list[Group]:
    """5.3."""
    group = Group("refuse", "body", "REFUSE", ["FRM-15", "REF-1"])
    base: dict[str, Any] = {
        "code": 0x0205,
        "retry_after_ms": 0x01020304,
        "text": "CPU features are missing here",
        "items": ["avx512f", "amx-tile"],
    }
    bare = {"code": 0x0401, "retry_after_ms": 0, "text": "", "items": []}
    group.valid("basic", "a refusal that lists what is missing", base)
    group.valid("bare", "a refusal without a word", bare)
    group.valid("code-unknown", "a code of no registry", {**base, "code": 0x7FFF}, "OpenEnum", clause="REF-3")
    group.valid(
        "items-64", "64 items, some empty", {**bare, "items": ["", "x"] * 32}, "Boundary", clause="REF-1"
    )
    group.valid("items-equal", "items may repeat", {**bare, "items": ["x", "x"]}, "Boundary", clause="REF-1")
    group.valid(
        "items-long", "items of 255 bytes", {**bare, "items": ["y" * 255] * 3}, "Boundary", clause="TXT-1"
    )
    text_lengths(group, base, "text")
    derive(group, base, extremes=["code", "retry_after_ms"])
    wrong = group.wrong_value
    wrong("items-65", "65 items", "REF-1", "bad_value", {**bare, "items": ["x"] * 65}, "Limit")
    wrong(
        "item-count-65535",
        "item_count is 65535",
        "REF-1",
        "bad_value",
        bare,
        "Limit",
        "Count",
        item_count=0xFFFF,
    )
    wrong(
        "item-count-lies", "64 items in a body of none", "FRM-12", "malformed", bare, "Count", item_count=64
    )
    value = {**bare, "items": ["ab", "c"]}
    comment = "6 items in 5 bytes: even empty ones would have one byte each"
    wrong("item-count-6", comment, "FRM-12", "malformed", value, "Count", item_count=6)
    wrong(
        "item-count-5", "5 items in 5 bytes that hold 2", "FRM-1", "malformed", value, "Count", item_count=5
    )
    wrong(
        "item-count-1",
        "1 item, and bytes of another",
        "FRM-2",
        "trailing_bytes",
        value,
        "Count",
        item_count=1,
    )
    wrong(
        "count-before-text",
        "more items than allowed, and a text that is none: fields come in their order",
        "REF-1",
        "bad_value",
        {**bare, "text": b"\0"},
        "Order",
        item_count=65,
    )
    wrong(
        "text-before-items",
        "a text that is none, and items that do not fit: fields come in their order",
        "TXT-3",
        "bad_text",
        {**bare, "text": b"\0"},
        "Order",
        item_count=64,
    )
    value = {**bare, "items": [b"\0", b"x"]}
    comment = "3 items in 4 bytes, of which the first is no text"
    wrong("items-in-order", comment, "TXT-3", "bad_text", value, "Order", item_count=3)
    comment = "5 items in 4 bytes, of which the first is no text: the count comes before its items"
    wrong("count-before-items", comment, "FRM-12", "malformed", value, "Order", item_count=5)
    return [group]
