"""The records: what frames mean, as frozen dataclasses. One class a frame type.

A record that came from the codec is well-formed in itself, and one that is not does not pass the codec on
the way out (sterna.wire.rules). Whether it fits the conversation is the core's business.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from sterna.registry import (
    BitmapEncoding,
    Checksum,
    FrameType,
    Mode,
    Owner,
    Phase,
    RegionKind,
    Style,
    Transfer,
)

NO_ID = bytes(16)
NO_TOKEN = bytes(32)
NO_VCPU = 0xFFFFFFFF  # a state section that belongs to no vCPU

# One row of a page table, 24 bytes on the wire. `size_bytes` is the encoded size of the run.
RUN_DTYPE = np.dtype(
    [
        ("first", "<u8"),
        ("count", "<u4"),
        ("size_bytes", "<u4"),
        ("encoding", "u1"),
        ("reserved", "u1", (7,)),
    ]
)
_ROW = struct.Struct("<QIIB7x")  # the same row
Runs: TypeAlias = npt.NDArray[np.void]
Hashes: TypeAlias = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Runner:
    """Who may run a guest: a host's name and a random id made for one candidate claim."""

    host: str
    id: bytes


NO_RUNNER = Runner("", NO_ID)


@dataclass(frozen=True, slots=True)
class FeatureOffer:
    """One feature of a HELLO."""

    id: int
    required: bool = False
    parameter: int = 0


@dataclass(frozen=True, slots=True)
class FeatureChoice:
    """One feature that WELCOME selects."""

    id: int
    parameter: int = 0


