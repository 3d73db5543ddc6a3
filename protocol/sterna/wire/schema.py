"""The executable form of the specification: one Construct declaration a frame body.

Laws of this module, which with fields.py and codec.py alone knows Construct:

- Never `Construct.compile()`: compiled parsers accept truncated bodies. Only the interpreted form reads
  a peer's bytes.
- Every body ends with `Terminated`, or bytes behind it would be ignored.
- No bulk page bytes ever pass through here, and the page table does so only in tests: pages.py does the
  same with struct and numpy, and a test proves the two equal.
"""

# ruff: noqa: ANN401

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from construct import Bytes, Struct, Terminated

from sterna.registry import (
    BitmapEncoding,
    Checksum,
    Encoding,
    FrameType,
    Mode,
    Owner,
    Phase,
    RegionKind,
    Style,
    Transfer,
)
from sterna.wire import page_rules, rules
from sterna.wire import records as r
from sterna.wire.fields import (
    DIGEST,
    FLAG,
    ID,
    TEXT,
    TOKEN,
    AnyConstruct,
    Blob,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    Rows,
    Ruled,
    body,
    closed,
    count,
    exact,
    record,
    reserved,
)
from sterna.wire.lists import (
    AtOnce,
    ids_differ,
    last_sequences,
    limits,
    offers_are_right,
    ranges_ascend,
)
from sterna.wire.rules import Rule

# --- preface and header -------------------------------------------------------------------------

PREFACE: Final[AnyConstruct] = Struct(
    "magic" / Ruled(Bytes(12), rules.MAGIC),
    "major" / Int16ul,
    "draft" / Int16ul,
    Terminated,
)

# The checksums are framing's business: they cover what is not parsed yet.
HEADER: Final[AnyConstruct] = Struct(
    "type" / Int16ul,
    "flags" / Int16ul,
    "stream" / Int16ul,
    "reserved" / Int16ul,
    "sequence" / Int64ul,
    "body_bytes" / Int32ul,
    "bulk_bytes" / Int32ul,
    "body_crc" / Int32ul,
    "header_crc" / Int32ul,
    Terminated,
)

# --- handshake and description ------------------------------------------------------------------


def _hello(mode: Any, flag: Any, unused: Callable[[int], Any], held: Iterable[Rule[Any]]) -> AnyConstruct:
    """The layout of HELLO, which is that of every version [FRM-15]; what its values may be is not."""
    feature = record(
        r.FeatureOffer, "id" / Int16ul, "required" / flag, unused(1), unused(4), "parameter" / Int64ul
    )
    return body(
        r.Hello,
        "mode" / mode,
        unused(1),
        "version_count" / count("versions", *rules.HELLO_VERSION_COUNT),
        "feature_count" / count("features", rules.HELLO_FEATURE_COUNT),
        "limit_count" / count("limits", rules.HELLO_LIMIT_COUNT),
        "epoch" / Int64ul,
        "generation" / Int32ul,
        unused(4),
        "guest" / ID,
        "runner_id" / ID,
        "session" / ID,
        "token" / TOKEN,
        "runner_host" / TEXT,
        "agent" / TEXT,
        "versions" / Ruled(Rows("version_count", Int32ul), rules.HELLO_VERSIONS),
        "features"
        / AtOnce(
            Ruled(Rows("feature_count", feature), rules.HELLO_FEATURES),
            lambda number, required, parameter: r.FeatureOffer(number, bool(required), parameter),
            offers_are_right,
        ),
        "limits" / limits(rules.HELLO_LIMITS, unused=unused),
        rules=held,
    )


HELLO: Final = _hello(closed(Mode), FLAG, reserved, rules.HELLO)
# For reading alone, and of what is read only the versions: other fields hold whatever came [VRS-3].
HELLO_OF_ANY_VERSION: Final = _hello(Int8ul, Int8ul, Bytes, ())

WELCOME: Final = body(
    r.Welcome,
    "version" / Int32ul,
    "feature_count" / count("features", rules.WELCOME_FEATURE_COUNT),
    "limit_count" / count("limits", rules.WELCOME_LIMIT_COUNT),
    "generation" / Int32ul,
    "complete_round" / Int32ul,
    "held_frames" / Int32ul,
    reserved(4),
    "session" / ID,
    "token" / TOKEN,
    "agent" / TEXT,
    "features"
    / AtOnce(
        Ruled(
            Rows(
                "feature_count",
                record(r.FeatureChoice, "id" / Int16ul, reserved(2), reserved(4), "parameter" / Int64ul),
            ),
            rules.WELCOME_FEATURES,
        ),
        r.FeatureChoice,
        ids_differ,
    ),
    "limits" / limits(rules.WELCOME_LIMITS),
)

REFUSE: Final = body(
    r.Refuse,
    "code" / Int16ul,
    "item_count" / count("items", rules.REFUSE_ITEM_COUNT),
    "retry_after_ms" / Int32ul,
    "text" / TEXT,
    "items" / Rows("item_count", TEXT, least=1),
)

