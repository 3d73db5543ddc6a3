"""Frames as they are in a migration of a small virtual machine, one of every type but PAGES."""

from __future__ import annotations

from typing import Final

from sterna.core.negotiate import VERSION, offer
from sterna.limits import Limits
from sterna.registry import BitmapEncoding, Checksum, ErrorCode, Mode, Owner, Phase, StateKind, Style
from sterna.wire import records as r

_ID, _TOKEN, _DIGEST = bytes(range(16)), bytes(range(32)), bytes(range(16, 32))
_RUNNER: Final = r.Runner("host-b.example", _ID)
_GIB: Final = 1 << 30
_BITMAP_BITS: Final = _GIB >> 12
_STATE_BYTES: Final = 4096

REGION: Final = r.Region(0, 0, _GIB)
FEATURES: Final = tuple(r.FeatureChoice(each.id, each.parameter) for each in offer())

CONTROL_FRAMES: Final[tuple[r.Record, ...]] = (
    r.Hello(
        Mode.OPEN, (VERSION,), tuple(offer()), Limits().to_wire(), _ID, 7, r.Runner("host-a.example", _ID),
        "sterna",
    ),
    r.Welcome(VERSION, _ID, _TOKEN, FEATURES, Limits().to_wire(), "sterna"),
    r.Refuse(ErrorCode.FULL, 1000, (), "no room"),
    r.Guest(
        "web-1", 0, 4, 1 << 20, (REGION, r.Region(1, 4 * _GIB, _GIB)),
        ("aes", "avx", "avx2", "bmi1", "bmi2", "fma", "popcnt", "sse4_2"),
        (r.Nic("eth0", b"\x02\0\0\0\0\x01"),), (r.Disk("root", "pool/web-1", 20 * _GIB),),
    ),
    r.Accept(2 * _GIB),
    r.Attach(_ID, _TOKEN, 0, 1),
    r.Attached(0, 1, 17),
    r.Held(3, 0, False, 0, _BITMAP_BITS, BitmapEncoding.PLAIN, bytes(_BITMAP_BITS // 8)),
    r.Round(1, 2, 5000),
    r.RoundEnd(1, 2, 5000, 5000 << 12, ((0, 90),)),
    r.RoundAck(1, 2, 4998, 10**9, (r.PageRange(0, 5, 1), r.PageRange(0, 90, 1))),
    r.Switchover(1, Style.STOP_AND_COPY, 40_000),
    r.Ready(1),
    r.NotReady(1, ErrorCode.BUSY, "storage is not attached yet"),
    r.DirtyBitmap(1, 0, 0, _BITMAP_BITS, BitmapEncoding.PLAIN, bytes(_BITMAP_BITS // 8)),
    r.State(1, 0, 0, StateKind.WORKLOAD, 1, 0, _STATE_BYTES, 0, True, bytes(_STATE_BYTES)),
    r.Seal(1, Checksum.XXH3_128, _DIGEST, _DIGEST, 12, 48_000, ((0, 95),)),
    r.Loaded(1, _DIGEST),
    r.Handover(1, 7),
    r.Running(8, _RUNNER),
    r.HandBack(8, _RUNNER),
    r.PageRequest(0, 17, 1),
    r.Complete(8, _DIGEST),
    r.Release(8),
    r.Bye(),
    r.Ping(3),
    r.Pong(3),
    r.Progress(Phase.ROUNDS, 2, 500_000, 3000, 2 * _GIB, 10**8, 10**9, 40_000),
    r.Abort(ErrorCode.CANCELLED, Phase.ROUNDS, 0, 0, 0, "cancelled"),
    r.Verdict(Owner.DESTINATION, 8, _RUNNER, complete=True, digest=_DIGEST),
    r.End(1234),
)  # fmt: skip

# The longest that default limits allow of what a peer sends in every round.
LONGEST_ACK: Final = r.RoundAck(
    1, 2, 0, 10**9, tuple(r.PageRange(0, 2 * number, 1) for number in range(Limits().rejected_runs))
)
