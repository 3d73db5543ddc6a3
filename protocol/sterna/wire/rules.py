"""The rules of the specification that a body can be checked for on its own, as data.

A `Rule` is one clause: its id, the error code that it yields, a sentence for the log and a predicate
over the decoded value. The schema hangs rules on the field, list item, list or record they speak of,
so the same rule guards reading and writing, and a violation knows where it is. A rule of one
field is checked there, one of a list's item behind the item, one of a list behind the list, one of several
fields of a body behind its end, so that every receiver names the same code for the same bytes (HDR-11).

Rules about pages (ranges, tables, bitmaps) are in page_rules.py. What a frame means in the conversation
(rounds, attempts, selections, sums) is the core's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Generic, TypeVar

from sterna import registry
from sterna.limits import (
    ADDRESS_SPACE,
    CPU_FEATURES,
    DISKS,
    FEATURES,
    GRANULE_MAX_LOG2,
    GRANULE_MIN_LOG2,
    LIMITS,
    NICS,
    REFUSE_ITEMS,
    STREAMS_MAX,
    VERSIONS,
    Limits,
)
from sterna.registry import IMPLEMENTED_ENCODINGS, Checksum, Encoding, ErrorCode, Mode
from sterna.wire.records import (
    NO_ID,
    NO_TOKEN,
    Disk,
    FeatureChoice,
    FeatureOffer,
    Hello,
    Nic,
    Region,
    State,
    Verdict,
)

T_contra = TypeVar("T_contra", contravariant=True)

FAULT_GRANULE_MAX_LOG2: Final = 30  # 1 GiB, the largest page that an architecture has
U64_MAX: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a frame is held against besides its own layout.

    Attributes:
        limits: reading: what this side announced. Writing: what the peer announced.
        regions: the session's region table by id; None before GUEST. PAGES needs it to be read;
            other ranges of pages are checked against it when it is there.
        encodings: page encodings that may be used, that is those that were selected.
        hashed: whether chunks have hashes; if not, each of them is stated to be 0, and none is rejected.
    """

    limits: Limits = field(default_factory=Limits)
    regions: Mapping[int, Region] | None = None
    encodings: frozenset[Encoding] = IMPLEMENTED_ENCODINGS
    hashed: bool = True


DEFAULT_BOUNDS: Final = Bounds()


class Violation(Exception):  # noqa: N818 - not an error yet: the codec says whose it is
    """A clause does not hold. Stays inside of sterna.wire; `offset` counts from the body's first byte."""

    def __init__(self, code: ErrorCode, clause: str, detail: str, offset: int = 0) -> None:
        super().__init__(code, clause, detail, offset)
        self.code = code
        self.clause = clause
        self.detail = detail
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Rule(Generic[T_contra]):
    """One clause: `holds` tells whether a value obeys it."""

    clause: str
    code: ErrorCode
    text: str
    holds: Callable[[T_contra, Bounds], bool]

    def check(self, value: T_contra, bounds: Bounds, offset: int = 0) -> None:
        """Raise `Violation` unless the rule holds."""
        if not self.holds(value, bounds):
            raise self.violation(offset)

    def violation(self, offset: int) -> Violation:
        """What says that the rule does not hold."""
        return Violation(self.code, self.clause, self.text, offset)


def unique(values: Iterable[object]) -> bool:
    """True if no value comes twice."""
    listed = list(values)
    return len(set(listed)) == len(listed)


def at_most(clause: str, maximum: int, what: str) -> Rule[int]:
    """A count that has a fixed bound."""
    return Rule(clause, ErrorCode.BAD_VALUE, f"more than {maximum} {what}", lambda count, _: count <= maximum)


_BAD = ErrorCode.BAD_VALUE
_REGION = ErrorCode.BAD_REGION

MAGIC: Rule[bytes] = Rule("PRE-2", ErrorCode.BAD_MAGIC, "not the magic", lambda m, _: m == registry.MAGIC)

# --- common -------------------------------------------------------------------------------------

LAST_SEQUENCES: Rule[Sequence[tuple[int, int]]] = Rule(
    "FRM-16",
    _BAD,
    "streams are not in ascending order",
    lambda rows, _: all(a[0] < b[0] for a, b in pairwise(rows)),
)