REGION: Final = record(
    r.Region,
    "id" / Int32ul,
    "granule_log2" / Ruled(Int8ul, rules.GRANULE),
    "fault_granule_log2" / Ruled(Int8ul, rules.FAULT_GRANULE),
    "kind" / closed(RegionKind),
    "transfer" / closed(Transfer),
    "address" / Int64ul,
    "size_bytes" / Int64ul,
    rules=rules.REGION,
)
NIC: Final = record(r.Nic, "mac" / exact(6), "name" / TEXT)
DISK: Final = record(r.Disk, "size_bytes" / Int64ul, "name" / TEXT, "identity" / TEXT)

GUEST: Final = body(
    r.Guest,
    "architecture" / Int16ul,
    "region_count" / count("regions", *rules.REGION_COUNT),
    "cpu_feature_count" / count("cpu_features", rules.CPU_FEATURE_COUNT),
    "nic_count" / count("nics", rules.NIC_COUNT),
    "disk_count" / count("disks", rules.DISK_COUNT),
    reserved(2),
    "vcpus" / Int32ul,
    "state_bytes" / Ruled(Int64ul, rules.GUEST_STATE_BYTES),
    "name" / TEXT,
    "regions" / Ruled(Rows("region_count", REGION), *rules.REGIONS),
    "cpu_features" / Ruled(Rows("cpu_feature_count", TEXT, least=1), rules.CPU_FEATURE_NAMES),
    "nics" / Ruled(Rows("nic_count", NIC, least=7), rules.NIC_NAMES),
    "disks" / Ruled(Rows("disk_count", DISK, least=10), rules.DISK_NAMES),
)

ACCEPT: Final = body(
    r.Accept,
    "reserved_bytes" / Int64ul,
    "data_streams" / Ruled(Int16ul, rules.ACCEPT_STREAMS),
    reserved(2),
    reserved(4),
)
ATTACH: Final = body(
    r.Attach,
    "session" / ID,
    "token" / TOKEN,
    "generation" / Int32ul,
    "index" / Ruled(Int16ul, rules.STREAM_INDEX),
    reserved(2),
)
ATTACHED: Final = body(
    r.Attached,
    "last_sequence" / Int64ul,
    "generation" / Int32ul,
    "index" / Ruled(Int16ul, rules.STREAM_INDEX),
    reserved(2),
)

# --- rounds -------------------------------------------------------------------------------------

ROUND: Final = body(
    r.Round, "attempt" / Int32ul, "round" / Ruled(Int32ul, rules.ROUND_NUMBER), "pages" / Int64ul
)
ROUND_END: Final = body(
    r.RoundEnd,
    "attempt" / Int32ul,
    "round" / Ruled(Int32ul, rules.ROUND_NUMBER),
    "pages" / Int64ul,
    "bulk_bytes" / Int64ul,
    "stream_count" / count("last_sequences", rules.stream_rules("RND-2")[0]),
    reserved(2),
    reserved(4),
    "last_sequences" / last_sequences("RND-2"),
)
ROUND_ACK: Final = body(
    r.RoundAck,
    "attempt" / Int32ul,
    "round" / Ruled(Int32ul, rules.ACK_ROUND),
    "pages" / Int64ul,
    "receive_rate_bytes_s" / Int64ul,
    "rejected_count" / count("rejected", page_rules.REJECTED_COUNT, page_rules.NONE_REJECTED, width=Int32ul),
    reserved(4),
    "rejected"
    / AtOnce(
        Ruled(
            Rows(
                "rejected_count",
                record(
                    r.PageRange,
                    "region" / Int32ul,
                    reserved(4),
                    "first" / Int64ul,
                    "count" / Int64ul,
                    rules=page_rules.RANGE,
                ),
            ),
            page_rules.REJECTED,
        ),
        r.PageRange,
        ranges_ascend,
    ),
)

# The oracle of pages.py, for tests and for readers.
PAGES: Final = body(
    page_rules.Table,
    "attempt" / Int32ul,
    "round" / Int32ul,
    "region" / Int32ul,
    "run_count" / count("runs", *page_rules.RUN_COUNT, width=Int32ul),
    "hash_count" / count("hashes", width=Int32ul),
    reserved(4),
    "runs"
    / Rows(
        "run_count",
        record(
            page_rules.Run,
            "first" / Int64ul,
            "count" / Ruled(Int32ul, page_rules.RUN_PAGES),
            "size_bytes" / Int32ul,
            "encoding" / closed(Encoding),
            reserved(7),
        ),
    ),
    "hashes" / Rows("hash_count", Int64ul),
    rules=page_rules.TABLE,
)

# --- switchover, state, commit ------------------------------------------------------------------