@dataclass(frozen=True, slots=True)
class Region:
    """A range of guest memory. Sizes in bytes; granules as log2 of bytes."""

    id: int
    address: int
    size_bytes: int
    granule_log2: int = 12
    fault_granule_log2: int = 12
    kind: RegionKind = RegionKind.RAM
    transfer: Transfer = Transfer.COPY

    @property
    def pages(self) -> int:
        """Granules in the region."""
        return self.size_bytes >> self.granule_log2


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface: its MAC address goes along."""

    name: str
    mac: bytes


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that both hosts reach, by an identity that both can check."""

    name: str
    identity: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StateSection:
    """A piece of CPU or device state, whole; STATE frames carry it in fragments.

    `kind` and `version` are the registry's; an unknown one is for the guest to refuse.
    """

    kind: int
    version: int
    data: bytes
    architecture: int = 0
    vcpu: int = NO_VCPU
    instance: int = 0


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of a session."""

    type: ClassVar[FrameType] = FrameType.HELLO
    mode: Mode
    versions: tuple[int, ...]
    features: tuple[FeatureOffer, ...]
    limits: dict[int, int]
    guest: bytes
    epoch: int
    runner: Runner
    agent: str = ""
    session: bytes = NO_ID
    token: bytes = field(default=NO_TOKEN, repr=False)  # who has it may take the session over [SEC-5]
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Welcome:
    """The destination takes the session."""

    type: ClassVar[FrameType] = FrameType.WELCOME
    version: int
    session: bytes
    token: bytes = field(repr=False)  # [SEC-5]
    features: tuple[FeatureChoice, ...]
    limits: dict[int, int]
    agent: str = ""
    generation: int = 0
    complete_round: int = 0  # resume only: last complete round; 0 says "no round"
    held_frames: int = 0  # resume only: HELD frames that follow


@dataclass(frozen=True, slots=True)
class Refuse:
    """The destination does not take the session or the guest."""

    type: ClassVar[FrameType] = FrameType.REFUSE
    code: int
    retry_after_ms: int = 0
    items: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Guest:
    """What is to be moved."""

    type: ClassVar[FrameType] = FrameType.GUEST
    name: str
    architecture: int  # an Architecture, or a number that this release does not know
    vcpus: int
    state_bytes: int  # the most that all state sections together will have
    regions: tuple[Region, ...]
    cpu_features: tuple[str, ...] = ()
    nics: tuple[Nic, ...] = ()
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True, slots=True)
class Accept:
    """Everything that GUEST asks for is reserved."""

    type: ClassVar[FrameType] = FrameType.ACCEPT
    reserved_bytes: int
    data_streams: int = 0


@dataclass(frozen=True, slots=True)
class Attach:
    """First frame of a data connection."""

    type: ClassVar[FrameType] = FrameType.ATTACH
    session: bytes
    token: bytes = field(repr=False)  # [SEC-5]
    index: int
    generation: int


@dataclass(frozen=True, slots=True)
class Attached:
    """A data connection is taken; `last_sequence` is the last one applied on that index."""

    type: ClassVar[FrameType] = FrameType.ATTACHED
    index: int
    generation: int
    last_sequence: int


@dataclass(frozen=True, slots=True)
class Held:
    """Resume: pages that the destination applied in a round, or rejected and has not had since."""

    type: ClassVar[FrameType] = FrameType.HELD
    round: int
    region: int
    rejected: bool
    first: int
    bits: int
    encoding: BitmapEncoding
    data: bytes


@dataclass(frozen=True, slots=True)
class Round:
    """A round begins; `pages` is how many the source means to send."""

    type: ClassVar[FrameType] = FrameType.ROUND
    attempt: int
    round: int
    pages: int


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Pages:
    """The table of a batch. The bytes themselves are the frame's bulk part and never in a record.

    Attributes:
        runs: array of `RUN_DTYPE`, ascending and disjoint.
        hashes: one XXH3-64 for each chunk of each run that carries bytes, in order.
    """

    type: ClassVar[FrameType] = FrameType.PAGES
    attempt: int
    round: int
    region: int
    runs: Runs
    hashes: Hashes
    _rows: list[tuple[int, int, int, int]] | None = field(default=None, init=False, repr=False)

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """First page, count, size in bytes and encoding of each run, read once: for tables of a few runs."""
        rows = self._rows
        if rows is None:
            rows = list(_ROW.iter_unpack(self.runs.tobytes()))
            object.__setattr__(self, "_rows", rows)
        return rows

    @property
    def bulk_bytes(self) -> int:
        """Length of the bulk part that this table describes."""
        if len(self.runs) == 1:
            return self.rows[0][2]
        return int(self.runs["size_bytes"].sum(dtype=np.uint64))

    @property
    def page_count(self) -> int:
        """Pages of all runs."""
        counts = self.runs["count"]
        return counts.item() if len(counts) == 1 else int(counts.sum(dtype=np.uint64))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pages):
            return NotImplemented
        mine, theirs = (self.attempt, self.round, self.region), (other.attempt, other.round, other.region)
        return (
            mine == theirs
            and np.array_equal(self.runs, other.runs)
            and np.array_equal(self.hashes, other.hashes)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class RoundEnd:
    """A round is over. `last_sequences`: (stream, sequence number of its last frame of the round)."""

    type: ClassVar[FrameType] = FrameType.ROUND_END
    attempt: int
    round: int
    pages: int
    bulk_bytes: int
    last_sequences: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PageRange:
    """Pages of a region."""

    region: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class RoundAck:
    """The destination has all of a round, but for what it rejects."""

    type: ClassVar[FrameType] = FrameType.ROUND_ACK
    attempt: int
    round: int
    pages: int
    receive_rate_bytes_s: int
    rejected: tuple[PageRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Switchover:
    """The source wants to pause the guest."""

    type: ClassVar[FrameType] = FrameType.SWITCHOVER
    attempt: int
    style: Style
    predicted_downtime_us: int = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """All that can be prepared is prepared."""

    type: ClassVar[FrameType] = FrameType.READY
    attempt: int


@dataclass(frozen=True, slots=True)
class NotReady:
    """The destination cannot take over now; the guest has not been paused."""

    type: ClassVar[FrameType] = FrameType.NOT_READY
    attempt: int
    code: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class DirtyBitmap:
    """Pages that are stale at the destination; bit i is page first + i."""

    type: ClassVar[FrameType] = FrameType.DIRTY_BITMAP
    attempt: int
    region: int
    first: int
    bits: int
    encoding: BitmapEncoding
    data: bytes


@dataclass(frozen=True, slots=True)
class State:
    """A fragment of a state section. `vcpu` is NO_VCPU for what belongs to no vCPU."""

    type: ClassVar[FrameType] = FrameType.STATE
    attempt: int
    architecture: int
    vcpu: int
    kind: int
    version: int
    instance: int
    total_bytes: int
    offset: int
    last: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """Everything of the pause image has been sent: digests of its memory, and of all state sections."""

    type: ClassVar[FrameType] = FrameType.SEAL
    attempt: int
    algorithm: Checksum
    digest: bytes
    state_digest: bytes
    state_sections: int
    state_bytes: int
    last_sequences: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """The destination has loaded everything and computed the same digest; the guest does not run."""

    type: ClassVar[FrameType] = FrameType.LOADED
    attempt: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Handover:
    """Permission to claim `epoch` + 1 and run. `epoch` is the session's."""

    type: ClassVar[FrameType] = FrameType.HANDOVER
    attempt: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Running:
    """The guest runs at the destination under `epoch`."""

    type: ClassVar[FrameType] = FrameType.RUNNING
    epoch: int
    runner: Runner