def stream_rules(clause: str) -> tuple[Rule[int], Rule[int]]:
    """Bounds of a list of last sequences: its count, and each stream number."""
    return (
        at_most(clause, STREAMS_MAX + 1, "streams"),
        Rule(clause, _BAD, f"stream above {STREAMS_MAX}", lambda stream, _: stream <= STREAMS_MAX),
    )


# --- handshake ----------------------------------------------------------------------------------

HELLO_VERSION_COUNT: tuple[Rule[int], ...] = (
    Rule("HEL-2", _BAD, "no version", lambda count, _: count > 0),
    at_most("HEL-2", VERSIONS, "versions"),
)
HELLO_VERSIONS: Rule[Sequence[int]] = Rule("HEL-2", _BAD, "a version twice", lambda v, _: unique(v))
HELLO_FEATURE_COUNT = at_most("HEL-3", FEATURES, "features")
HELLO_FEATURES: Rule[Sequence[FeatureOffer]] = Rule(
    "HEL-3", _BAD, "a feature twice", lambda offers, _: unique(offer.id for offer in offers)
)
HELLO_LIMIT_COUNT = at_most("HEL-4", LIMITS, "limits")
HELLO_LIMITS: Rule[Sequence[tuple[int, int]]] = Rule(
    "HEL-4", _BAD, "a limit twice", lambda pairs, _: unique(number for number, _value in pairs)
)
_OPENING: Final = frozenset({Mode.OPEN, Mode.STORED})  # modes without a session to go on with
HELLO: tuple[Rule[Hello], ...] = (
    Rule(
        "HEL-5",
        _BAD,
        "an opening names a session, token or generation",
        lambda h, _: (
            h.mode not in _OPENING or (h.session == NO_ID and h.token == NO_TOKEN and h.generation == 0)
        ),
    ),
    Rule(
        "HEL-6",
        _BAD,
        "no session to resume or ask for",
        lambda h, _: h.mode in _OPENING or h.session != NO_ID,
    ),
    Rule(
        "HEL-8",
        _BAD,
        "no epochs for a hand-over and a hand-back",
        lambda h, _: h.mode != Mode.OPEN or h.epoch < U64_MAX - 1,
    ),
)

WELCOME_FEATURE_COUNT = at_most("WEL-1", FEATURES, "features")
WELCOME_FEATURES: Rule[Sequence[FeatureChoice]] = Rule(
    "WEL-1", _BAD, "a feature twice", lambda choices, _: unique(choice.id for choice in choices)
)
WELCOME_LIMIT_COUNT = at_most("WEL-2", LIMITS, "limits")
WELCOME_LIMITS: Rule[Sequence[tuple[int, int]]] = Rule(
    "WEL-2", _BAD, "a limit twice", lambda pairs, _: unique(number for number, _value in pairs)
)

REFUSE_ITEM_COUNT = at_most("REF-1", REFUSE_ITEMS, "items")

# --- describe -----------------------------------------------------------------------------------

REGION_COUNT: tuple[Rule[int], ...] = (
    Rule("GST-1", _REGION, "no region", lambda count, _: count > 0),
    Rule("GST-2", ErrorCode.LIMIT_REGIONS, "too many regions", lambda count, b: count <= b.limits.regions),
)
GRANULE: Rule[int] = Rule(
    "GST-4",
    _REGION,
    f"granule_log2 outside of {GRANULE_MIN_LOG2} to {GRANULE_MAX_LOG2}",
    lambda log2, _: GRANULE_MIN_LOG2 <= log2 <= GRANULE_MAX_LOG2,
)
FAULT_GRANULE: Rule[int] = Rule(
    "GST-5",
    _REGION,
    f"fault_granule_log2 outside of {GRANULE_MIN_LOG2} to {FAULT_GRANULE_MAX_LOG2}",
    lambda log2, _: GRANULE_MIN_LOG2 <= log2 <= FAULT_GRANULE_MAX_LOG2,
)
REGION: tuple[Rule[Region], ...] = (
    Rule(
        "GST-6",
        _REGION,
        "address or size is not a multiple of the granule, or the region is empty",
        lambda r, _: r.size_bytes > 0 and (r.address | r.size_bytes) & ((1 << r.granule_log2) - 1) == 0,
    ),
    Rule(
        "GST-7",
        _REGION,
        "the region ends beyond 2**64",
        lambda r, _: r.address + r.size_bytes <= ADDRESS_SPACE,
    ),
)