SWITCHOVER: Final = body(
    r.Switchover,
    "attempt" / Int32ul,
    "style" / closed(Style),
    reserved(1),
    reserved(2),
    "predicted_downtime_us" / Int64ul,
)
READY: Final = body(r.Ready, "attempt" / Int32ul, reserved(4))
NOT_READY: Final = body(r.NotReady, "attempt" / Int32ul, "code" / Int16ul, reserved(2), "text" / TEXT)


def _bitmap(cls: type[Any], *head: Any) -> AnyConstruct:
    """DIRTY_BITMAP and HELD differ in their first fields."""
    return body(
        cls,
        *head,
        reserved(2),
        "data_bytes" / count("data", width=Int32ul),
        "first" / Int64ul,
        "bits" / Int64ul,
        "data" / Blob("data_bytes"),
        rules=page_rules.BITMAP,
    )


DIRTY_BITMAP: Final = _bitmap(
    r.DirtyBitmap,
    "attempt" / Int32ul,
    "region" / Int32ul,
    "encoding" / closed(BitmapEncoding),
    reserved(1),
)
HELD: Final = _bitmap(
    r.Held,
    "round" / Int32ul,
    "region" / Int32ul,
    "encoding" / closed(BitmapEncoding),
    "rejected" / Ruled(FLAG, page_rules.HELD_REJECTED),
)

STATE: Final = body(
    r.State,
    "attempt" / Int32ul,
    "architecture" / Int16ul,
    "kind" / Int16ul,
    "vcpu" / Int32ul,
    "version" / Int32ul,
    "instance" / Int32ul,
    "data_bytes" / count("data", width=Int32ul),
    "total_bytes" / Ruled(Int64ul, rules.STATE_TOTAL),
    "offset" / Int64ul,
    "last" / FLAG,
    reserved(7),
    "data" / Blob("data_bytes"),
    rules=rules.STATE,
)
SEAL: Final = body(
    r.Seal,
    "attempt" / Int32ul,
    "algorithm" / Ruled(closed(Checksum), rules.DIGEST_ALGORITHM),
    reserved(1),
    "stream_count" / count("last_sequences", rules.stream_rules("SEA-2")[0]),
    "state_sections" / Int32ul,
    reserved(4),
    "state_bytes" / Int64ul,
    "digest" / DIGEST,
    "state_digest" / DIGEST,
    "last_sequences" / last_sequences("SEA-2"),
)
LOADED: Final = body(r.Loaded, "attempt" / Int32ul, reserved(4), "digest" / DIGEST)
HANDOVER: Final = body(
    r.Handover, "attempt" / Int32ul, reserved(4), "epoch" / Ruled(Int64ul, rules.HANDOVER_EPOCH)
)
RUNNING: Final = body(r.Running, "epoch" / Int64ul, "runner_id" / ID, "runner_host" / TEXT)
HANDBACK: Final = body(r.HandBack, "epoch" / Int64ul, "runner_id" / ID, "runner_host" / TEXT)

# --- after, any time, ask, stored ---------------------------------------------------------------

PAGE_REQUEST: Final = body(
    r.PageRequest,
    "region" / Int32ul,
    "urgent" / FLAG,
    reserved(1),
    reserved(2),
    "first" / Int64ul,
    "count" / Int64ul,
    rules=page_rules.RANGE,
)
COMPLETE: Final = body(r.Complete, "epoch" / Int64ul, "digest" / DIGEST)
RELEASE: Final = body(r.Release, "epoch" / Int64ul)
BYE: Final = body(r.Bye)
PING: Final = body(r.Ping, "id" / Int64ul)
PONG: Final = body(r.Pong, "id" / Int64ul)
PROGRESS: Final = body(
    r.Progress,
    "phase" / closed(Phase),
    reserved(1),
    reserved(2),
    "round" / Int32ul,
    "pages_total" / Int64ul,
    "pages_remaining" / Int64ul,
    "bulk_bytes" / Int64ul,
    "dirty_rate_bytes_s" / Int64ul,
    "bandwidth_bytes_s" / Int64ul,
    "predicted_downtime_us" / Int64ul,
)
ABORT: Final = body(
    r.Abort,
    "code" / Int16ul,
    "phase" / Int16ul,
    "frame" / Int16ul,
    reserved(2),
    "sequence" / Int64ul,
    "offset" / Int32ul,
    reserved(4),
    "text" / TEXT,
)
VERDICT: Final = body(
    r.Verdict,
    "owner" / closed(Owner),
    "handed_back" / FLAG,
    "complete" / FLAG,
    reserved(1),
    reserved(4),
    "epoch" / Int64ul,
    "runner_id" / ID,
    "digest" / DIGEST,
    "runner_host" / TEXT,
    rules=rules.VERDICT,
)
END: Final = body(r.End, "frames" / Int64ul)

# Declarations have the names of their frames; a frame without one fails at import.
BODIES: Final[dict[FrameType, AnyConstruct]] = {frame: globals()[frame.name] for frame in FrameType}
