"""ACCEPT, ATTACH, ATTACHED."""

from __future__ import annotations

from typing import Any

from vector_cases.book import Group, derive
from vector_cases.handshake import SESSION, TOKEN


def accept() -> list[Group]:
    """5.5."""
    group = Group("accept", "body", "ACCEPT", ["ACC-2"])
    base = {"reserved_bytes": 0x0102030405060708, "data_streams": 0}
    group.valid("basic", "memory is reserved", base)
    comment = "16 data connections are well-formed; whether they were selected is ACC-3's question"
    group.valid("streams-16", comment, {**base, "data_streams": 16}, "Boundary", clause="ACC-2")
    for number in (17, 0x100, 0xFFFF):
        comment = f"{number} data connections"
        group.wrong_value(
            f"streams-{number}", comment, "ACC-2", "bad_value", {**base, "data_streams": number}, "Limit"
        )
    derive(group, base, extremes=["reserved_bytes"])
    return [group]


def attach() -> list[Group]:
    """5.6: ATTACH and ATTACHED."""
    groups = []
    bases: dict[str, dict[str, Any]] = {
        "ATTACH": {"session": SESSION, "token": TOKEN, "generation": 0x01020304, "index": 5},
        "ATTACHED": {"last_sequence": 0x0102030405060708, "generation": 0x0A0B0C0D, "index": 5},
    }
    for frame, base in bases.items():
        group = Group(frame.lower(), "body", frame, ["ATT-2"])
        group.valid("basic", f"an ordinary {frame}", base)
        for index in (0, 15):
            group.valid(
                f"index-{index}", f"index {index}", {**base, "index": index}, "Boundary", clause="ATT-2"
            )
        for index in (16, 0x100, 0xFFFF):
            group.wrong_value(
                f"index-{index}", f"index {index}", "ATT-2", "bad_value", {**base, "index": index}, "Limit"
            )
        derive(group, base, extremes=["generation", *(["last_sequence"] if frame == "ATTACHED" else [])])
        groups.append(group)
    return groups