def _disjoint(regions: Sequence[Region], _: Bounds) -> bool:
    by_address = sorted(regions, key=lambda region: region.address)
    return all(a.address + a.size_bytes <= b.address for a, b in pairwise(by_address))


REGIONS: tuple[Rule[Sequence[Region]], ...] = (
    Rule("GST-3", _REGION, "a region id twice", lambda regions, _: unique(region.id for region in regions)),
    Rule("GST-8", _REGION, "regions overlap", _disjoint),
    Rule(
        "GST-9",
        ErrorCode.LIMIT_MEMORY,
        "more memory than announced",
        lambda regions, b: sum(region.size_bytes for region in regions) <= b.limits.memory_bytes,
    ),
)
GUEST_STATE_BYTES: Rule[int] = Rule(
    "GST-10",
    ErrorCode.LIMIT_STATE,
    "more state than announced",
    lambda state_bytes, b: state_bytes <= b.limits.state_bytes,
)
CPU_FEATURE_COUNT = at_most("GST-11", CPU_FEATURES, "CPU features")
NIC_COUNT = at_most("GST-11", NICS, "NICs")
DISK_COUNT = at_most("GST-11", DISKS, "disks")
CPU_FEATURE_NAMES: Rule[Sequence[str]] = Rule(
    "GST-12", _BAD, "a CPU feature twice", lambda names, _: unique(names)
)
NIC_NAMES: Rule[Sequence[Nic]] = Rule(
    "GST-12", _BAD, "two NICs of one name", lambda nics, _: unique(nic.name for nic in nics)
)
DISK_NAMES: Rule[Sequence[Disk]] = Rule(
    "GST-12", _BAD, "two disks of one name", lambda disks, _: unique(disk.name for disk in disks)
)
ACCEPT_STREAMS = at_most("ACC-2", STREAMS_MAX, "data streams")
STREAM_INDEX: Rule[int] = Rule("ATT-2", _BAD, "no such stream", lambda index, _: index < STREAMS_MAX)

# --- rounds -------------------------------------------------------------------------------------

ROUND_NUMBER: Rule[int] = Rule("RND-1", _BAD, "round 0", lambda number, _: number > 0)
ACK_ROUND: Rule[int] = Rule("RAK-1", _BAD, "round 0", lambda number, _: number > 0)
# --- state --------------------------------------------------------------------------

STATE_TOTAL: Rule[int] = Rule(
    "STA-1",
    ErrorCode.LIMIT_STATE,
    "a state section longer than announced",
    lambda total, b: total <= b.limits.state_bytes,
)
_FRAGMENT = ErrorCode.BAD_FRAGMENT
STATE: tuple[Rule[State], ...] = (
    Rule(
        "STA-2",
        _FRAGMENT,
        "a fragment ends behind its section",
        lambda s, _: s.offset + len(s.data) <= s.total_bytes,
    ),
    Rule(
        "STA-3",
        _FRAGMENT,
        "`last` and the fragment's end disagree",
        lambda s, _: s.last == (s.offset + len(s.data) == s.total_bytes),
    ),
    Rule("STA-4", _FRAGMENT, "an empty fragment", lambda s, _: len(s.data) > 0 or s.total_bytes == 0),
)

DIGEST_ALGORITHM: Rule[Checksum] = Rule(
    "SEA-1", _BAD, "no algorithm for digests", lambda algorithm, _: algorithm is Checksum.XXH3_128
)

# --- commit and after ---------------------------------------------------------------------------

HANDOVER_EPOCH: Rule[int] = Rule("HND-3", _BAD, "no epoch follows", lambda epoch, _: epoch < U64_MAX)
VERDICT: tuple[Rule[Verdict], ...] = (
    Rule("VER-1", _BAD, "handed back and complete", lambda v, _: not (v.handed_back and v.complete)),
    Rule("VER-2", _BAD, "a digest of what is not complete", lambda v, _: v.complete or v.digest == NO_ID),
)
