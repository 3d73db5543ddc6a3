"""The destination's end of what test_interop_minimal_source.py migrates: orders, and frames out of place."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from minimal_support import connections

from sterna.registry import FrameType
from sterna_interop.minimal.codes import SessionError
from sterna_interop.minimal.destination import HASHES, STOP_AND_COPY, VERSION, Destination

ORDER = {"do": "migrate", "times": 0, "code": ""}
FEATURES = [{"id": STOP_AND_COPY}, {"id": HASHES}]
HELLO = {"versions": [{"version": VERSION}], "features": FEATURES, "epoch": 7}
REGION = {"id": 1, "granule_log2": 12, "fault_granule_log2": 12, "size_bytes": 8192}


def ended(frames: list[tuple[str, dict[str, Any]]], order: dict[str, Any] = ORDER) -> tuple[str, bool]:
    """With which code a destination ends after these frames, and whether it would say so with REFUSE."""
    with connections() as (source, destination):
        side = Destination(destination, order, {})
        error: list[SessionError] = []

        def serve() -> None:
            try:
                side.run()
            except SessionError as failure:
                error.append(failure)

        served = threading.Thread(target=serve)
        served.start()
        source.open()
        for name, fields in frames:
            source.send(name, **fields)
        served.join()
        assert not side.running
        return error[0].code, side.refusing


@pytest.mark.parametrize(
    ("frames", "code", "refusing"),
    [
        ([("BYE", {})], "unexpected_frame", False),
        ([("HELLO", HELLO | {"versions": [{"version": 1 << 16}]})], "no_common_version", True),
        ([("HELLO", HELLO | {"mode": 1, "session": b"s" * 16})], "unsupported", True),
        ([("HELLO", HELLO | {"features": FEATURES[:1]})], "missing_feature", True),
        (
            [("HELLO", HELLO | {"features": [*FEATURES, {"id": 99, "required": True}]})],
            "missing_feature",
            True,
        ),
        ([("HELLO", HELLO | {"epoch": (1 << 64) - 2})], "bad_value", True),
        ([("HELLO", HELLO), ("HELLO", HELLO)], "unexpected_frame", False),
        (
            [("HELLO", HELLO), ("GUEST", {"regions": [REGION]}), ("HANDOVER", {"attempt": 1})],
            "unexpected_frame",
            False,
        ),
        (
            [("HELLO", HELLO), ("GUEST", {"regions": [REGION]}), ("ROUND", {"attempt": 2, "round": 1})],
            "unsupported",
            False,
        ),
        (
            [("HELLO", HELLO), ("GUEST", {"regions": [REGION]}), ("ROUND", {"attempt": 1, "round": 2})],
            "bad_round",
            False,
        ),
    ],
)
def test_sessions_that_end_early(frames: list[tuple[str, dict[str, Any]]], code: str, refusing: bool) -> None:
    """[NEG-1, NEG-4, CON-3, CON-10, CON-11, CON-20, CON-59]"""
    assert ended(frames) == (code, refusing)


def test_a_refusal_as_ordered() -> None:
    frames: list[tuple[str, dict[str, Any]]] = [("HELLO", HELLO), ("GUEST", {"regions": [REGION]})]
    assert ended(frames, ORDER | {"do": "refuse", "code": "full"}) == ("full", True)
    assert FrameType.GUEST == 0x8004
