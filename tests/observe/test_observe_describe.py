"""What records say, as plain values."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given

from observe_support import migration
from sterna.observe.describe import describe, frame_name
from sterna.registry import Architecture, Encoding, ErrorCode, FrameType, Mode, Phase, StateKind
from sterna.testing import strategies
from sterna.wire import make_runs
from sterna.wire import records as r

TAPE = migration()


@given(strategies.records())
def test_every_record_can_be_described(record: r.Record) -> None:
    """In plain values, within bounds, and without a token [SEC-5]."""
    text = json.dumps(describe(record))
    token = getattr(record, "token", r.NO_TOKEN)
    assert token == r.NO_TOKEN or token.hex() not in text
    assert len(text) < 1 << 16


def test_a_greeting() -> None:
    hello = r.Hello(
        Mode.OPEN,
        (0x10001, 0x20000),
        (r.FeatureOffer(1, True), r.FeatureOffer(999, False, 7)),
        {1: 65536, 999: 3},
        bytes(range(16)),
        5,
        r.Runner("host-a", b"\1" * 16),
        "agent",
        session=b"\2" * 16,
        token=b"\3" * 32,
    )
    assert describe(hello) == {
        "mode": "open",
        "versions": ["1-draft.1", "2"],
        "features": ["stop_and_copy required", "0x03e7=7"],
        "limits": {"control_bytes": 65536, "0x03e7": 3},
        "guest": bytes(range(16)).hex(),
        "epoch": 5,
        "runner": {"host": "host-a", "id": "01" * 16},
        "agent": "agent",
        "session": "02" * 16,
        "token": "hidden",
        "generation": 0,
    }
    assert describe(TAPE.record(FrameType.WELCOME))["token"] == "hidden"
    assert describe(r.Attach(b"\1" * 16, b"\2" * 32, 0, 0))["token"] == "hidden"


def test_a_guest() -> None:
    told = describe(TAPE.record(FrameType.GUEST))
    assert told["name"] == "simulated"
    assert told["architecture"] == "synthetic"
    assert told["regions"] == [
        {
            "id": 0,
            "address": 0,
            "size_bytes": 262144,
            "granule_log2": 12,
            "fault_granule_log2": 12,
            "kind": "ram",
            "transfer": "copy",
        }
    ]


def test_pages_are_counted() -> None:
    runs = make_runs([(at * 2, 1, Encoding(at % 2)) for at in range(11)], 12)
    table = r.Pages(1, 2, 3, runs, np.zeros(6, dtype="<u8"))
    assert describe(table, 3) == {
        "attempt": 1,
        "round": 2,
        "region": 3,
        "pages": {"raw": 6, "zero": 5},
        "chunks": 6,
        "runs": ["0+1 raw", "2+1 zero", "4+1 raw", "8 more"],
    }


def test_long_lists_are_cut() -> None:
    ranges = tuple(r.PageRange(1, at * 2, 1) for at in range(20))
    assert describe(r.RoundAck(1, 1, 5, 0, ranges), 2)["rejected"] == ["1: 0+1", "1: 2+1", "18 more"]
    assert describe(r.RoundAck(1, 1, 5, 0, ranges[:2]), 2)["rejected"] == ["1: 0+1", "1: 2+1"]
    assert "rejected" not in describe(r.RoundAck(1, 1, 5, 0))
    assert describe(r.RoundEnd(1, 1, 5, 0, ((0, 7), (2, 9))))["last_sequences"] == ["0: 7", "2: 9"]


@pytest.mark.parametrize(
    ("record", "name", "value"),
    [
        (r.Abort(ErrorCode.BAD_ROUND, Phase.ROUNDS, FrameType.ROUND), "code", "bad_round"),
        (r.Abort(ErrorCode.BAD_ROUND, Phase.ROUNDS, FrameType.ROUND), "phase", "rounds"),
        (r.Abort(ErrorCode.BAD_ROUND, Phase.ROUNDS, FrameType.ROUND), "frame", "ROUND"),
        (r.Abort(0x7777, 0x66, 0x7F00), "code", "0x7777"),
        (r.Abort(0x7777, 0x66, 0x7F00), "phase", "0x0066"),
        (r.Abort(0x7777, 0x66, 0x7F00), "frame", "0x7f00"),
        (r.Abort(1, 0), "frame", None),
        (
            r.State(1, Architecture.SYNTHETIC, r.NO_VCPU, StateKind.CLOCK, 1, 0, 5, 0, True, b"12345"),
            "data",
            5,
        ),
        (r.State(1, Architecture.SYNTHETIC, r.NO_VCPU, StateKind.CLOCK, 1, 0, 0, 0, True, b""), "data", 0),
        (r.State(1, 7, r.NO_VCPU, StateKind.CLOCK, 1, 0, 0, 0, True, b""), "vcpu", None),
        (r.State(1, 7, 3, 0x7777, 1, 0, 0, 0, True, b""), "vcpu", 3),
        (r.State(1, 7, 3, 0x7777, 1, 0, 0, 0, True, b""), "kind", "0x7777"),
        (r.DirtyBitmap(1, 0, 0, 8, 0, b"\1"), "data", 1),
    ],
)
def test_numbers_have_names(record: r.Record, name: str, value: object) -> None:
    assert describe(record)[name] == value


def test_names_of_frames() -> None:
    assert frame_name(FrameType.SEAL) == "SEAL"
    assert frame_name(0x7F01) == "0x7f01"