@dataclass(frozen=True, slots=True)
class HandBack:
    """Claimed, but provably never run: the source may claim the next epoch."""

    type: ClassVar[FrameType] = FrameType.HANDBACK
    epoch: int
    runner: Runner


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The destination's guest waits for these pages."""

    type: ClassVar[FrameType] = FrameType.PAGE_REQUEST
    region: int
    first: int
    count: int
    urgent: bool = True


@dataclass(frozen=True, slots=True)
class Complete:
    """Every page of the pause image is at the destination; the source's image is no longer needed."""

    type: ClassVar[FrameType] = FrameType.COMPLETE
    epoch: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Release:
    """The source frees its image."""

    type: ClassVar[FrameType] = FrameType.RELEASE
    epoch: int


@dataclass(frozen=True, slots=True)
class Bye:
    """Nothing more will be sent."""

    type: ClassVar[FrameType] = FrameType.BYE


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer with PONG of the same id."""

    type: ClassVar[FrameType] = FrameType.PING
    id: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to PING."""

    type: ClassVar[FrameType] = FrameType.PONG
    id: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the sender is. Informative; `pages_remaining` counts what is known to be missing."""

    type: ClassVar[FrameType] = FrameType.PROGRESS
    phase: Phase
    round: int
    pages_total: int
    pages_remaining: int
    bulk_bytes: int
    dirty_rate_bytes_s: int
    bandwidth_bytes_s: int
    predicted_downtime_us: int


@dataclass(frozen=True, slots=True)
class Abort:
    """The sender ends the session. Numbers are raw: a code or phase may be unknown here."""

    type: ClassVar[FrameType] = FrameType.ABORT
    code: int
    phase: int
    frame: int = 0
    sequence: int = 0
    offset: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who owns the guest, as far as the sender knows."""

    type: ClassVar[FrameType] = FrameType.VERDICT
    owner: Owner
    epoch: int
    runner: Runner = NO_RUNNER
    handed_back: bool = False
    complete: bool = False
    digest: bytes = field(default=NO_ID)


@dataclass(frozen=True, slots=True)
class End:
    """End of a stored stream."""

    type: ClassVar[FrameType] = FrameType.END
    frames: int


Record: TypeAlias = (
    Hello | Welcome | Refuse | Guest | Accept | Attach | Attached | Held
    | Round | Pages | RoundEnd | RoundAck
    | Switchover | Ready | NotReady | DirtyBitmap | State | Seal | Loaded
    | Handover | Running | HandBack | PageRequest | Complete | Release | Bye
    | Ping | Pong | Progress | Abort | Verdict | End
)  # fmt: skip
